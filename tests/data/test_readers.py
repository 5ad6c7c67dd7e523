import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from attar.data import Example
from attar.errors import DataError


def said(error: pytest.ExceptionInfo[DataError]) -> str:
    return str(error.value)


def pairs(dataset) -> list[tuple[str, str | None]]:
    return [(example.text, example.label) for example in dataset.examples]


GOOD = [("good film", "pos"), ("bad film", "neg")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", "good film\tpos\nbad film\tneg\n"),
        ("a.tsv", "good film\tpos\r\n\r\nbad film\tneg"),
        ("a.tsv", "label\tid\ttext\npos\t1\tgood film\nneg\t2\tbad film\n"),
        ("a.tsv", "\ufefftext\tlabel\ngood film\tpos\nbad film\tneg\n"),
        ("a.tsv", "\ufeffgood film\tpos\nbad film\tneg\n"),
        ("a.txt", "good film\tpos\nbad film\tneg\n"),
        ("a.csv", '\ufefftext,label\n"good film",pos\n\nbad film,neg\n'),
        ("a.jsonl", '{"text":"good film","label":"pos"}\n\n{"text":"bad film","label":"neg"}'),
    ],
)
def test_every_format_reads_the_same_rows(rows, name: str, content: str) -> None:
    read = rows(name, content)
    assert pairs(read) == GOOD
    assert read.labels == ("neg", "pos")
    assert read.skipped == read.warnings == []


def test_parquet_with_numbers_for_labels(rows, tmp_path: Path) -> None:
    parquet.write_table(pa.table({"text": ["a", "b"], "label": [10, 9]}), tmp_path / "x.parquet")
    read = rows("y.parquet", (tmp_path / "x.parquet").read_bytes())
    assert pairs(read) == [("a", "10"), ("b", "9")]
    assert read.labels == ("9", "10")


def test_labels_of_floats_and_words_mix(rows) -> None:
    read = rows("a.jsonl", '{"text":"a","label":1.0}\n{"text":"b","label":true}\n')
    assert pairs(read) == [("a", "1"), ("b", "true")]
    assert read.labels == ("1", "true")


def test_other_columns(rows) -> None:
    read = rows(
        "a.csv", 'review,stars\n"says ""no"", twice\nover",2\n', text="review", label="stars"
    )
    assert pairs(read) == [('says "no", twice\nover', "2")]


def test_where_of_csv_rows_counts_lines_in_quotes(rows) -> None:
    read = rows("a.csv", 'text,label\n"a\nb",x\nc,y\n')
    assert [example.where.rpartition(":")[2] for example in read.examples] == ["2", "4"]


def test_text_is_one_document(rows) -> None:
    read = rows("novel.txt", "\ufeffCall me\r\nIshmael.\n", task="causal-lm")
    assert read.examples == [Example("Call me\nIshmael.")]
    assert read.labels == ()


def test_text_with_tabs_is_text_for_a_language_model(rows) -> None:
    assert len(rows("a.txt", "a\tb\nc\td\n", task="causal-lm").examples) == 1


def test_table_for_a_language_model_needs_no_labels(rows) -> None:
    assert pairs(rows("a.tsv", "one\ntwo\n", task="causal-lm")) == [("one", None), ("two", None)]


def test_unlabeled_leaves_labels_aside(rows) -> None:
    read = rows("a.tsv", "one\tpos\ntwo\n", labeled=False)
    assert pairs(read) == [("one", None), ("two", None)]
    assert read.labels == ()


def test_chat_messages(rows) -> None:
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    read = rows("a.jsonl", json.dumps({"messages": chat}), task="causal-lm")
    assert read.examples == [Example("user: hi\nassistant: hello", None, tuple(chat))]


def test_messages_stand_for_a_text_that_is_empty(rows) -> None:
    chat = [{"role": "user", "content": "hi"}]
    lines = [{"text": text, "messages": chat} for text in (None, "", " ")]
    lines += [{"text": "own", "messages": chat}, {"text": "plain", "messages": None}]
    read = rows("a.jsonl", "\n".join(map(json.dumps, lines)), task="causal-lm")
    texts = [example.text for example in read.examples]
    assert texts == ["user: hi"] * 3 + ["own", "plain"]


@pytest.mark.parametrize(
    ("chat", "words"),
    [
        ([{"role": "user"}], 'message 1: "content" is missing'),
        ([{"role": "user", "content": "a"}, {"content": "b"}], 'message 2: "role" is missing'),
        ([{"role": "user", "content": 3}], '"content" is no text'),
        ("hi", "no list"),
        (["hi"], "message 1"),
    ],
)
def test_bad_chat_messages(rows, chat, words: str) -> None:
    line = json.dumps({"messages": chat})
    with pytest.raises(DataError, match=words) as error:
        rows("a.jsonl", line, task="causal-lm")
    assert "a.jsonl:1:" in said(error)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.tsv", "", ["a.tsv", "empty"]),
        ("a.csv", "", ["a.csv", "empty"]),
        ("a.jsonl", "\n \n", ["empty"]),
        ("a.parquet", "", ["empty"]),
        ("a.csv", "text,label\n", ["empty"]),
        ("a.tsv", "one\ntwo\n", ["a.tsv:1", "text<TAB>label"]),
        ("a.tsv", "one\tx\ntwo\nthree\t\n", ["a.tsv:2", "a.tsv:3", "bad_lines: skip"]),
        ("a.tsv", "one\tx\ntwo\ty\tz\n", ["a.tsv:2", "3 cells"]),
        ("a.tsv", "one\tx\n\ty\n", ["a.tsv:2", "empty"]),
        ("a.tsv", "text\tlabel\na\n", ["a.tsv:2", "1 cells where the first line names 2"]),
        ("a.tsv", "sentence\tlabel\na\tb\n", ["a.tsv:1", 'no column "text"', "sentence"]),
        ("a.tsv", "text\tlabels\na\tb\n", ['no column "label"', 'mean "labels"', "labeled: no"]),
        ("a.csv", "txt,label\na,b\n", ["a.csv:1", "txt, label", 'mean "txt"', "Set text"]),
        ("a.csv", 'text,label\na,b\n"c,d\ne,f\n', ["a.csv:3", "never closed"]),
        ("a.csv", 'text,label\n"a"b,c\n', ["a.csv:2", "not CSV"]),
        ("a.csv", "text,label\na,b,c\n", ["a.csv:2", "3 cells"]),
        (
            "a.jsonl",
            '{"text": "a", "label": 1}\n{"text"\n[1]\n',
            ["a.jsonl:2", "a.jsonl:3", "list"],
        ),
        ("a.jsonl", '{"txt": "a", "label": 1}\n', ["a.jsonl:1", 'mean "txt"']),
        ("a.jsonl", '{"text": 3, "label": 1}\n', ["a.jsonl:1", "type int"]),
        ("a.jsonl", '{"text": null, "label": 1}\n', ["a.jsonl:1", "null"]),
        ("a.jsonl", '{"text": "a", "label": null}\n', ["a.jsonl:1", "no label"]),
        ("a.jsonl", '{"text": "a"}\n', ["a.jsonl:1", 'no column "label"']),
        ("a.tsv", b"a\tx\nb\xff\ty\n", ["a.tsv:2", "0xff", "UTF-8"]),
        ("a.csv", b"text,label\nb\xff,y\nc,z\n", ["a.csv:2", "0xff"]),
        ("a.tsv", "a\tx\n".encode("utf-16"), ["a.tsv:1", "UTF-16"]),
        ("a.parquet", b"PAR1" + b"x" * 40, ["a.parquet", "footer"]),
        ("a.txt", "no tabs here\n", ["a.txt", "no labels", "format: tsv"]),
        ("a.doc", "x", ["a.doc", ".doc", "Set format"]),
    ],
)
def test_what_is_wrong(rows, name: str, content: str | bytes, words: list[str]) -> None:
    with pytest.raises(DataError) as error:
        rows(name, content)
    for word in words:
        assert word in said(error)


def test_parquet_without_the_column(rows, tmp_path: Path) -> None:
    parquet.write_table(pa.table({"sentence": ["a"], "label": [1]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r'no column "text"; there are: sentence, label'):
        rows("y.parquet", (tmp_path / "x.parquet").read_bytes())


def test_text_that_is_not_utf8(rows) -> None:
    with pytest.raises(DataError, match=r"a.txt:2: byte 0xc4 at place 2"):
        rows("a.txt", b"one\nt\xc4wo\n", task="causal-lm")
    read = rows("a.txt", b"one\nt\xc4wo\nthree", task="causal-lm", bad_lines="skip")
    assert read.examples[0].text == "one\nthree"


def test_all_bad_lines_are_counted_and_twenty_shown(rows) -> None:
    with pytest.raises(DataError) as error:
        rows("a.tsv", "good\tx\n" + "bad\n" * 50)
    assert said(error).count("a.tsv:") == 20
    assert "and 30 more" in said(error)


def test_bad_lines_are_skipped_and_counted_where_asked(rows) -> None:
    read = rows("a.jsonl", '{"text"\n{"text":"a","label":"x"}\n{"text":"b"}\n', bad_lines="skip")
    assert pairs(read) == [("a", "x")]
    assert [problem.line for problem in read.skipped] == [1, 3]
    assert "skipped 2 bad lines" in read.warnings[0]
    assert "a.jsonl:1" in read.warnings[0]


def test_nothing_but_bad_lines(rows) -> None:
    with pytest.raises(DataError, match="no row that can be read; 2 bad lines"):
        rows("a.jsonl", "{\n{\n", bad_lines="skip")


def test_a_broken_file_is_no_bad_line(rows) -> None:
    with pytest.raises(DataError, match="no column"):
        rows("a.csv", "txt,label\na,b\n", bad_lines="skip")


def test_limit_reads_no_further(rows) -> None:
    assert pairs(rows("a.tsv", "a\tx\nb\ty\nbad\n", limit=2)) == [("a", "x"), ("b", "y")]


def test_long_csv_cells(rows) -> None:
    text = "x" * 200_000
    assert rows("a.csv", f"text,label\n{text},1\n").examples[0].text == text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", "text\tlabel\ttopic\none\tx\tlaw\ntwo\ty\t3\n"),
        ("a.csv", "topic,text,label\nlaw,one,x\n3,two,y\n"),
        (
            "a.jsonl",
            '{"text": "one", "label": "x", "topic": "law"}\n'
            '{"text": "two", "label": "y", "topic": 3}\n',
        ),
    ],
)
def test_a_column_of_domains(rows, name: str, content: str) -> None:
    read = rows(name, content, domain="topic")
    assert [example.domain for example in read.examples] == ["law", "3"]
    assert [example.domain for example in rows(name, content).examples] == [None, None]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.tsv", "text\tlabel\tTopic\none\tx\tlaw\n", ['no column "topic"', "domain: COLUMN"]),
        ("a.jsonl", '{"text": "a", "label": "x"}\n', ["a.jsonl:1", 'no column "topic"']),
        ("a.jsonl", '{"text": "a", "label": "x", "topic": null}\n', ["a.jsonl:1", "no domain"]),
    ],
)
def test_rows_without_the_domain_that_was_asked_for(rows, name, content, said) -> None:
    with pytest.raises(DataError) as caught:
        rows(name, content, domain="topic")
    assert all(word in str(caught.value) for word in said)


def test_plain_text_has_no_domains(rows) -> None:
    with pytest.raises(DataError, match="no columns"):
        rows("a.txt", "some words", task="causal-lm", domain="topic")
