"""PyTorch as an engine, and drawing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from attar.export.target import stored
from attar.models import save
from attar.runtimes import engine_of, find
from attar.runtimes._sampling import likeliest, log_softmax
from attar.runtimes._writing import until
from attar.runtimes.runtime import Sampling, StoredCodes, Token, ends_of
from attar.runtimes.torch import TorchDecoder
from tiny_models import press, tiny

PROMPT = [7, 11, 13, 17]


def test_greedy_is_generate_of_transformers() -> None:
    model = tiny("llama")
    wanted = model.module.generate(
        torch.tensor([PROMPT]), max_new_tokens=8, do_sample=False, eos_token_id=None
    )[0, 4:].tolist()
    tokens = list(TorchDecoder(model).generate(PROMPT, 8, top=2))
    assert [token.id for token in tokens] == wanted
    whole = TorchDecoder(model).logprobs([*PROMPT, *wanted])[3:-1]
    found = [token.logprob for token in tokens]
    assert found == pytest.approx([whole[i, id_] for i, id_ in enumerate(wanted)], abs=1e-4)
    assert all(token.top[0][0] == token.id for token in tokens)


def test_stops_after_a_stop() -> None:
    decoder = TorchDecoder(tiny("llama"))
    ids = [token.id for token in decoder.generate(PROMPT, 8)]
    end = ids[2]
    assert [t.id for t in decoder.generate(PROMPT, 8, stop=[end])] == ids[: ids.index(end) + 1]


def test_none_is_asked_for_where_none_fits() -> None:
    def tokens() -> Iterator[Token]:
        raise AssertionError("asked for a token")
        yield

    assert list(until(tokens(), 0, ())) == []
    decoder = TorchDecoder(tiny("llama"))
    assert list(decoder.generate(PROMPT, 0)) == []
    assert len(list(decoder.generate([7] * 60, 100))) == decoder.context - 60 == 4


def test_scores_are_of_the_next_token() -> None:
    decoder = TorchDecoder(tiny("llama"))
    whole = decoder.logprobs(PROMPT)
    assert decoder.scores(PROMPT).tolist() == [whole[i, PROMPT[i + 1]] for i in range(3)]


def test_the_same_seed_draws_the_same() -> None:
    decoder = TorchDecoder(tiny("llama"))

    def drawn(seed: int) -> list[int]:
        return [t.id for t in decoder.generate(PROMPT, 12, Sampling(1.5, seed=seed))]

    assert drawn(3) == drawn(3) != drawn(4)


def test_likeliest_are_in_order() -> None:
    logprobs = log_softmax(np.array([0.0, 3.0, 1.0, 2.0], np.float32))
    assert likeliest(logprobs, 3) == [1, 3, 2]
    assert np.exp(logprobs).sum() == pytest.approx(1.0)


def test_an_artifact_is_opened_and_read_back(tmp_path: Path) -> None:
    model = press(tiny("bert", "classification"), "int4-g32-zp")
    save(model, tmp_path)
    engine = engine_of(tmp_path)
    assert engine is not None
    assert engine.name == "torch"
    found = engine.read_back(tmp_path)
    assert all(codes.difference(found[name]) is None for name, codes in stored(model).items())
    ids = np.full((2, 5), 9, np.int64)
    with find("torch").open(tmp_path) as opened:
        assert opened.run(ids, np.ones_like(ids)).shape == (2, 3)


def test_differences_are_named() -> None:
    codes = np.arange(8, dtype=np.int16).reshape(1, 8)
    scales, zeros = np.array([[2.0, 3.0]], np.float32), np.array([[1, 2]])
    one = StoredCodes(codes, scales, 4, zeros)
    repeated = StoredCodes(codes, np.repeat(scales, 2, 1), 2, np.repeat(zeros, 2, 1))
    minima = StoredCodes(codes, scales, 4, minima=np.array([[-2.0, -6.0]], np.float32))
    assert one.difference(repeated) is None
    assert one.difference(minima) is None
    assert one.difference(StoredCodes(codes + 1, scales, 4, zeros)) == "8 of 8 codes"
    assert one.difference(StoredCodes(codes, scales + 1, 4, zeros)) == "2 of 2 scales"
    assert one.difference(StoredCodes(codes, scales, 4, zeros + 1)) == "2 of 2 zero points"
    assert "zero points" in str(one.difference(StoredCodes(codes, scales, 4)))
    static = StoredCodes(codes, scales, 4, zeros, inputs=ends_of(0.5, 127))
    assert static.difference(StoredCodes(codes, scales, 4, zeros, inputs=(-63.5, 64.0))) is None
    assert "(-63.5, 64.0)" in str(static.difference(one))
