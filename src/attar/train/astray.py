"""Whether a training goes astray while its loss is still a number, or ended worse than it began."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

_FEW = 3  # steps, or points of a curve, that tell how a part of the loss began and ended
_MEMORY = 0.9  # how much of a running mean stays in a step
_TIMES, _MORE = 3.0, 3.0  # times where it began, and more than that, at which it is lost
_WORSE = 1.5  # times where it began, at which an end is told
_SMALL = 0.05  # nats: an end below is not told

Course = dict[str, list[float]]  # by part: its steps, where it began, its running mean


def follow(course: Course, parts: Mapping[str, float]) -> None:
    """Take in what the parts of the loss are at a step; those of several teachers are one."""
    kinds: dict[str, list[float]] = {}
    for name, value in parts.items():
        kinds.setdefault(name.partition("/")[0], []).append(value)
    for name, value in ((name, fmean(values)) for name, values in kinds.items()):
        count, start, mean = course.get(name, [0.0, 0.0, value])
        count += 1
        if count <= _FEW:
            start += (value - start) / count
        course[name] = [count, start, _MEMORY * mean + (1 - _MEMORY) * value]


def lost(course: Course) -> str | None:
    """What became of all parts of the loss, where each is far beyond where it began.

    A language model that knows less than nothing is as far as that; what heals under a rate that
    is a little high is not. Each part is counted in its own unit.
    """
    far = [
        count > _FEW and mean > max(_TIMES * start, start + _MORE)
        for count, start, mean in course.values()
    ]
    if not far or not all(far):
        return None
    return _told({name: (start, mean) for name, (_, start, mean) in course.items()})


def worse(curves: Mapping[str, list[tuple[float, float]]]) -> str | None:
    """What became of all that the loss is made of, where each ended well above where it began."""
    names = [name for name in curves if name.startswith("loss/")]
    parts = [name for name in names if name not in ("loss/train", "loss/dev")] or names
    ends = {name.removeprefix("loss/"): _ends(curves[name]) for name in parts}
    risen = [above(first, last) for first, last in ends.values()]
    return _told(ends) if risen and all(risen) else None


def above(first: float, last: float) -> bool:
    """Whether a loss that went from one to the other is well above where it began."""
    return last > max(_WORSE * first, _SMALL)


def _ends(points: list[tuple[float, float]]) -> tuple[float, float]:
    """How a curve began and ended: means of a few points."""
    values = [value for _, value in points]
    return fmean(values[:_FEW]), fmean(values[-_FEW:])


def _told(ends: Mapping[str, tuple[float, float]]) -> str:
    return ", ".join(
        f"{name} from {first:.3g} to {last:.3g}" for name, (first, last) in ends.items()
    )
