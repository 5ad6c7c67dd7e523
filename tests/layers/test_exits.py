"""Exits: rows leave one by one, with the answer that they would have alone, for every family."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from attar.layers import Exits, all_blocks, swap
from attar.models import Model, load, save
from attar.models.blocks import recorded
from attar.models.pooling import head_of, pooling_of
from attar.models.source import Files
from attar.ops.exits import uncertainty
from tiny_models import DECODERS, ENCODERS, LABELS, batch, tiny

every = pytest.mark.parametrize("family", [*ENCODERS, *DECODERS])
ROWS, LENGTH = 6, 16


def with_exits(family: str, threshold: float = 0.0, drawn: int = 1, **overrides: Any) -> Model:
    """A tiny classifier with exits after its first two blocks, which say random things."""
    model = tiny(family, "classification", **overrides)
    torch.manual_seed(drawn)
    sizes = (32, 16, len(LABELS))
    where = model.blocks_name, head_of(model), pooling_of(model)
    exits = Exits([0, 1], sizes, *where, threshold).to(model.module.dtype)
    with torch.no_grad():
        for exit_ in exits.values():
            exit_.out.weight.mul_(20)  # so that some rows are sure, and others are not
    swap(model.module, "exits", exits)
    return model


def given(model: Model, seed: int = 0) -> dict[str, torch.Tensor]:
    """Rows of other lengths, some padded."""
    rows = batch(model, ROWS, LENGTH, seed)
    for row, real in enumerate((16, 8, 11, 16, 5, 13)):
        rows.attention_mask[row, real:] = 0
    ids = rows.input_ids.where(rows.attention_mask.bool(), 0)
    return {"input_ids": ids, "attention_mask": rows.attention_mask}


def alone(model: Model, inputs: Any) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What each exit answers to the whole batch's hidden states, and the whole model's answer."""
    with torch.no_grad(), all_blocks(model.module), recorded(model) as states:
        last = model.module(**inputs).logits
    exits = model.module.exits
    reads = exits.reads(model.config, inputs)
    with torch.no_grad():
        return [exits.answers(i, states[i + 1], reads) for i in (0, 1)], last


def one_by_one(family: str) -> Model:
    """A model of whose rows some leave at the first exit, some at the second, and some never."""
    for drawn in range(50):
        model = with_exits(family, drawn=drawn)
        first, second = (uncertainty(logits) for logits in alone(model, given(model))[0])
        for threshold in sorted([*first.tolist(), *second.tolist()]):
            at_first, at_second = first <= threshold, (first > threshold) & (second <= threshold)
            if at_first.any() and at_second.any() and (at_first | at_second).sum() < ROWS:
                model.module.exits.threshold = threshold + 1e-5
                return model
    raise AssertionError("no such threshold")


@every
def test_rows_leave_with_the_answer_they_would_have_alone(family: str) -> None:
    model = one_by_one(family)
    inputs, threshold = given(model), model.module.exits.threshold
    own, last = alone(model, inputs)
    first, second = (uncertainty(logits) <= threshold for logits in own)
    wanted = torch.where(first[:, None], own[0], torch.where(second[:, None], own[1], last))
    with torch.no_grad():
        found = model.module(**inputs).logits
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@every
def test_blocks_after_an_exit_are_given_fewer_rows(family: str) -> None:
    model = one_by_one(family)
    inputs, threshold = given(model), model.module.exits.threshold
    own, _ = alone(model, inputs)
    first, second = (uncertainty(logits) <= threshold for logits in own)
    seen: list[int] = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    with torch.no_grad():
        model.module(**inputs)
    assert seen == [ROWS, int((~first).sum()), int((~first & ~second).sum())]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("family", [*ENCODERS, *(name for name in DECODERS if name != "gemma2")])
def test_all_leave_at_the_first_exit_at_one(family: str, implementation: str) -> None:
    model = with_exits(family, 1.0)
    model.module.set_attn_implementation(implementation)
    for inputs in (given(model), {name: rows[:1] for name, rows in given(model).items()}):
        with torch.no_grad():
            found = model.module(**inputs).logits
        torch.testing.assert_close(found, alone(model, inputs)[0][0])


@every
def test_nothing_changes_at_zero(family: str) -> None:
    model = with_exits(family)
    inputs, plain = given(model), tiny(family, "classification")
    with torch.no_grad():
        assert torch.equal(model.module(**inputs).logits, plain.module(**inputs).logits)


@every
def test_all_rows_go_through_all_blocks_where_more_is_asked_for(family: str) -> None:
    model, plain = with_exits(family, 1.0), tiny(family, "classification").module
    inputs = given(model)
    wanted = plain(**inputs).logits
    assert torch.equal(model.module(**inputs).logits, wanted)  # gradients are enabled
    with torch.no_grad():
        found = model.module(**inputs, output_hidden_states=True)
        assert torch.equal(found.logits, wanted)
        assert {len(states) for states in found.hidden_states} == {ROWS}
        assert torch.equal(model.base(**inputs)[0], plain.base_model(**inputs)[0])


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_the_loss_is_that_of_the_answers_given(family: str) -> None:
    model = with_exits(family, 0.5)
    labels = torch.arange(ROWS) % 3
    with torch.no_grad():
        found = model.module(**given(model), labels=labels)
    wanted = torch.nn.functional.cross_entropy(found.logits, labels)
    torch.testing.assert_close(found.loss, wanted)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saves_and_loads_bit_equal(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = with_exits(family, 0.4, dtype=dtype)
    inputs = given(model)
    save(model, tmp_path)
    again = load(Files(tmp_path))
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert again.facts() == model.facts()
    for name, weight in model.module.state_dict().items():
        assert torch.equal(again.module.state_dict()[name], weight), name
    ids, mask = inputs.values()
    with torch.inference_mode():
        wanted = again.module(**inputs).logits
        # The last bits of a product of one row depend on where in memory the weights lie.
        torch.testing.assert_close(model.module(**inputs).logits, wanted)
        assert torch.equal(plain(**inputs).logits, wanted)
        assert torch.equal(plain(ids, attention_mask=mask).logits, wanted)


def test_the_model_is_watched_once(tmp_path: Path) -> None:
    model = with_exits("bert")
    save(model, tmp_path)
    for module in (model.module, load(Files(tmp_path)).module):
        assert (len(module._forward_pre_hooks), len(module._forward_hooks)) == (1, 1)


def test_the_mean_is_read_where_the_head_reads_it() -> None:
    model = with_exits("modernbert", 1.0, classifier_pooling="mean")
    inputs = given(model)
    with torch.no_grad():
        found = model.module(**inputs).logits
    torch.testing.assert_close(found, alone(model, inputs)[0][0])
    with torch.no_grad():  # padding is not read
        cut = {name: rows[4:5, :5] for name, rows in inputs.items()}
        torch.testing.assert_close(model.module(**cut).logits, found[4:5], atol=1e-4, rtol=1e-4)


def test_modules_that_are_swapped_later_are_found() -> None:
    model = with_exits("bert", 1.0)
    inputs, head = given(model), copy.deepcopy(model.module.classifier)
    wanted = alone(model, inputs)[0][0]
    swap(model.module, "classifier", head)
    swap(model.module, "bert.encoder.layer.1", copy.deepcopy(model.blocks[1]))
    with torch.no_grad():
        torch.testing.assert_close(model.module(**inputs).logits, wanted)


def test_a_copy_has_exits_of_its_own() -> None:
    model = with_exits("bert", 1.0)
    other = copy.deepcopy(model.module)
    other.exits["0"].out.bias.data.add_(1)
    inputs = given(model)
    with torch.no_grad():
        assert not torch.equal(other(**inputs).logits, model.module(**inputs).logits)
    other.exits.threshold = 0.0
    assert model.module.exits.threshold == 1.0


def test_the_trunk_is_as_it_was_after_a_call_that_fails() -> None:
    model = with_exits("bert", 1.0)
    inputs = given(model)
    handle = model.blocks[1].register_forward_hook(lambda *_: 1 / 0)
    with torch.no_grad(), pytest.raises(ZeroDivisionError):
        model.module(**inputs)
    handle.remove()
    assert not any("forward" in part.__dict__ for part in model.module.modules())
    with torch.no_grad():
        torch.testing.assert_close(model.module(**inputs).logits, alone(model, inputs)[0][0])


def test_threads_do_not_disturb_each_other() -> None:
    model = with_exits("bert")
    several = [given(model, seed) for seed in range(4)]
    model.module.exits.threshold = 0.4
    with torch.no_grad():
        wanted = [model.module(**inputs).logits for inputs in several]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(30):
            with torch.no_grad():
                found = model.module(**several[number]).logits
            if not torch.equal(found, wanted[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
