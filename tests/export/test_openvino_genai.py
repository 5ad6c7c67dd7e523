"""openvino-genai reads an export by itself: its graph, its tokenizer, its template and its ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import pre_tokenizers

import attar
from attar.export.export import Wanted
from attar.models import save
from attar.runtimes import find, openvino
from attar.runtimes.runtime import Decoder
from export.decoders import TEXT, byte_level, decoder
from export.encoders import pieces
from tiny_models import press

openvino_tokenizers = pytest.importorskip("openvino_tokenizers")
genai = pytest.importorskip("openvino_genai", reason="pip install 'attar[openvino]'")
EXACT = {  # rounding on the way moves a token of a random model
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}
LIMIT = 16


def exported(kind: str, root: Path, end: int = 1) -> Path:
    root.mkdir(exist_ok=True)
    save(press(decoder(kind, eos_token_id=end), "int4-g32", "int8-g32"), root / "pressed")
    quick = Wanted(speed=False, verify=False)
    return attar.export(root / "pressed", "openvino", root / "out", root, quick).folder


def written(pipe: Any, ids: list[int]) -> list[int]:
    """What the pipeline writes greedily after these tokens; the folder names the ends."""
    from openvino import Tensor

    config = pipe.get_generation_config()
    config.max_new_tokens, config.do_sample = LIMIT, False
    row = np.array([ids], np.int64)
    given = genai.TokenizedInputs(Tensor(row), Tensor(np.ones_like(row)))
    return list(pipe.generate(given, config).tokens[0])


@pytest.mark.parametrize("attention", ["PA", "SDPA"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3", "phi3", "gemma3_text"])
def test_it_writes_what_attars_engine_writes(
    kind: str, attention: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = exported(kind, tmp_path)
    monkeypatch.setattr(openvino, "SETTINGS", EXACT)
    prompts = [byte_level()(text).input_ids[:12] for text in TEXT]
    with find("openvino").open(folder, threads=1) as opened:
        assert isinstance(opened, Decoder)
        wanted = [[t.id for t in opened.generate(ids, LIMIT, stop=[1])] for ids in prompts]
    pipe = genai.LLMPipeline(str(folder), "CPU", ATTENTION_BACKEND=attention, **EXACT)
    assert [written(pipe, ids) for ids in prompts] == wanted
    assert max(map(len, wanted)) == LIMIT


def test_it_ends_where_the_model_does(tmp_path: Path) -> None:
    ids = byte_level()(TEXT[0]).input_ids[:12]
    whole = written(genai.LLMPipeline(str(exported("llama", tmp_path)), "CPU", **EXACT), ids)
    folder = exported("llama", tmp_path / "ends", whole[5])
    found = written(genai.LLMPipeline(str(folder), "CPU", **EXACT), ids)
    assert len(whole) == LIMIT
    assert found == whole[: whole.index(whole[5]) + 1]


def test_it_reads_texts_and_chats_as_the_tokenizer_does(tmp_path: Path) -> None:
    tokenizer = genai.Tokenizer(str(exported("llama", tmp_path)))
    for text in TEXT:
        ids = byte_level()(text).input_ids
        found = tokenizer.encode(text, add_special_tokens=False).input_ids.data
        assert found.tolist() == [ids]
        assert tokenizer.decode(ids) == text
    assert tokenizer.get_eos_token_id() == byte_level().eos_token_id
    chat = [{"role": "user", "content": TEXT[0]}]
    assert tokenizer.apply_chat_template(chat, True) == byte_level().apply_chat_template(
        chat, tokenize=False, add_generation_prompt=True
    )


def test_a_tokenizer_that_is_not_converted_is_left_out_and_told(tmp_path: Path) -> None:
    model, said = decoder(), list[str]()
    model.tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.UnicodeScripts()
    save(model, tmp_path / "scripts")
    wanted = Wanted(speed=False)
    done = attar.export(
        tmp_path / "scripts", "openvino", home=tmp_path, wanted=wanted, say=said.append
    )
    [warning] = done.record["warnings"]
    assert warning.startswith("openvino_tokenizers cannot convert the tokenizer (")
    assert f"warning: {warning}" in said
    assert not (done.folder / openvino.TOKENIZER).exists()
    assert done.outputs["kl"] < 0.05
    assert "texts_tokenized_alike" not in done.outputs


def test_a_graph_that_reads_texts_otherwise_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = Wanted(speed=False)
    save(decoder(), tmp_path / "model")
    right = attar.export(tmp_path / "model", "openvino", home=tmp_path, wanted=wanted)
    assert right.outputs["texts_tokenized_alike"] == 1.0
    true = openvino_tokenizers.convert_tokenizer
    monkeypatch.setattr(
        openvino_tokenizers, "convert_tokenizer", lambda _, **how: true(pieces(), **how)
    )
    wrong = attar.export(tmp_path / "model", "openvino", home=tmp_path, wanted=wanted)
    assert wrong.outputs["texts_tokenized_alike"] == 0.0
    [warning] = wrong.record["warnings"]
    assert "cuts 100% of the texts otherwise" in warning
