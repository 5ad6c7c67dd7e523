"""What clients may send: OpenAI's parameters, those that Attar heeds and those that change nothing.

A parameter that Attar cannot heed is refused, never dropped silently.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    FiniteFloat,
    Tag,
    field_validator,
    model_validator,
)


def _whole(text: str) -> str:
    """JSON may name halves of a character, which no text can hold."""
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("this is not valid Unicode")
    return text


Words = Annotated[str, AfterValidator(_whole)]
Text = Annotated[Words, Field(min_length=1)]
# `fail_fast`: half a million mistakes in one body would take seconds, and gigabytes, to be told
Ids = Annotated[list[Annotated[int, Field(ge=0, le=2**31)]], Field(min_length=1, fail_fast=True)]
Texts = Annotated[list[Text], Field(min_length=1, fail_fast=True)]
Rows = Annotated[list[Ids], Field(min_length=1, fail_fast=True)]


def _kind(given: Any) -> str | None:
    """Which of the kinds it would be: what is wrong is told of that one alone."""
    if isinstance(given, str):
        return "text"
    if not isinstance(given, list | tuple):
        return None
    several = cast("list[Any]", given)
    if several and isinstance(several[0], int | float):
        return "ids"
    return "rows" if several and isinstance(several[0], list | tuple) else "texts"


def _any_of(schema: dict[str, Any]) -> None:
    """The kinds need not exclude one another, as those that are told apart so are described to."""
    schema["anyOf"] = schema.pop("oneOf")


Input = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[Ids, Tag("ids")]
    | Annotated[Texts, Tag("texts")]
    | Annotated[Rows, Tag("rows")],
    Discriminator(
        _kind,
        custom_error_type="kind",
        custom_error_message="give a text, token ids, or a list of either",
    ),
    Field(json_schema_extra=_any_of),
]


def _whole_or_parts(given: Any) -> str | None:
    kind = _kind(given)
    return kind if kind in ("text", None) else "parts"


def _fields(given: Any) -> dict[Any, Any] | None:
    """The fields of an object; None of anything else, which is refused as what it is."""
    return cast("dict[Any, Any]", given) if isinstance(given, dict) else None


class _Known(BaseModel):
    """Refuses fields that it does not know; a hundred thousand of them as the first alone."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _first(cls, given: Any) -> Any:
        fields = _fields(given)
        if fields is None:
            return given
        others = {*[name for name in fields if name not in cls.model_fields][1:]}
        return {name: value for name, value in fields.items() if name not in others}


class Request(_Known):
    """Fields of every request."""

    model: Words | None = Field(None, description="a model's name; the server's first by default")
    user: str | None = Field(None, description="taken, and changes nothing")


class StreamOptions(_Known):
    """What a stream ends with."""

    include_usage: bool = Field(False, description="end with a chunk of token counts")
    include_obfuscation: bool = Field(False, description="taken, and changes nothing")


class Generation(Request):
    """Fields of a request for text."""

    temperature: FiniteFloat | None = Field(None, ge=0, le=2, description="0 takes the likeliest")
    top_p: FiniteFloat | None = Field(None, ge=0, le=1, description="share of the likeliest")
    top_k: int | None = Field(None, ge=0, le=2**31, description="how many of the likeliest; 0: all")
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1, description="draws the same again")
    stop: Words | Annotated[list[Words], Field(fail_fast=True)] | None = Field(
        None, description="up to 4 words that end the answer"
    )
    stream: bool | None = Field(None, description="send the answer in pieces, as it is written")
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1, le=2**31, description="tokens of the answer")
    n: Literal[1] | None = Field(None, description="answers; one is given")
    frequency_penalty: Literal[0] | None = Field(None, description="not offered: 0")
    presence_penalty: Literal[0] | None = Field(None, description="not offered: 0")
    logit_bias: dict[str, Any] | None = Field(None, max_length=0, description="not offered: empty")
    metadata: dict[str, Any] | None = Field(None, description="taken, and changes nothing")
    store: bool | None = Field(None, description="taken, and changes nothing")
    service_tier: str | None = Field(None, description="taken, and changes nothing")

    @field_validator("frequency_penalty", "presence_penalty", mode="before")
    @classmethod
    def _zero(cls, value: Any) -> Any:
        """Clients write 0.0."""
        return 0 if isinstance(value, float) and value == 0 else value

    @field_validator("stop")
    @classmethod
    def _few(cls, stop: str | list[str] | None) -> str | list[str] | None:
        words = [stop] if isinstance(stop, str) else stop or []
        if len(words) > 4 or any(not word for word in words):
            raise ValueError("give up to 4 words, none of them empty")
        return stop

    @model_validator(mode="after")
    def _streams(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options goes with stream: true")
        return self

    def stops(self) -> tuple[str, ...]:
        """The stop words."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class Part(_Known):
    """A part of a message; text is the only kind there is."""

    type: Literal["text"]
    text: Words


class Message(_Known):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Annotated[Words, Tag("text")]
        | Annotated[list[Part], Field(min_length=1, fail_fast=True), Tag("parts")],
        Discriminator(
            _whole_or_parts,
            custom_error_type="kind",
            custom_error_message="give a text, or a list of parts",
        ),
        Field(json_schema_extra=_any_of),
    ]
    name: str | None = Field(None, description="taken, and changes nothing")
    refusal: None = None

    @model_validator(mode="before")
    @classmethod
    def _given(cls, given: Any) -> Any:
        """Clients send an answer back as they got it, with fields that say nothing."""
        fields = _fields(given)
        if fields is None:
            return given
        own = cls.model_fields
        return {name: value for name, value in fields.items() if name in own or value is not None}

    def plain(self) -> dict[str, str]:
        """As chat templates know it."""
        role = "system" if self.role == "developer" else self.role
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return {"role": role, "content": text}


class Format(_Known):
    """What an answer is written as."""

    type: Literal["text"] = "text"


class Chat(Generation):
    """A request to /v1/chat/completions."""

    messages: Annotated[list[Message], Field(fail_fast=True)] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31, description="as max_tokens")
    logprobs: bool | None = Field(None, description="log-probabilities of the tokens written")
    top_logprobs: int | None = Field(None, ge=0, le=20, description="of so many others too")
    response_format: Format | None = Field(None, description="text is the only one")
    tools: list[Any] | None = Field(None, max_length=0, description="not offered: empty")
    tool_choice: Literal["none", "auto"] | None = Field(None, description="changes nothing")
    parallel_tool_calls: bool | None = Field(None, description="taken, and changes nothing")


class Completion(Generation):
    """A request to /v1/completions."""

    prompt: Input
    logprobs: int | None = Field(None, ge=0, le=5, description="log-probabilities, and how many")
    echo: Literal[False] | None = Field(None, description="not offered")
    best_of: Literal[1] | None = Field(None, description="not offered: 1")
    suffix: None = Field(None, description="not offered")


class Embedding(Request):
    """A request to /v1/embeddings."""

    input: Input
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: None = Field(None, description="not offered")


class Classification(Request):
    """A request to /classify."""

    input: Input
