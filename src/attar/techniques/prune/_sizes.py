"""Which sizes a narrower model gets: arithmetic on the sizes there are, no weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import lcm, log, sqrt

from attar.core.scope import ModuleFact
from attar.models.axes import Sizes, misfit, sizes_of_facts, widths


@dataclass(frozen=True)
class Wanted:
    """What is asked for; None leaves a size as it is."""

    fraction: float | None
    heads: int | None
    kv_heads: int | None
    neurons: int | None
    hidden: int | None
    multiple: int


def weights_in_blocks(modules: Sequence[ModuleFact], sizes: Sizes) -> int:
    """Weights of the linears of all blocks, were the model of these sizes."""
    long = widths(sizes)
    return sum(
        long[fact.axes[0]] * long[fact.axes[1]]
        for fact in modules
        if fact.block is not None and fact.linear and all(fact.axes)
    )


def choose(modules: Sequence[ModuleFact], wanted: Wanted) -> Sizes | str:
    """The sizes to narrow to, or what stands in their way."""
    factors = [f.name for f in modules if f.linear and len(f.axes) < len(f.shape)]
    if factors:
        return f"{factors[0]} is one of two factors; narrow a model before factorizing it"
    old = sizes_of_facts(modules)
    if wanted.fraction is None:
        new = _asked(old, wanted)
    else:
        new = _shrunk(modules, old, wanted.fraction, wanted.multiple)
    if isinstance(new, str):
        return new
    if new == old:
        return (
            f"nothing would become narrower (hidden {old.hidden}, {old.queries} heads, "
            f"{old.neurons} neurons); ask for less, or lower `multiple`"
        )
    return misfit(old, new, _rule(modules)) or new


def _rule(modules: Sequence[ModuleFact]) -> str:
    return next(fact.heads.rule for fact in modules if fact.heads is not None)


def _asked(old: Sizes, wanted: Wanted) -> Sizes | str:
    for what, asked, there in (
        ("heads", wanted.heads, old.queries),
        ("kv_heads", wanted.kv_heads, old.keys),
        ("neurons", wanted.neurons, old.neurons),
        ("hidden", wanted.hidden, old.hidden),
    ):
        if asked is not None and asked > there:
            return f"{what}: {asked} is more than the {there} that there are"
    hidden = wanted.hidden or old.hidden
    new = replace(
        old,
        hidden=hidden,
        neurons=wanted.neurons or old.neurons,
        embedding=hidden if old.embedding == old.hidden else old.embedding,
    )
    pairs = list(_pairs(old))
    if wanted.heads is None and wanted.kv_heads is None:
        return new
    fitting = [
        (queries, keys)
        for queries, keys in pairs
        if wanted.heads in (None, queries) and wanted.kv_heads in (None, keys)
    ]
    if not fitting:
        return _no_such_heads(old, wanted, pairs)
    # Whole groups where that can be; else as many groups as can be
    group = old.queries // old.keys
    queries, keys = max(fitting, key=lambda pair: (pair[0] == pair[1] * group, pair[1], pair[0]))
    return replace(new, queries=queries, keys=keys)


def _pairs(old: Sizes) -> Iterator[tuple[int, int]]:
    """Numbers of query heads and key heads that a model can be narrowed to."""
    for keys in range(1, old.keys + 1):
        for each in range(1, old.queries // old.keys + 1):
            yield keys * each, keys


def _no_such_heads(old: Sizes, wanted: Wanted, pairs: list[tuple[int, int]]) -> str:
    asked = wanted.heads or old.queries
    good = sorted({queries for queries, keys in pairs if wanted.kv_heads in (None, keys)})
    near = sorted(sorted(good, key=lambda number: (abs(number - asked), number))[:3])
    among = "" if wanted.kv_heads is None else f" among kv_heads: {wanted.kv_heads}"
    return (
        f"{asked} heads cannot be shared out evenly{among}: there are {old.queries} heads in "
        f"{old.keys} groups, each with a head of keys and values. Near it, "
        f"{', '.join(map(str, near))} can"
    )


def _shrunk(
    modules: Sequence[ModuleFact], old: Sizes, fraction: float, multiple: int
) -> Sizes | str:
    """Hidden size and heads nearest to the root of the fraction; neurons make up for the rest."""
    share = sqrt(fraction)
    fitting = [
        new
        for queries, keys in _pairs(old)
        for new in _with_hidden(old, queries, keys, share, multiple, _rule(modules))
        if misfit(old, new, _rule(modules)) is None
    ]
    if not fitting:
        return (
            "no sizes that this architecture can have are near that fraction; give them one by one"
        )

    def far(new: Sizes) -> float:
        pairs = (
            (new.queries, old.queries),
            (new.keys, old.keys),
            (new.hidden, old.hidden),
        )
        return sum(abs(log(now / (share * before))) for now, before in pairs)

    new = min(fitting, key=far)
    target = fraction * weights_in_blocks(modules, old)
    fixed = weights_in_blocks(modules, replace(new, neurons=0))
    each = weights_in_blocks(modules, replace(new, neurons=1)) - fixed
    return replace(new, neurons=nearest((target - fixed) / each, multiple, old.neurons))


def _with_hidden(
    old: Sizes, queries: int, keys: int, share: float, multiple: int, rule: str
) -> Iterator[Sizes]:
    """Sizes with these heads, at the two hidden sizes nearest to the share that are allowed."""
    step = multiple if rule == "free" else lcm(multiple, queries)
    near = nearest(share * old.hidden, step, old.hidden)
    for hidden in (queries * old.head,) if rule == "fill" else (near, near - step):
        if 0 < hidden <= old.hidden:
            embedding = hidden if old.embedding == old.hidden else old.embedding
            yield replace(old, hidden=hidden, queries=queries, keys=keys, embedding=embedding)


def nearest(value: float, multiple: int, limit: int) -> int:
    """The multiple nearest to a value, at least one and within the limit; else the limit."""
    most = limit // multiple * multiple
    if most == 0 or value > (most + limit) / 2:
        return limit
    return min(max(multiple, round(value / multiple) * multiple), most)
