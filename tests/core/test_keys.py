"""Keys: the same content, the same name; what is unknown stays unknown."""

from __future__ import annotations

import json
import os

from hypothesis import given
from hypothesis import strategies as st

from attar.core.keys import UNKNOWN, FileHashes, hash_file, key_of, seed_of

SCALAR = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUE = st.recursive(
    SCALAR,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), VALUE, max_size=5), st.randoms())
def test_the_order_of_entries_does_not_matter(mapping, random):
    entries = list(mapping.items())
    random.shuffle(entries)
    assert key_of(dict(entries)) == key_of(mapping)
    assert seed_of(dict(entries)) == seed_of(mapping)


@given(VALUE)
def test_a_key_survives_json(value):
    assert key_of(json.loads(json.dumps(value))) == key_of(value)
    assert len(key_of(value)) == 24


@given(st.lists(st.integers(), min_size=2, unique=True))
def test_the_order_of_a_list_matters(values):
    assert key_of(values) != key_of(values[::-1])
    assert key_of(*values) != key_of(values)


@given(st.lists(VALUE, max_size=3), st.lists(VALUE, max_size=3), st.integers(0, 3))
def test_unknown_propagates_from_any_depth(before, after, depth):
    part: object = UNKNOWN
    for level in range(depth):
        part = {"inner": part} if level % 2 else [part]
    assert key_of(*before, part, *after) == UNKNOWN


def test_a_text_that_looks_unknown_is_known():
    """The vocabulary of most tokenizers has a question mark in it."""
    assert key_of(["?"]) != key_of("?") != UNKNOWN


@given(VALUE, VALUE)
def test_seeds_are_63_bits(first, second):
    assert 0 <= seed_of(first, second) < 2**63


def test_keys_do_not_change_between_versions():
    assert key_of("quantize/rtn", 1, {"grid": "int4-g64"}) == "bf6787158f4b4b422385ebf8"
    assert seed_of(0, "quantize/rtn", 0) == 5258042896166094328


def test_file_hashes_are_remembered_until_the_file_changes(tmp_path):
    file, memo = tmp_path / "weights", tmp_path / "cache" / "hashes.json"
    file.write_bytes(b"one")
    assert FileHashes(memo).peek(file) == UNKNOWN
    digest = FileHashes(memo).of(file)
    assert digest == hash_file(file)
    assert FileHashes(memo).peek(file) == digest
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))
    assert FileHashes(memo).peek(file) == UNKNOWN
    assert FileHashes(memo).of(file) != digest
    assert [path.name for path in memo.parent.iterdir()] == ["hashes.json"]


def test_a_damaged_memo_is_ignored(tmp_path):
    file, memo = tmp_path / "weights", tmp_path / "hashes.json"
    file.write_bytes(b"one")
    name = str(file.resolve())
    for text in ("", "{", "[]", "3", "\xff", json.dumps({name: 3}), json.dumps({name: [1, 2]}),
                 json.dumps({name: ["x"]}), json.dumps({name: None})):  # fmt: skip
        memo.write_text(text, "latin-1")
        assert FileHashes(memo).peek(file) == UNKNOWN
        assert FileHashes(memo).of(file) == hash_file(file)


def test_a_memo_that_cannot_be_written_costs_nothing(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    assert FileHashes(file / "below" / "hashes.json").of(file) == hash_file(file)
