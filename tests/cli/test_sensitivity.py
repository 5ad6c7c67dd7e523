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


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("distill/logits: {steps: 1}", "distill/logits trains the whole model"),
        ("prune/depth: {remove: 1}", "prune/depth"),
        ("prune/width: {fraction: 0.5}", "prune/width"),
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
