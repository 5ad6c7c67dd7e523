"""Against plain float64 sums over logits that exist all at once."""

from __future__ import annotations

import json

import pytest
import torch

from attar.data.batches import Batch
from attar.measure import quality
from attar.measure.quality import Items, compare, figures, judge, reference_states
from attar.models.model import Model
from tiny_models import DECODERS, ENCODERS, LABELS, tiny

IGNORED = -100


def _batches(task: str, rows: int = 6, length: int = 12, size: int = 4) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(6, 100, (rows, length), generator=generator)
    attended = torch.ones_like(ids)
    attended[1, 9:] = 0  # a short text, padded on the right
    ids[attended == 0] = 0
    if task == "classification":
        labels = torch.randint(0, len(LABELS), (rows,), generator=generator)
        labels[2] = IGNORED
    elif task == "masked-lm":
        chosen = torch.rand(rows, length, generator=generator) < 0.3
        labels = ids.masked_fill(~chosen | (attended == 0), IGNORED)
        ids = ids.masked_fill(chosen, 4)
    else:
        labels = ids.masked_fill(attended == 0, IGNORED)
    parts = zip(ids.split(size), attended.split(size), labels.split(size), strict=True)
    return [Batch(*part) for part in parts]


def _plain(model: Model, reference: Model, batch: Batch) -> list[tuple[float, int, float, int]]:
    """(nll, judged, kl, agreed) of each row, from the whole logits at once, in float64."""
    with torch.no_grad():
        own = model.logits(batch).double().log_softmax(-1)
        base = reference.logits(batch).double().log_softmax(-1)
    labels = batch.labels
    if model.task == "causal-lm":
        own, base, labels = own[:, :-1], base[:, :-1], labels[:, 1:]
    if model.task == "classification":
        own, base, labels = own[:, None], base[:, None], labels[:, None]
    found = []
    for row in range(len(labels)):
        judged = labels[row] != IGNORED
        which = torch.ones_like(judged) if model.task == "classification" else judged
        nll = -own[row][judged].gather(-1, labels[row][judged][:, None]).sum()
        kl = (base[row].exp() * (base[row] - own[row])).sum(-1)[which].sum()
        agreed = (own[row].argmax(-1) == base[row].argmax(-1))[which].sum()
        found.append((float(nll), int(judged.sum()), float(kl), int(agreed)))
    return found


PAIRS = [
    *((name, "causal-lm") for name in DECODERS),
    *((name, "masked-lm") for name in ENCODERS),
    ("bert", "classification"),
    ("modernbert", "classification"),
]


@pytest.mark.parametrize(("family", "task"), PAIRS)
def test_is_the_plain_sum(family: str, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "_CHUNK", 7)
    monkeypatch.setattr(quality, "_CACHED", 300)
    model, reference = tiny(family, task), tiny(family, task, seed=1)
    batches = _batches(task)
    items = judge(model, batches, reference)
    wanted = [row for batch in batches for row in _plain(model, reference, batch)]
    assert items.tokens == [judged for _, judged, _, _ in wanted]
    assert items.agreed == [agreed for *_, agreed in wanted]
    assert items.nll == pytest.approx([nll for nll, *_ in wanted], rel=1e-5, abs=1e-5)
    assert items.kl == pytest.approx([kl for _, _, kl, _ in wanted], rel=1e-5, abs=1e-5)
    assert not items.nan


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize(
    ("family", "task"),
    [("llama", "causal-lm"), ("gemma2", "causal-lm"), ("bert", "masked-lm"), PAIRS[-2]],
)
def test_kept_states_judge_like_the_reference_itself(
    family: str, task: str, precision: str
) -> None:
    model, reference = tiny(family, task), tiny(family, task, seed=1)
    batches = _batches(task)
    states = reference_states(reference, batches, precision)
    assert judge(model, batches, states, precision) == judge(model, batches, reference, precision)


def test_bf16_is_near_float32() -> None:
    model, batches = tiny("llama"), _batches("causal-lm")
    exact, near = judge(model, batches), judge(model, batches, precision="bf16")
    assert near.nll != exact.nll
    assert near.nll == pytest.approx(exact.nll, rel=0.03)


def test_against_itself_nothing_is_lost() -> None:
    model, batches = tiny("llama"), _batches("causal-lm")
    items = judge(model, batches, model)
    assert items.kl == pytest.approx([0.0] * 6, abs=1e-6)
    assert items.agreed == items.tokens
    found = compare(items, items).perplexity_ratio
    assert found is not None
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)


def test_padding_on_the_left_is_not_judged() -> None:
    ids = torch.tensor([[0, 0, 7, 8, 9]])
    mask = torch.tensor([[0, 0, 1, 1, 1]])
    items = judge(tiny("llama"), [Batch(ids, mask, ids.masked_fill(mask == 0, IGNORED))])
    assert items.tokens == [2]


def test_another_vocabulary_has_no_divergence() -> None:
    items = judge(tiny("llama"), _batches("causal-lm"), tiny("llama", vocab_size=120))
    assert items.kl is None
    assert items.agreed is None
    assert "kl" not in figures(items, None, "causal-lm")


def test_nan_is_seen_and_survives_json() -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.blocks[1].mlp.down_proj.weight[0, 0] = float("nan")
    items = judge(model, _batches("causal-lm"))
    assert items.nan
    plain = json.loads(json.dumps(items.to_plain(), allow_nan=False))
    again = Items.from_plain(plain)
    assert again.nan
    assert again.nll[0] != again.nll[0]


def test_nan_in_a_classifier_without_labels() -> None:
    model = tiny("bert", "classification")
    with torch.no_grad():
        model.module.classifier.weight[0, 0] = float("nan")
    batch = _batches("classification")[0]
    batch.labels = torch.full_like(batch.labels, IGNORED)
    assert judge(model, [batch]).nan


def test_items_survive_json() -> None:
    items = judge(tiny("llama"), _batches("causal-lm"), tiny("llama", seed=1))
    assert Items.from_plain(json.loads(json.dumps(items.to_plain()))) == items


def test_states_of_other_batches_are_refused() -> None:
    model, batches = tiny("llama"), _batches("causal-lm")
    states = reference_states(model, batches[:1])
    with pytest.raises(ValueError, match="do not fit"):
        judge(model, batches, states)


def test_a_sequence_without_a_judged_token_counts_nothing() -> None:
    batch = _batches("masked-lm")[0]
    batch.labels[0] = IGNORED
    items = judge(tiny("bert"), [batch])
    assert (items.nll[0], items.tokens[0]) == (0.0, 0)
    batch.labels[:] = IGNORED
    items = judge(tiny("bert"), [batch])
    assert items.tokens == [0] * 4
    assert figures(items, None, "masked-lm") == {}


class _Shown:
    """Progress that remembers."""

    def __init__(self) -> None:
        self.done, self.total = 0.0, 0.0

    def bar(self, label: str, total: float) -> _Shown:
        self.total += total
        return self

    def __enter__(self) -> _Shown:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def advance(self, amount: float = 1, text: str | None = None) -> None:
        self.done += amount

    def say(self, text: str) -> None:
        return None


def test_shows_its_progress_to_the_end() -> None:
    shown = _Shown()
    judge(tiny("llama"), _batches("causal-lm"), progress=shown)
    assert (shown.done, shown.total) == (6, 6)
