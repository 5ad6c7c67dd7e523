"""GGUF files: the very codes, in llama.cpp's order, with the tokenizer inside."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from attar.errors import ExportError
from attar.export._gguf_vocabulary import vocabulary_problem
from attar.export.gguf import FILE, Gguf
from attar.export.prepare import refuse, refuse_codes
from attar.export.target import stored
from attar.models.model import Model
from attar.runtimes import find
from attar.runtimes._gguf import gguf_name, module_name, read_gguf, turned
from attar.runtimes.runtime import Decoder
from attar.runtimes.torch import TorchDecoder
from export.decoders import TEXT, byte_level, decoder
from export.encoders import encoder
from tiny_models import press

gguf = pytest.importorskip("gguf")
GRIDS = (
    *("int4-g32", "int4-channel", "int4-g64-min", "int3-g32", "int3-g32-zp"),
    *("int2-g64", "int8-g32", "int8-channel", "mxfp4"),
)


FLOATS = {  # what GGUF calls a matrix of them, and a file
    torch.float32: ("F32", "ALL_F32"),
    torch.float16: ("F16", "MOSTLY_F16"),
    torch.bfloat16: ("BF16", "MOSTLY_BF16"),
}


def written(model: Model, folder: Path) -> Path:
    refuse(model, Gguf(), allow_rounding=False)
    assert refuse_codes(model, Gguf(), allow_rounding=False) == []
    Gguf().write(model, folder)
    return folder / FILE


@pytest.mark.parametrize("make", [decoder, encoder])
@pytest.mark.parametrize("grid", GRIDS)
def test_codes_come_back_exactly(grid: str, make: Callable[[], Model], tmp_path: Path) -> None:
    model = press(make(), grid, "int8-g32")
    found, wanted = read_gguf(written(model, tmp_path)), stored(model)
    assert found.keys() == wanted.keys()
    for name, codes in wanted.items():
        assert codes.difference(found[name]) is None, name


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_floats_come_back_exactly(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = decoder(kind, dtype=dtype)
    reader = gguf.GGUFReader(written(model, tmp_path))
    types = gguf.GGMLQuantizationType
    assert reader.fields["general.file_type"].contents() == gguf.LlamaFileType[FLOATS[dtype][1]]
    wanted = dict(model.module.named_parameters())
    family = reader.fields["general.architecture"].contents()
    assert {module_name(t.name.rpartition(".")[0], family) for t in reader.tensors} == {
        name.rpartition(".")[0] for name in wanted
    }
    for tensor in reader.tensors:
        module, _, part = tensor.name.rpartition(".")
        name = module_name(module, family)
        value = wanted[f"{name}.{part}"].detach().float().numpy()
        if kind in ("llama", "mistral") and name.endswith(("q_proj", "k_proj")):
            heads = 4 if name.endswith("q_proj") else 2
            value = value.reshape(heads, 2, 8, -1).swapaxes(1, 2).reshape(value.shape)
        data = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(data.reshape(value.shape), value), tensor.name
        assert tensor.tensor_type == (types.F32 if value.ndim == 1 else types[FLOATS[dtype][0]])


def test_names_lead_back() -> None:
    model = decoder("qwen3", tie_word_embeddings=False)
    for name, _ in model.module.named_parameters():
        module = name.rpartition(".")[0]
        assert module_name(gguf_name(module, "qwen3"), "qwen3") == module


def test_names_are_those_of_the_package() -> None:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, 3)
    for name, _ in decoder("qwen3", tie_word_embeddings=False).module.named_parameters():
        module = name.rpartition(".")[0]
        assert gguf_name(module, "qwen3") == names.get_name(module)


def test_turning_pairs_the_halves_of_a_head() -> None:
    assert turned(8, 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_the_tokenizer_is_inside(tmp_path: Path) -> None:
    fields = gguf.GGUFReader(written(decoder(), tmp_path)).fields
    vocabulary = byte_level().get_vocab()
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert all(tokens[id_] == token for token, id_ in vocabulary.items())
    assert len(tokens) == 320
    kinds = fields["tokenizer.ggml.token_type"].contents()
    assert kinds[:3] == [3, 3, 3]
    assert set(kinds[len(vocabulary) :]) == {5}
    assert fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 1
    assert fields["tokenizer.chat_template"].contents() == byte_level().chat_template


def test_a_zero_point_that_no_half_holds_is_refused() -> None:
    model = press(decoder(), "int4-g32-zp")
    name, linear = next(iter(model.linears(_linears()).items()))
    coded: Any = linear
    coded.scales[:] = 0.50390625  # 129 / 256: times 15 it has 11 bits and a half
    coded.zeros[:] = 15
    refuse(model, Gguf(), allow_rounding=False)  # no weights, no such thing
    refused = [item.name for item in refuse_codes(model, Gguf(), allow_rounding=True)]
    with pytest.raises(ExportError, match="int4-g32-zp"):
        refuse_codes(model, Gguf(), allow_rounding=False)
    product = np.float32(0.50390625 * 15)
    assert (name in refused) == (np.float32(np.float16(product)) != product)


@pytest.mark.parametrize("grid", ["nf4-g64", "fp8-e4m3-channel", "int8-g32-zp"])
def test_grids_that_no_block_holds_are_refused(grid: str) -> None:
    with pytest.raises(ExportError, match="It holds int2, int3, int4 and int8"):
        refuse(press(decoder(), grid, "int8-g32"), Gguf(), allow_rounding=False)


def test_other_families_and_tokenizers_are_refused() -> None:
    from tiny_models import tiny

    for model, words in ((tiny("bert"), "for decoders"), (tiny("gemma2"), "gemma2")):
        with pytest.raises(ExportError, match=words):
            refuse(model, Gguf(), allow_rounding=False)
    with pytest.raises(ExportError, match="WordLevel"):
        refuse(tiny("llama", mlp_bias=False), Gguf(), allow_rounding=False)


def _lower(plain: Any) -> None:
    plain.normalizer = normalizers.Lowercase()


def _compatible(plain: Any) -> None:
    plain.normalizer = normalizers.NFKC()


@pytest.mark.parametrize(
    "change",
    [
        _lower,
        _compatible,
        lambda plain: setattr(plain, "pre_tokenizer", pre_tokenizers.Metaspace()),
        lambda plain: setattr(plain, "pre_tokenizer", pre_tokenizers.Whitespace()),
        lambda plain: setattr(plain, "pre_tokenizer", pre_tokenizers.ByteLevel(use_regex=False)),
    ],
)
def test_tokenizers_that_only_look_like_gpt2s_are_refused(change: Callable[[Any], None]) -> None:
    model = decoder()
    model.tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    refuse(model, Gguf(), allow_rounding=False)
    change(model.tokenizer.backend_tokenizer)
    with pytest.raises(ExportError, match="none of bytes or changes texts"):
        refuse(model, Gguf(), allow_rounding=False)


def test_tokenizers_that_fall_back_on_bytes_change_no_letters() -> None:
    model, made = decoder(), Tokenizer(models.BPE(byte_fallback=True))
    model.tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made)
    plain = model.tokenizer.backend_tokenizer
    marks = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    plain.normalizer = normalizers.Sequence(marks)
    assert list(vocabulary_problem(model)) == []
    plain.normalizer = normalizers.Sequence([normalizers.NFKC(), *marks])
    assert ["changes letters" in problem for problem in vocabulary_problem(model)] == [True]


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_llama_cpp_answers_as_pytorch_does(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    most, mean = _difference(decoder(kind), tmp_path)
    assert most < 0.05  # its cache is float16
    assert mean < 0.01


def test_llama_cpp_answers_in_half_precision(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    exact = decoder(dtype=torch.float16)
    exact.module.float()  # the same numbers, nothing rounded on the way
    most, mean = _difference(decoder(dtype=torch.float16), tmp_path, exact)
    assert most < 0.1  # its cache is float16, and inputs of products are
    assert mean < 0.01


def test_llama_cpp_computes_on_the_codes(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    model = press(decoder(), "int4-g32-min", "int8-g32")
    _, mean = _difference(model, tmp_path)
    assert mean < 0.2  # it rounds inputs to 8 bits, and logits of random weights are large
    _, apart = _difference(press(decoder(), "int2-g32", "int8-g32"), tmp_path, model)
    assert apart > 5 * mean


def _difference(model: Model, folder: Path, other: Model | None = None) -> tuple[float, float]:
    """How far llama.cpp's log-probabilities are from those of this model, or of another."""
    written(model, folder)
    ids = byte_level()(TEXT[0]).input_ids[:24]
    wanted = TorchDecoder(other or model).logprobs(ids)
    with find("llama-cpp").open(folder, threads=1) as opened:
        assert isinstance(opened, Decoder)
        found, scores = opened.logprobs(ids), opened.scores(ids)
    known = ~np.isnan(found)
    assert known.sum(1).min() >= 100
    likely = known & (wanted > -6)
    follows = found[np.arange(len(ids) - 1), ids[1:]]
    there = ~np.isnan(follows)
    assert scores[there] == pytest.approx(follows[there], abs=0.02)
    gap = np.abs(found - wanted)[likely]
    return float(gap.max()), float(gap.mean())


@pytest.mark.parametrize("text", [*TEXT, "I'LL wait; it's 12:47, 3.5 %", "naïve 中文 ☃\n\n  x"])
def test_llama_cpp_reads_as_the_tokenizer_does(text: str, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    written(decoder(), tmp_path)
    with find("llama-cpp").open(tmp_path, threads=1) as opened:
        assert isinstance(opened, Decoder)
        assert opened.tokens(text) == byte_level()(text).input_ids


def test_an_engine_that_is_closed_at_once_ends(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    written(decoder(), tmp_path)
    told = (
        "import sys; from pathlib import Path; from attar.runtimes import find\n"
        "for _ in range(5): find('llama-cpp').open(Path(sys.argv[1]), threads=1).close()"
    )
    subprocess.run([sys.executable, "-c", told, str(tmp_path)], check=True, timeout=120)


def test_llama_cpp_generates_the_same(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    model = decoder(tie_word_embeddings=False)
    written(model, tmp_path)
    prompt = byte_level()(TEXT[1]).input_ids[:12]
    wanted = [token.id for token in TorchDecoder(model).generate(prompt, 12)]
    with find("llama-cpp").open(tmp_path, threads=1) as opened:
        tokens = list(opened.generate(prompt, 12, top=3))
        ended = list(opened.generate(prompt, 12, stop=[wanted[4]]))
        first = next(iterator := opened.generate(prompt, 12))
        iterator.close()
        again = [token.id for token in opened.generate(prompt, 12)]
    assert [token.id for token in tokens] == wanted == again
    assert all(token.top[0] == (token.id, pytest.approx(token.logprob)) for token in tokens)
    assert [token.id for token in ended] == wanted[: wanted.index(wanted[4]) + 1]
    assert first.id == wanted[0]


def _linears() -> Any:
    from attar.core.scope import Scope

    return Scope.linears()
