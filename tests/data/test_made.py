"""Data that a step made reads back as it was, from the store and from a table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from attar.core.recipe import DataSource
from attar.data import load
from attar.data.example import Example
from attar.data.made import read_rows, write_rows, write_table
from attar.data.synonyms import as_written, read_synonyms
from attar.data.vectors import read_vectors
from attar.errors import DataError, StoreError, UserError

ROWS = [
    Example('a text,\nof two lines \u2028 and a "quote"', "good", where="a.tsv:1"),
    Example("二", None, where="a.tsv:2", probabilities={"good": 0.25, "bad": 0.75}),
    Example("user: x", messages=({"role": "user", "content": "x"},), domain="law"),
]


def test_rows_read_back_equal(tmp_path: Path) -> None:
    write_rows(ROWS, tmp_path / "rows.jsonl")
    data = read_rows(tmp_path / "rows.jsonl", "more", "key")
    assert data.examples == ROWS
    assert [each.where for each in data.examples] == [each.where for each in ROWS]
    assert [each.probabilities for each in data.examples] == [None, ROWS[1].probabilities, None]
    assert (data.name, data.fingerprint, data.labels) == ("more", "key", ("good",))


@pytest.mark.parametrize("text", ['{"text": ', '{"nothing": 1}', "3"])
def test_damaged_rows_are_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(text + "\n", "utf-8")
    with pytest.raises(StoreError, match="is damaged"):
        read_rows(tmp_path / "rows.jsonl", "more", "key")


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.tsv"])
def test_a_recipe_reads_the_table(name: str, tmp_path: Path) -> None:
    rows = [Example('one, "two"', "good"), Example("三 four", "bad")]
    write_table(rows, tmp_path / name)
    found = load(DataSource(path=str(tmp_path / name)), "classification", "train")
    assert found.examples == rows
    rows = [replace(row, domain=domain) for row, domain in zip(rows, ("law", "code"), strict=True)]
    write_table(rows, tmp_path / name)
    source = DataSource(path=str(tmp_path / name), domain="domain")
    assert load(source, "classification", "train").examples == rows


def test_a_table_without_labels(tmp_path: Path) -> None:
    write_table([Example("one"), Example("two")], tmp_path / "out.tsv")
    found = load(DataSource(path=str(tmp_path / "out.tsv"), labeled=False), "causal-lm", "train")
    assert [each.text for each in found.examples] == ["one", "two"]


def test_what_no_table_holds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line break"):
        write_table(ROWS[:1], tmp_path / "out.tsv")
    with pytest.raises(UserError, match="chat messages"):
        write_table(ROWS[2:], tmp_path / "out.csv")
    with pytest.raises(UserError, match=r"\.jsonl, \.tsv, \.csv"):
        write_table(ROWS[:1], tmp_path / "out.txt")
    assert not list(tmp_path.iterdir())


def listed(folder: Path, text: str):
    (folder / "list.txt").write_text(text, "utf-8")
    return read_synonyms(folder / "list.txt")


def test_a_list_of_ones_own(tmp_path: Path) -> None:
    found = listed(tmp_path, "big\tlarge\tvery big\n\nsmall\ttiny\n")
    assert found.words == {"big": ("large", "very big"), "small": ("tiny",)}
    text = "A Big, small BIG bigger"
    assert [(text[a:b], others) for a, b, others in found.places(text)] == [
        ("Big", ("Large", "Very big")),
        ("small", ("tiny",)),
        ("BIG", ("LARGE", "VERY BIG")),
    ]


def test_groups_of_cilin_and_longest_words(tmp_path: Path) -> None:
    text = "Aa01A01= 人 士 人物\nAa01A02# 东 西\nAa01B03@ 下午\nBb01A01= 大人物 要人\n"
    text += "Cb01A01= 天下 环球\nCa01A01= 第二 仲\n"
    found = listed(tmp_path, text)
    assert found.words["人"] == ("士", "人物")
    assert found.words["东"] == ()
    line = "他是大人物, 不是人物。"
    assert [line[a:b] for a, b, _ in found.places(line)] == ["大人物", "人物"]  # not 人 alone
    line = "第二天下午"  # 下午 has no synonym, and yet tells that 天下 is no word here
    assert [line[a:b] for a, b, _ in found.places(line)] == ["第二"]


WORDNET = "  1 This is the licence\n"


def test_wordnet_by_its_first_sense(tmp_path: Path) -> None:
    for part in ("noun", "verb", "adj", "adv"):
        (tmp_path / f"index.{part}").write_text(WORDNET, "utf-8")
        (tmp_path / f"data.{part}").write_text(WORDNET, "utf-8")
    index = (
        "happy a 2 2 & = 2 2 00000020 00000040  \nglad a 1 1 & 1 1 00000020  \n"
        "of a 1 0 1 1 00000020  \nunseen a 1 0 1 0 00000020  \n"
    )
    (tmp_path / "index.adj").write_text(WORDNET + index, "utf-8")
    (tmp_path / "index.noun").write_text(WORDNET + "happy n 1 0 1 1 00000060  \n", "utf-8")
    (tmp_path / "data.noun").write_text(
        WORDNET + "00000060 00 n 02 happy 0 joy 0 000 | x\n", "utf-8"
    )
    data = (
        "00000020 00 a 04 happy 0 glad(p) 0 well_pleased 0 Merry 0 001 & 00000040 a 0000 | joy\n"
        "00000040 00 s 02 happy 0 felicitous 0 000 | apt\n"
    )
    (tmp_path / "data.adj").write_text(WORDNET + data, "utf-8")
    found = read_synonyms(tmp_path)
    assert found.words == {"happy": ("glad", "Merry"), "glad": ("happy", "Merry")}


@pytest.mark.parametrize(
    ("text", "said"), [("alone\n", "one word alone"), ("", "holds no synonyms")]
)
def test_no_list_of_synonyms(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        listed(tmp_path, text)
    with pytest.raises(DataError, match="no WordNet"):
        read_synonyms(tmp_path)
    for part in ("noun", "verb", "adj", "adv"):
        for kind in ("index", "data"):
            (tmp_path / f"{kind}.{part}").write_text("no such form\n")
    with pytest.raises(DataError, match="not of WordNet's form"):
        read_synonyms(tmp_path)


def test_capitals_stay() -> None:
    assert [as_written("new", model) for model in ("old", "Old", "OLD", "I")] == [
        "new",
        "New",
        "NEW",
        "New",
    ]


def test_the_nearest_vectors(tmp_path: Path) -> None:
    path = tmp_path / "vectors.txt"
    path.write_text("up 0 1\nhigh 0.1 2\ndown 0 -1\nside 1 0\n", "utf-8")
    vectors = read_vectors(path)
    assert vectors.near("up", 2) == ["high", "side"]
    assert vectors.near("Up", 1) == ["high"]
    assert vectors.near("nowhere", 2) == []
    path.write_text("up 0 1\nhigh 1\n", "utf-8")
    with pytest.raises(DataError, match="as many numbers"):
        read_vectors(path)
