"""Whether the datasets of a recipe fit together: the same classes, no row on both sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attar.core.step import Task
from attar.data.example import Dataset, Example, shortened
from attar.errors import DataError, Problem

_MOST = 10


def check_together(
    datasets: Mapping[str, Dataset], train: str, held_out: Sequence[str], task: Task
) -> list[str]:
    """Warnings about rows that are in the training data and in held-out data too.

    Names that are not among the datasets are passed over. Raises DataError where training has
    a single class, where held-out data has a label that training lacks, and where a held-out
    dataset lies in the training data altogether.
    """
    if train not in datasets:
        return []
    others = [datasets[name] for name in held_out if name in datasets and name != train]
    problems: list[Problem] = []
    if task == "classification":
        problems += _labels(datasets[train], others)
    warnings: list[str] = []
    for other in others:
        twice = twins(datasets[train], other)
        if not twice:
            continue
        first = f'the first is {twice[0].where}: "{shortened(twice[0].text)}"'
        if len(twice) == len(other.examples):
            text = f"every row of {other.name} is in {train} too; {first}. Judged on what it was "
            problems.append(Problem(text + "fitted to, a model looks better than it is"))
            continue
        count = f"{len(twice)} of {len(other.examples)} rows"
        what = f"{count} of {other.name} are in {train} too; {first}."
        warnings.append(f"{what} Scores on {other.name} look better than they are: take them out")
    if problems:
        raise DataError(problems)
    return warnings


def twins(train: Dataset, other: Dataset) -> list[Example]:
    """The rows of the other dataset whose text is in the first one too."""
    known = {example.digest() for example in train.examples}
    return [example for example in other.examples if example.digest() in known]


def _labels(train: Dataset, others: Sequence[Dataset]) -> list[Problem]:
    if not train.labels:
        return []
    problems: list[Problem] = []
    if len(train.labels) == 1:
        file = train.examples[0].where.rpartition(":")[0]
        text = f'{train.name} has one class only, "{train.labels[0]}"; at least two are needed'
        problems.append(Problem(text, file or None))
    for other in others:
        unseen = [label for label in other.labels if label not in train.labels]
        for label in unseen[:_MOST]:
            where = next(example.where for example in other.examples if example.label == label)
            there = ", ".join(f'"{name}"' for name in train.labels[:_MOST])
            more = ", ..." if len(train.labels) > _MOST else ""
            text = f'{other.name} has the label "{label}", which {train.name} lacks'
            what = f"{where}: {text}; it has {there}{more}. Mend it, or add such rows to training"
            problems.append(Problem(what))
        if len(unseen) > _MOST:
            more = f"{other.name} has {len(unseen) - _MOST} more labels that {train.name} lacks"
            problems.append(Problem(more))
    return problems
