"""A technique's settings plus `apply`: what turns a Model into a Model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast, get_args

from pydantic import BaseModel, ConfigDict, Field

from attar.core.scope import ModuleFact, Scope
from attar.core.traits import FLOAT, Trait
from attar.errors import UserError

if TYPE_CHECKING:
    from attar.core.context import Context

Task = Literal["causal-lm", "masked-lm", "classification", "embedding", "contrastive"]
# Those of one tower; contrastive matches images with texts, by a tower for each.
TASKS: tuple[Task, ...] = ("causal-lm", "masked-lm", "classification", "embedding")
ANSWERING = TASKS[:3]  # the tasks whose models have a head that answers


What = Literal["data", "model", "file"]


@dataclass(frozen=True)
class Reads:
    """Marks a setting that names what the step reads: `data`, a `model`, or a `file` or folder."""

    what: What


@dataclass(frozen=True)
class Unkeyed:
    """Marks a setting that does not change the result, such as how often to checkpoint."""


def is_address(name: str) -> bool:
    """Whether a model's name is the address of a server that answers for it."""
    return name.startswith(("http://", "https://"))


DataRef = Annotated[str, Reads("data")]
ModelRef = Annotated[str, Reads("model")]
FileRef = Annotated[str, Reads("file")]


class Step(BaseModel):
    """Settings of one technique; subclasses state their kind, traits and `apply`.

    `needs` are traits that every module in scope must have, `forbids` those that none may have;
    `removes` and `adds` say how the traits of the `touched` modules change. `whole` says that
    the step trains end to end and needs the whole model in memory, `training_bytes` for each
    weight: by default a weight, its gradient and two moments of AdamW, in float32. `shares` says
    that it may work on blocks that share their weights, for it changes them by gradients of the
    whole; others are refused there. `served` names the settings whose model may be behind an
    address; `any_vocabulary` says that a model it reads may have other tokens than the one that
    the step changes; `media`, that it may work on models that take in images or sounds; `by_block`,
    that each block follows one of a teacher, which must have as many, as wide; `walked`, that it
    goes through the blocks one by one and changes no linear outside them. `promises`
    are held against the result by the guard: `changed` (weights differ from the parent's),
    `smaller` (fewer bytes on disk).
    """

    # Defaults are validated too, so that a default of `q4_0` and a written one are the same.
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
        validate_default=True,
        allow_inf_nan=False,
    )

    kind: ClassVar[str]
    version: ClassVar[int] = 1
    needs: ClassVar[frozenset[Trait]] = frozenset({FLOAT})
    forbids: ClassVar[frozenset[Trait]] = frozenset()
    removes: ClassVar[frozenset[Trait]] = frozenset()
    adds: ClassVar[frozenset[Trait]] = frozenset()
    tasks: ClassVar[tuple[Task, ...]] = ANSWERING
    whole: ClassVar[bool] = False
    training_bytes: ClassVar[int] = 16
    served: ClassVar[frozenset[str]] = frozenset()
    shares: ClassVar[bool] = False
    promises: ClassVar[frozenset[str]] = frozenset({"changed"})
    any_vocabulary: ClassVar[bool] = False
    media: ClassVar[bool] = False
    by_block: ClassVar[bool] = False
    walked: ClassVar[bool] = False

    id: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$",
        description="a name for the stage, to refer to it; the kind's last word by default",
    )
    scope: Scope = Field(default=Scope.everything(), description="the modules to touch")

    def __init_subclass__(cls, kind: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if kind is not None:
            cls.kind = kind

    def apply(self, model: Any, ctx: Context) -> Any:
        """Do the work and return the model; it may be the same object, changed."""
        raise NotImplementedError

    def chosen(self, room: float, traits: Collection[Trait], task: Task, alike: bool) -> Step:
        """The step that this one stands for: itself, unless it leaves the choice to the plan.

        room: bytes of memory for each weight; traits: those that every linear in scope has; task:
        the model's; alike: whether its blocks can follow those of the step's teacher one by one.
        """
        return self

    def bytes_each(self) -> int:
        """What training takes for each weight of the model, in bytes; settings may say less."""
        return self.training_bytes

    def forbidden(self) -> frozenset[Trait]:
        """What no module in scope may be; settings may say more."""
        return self.forbids

    def check(self, modules: Sequence[ModuleFact]) -> Iterable[str]:
        """Say what cannot work on these modules, before any weight loads."""
        return ()

    def unfit(self, task: Task) -> Iterable[str]:
        """Say what in its settings cannot work for a task, of those that it works for."""
        return ()

    def reshape(self, modules: Sequence[ModuleFact]) -> Sequence[ModuleFact]:
        """The modules that there will be after this step."""
        return modules

    def touched(self, modules: Sequence[ModuleFact]) -> Sequence[str]:
        """The modules whose traits change: those in scope, unless a step knows better."""
        return self.scope.select(modules)

    def evened(self, modules: Sequence[ModuleFact]) -> Sequence[str]:
        """The modules that are uneven no longer after this step, if they were."""
        return ()

    def origin(self, modules: Sequence[ModuleFact]) -> Mapping[str, Sequence[str]]:
        """The names that modules may have had before, for those that get another's name.

        Several where it is known only later which modules go.
        """
        return {}

    def foreign(self) -> set[str]:
        """The datasets it reads whose labels are those of other tasks than the recipe's."""
        return set()

    def secrets(self) -> Iterable[str]:
        """The names under which the user's environment must hold something, such as a key."""
        return ()

    def check_data(self, data: Mapping[str, Any]) -> Iterable[str]:
        """Say what cannot work with datasets that it reads, by name, before any weight loads.

        Data that a step makes is not there yet.
        """
        return ()

    def insist(self, modules: Sequence[ModuleFact]) -> None:
        """Raise UserError where `check` has anything to say."""
        for problem in self.check(modules):
            raise UserError(f"{self.kind}: {problem}")

    def references(self, what: What) -> Iterator[tuple[str, str]]:
        """Pairs of setting and the name it holds, for settings that read `what`."""
        for name in self.reading(what):
            value: Any = getattr(self, name)
            items = cast("Sequence[Any]", value) if isinstance(value, list | tuple) else [value]
            yield from ((name, item) for item in items if isinstance(item, str))

    def keyed_references(self, what: What, key: Callable[[str], str]) -> dict[str, str | list[str]]:
        """The key of what each setting reads; of all that it names where it is a list."""
        found: dict[str, list[str]] = {}
        for setting, name in self.references(what):
            found.setdefault(setting, []).append(key(name))
        one = {name for name in found if isinstance(getattr(self, name), str)}
        return {name: keys[0] if name in one else keys for name, keys in found.items()}

    @classmethod
    def reading(cls, what: What) -> list[str]:
        """The settings that read `what`."""
        mark = Reads(what)
        return [
            name
            for name, field in cls.model_fields.items()
            if mark in field.metadata or _mentions(field.annotation, mark)
        ]

    def settings(self) -> dict[str, Any]:
        """Every setting as plain data, defaults included, without the id."""
        return self.model_dump(mode="json", exclude={"id"})

    def keyed_settings(self) -> dict[str, Any]:
        """The settings that change the result: what goes into the key."""
        fields = type(self).model_fields
        return {
            name: value
            for name, value in self.settings().items()
            if not any(isinstance(mark, Unkeyed) for mark in fields[name].metadata)
        }


class DataStep(Step):
    """Settings of a technique that makes a dataset; the model goes on as it is.

    The dataset is called by the step's id, and later steps name it where they name data.
    """

    needs = frozenset[Trait]()
    promises = frozenset[str]()
    any_vocabulary = True

    # no module is touched, so there is nothing to choose
    scope: ClassVar[Scope] = Scope.everything()  # pyright: ignore[reportIncompatibleVariableOverride]

    def make(self, ctx: Context) -> Any:
        """Do the work and return the Dataset."""
        raise NotImplementedError

    def asks(self) -> Mapping[str, tuple[Task, ...]]:
        """What the models that it names must be for, by setting, where that matters.

        Where it is one task, the model is loaded for it; where several, for the recipe's own,
        which must be one of them.
        """
        return {}


def _mentions(annotation: Any, mark: Reads) -> bool:
    """Whether a mark sits inside a type, as in `ModelRef | None`."""
    if mark in getattr(annotation, "__metadata__", ()):
        return True
    return any(_mentions(inner, mark) for inner in get_args(annotation))
