"""Grids: names, ranges, and the group for the tail."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attar.core.grid import ALIASES, GROUPS, Grid

GRIDS = st.builds(
    Grid,
    bits=st.sampled_from([2, 3, 4, 8]),
    group=st.sampled_from([None, *GROUPS]),
    offset=st.sampled_from(["none", "zero", "minimum"]),
)


@given(GRIDS)
def test_names_read_back(grid):
    assert Grid.parse(grid.name) == grid


@given(GRIDS)
def test_the_range_is_that_of_the_bits(grid):
    codes = grid.high - grid.low + 1
    symmetric_bytes = grid.bits == 8 and grid.offset == "none"
    assert codes == (255 if symmetric_bytes else 2**grid.bits)
    assert grid.low == 0 if grid.offset != "none" else grid.low < 0 < grid.high


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
    assert (Grid.parse("fp8-e4m3").low, Grid.parse("fp8-e4m3").high) == (0, 255)


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_aliases_are_canonical_names_that_read_back(alias, name):
    assert Grid.parse(alias).name == name
    assert Grid.parse(name).name == name


@pytest.mark.parametrize("table", ["nf4", "fp8-e4m3"])
@pytest.mark.parametrize("group", ["channel", "g32", "g64", "g128"])
def test_tables_take_any_group(table, group):
    grid = Grid.parse(f"{table}-{group}")
    assert grid.name == f"{table}-{group}"
    assert len(grid.levels) == 2**grid.bits


@pytest.mark.parametrize("name", ["nf4-g64-zp", "fp8-e4m3-channel-min", "mxfp4-channel"])
def test_tables_have_no_offset_and_microscaling_one_group(name):
    with pytest.raises(ValueError, match="no grid is called"):
        Grid.parse(name)


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
        ("q4_1000", "q4_1"),
        ("int4g64", "int4-g64"),
        ("int4-chanel", "int4-channel"),
        ("int5-g32-min", "int4-g32-min"),
        ("mxfp4-g64", "mxfp4-g32"),
        ("nf4-g63", "nf4-g64"),
        ("nf5", "nf4"),
        ("fp8", "fp8-e4m3"),
        ("fp8-e5m2", "fp8-e4m3"),
        ("q4_K", "q4_1"),
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
