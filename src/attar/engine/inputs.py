"""The recipe's model and datasets, found and read once."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from attar.core.keys import UNKNOWN, key_of
from attar.core.recipe import Recipe
from attar.core.step import Task
from attar.data import Dataset, check_together, fingerprint, load
from attar.data.files import located
from attar.data.made import ROWS, read_rows
from attar.data.media import check_medium
from attar.engine.store import Store
from attar.errors import DataError, Problem, RecipeError
from attar.models.adapters import adapted_in
from attar.models.check import check_classes
from attar.models.families import family_of
from attar.models.load import CLASSIFIERS, config_of, task_of
from attar.models.source import Files, resolve


class Inputs:
    """What a recipe reads: found when first asked for, and kept."""

    def __init__(self, recipe: Recipe, store: Store) -> None:
        self.recipe, self.store = recipe, store
        self.made: dict[str, str] = {}  # names and keys of the datasets that steps make
        self._datasets: dict[str, Dataset] = {}

    @cached_property
    def files(self) -> Files:
        """The original's files."""
        return resolve(self.recipe.model)

    @cached_property
    def config(self) -> Any:
        """The original's config."""
        return config_of(self.files, self.recipe.model)

    @cached_property
    def adapted(self) -> list[str]:
        """The linears of the original that have an adapter, by the headers of its files."""
        return adapted_in(self.files.folder)

    @cached_property
    def task(self) -> Task:
        """The recipe's task, or the one that the model was made for."""
        return self.recipe.task or task_of(self.config, self.files)

    @property
    def media(self) -> str | None:
        """The input that images or sounds come in by; None where the model reads text alone."""
        return family_of(self.config.model_type).media

    @cached_property
    def fresh_head(self) -> bool:
        """Whether the files hold no head for the task, so that one is drawn."""
        names = self.config.architectures or ()
        there = any(name.endswith(CLASSIFIERS) for name in names)
        return self.task == "classification" and (self.files.fresh or not there)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Class names in the order of the outputs; empty unless the task is classification."""
        if self.task != "classification":
            return ()
        given = self._train_labels()
        if self.fresh_head:
            return given
        check_classes(self.config, self.files)
        names: dict[int, str] = self.config.id2label
        own = tuple(str(names[index]) for index in sorted(names))
        unnamed = all(name == f"LABEL_{index}" for index, name in enumerate(own))
        if unnamed and len(given) == len(own):
            return given
        strange = [label for label in given if label not in own]
        if strange:
            raise RecipeError(
                [
                    Problem(
                        f"the data has labels that the model does not know: {', '.join(strange)}. "
                        f"It knows {', '.join(own)}. Rename the labels in the data, or start from "
                        "a model without a classification head"
                    )
                ]
            )
        return own

    @property
    def foreign(self) -> set[str]:
        """Datasets whose labels are those of other tasks."""
        return {name for step in self.recipe.steps for name in step.foreign()}

    def _train_labels(self) -> tuple[str, ...]:
        sources = {n: s for n, s in self.recipe.data.items() if n not in self.foreign}
        for name, source in sources.items():
            if source.labeled and (name == "train" or source.split == "train"):
                return self.dataset(name).labels
        labeled = [name for name, source in sources.items() if source.labeled]
        return self.dataset(labeled[0]).labels if labeled else ()

    def dataset(self, name: str) -> Dataset:
        """The dataset of this name. Raises KeyError when the recipe has none."""
        if name in self.made:
            return self._made(name)
        if name not in self._datasets:
            source = self.recipe.data[name]
            self._datasets[name] = load(source, self.task, name)
        return self._datasets[name]

    def _made(self, name: str) -> Dataset:
        """What a step has made; KeyError as long as it has not."""
        key = self.made[name]
        if name not in self._datasets:
            if not self.store.has(key):
                raise KeyError(name)
            self._datasets[name] = read_rows(self.store.path(key) / ROWS, name, key)
        return self._datasets[name]

    def data_key(self, name: str, peek: bool = False) -> str:
        """A key over a dataset's content and how it is read; that of its step where one made it."""
        if name in self.made:
            return self.made[name]
        if name not in self.recipe.data:
            return key_of("no such data", name)
        return fingerprint(self.recipe.data[name], self.store.hashes, peek, name)

    def file_key(self, path: str, peek: bool = False) -> str:
        """A key over the content of a file, or of all files in a folder."""
        place, read = located(path), self.store.hashes.peek if peek else self.store.hashes.of
        files = sorted(place.iterdir()) if place.is_dir() else [place]
        return key_of([[file.name, read(file)] for file in files if file.is_file()])

    def root_key(self, peek: bool = False) -> str:
        """The key of the original: content, dtype, and what a fresh head is drawn from."""
        content = self.files.content(self.store.hashes, peek)
        if content == UNKNOWN:
            return UNKNOWN
        head = [self.recipe.seed] if self.fresh_head or self.files.fresh else []
        return key_of("root", content, self.recipe.model.dtype, self.task, list(self.labels), head)

    def check_data(self) -> list[str]:
        """Read the data, compare training and held-out data; warnings, or DataError."""
        used = self.used_data()
        datasets = {name: self.dataset(name) for name in used}
        for dataset in datasets.values():
            check_medium(dataset, self.media)
        problems = [
            Problem(f"step {number} ({step.kind}): {text}")
            for number, step in enumerate(self.recipe.steps, 1)
            for text in step.check_data(datasets)
        ]
        if problems:
            raise DataError(problems)
        read = [warning for dataset in datasets.values() for warning in dataset.warnings]
        warnings = list(dict.fromkeys(read))  # the same file may be read for several
        used = [name for name in used if name not in self.foreign]
        train = next((name for name in used if self.recipe.data[name].split == "train"), None)
        train = train or ("train" if "train" in used else None)
        if train is None:
            return warnings
        held = [name for name in used if name != train]
        return warnings + check_together(datasets, train, held, self.task)

    def used_data(self) -> list[str]:
        """Names of the datasets that a step or a measure reads, in the recipe's order."""
        names = set(self.recipe.measures.datasets)
        for step in self.recipe.steps:
            names |= {name for _, name in step.references("data")}
        return [name for name in self.recipe.data if name in names]
