"""A padded batch in groups of like length answers as the batch itself does."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attar.export import target
from attar.runtimes import find
from attar.runtimes._lengths import CALL, by_length, groups
from attar.runtimes.torch import TorchEncoder
from tiny_models import tiny

LENGTHS = [3, 40, 4, 39, 5, 3, 38, 4] * 2


def batch(lengths: list[int], columns: int) -> tuple[Any, Any]:
    ids, mask = np.zeros((2, len(lengths), columns), np.int64)
    drawn = np.random.default_rng(1)
    for row, length in enumerate(lengths):
        ids[row, :length], mask[row, :length] = drawn.integers(6, 100, length), 1
    return ids, mask


def work(parts: list[list[int]], lengths: list[int]) -> int:
    return sum(CALL + len(part) * max(lengths[place] for place in part) for part in parts)


def test_no_other_way_of_parting_is_less_work() -> None:
    """Against every way of cutting the sorted lengths."""
    drawn = np.random.default_rng(0)
    for count in range(1, 9):
        lengths = drawn.integers(1, 200, count).tolist()
        order = np.argsort(lengths)
        ways = []
        for cuts in range(1 << (count - 1)):
            ends = [0, *(at + 1 for at in range(count - 1) if cuts >> at & 1), count]
            ways.append(work([order[a:b].tolist() for a, b in pairwise(ends)], lengths))
        parts = groups(lengths)
        assert sorted(place for part in parts for place in part) == list(range(count))
        assert work(parts, lengths) == min(ways)
        for part in parts:
            assert len(groups([lengths[place] for place in part])) == 1


def test_a_group_holds_so_many_rows_and_tokens() -> None:
    assert groups([10] * 6, rows=4) == [[0, 1], [2, 3, 4, 5]]
    assert groups([10] * 6, tokens=25) == [[0, 1], [2, 3], [4, 5]]
    assert groups([30, 5], tokens=25) == [[1], [0]]
    assert groups([]) == []


class Recorder:
    """Outputs that tell of each token what it is, and the shapes that were asked for."""

    def __init__(self, long: bool) -> None:
        self.long, self.shapes = long, []

    def __call__(self, ids: Any, mask: Any) -> Any:
        self.shapes.append(ids.shape)
        states = np.stack([ids, mask], 2).astype(np.float32)
        return states if self.long else (states * mask[:, :, None]).sum(1)


@pytest.mark.parametrize("long", [True, False])
def test_outputs_are_back_in_order(long: bool) -> None:
    ids, mask = batch(LENGTHS, 50)
    run = Recorder(long)
    found = by_length(run, ids, mask)
    assert run.shapes == [(10, 5), (6, 40)]
    assert np.array_equal(found, Recorder(long)(ids, mask))


def test_equal_lengths_are_run_as_they_are_and_columns_of_padding_are_cut() -> None:
    for lengths, columns, shape in (([7], 7, (1, 7)), ([9] * 3, 9, (3, 9)), ([4, 5], 30, (2, 5))):
        ids, mask = batch(lengths, columns)
        run = Recorder(True)
        assert np.array_equal(by_length(run, ids, mask), Recorder(True)(ids, mask))
        assert run.shapes == [shape]


@pytest.mark.parametrize("what", ["left", "holes", "empty", "nothing"])
def test_other_masks_are_run_as_they_are(what: str) -> None:
    ids, mask = batch([] if what == "nothing" else LENGTHS, 50)
    if what == "left":
        ids, mask = ids[:, ::-1], mask[:, ::-1]
    elif what == "holes":
        mask[1, 7] = 0
    elif what == "empty":
        mask[3] = 0
    run = Recorder(True)
    by_length(run, ids, mask)
    assert run.shapes == [ids.shape]


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
@pytest.mark.parametrize("task", ["classification", "masked-lm"])
def test_pytorch_answers_as_padded(family: str, task: Any) -> None:
    model = tiny(family, task)
    ids, mask = batch(LENGTHS, 48)
    with torch.inference_mode():
        given = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        wanted = model.module(**given).logits.numpy()
    found = TorchEncoder(model).run(ids, mask)
    _same(found, wanted, mask)


@pytest.mark.parametrize("name", ["onnx", "openvino"])
@pytest.mark.parametrize("task", ["classification", "masked-lm"])
def test_engines_answer_as_padded(
    name: str, task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = target.find(name)
    pytest.importorskip(found.modules[0])
    if name == "openvino":
        from attar.runtimes import openvino

        monkeypatch.setattr(openvino, "SETTINGS", {"INFERENCE_PRECISION_HINT": "f32"})
    found.write(tiny("bert", task), tmp_path)
    ids, mask = batch(LENGTHS, 48)
    with find(found.engine).open(tmp_path, 1) as opened:
        _same(opened.run(ids, mask), opened._together(ids, mask), mask)  # pyright: ignore


def _same(found: Any, wanted: Any, mask: Any) -> None:
    assert found.shape == wanted.shape
    seen = mask == 1 if found.ndim == 3 else np.ones(len(mask), bool)
    assert found[seen] == pytest.approx(wanted[seen], abs=2e-5)
    assert np.abs(wanted[seen]).max() > 0.1
