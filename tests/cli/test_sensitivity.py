from __future__ import annotations

import json
from pathlib import Path

import pytest

from attar.engine import sensitivity as engine
from cli.calling import Attar

SMALL = ("--sequences", 2, "--length", 16, "--name", "s")
TRIED = ("--try", "quantize/rtn: {grid: int3-g32}", "--try", "prune/magnitude: {sparsity: 0.5}")


def test_a_table_a_page_and_what_is_kept(
    attar: Attar, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = attar("sensitivity", model, "--data", data, *SMALL, *TRIED)
    assert done.code == 0, done.err
    folder = tmp_path / ".attar" / "runs" / "s"
    header, *lines = (folder / "sensitivity.tsv").read_text("utf-8").splitlines()
    labels = ["quantize/rtn grid=int3-g32", "prune/magnitude sparsity=0.5"]
    assert header.split("\t") == ["block", "role", "weights", *labels]
    assert [line.split("\t")[:2] for line in lines] == [
        [str(block), role] for block in range(3) for role in ("attention", "mlp")
    ]
    assert all(float(value) > 0 for line in lines for value in line.split("\t")[3:])
    assert "KL, quantize/rtn" in done.out
    assert "block divergence, mlp" in (folder / "report.html").read_text("utf-8")
    report = json.loads((folder / "report.json").read_text("utf-8"))
    assert len(report["stages"][0]["curves"]) == 4

    def never(*_: object) -> None:
        raise AssertionError("it was measured before")

    monkeypatch.setattr(engine, "divergences", never)
    again = attar("sensitivity", model, "--data", data, *SMALL, *TRIED)
    assert again.out == done.out


def test_linear_by_linear_and_a_recipe_that_reads_it(
    attar: Attar, model: Path, data: Path, tmp_path: Path
) -> None:
    tried = [f"prune/magnitude: {{sparsity: {value}}}" for value in (0.3, 0.7)]
    tries = [word for step in tried for word in ("--try", step)]
    done = attar("sensitivity", model, "--data", data, *SMALL, *tries, "--by", "linear")
    assert done.code == 0, done.err
    table = tmp_path / ".attar" / "runs" / "s" / "sensitivity.tsv"
    header, *lines = table.read_text("utf-8").splitlines()
    labels = ["prune/magnitude sparsity=0.3", "prune/magnitude sparsity=0.7"]
    assert header.split("\t") == ["block", "linear", "weights", *labels]
    assert len(lines) == 3 * 7
    assert lines[0].split("\t")[:3] == ["0", "self_attn.q_proj", "1024"]
    assert "self_attn.q_proj" in done.out
    page = (table.parent / "report.html").read_text("utf-8")
    assert "block divergence, mlp.down_proj, prune/magnitude sparsity=0.7" in page
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {model}\ndata: {{train: {data}}}\nname: shared\n"
        "measures: {data: train, sequences: 4, length: 16, speed: no}\n"
        f"steps:\n- prune/magnitude: {{sparsity: 0.5, sensitivity: {table}}}\n",
        "utf-8",
    )
    done = attar("run", recipe)
    assert done.code == 0, done.err
    folder = tmp_path / ".attar" / "runs" / "shared"
    report = json.loads((folder / "report.json").read_text("utf-8"))
    (stage,) = [stage for stage in report["stages"] if stage["kind"] == "prune/magnitude"]
    shares = stage["curves"]["block share kept, mlp.down_proj"]
    assert [block for block, _ in shares] == [0, 1, 2]
    assert all(0.3 <= share <= 0.7 for _, share in shares)
    assert stage["notes"]["zeros"].startswith(("49.", "50."))
    table.write_text(table.read_text("utf-8").replace("linear", "role"), "utf-8")
    done = attar("plan", recipe)
    assert done.code == 2
    assert "was measured on a model of other blocks or sizes" in done.err


@pytest.mark.parametrize("by", ["role", "linear"])
def test_what_fits_no_linear_alone_is_told_by_its_name(
    attar: Attar, model: Path, data: Path, by: str
) -> None:
    step = "lowrank/residual: {rank: 11, sequences: 2}"  # more than keys' 16 by 32 have room for
    done = attar("sensitivity", model, "--data", data, *SMALL, "--try", step, "--by", by)
    assert done.code == 2
    assert ("self_attn.k_proj of block 0 alone" if by == "linear" else "attention of") in done.err
    assert "rank: 11 makes more weights" in done.err


def test_an_unknown_way_to_part_a_model_is_refused(attar: Attar, model: Path, data: Path) -> None:
    done = attar("sensitivity", model, "--data", data, "--by", "layer")
    assert done.code == 2
    assert "'layer' is neither role nor linear" in done.err


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("distill/logits: {steps: 1}", "distill/logits trains the whole model"),
        ("prune/depth: {remove: 1}", "prune/depth"),
        ("prune/width: {fraction: 0.5}", "prune/width"),
        ("quantize/rtn: {embeddings: int8-channel}", "rounds the embeddings too"),
        ("quantize/rtm: {}", "quantize/rtn"),
        ("quantize/rtn: {gird: int4-g64}", "grid"),
        ("quantize/rtn: {grid: [", "step"),
    ],
)
def test_what_cannot_be_tried_is_refused(
    attar: Attar, model: Path, data: Path, step: str, said: str
) -> None:
    done = attar("sensitivity", model, "--data", data, *SMALL, "--try", step)
    assert done.code == 2
    assert said in done.err
    assert "Traceback" not in done.err
