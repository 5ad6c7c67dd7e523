"""What a server takes and gives: addresses, limits, and which models."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Limits(BaseModel):
    """Bounds on what one request may ask for, and on how much waits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    body: int = Field(default=1_000_000, ge=1_000, description="bytes of a request's body")
    body_seconds: float = Field(
        default=30.0, gt=0, description="seconds until all of the body is here"
    )
    context: int = Field(
        default=2048, ge=8, description="tokens of a prompt and its answer together"
    )
    tokens: int = Field(default=1024, ge=1, description="tokens of an answer")
    texts: int = Field(default=256, ge=1, description="texts or prompts in one request")
    batch: int = Field(default=32, ge=1, description="answers that one model writes at once")
    queue: int = Field(
        default=128, ge=1, description="prompts, or batches of texts, that wait for a model"
    )
    queue_seconds: float = Field(default=60.0, gt=0, description="seconds that a prompt may wait")
    seconds: float = Field(
        default=300.0, gt=0, description="seconds that a request may take in all"
    )
    connections: int = Field(default=512, ge=1, description="connections that are open at once")
    drain: float = Field(
        default=30.0, ge=0, description="seconds that requests get to end after SIGTERM"
    )
    window: float = Field(
        default=0.004,
        ge=0,
        description="seconds that an encoder waits for more texts to run together",
    )


class Source(BaseModel):
    """A model to serve: what clients call it, and where it lies."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="what clients call it")
    path: str = Field(description="a model's folder, a GGUF file, a hub name, or package:NAME")
    task: str | None = Field(
        default=None, description="what it is for, where its config does not say"
    )
    engine: str | None = Field(
        default=None, description="the engine; by default the fastest that holds it"
    )
    original: bool = Field(default=False, description="whether the page shows it beside the others")


class Settings(BaseModel):
    """All that a server is told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: tuple[Source, ...] = Field(
        min_length=1, description="what is served, the first by default"
    )
    host: str = Field(default="127.0.0.1", description="the address to listen on")
    port: int = Field(
        default=8000, ge=0, le=65535, description="the port to listen on; 0 takes a free one"
    )
    keys: tuple[str, ...] = Field(
        default=(), repr=False, description="API keys; without any, none is asked for"
    )
    anyone: bool = Field(default=False, description="listen beyond this machine without keys")
    memory: int | None = Field(
        default=None, ge=1, description="bytes of weights, keys and values that models may take"
    )
    threads: int | None = Field(default=None, ge=1, description="threads that a model computes on")
    limits: Limits = Field(default=Limits(), description="bounds on requests")
