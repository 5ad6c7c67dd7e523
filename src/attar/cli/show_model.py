"""A model: its family, its sizes, and the names that a scope can select; no weights are read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attar.core.scope import ModuleFact
    from attar.models import Files, Model

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


@dataclass(frozen=True)
class Kind:
    """Modules alike in all blocks: their pattern, what they are, and how many there are."""

    pattern: str
    role: str
    shape: tuple[int, ...]
    grid: str
    count: int


def show_model(path: str) -> None:
    """Print what is known of a model from its headers."""
    from rich.console import Console
    from rich.text import Text

    from attar.cli.message import print_facts
    from attar.core.recipe import ModelSource
    from attar.models import resolve

    source = ModelSource(path=path)
    files = resolve(source)
    model, remark = _skeleton(files, source)
    console = Console()
    print_facts(_facts(files, model, remark))
    console.print()
    console.print(_table(kinds_of(model)))
    console.print(
        Text("A scope takes roles, blocks[2:6], and patterns over these names.", style="dim")
    )


def _skeleton(files: Files, source: Any) -> tuple[Model, str]:
    from attar.errors import ModelError
    from attar.models.load import config_of, skeleton, task_of

    config = config_of(files, source)
    try:
        task, remark = task_of(config, files), ""
    except ModelError:
        task, remark = "masked-lm", " (the config does not say; name it in the recipe)"
    return skeleton(config, task), remark


def _facts(files: Files, model: Model, remark: str) -> dict[str, str]:
    from attar.present.plain import bytes_text, count_text

    config = model.config
    weights = files.weights
    facts = {
        "files": f"{files.gguf or files.folder}",
        "on disk": f"{bytes_text(files.size)} in {', '.join(path.name for path in weights[:3])}"
        + (f" and {len(weights) - 3} more" if len(weights) > 3 else ""),
        "family": str(config.model_type),
        "task": f"{model.task}{remark}",
        "blocks": str(len(model.blocks)),
        "hidden": _hidden(config),
        **({"vocabulary": str(model.vocabulary)} if model.vocabulary else {}),
        "parameters": count_text(model.parameters_count()),
    }
    heads = [fact.heads for fact in model.facts() if fact.heads is not None]
    if heads:
        queries, keys = (_range(n) for n in zip(*((h.queries, h.keys) for h in heads), strict=True))
        facts["heads"] = f"{queries}, {keys} of keys and values"
    if getattr(config, "tie_word_embeddings", False) and model.task.endswith("-lm"):
        facts["tied"] = "the head shares the embedding's table"
    return facts


def _hidden(config: Any) -> str:
    """The hidden size; of two towers, that of the text's and that of the image's."""
    if hasattr(config, "vision_config"):
        return f"{config.text_config.hidden_size}, {config.vision_config.hidden_size} of images"
    return str(config.hidden_size)


def _range(numbers: Sequence[int]) -> str:
    """One number, or the least and the most where blocks differ."""
    least, most = min(numbers), max(numbers)
    return f"{least}" if least == most else f"{least} to {most}"


def kinds_of(model: Model) -> list[Kind]:
    """The modules, those that are alike in all blocks as one."""
    found: dict[tuple[str, str, tuple[int, ...], str], int] = {}
    for fact in model.facts():
        same = (_pattern(fact), fact.role, fact.shape, _grid(model, fact.name))
        found[same] = found.get(same, 0) + 1
    return [Kind(*same, count) for same, count in found.items()]


def _pattern(fact: ModuleFact) -> str:
    return fact.name if fact.block is None else _NUMBER.sub("*", fact.name, count=1)


def _grid(model: Model, name: str) -> str:
    grid = getattr(model.module.get_submodule(name), "grid", None)
    return "" if grid is None else grid.name


def _table(kinds: list[Kind]) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, show_edge=False)
    table.add_column("modules", overflow="fold")
    table.add_column("role")
    table.add_column("shape", justify="right")
    table.add_column("count", justify="right")
    if any(kind.grid for kind in kinds):
        table.add_column("grid")
    for kind in kinds:
        shape = " × ".join(str(size) for size in kind.shape)
        table.add_row(Text(kind.pattern), kind.role, shape, str(kind.count), kind.grid)
    return table
