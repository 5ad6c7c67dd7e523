"""W63 to W80: the data."""

from __future__ import annotations

import json
from typing import Any

import pytest

from wrong_inputs.harness import Bench, Row, row

TRAIN = "w1 w2\tbad\nw3 w4\tgood\nw5 w9\tbad\nw6 w8\tgood\n"
DOTTED = "w1 w2\tbad\nw3 w4\nw5 w6\tgood\nw7 w8\n"


@pytest.mark.parametrize("command", ["plan", "run"])
def test_w63_no_such_file(bench: Bench, command: str) -> None:
    data = {"train": {"path": "nowhere.txt"}, "test": {"path": str(bench.sound("texts"))}}
    recipe = bench.recipe(data=data, steps=["quantize/gptq"])
    said = ("data train", str(bench.folder / "nowhere.txt"), "no such file")
    bench.refused(command, recipe, said=said)


def test_w64_a_folder_without_a_file_we_read(bench: Bench) -> None:
    bench.write("papers/one.pdf", "")
    said = (str(bench.folder / "papers"), ".pdf", ".tsv", ".jsonl", ".parquet")
    bench.refused("plan", bench.recipe(data=str(bench.folder / "papers")), said=said)


def test_w65_no_name_contains_train(bench: Bench) -> None:
    bench.write("rows/first.tsv", TRAIN)
    bench.write("rows/test.tsv", TRAIN)
    said = (str(bench.folder / "rows"), "train", "first.tsv", "test.tsv", "train.tsv")
    bench.refused("plan", bench.classify(bench.folder / "rows"), said=said)


# A classifier's training data, and what is said of it.
TRAININGS = [
    row("W66", "", "rows/train.tsv", "empty"),
    row("W66-blank", "\n\n", "rows/train.tsv", "empty"),
    row("W67", "w1 w2\nw3 w4\n", "rows/train.tsv:1", "no label column", "text<TAB>label"),
    row("W68", DOTTED, "train.tsv:2", "train.tsv:4", "no label", "bad_lines: skip"),
    row("W68-empty", "w1 w2\tbad\nw3 w4\t\n", "train.tsv:2", "label", "bad_lines: skip"),
    row("W69", "w1 w2\tbad\nw3 w4\tbad\n", "rows/train.tsv", '"bad"', "at least two"),
    row("W71", b"w1 w2\tbad\nw3 \xff w4\tgood\n", "train.tsv:2", "0xff", "UTF-8"),
]


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize("case", TRAININGS)
def test_rows_to_train_on(bench: Bench, case: Row, command: str) -> None:
    bench.refused(command, bench.classifier(case.what), said=case.said)


@pytest.mark.parametrize("part", ["dev", "test"])
def test_w70_a_label_that_train_does_not_have(bench: Bench, part: str) -> None:
    recipe = bench.classifier(TRAIN, **{part: "w1 w3\tbad\nw4 w5\tawful\n"})
    said = (f"rows/{part}.tsv:2", '"awful"', '"bad", "good"')
    bench.refused("plan", recipe, said=said)


# Files in other formats: the file, its content, settings of the source, what is said.
FORMATS = [
    row("W72", 'text,label\n"w1,bad\nw3,good\n', "train.csv:2", "never closed", more="csv"),
    row("W73", '{"text": "a", "label": "x"}\n{"text": \n', ":2", "not JSON", more="jsonl"),
    row("W73-list", '["a", "x"]\n', "train.jsonl:1", "an object", more="jsonl"),
    row("W74", "txet,label\nw1,bad\n", "train.csv:1", '"text"', "txet, label", more="csv"),
]


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize("case", FORMATS)
def test_files_of_other_formats(bench: Bench, case: Row, command: str) -> None:
    bench.write(f"rows/train.{case.more}", case.what)
    bench.write("rows/dev.tsv", TRAIN)
    bench.write("rows/test.tsv", TRAIN)
    bench.refused(command, bench.classify(bench.folder / "rows"), said=case.said)


def test_w74_a_column_that_the_recipe_asks_for(bench: Bench) -> None:
    bench.write("rows/train.csv", "body,verdict\nw1,bad\nw2,good\n")
    recipe = bench.classify(bench.folder / "rows" / "train.csv", text="bodi", label="verdict")
    said = ("train.csv:1", 'no column "bodi"', "body, verdict", 'Did you mean "body"?')
    bench.refused("plan", recipe, said=said)


@pytest.mark.parametrize(
    "case",
    [
        row("W75", [{"role": "user"}], "chat.jsonl:1", "message 1", "content"),
        row(
            "W75-role",
            [{"role": "user", "content": "a"}, {"content": "b"}],
            "chat.jsonl:1",
            "message 2",
            "role",
        ),
    ],
)
def test_chat_messages(bench: Bench, case: Row) -> None:
    path = bench.write("chat.jsonl", json.dumps({"messages": case.what}) + "\n")
    data = {"train": {"path": str(path)}, "test": {"path": str(bench.sound("texts"))}}
    recipe = bench.recipe(data=data, steps=["quantize/gptq"])
    bench.refused("plan", recipe, said=case.said)


def test_w76_a_truncated_parquet_file(bench: Bench) -> None:
    import pyarrow
    from pyarrow import parquet

    path = bench.folder / "rows.parquet"
    parquet.write_table(pyarrow.table({"text": ["w1 w2"] * 100}), path)
    path.write_bytes(path.read_bytes()[:-40])
    data = {"train": {"path": str(path)}, "test": {"path": str(bench.sound("texts"))}}
    recipe = bench.recipe(data=data, steps=["quantize/gptq"])
    bench.refused("plan", recipe, said=(str(path), "ends before its footer"))


def test_w77_too_little_text(bench: Bench) -> None:
    path = bench.write("little.txt", "w1 w2 w3\n")
    data = {"train": {"path": str(path)}, "test": {"path": str(bench.sound("texts"))}}
    step = {"quantize/gptq": {"sequences": 8, "length": 32, "grid": "int4-g32"}}
    said = ("data train", "4 tokens", "8 x 32 = 256", "Give more text")
    bench.refused("run", bench.recipe(data=data, steps=[step]), said=said)


# -------------------------------------------------------------------- warnings, and no trouble


def report_of(bench: Bench) -> dict[str, Any]:
    return json.loads((bench.home / "runs" / "small" / "report.json").read_text("utf-8"))


def test_w78_the_same_rows_in_train_and_test(bench: Bench) -> None:
    train = bench.write("train.txt", "w1 w2 w3 w4 w5 w6 w7 w8\n" * 8).read_text("utf-8")
    rows = [{"text": f"{train} w{number}"} for number in range(4)]
    bench.write("train.jsonl", "\n".join(json.dumps(row) for row in rows))
    rows = [rows[2], {"text": "w9 w8 " * 40}]
    bench.write("test.jsonl", "\n".join(json.dumps(row) for row in rows))
    data = {part: {"path": str(bench.folder / f"{part}.jsonl")} for part in ("train", "test")}
    step = {"quantize/gptq": {"sequences": 2, "length": 16, "grid": "int4-g32"}}
    recipe = bench.recipe(data=data, steps=[step], guard={"perplexity": 1e6})
    said = ("warning: ", "1 of 2 rows of test are in train too", "test.jsonl:1")
    bench.warned("plan", recipe, said=said)
    bench.warned("run", recipe, said=said)
    assert "1 of 2 rows of test" in report_of(bench)["warnings"][0]


def test_w79_a_byte_order_mark(bench: Bench) -> None:
    mark = b"\xef\xbb\xbf"
    bench.write("rows/train.csv", mark + b"text,label\nw1 w2,bad\nw3 w4,good\n")
    bench.write("rows/dev.csv", mark + b"text,label\nw1 w5,bad\nw3 w6,good\n")
    bench.write("rows/test.tsv", mark + b"w1 w7\tbad\nw3 w8\tgood\n")
    assert "warning" not in bench.warned("plan", bench.classify(bench.folder / "rows"), said=())


def test_w80_bad_lines_are_skipped(bench: Bench) -> None:
    bench.write("rows/train.tsv", DOTTED + "w6 w2\tbad\n")
    bench.write("rows/dev.tsv", "w1 w5\tbad\nw3 w6\tgood\n")
    test = '{"text": "w1 w7", "label": "bad"}\n{"text"\n{"text": "w3 w8", "label": "good"}\n'
    bench.write("rows/test.jsonl", test)
    recipe = bench.classify(bench.folder / "rows", bad_lines="skip")
    bench.warned("run", recipe, said=("warning: ", "train.tsv: skipped 2 bad lines", ":2"))
    told = " ".join(report_of(bench)["warnings"])
    assert "train.tsv: skipped 2 bad lines" in told
    assert "test.jsonl: skipped 1 bad line" in told
