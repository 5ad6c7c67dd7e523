"""Every number of wrong_inputs.md has a test, and every test's number is in the list."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
LIST = HERE.parent / "wrong_inputs.md"
# A test is named after its number, or its parameter is: `test_w..`, or the first word of a row.
_TEST = re.compile(r"^def test_w(\d\d)_|\brow\(\s*\"W(\d\d)[\"-]", re.MULTILINE)


def test_every_number_has_a_test() -> None:
    listed = re.findall(r"^\| W(\d\d) \|", LIST.read_text("utf-8"), re.MULTILINE)
    assert len(listed) == len(set(listed)) >= 50
    texts = [path.read_text("utf-8") for path in HERE.glob("test_*.py")]
    tested = {one or other for text in texts for one, other in _TEST.findall(text)}
    assert tested == set(listed)
