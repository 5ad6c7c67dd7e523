"""Texts that grow together are each what they are alone, whenever they come and go."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from attar.models.rows import Rows
from tiny_models import DECODERS, press, shuffled, tiny

SPECIAL = 6


def prompt(seed: int, length: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(SPECIAL, 100, (length,), generator=generator).tolist()


def alone(model: Any, ids: list[int], count: int) -> tuple[list[int], list[np.ndarray]]:
    """A greedy answer, all of the text computed anew for each token; and the logits before each."""
    ids, written, seen = list(ids), [], []
    for _ in range(count):
        with torch.no_grad():
            logits = model.module(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        seen.append(logits.float().numpy())
        written.append(int(logits.argmax()))
        ids.append(written[-1])
    return written, seen


def together(model: Any, texts: dict[int, list[int]], starts: dict[int, int], count: int) -> Any:
    """The same answers from rows that begin at different steps."""
    rows = Rows(model)
    written: dict[int, list[int]] = {name: [] for name in texts}
    seen: dict[int, list[np.ndarray]] = {name: [] for name in texts}
    for step in range(max(starts.values()) + count + 2):
        given: dict[int, list[int]] = {}
        for name, ids in texts.items():
            if step == starts[name]:
                given[name] = ids[:7]
            elif step == starts[name] + 1 and len(ids) > 7:
                given[name] = ids[7:]
            elif step > starts[name] and 0 < len(written[name]) < count:
                given[name] = [written[name][-1]]
        if not given:
            continue
        logits = rows.extend(given)
        for name in given:
            if step == starts[name] and len(texts[name]) > 7:
                continue  # half of the prompt
            written[name].append(int(logits[name].argmax()))
            seen[name].append(logits[name])
            if len(written[name]) == count:
                rows.drop(name)
    return written, seen, rows


@pytest.mark.parametrize("family", DECODERS)
def test_every_row_is_as_it_is_alone(family: str):
    model = tiny(family)
    texts = {name: prompt(name, length) for name, length in enumerate((12, 3, 20, 9, 1))}
    starts = {0: 0, 1: 2, 2: 3, 3: 6, 4: 9}
    written, seen, rows = together(model, texts, starts, 10)
    for name, ids in texts.items():
        tokens, logits = alone(model, ids, 10)
        assert np.abs(np.stack(seen[name]) - np.stack(logits)).max() < 2e-4
        assert written[name] == tokens
    assert rows._table.rows == 0


def test_the_order_of_coming_and_going_does_not_matter():
    model = tiny("llama")
    texts = {name: prompt(name, 2 + name) for name in range(12)}
    expected = {name: alone(model, ids, 8)[0] for name, ids in texts.items()}
    for seed in range(3):
        order = shuffled(12, seed)
        starts = {name: 2 * order[name] // 3 for name in texts}
        assert together(model, texts, starts, 8)[0] == expected


def test_a_quantized_model_too():
    model = press(tiny("llama"))
    texts = {name: prompt(name, 4 + 3 * name) for name in range(4)}
    expected = {name: alone(model, ids, 6)[0] for name, ids in texts.items()}
    assert together(model, texts, dict.fromkeys(texts, 0), 6)[0] == expected


def test_room_is_used_again():
    """Rows that come and go for long: columns slide back, and nothing grows."""
    model = tiny("llama")
    rows = Rows(model)
    last: dict[int, int] = {}
    expected, ids = [], prompt(0, 10)
    columns = set()
    for step in range(450):
        if step % 20 == 0:
            for name in [name for name in last if name < step - 20]:
                rows.drop(name)
                del last[name]
            last[step] = int(rows.extend({step: ids})[step].argmax())
            expected.append(last[step])
        else:
            logits = rows.extend({name: [token] for name, token in last.items()})
            last = {name: int(logits[name].argmax()) for name in last}
        columns.add(rows._table.cache.layers[0].columns if rows._table.cache else 0)
    assert len(set(expected)) == 1
    assert max(columns) <= 512


def test_a_row_can_be_dropped_at_any_time():
    model = tiny("llama")
    rows = Rows(model)
    ids = prompt(1, 9)
    rows.extend({1: ids[:4]})
    rows.drop(1)  # half read
    rows.drop(2)  # never there
    first = int(rows.extend({3: ids})[3].argmax())
    rows.extend({3: [first]})
    rows.clear()
    tokens, _ = alone(model, ids, 3)
    again = [int(rows.extend({4: ids})[4].argmax())]
    for _ in range(2):
        again.append(int(rows.extend({4: [again[-1]]})[4].argmax()))
    assert again == tokens
