"""Grids: names, ranges, and the group for the tail."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attar.core.grid import GROUPS, Grid

GRIDS = st.builds(
    Grid,
    bits=st.sampled_from([2, 3, 4, 8]),
    group=st.sampled_from([None, *GROUPS]),
    zero_point=st.booleans(),
)


@given(GRIDS)
def test_names_read_back(grid):
    assert Grid.parse(grid.name) == grid


@given(GRIDS)
def test_the_range_is_that_of_the_bits(grid):
    codes = grid.high - grid.low + 1
    symmetric_bytes = grid.bits == 8 and not grid.zero_point
    assert codes == (255 if symmetric_bytes else 2**grid.bits)
    assert grid.low == 0 if grid.zero_point else grid.low < 0 < grid.high


@given(GRIDS, st.integers(1, 10_000))
def test_the_group_divides_the_width_where_one_can(grid, width):
    group = grid.group_for(width)
    if grid.group is None:
        assert group == width
    elif any(width % size == 0 for size in GROUPS if size <= grid.group):
        assert width % group == 0
        assert group in GROUPS
        assert group <= grid.group
    else:
        assert group == min(grid.group, width)


def test_names():
    assert Grid.parse("q4_0") == Grid(bits=4, group=32)
    assert Grid.parse("q8_0").name == "int8-g32"
    assert (Grid.parse("int8-channel").low, Grid.parse("int8-channel").high) == (-127, 127)
    assert (Grid.parse("int4-g64-zp").low, Grid.parse("int4-g64-zp").high) == (0, 15)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("int5-g64", "int4-g64"),
        ("int4-g63", "int4-g64"),
        ("int7-channel-zp", "int8-channel-zp"),
        ("int16-g1024", "int8-g128"),
        ("int4", "int4-g64"),
        ("int8", "int8-channel"),
        ("INT3-G32", "int3-g32"),
        ("q4_1000", "q4_0"),
        ("int4g64", "int4-g64"),
        ("int4-chanel", "int4-channel"),
    ],
)
def test_the_nearest_name_is_offered(name, meant):
    with pytest.raises(ValueError, match=f"no grid is called '{name}'; did you mean '{meant}'"):
        Grid.parse(name)


@settings(max_examples=30)
@given(st.text(max_size=20))
def test_any_other_name_is_refused_by_value_error(name):
    with pytest.raises(ValueError, match="did you mean"):
        Grid.parse(f"{name}?")
