"""Measuring stages, keeping what was measured, and judging it when it is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from attar.core.context import Progress
from attar.core.keys import key_of
from attar.core.report import Figure, Sample, StageReport
from attar.core.step import Step
from attar.data.batches import Batch, held_out
from attar.engine.make import open_stage, path_of
from attar.engine.plan import Plan, Stage
from attar.engine.store import Store
from attar.measure.forgetting import forgetting
from attar.measure.items import Items
from attar.measure.machine import processor
from attar.measure.quality import States, computes_nan, judge, reference_states
from attar.measure.samples import looping_share, write
from attar.measure.size import weights_size
from attar.measure.speed import probe
from attar.measure.statistics import compare, figures
from attar.measure.verdict import Evidence, Looping, judge_stage
from attar.models import Files, Model
from attar.models.load import load_tokenizer, skeleton
from attar.models.places import length_for

VERSION = 2


class Measuring:
    """Measures the stages of one plan; what the store already holds is not measured again."""

    def __init__(self, plan: Plan, store: Store, progress: Progress) -> None:
        self.plan, self.store, self.progress = plan, store, progress
        self.settings = plan.recipe.measures
        self._models: dict[str, Model] = {}
        self._states: dict[str, States] = {}
        self._batches: dict[str, list[Batch]] = {}
        self._alone: list[dict[str, Figure]] = []
        self._items: dict[str, Items] = {}
        self._texts: dict[str, list[str]] = {}
        self._sizes: dict[str, int] = {}

    def measure(self, stage: Stage, row: StageReport) -> None:
        """Fill in a stage's figures and verdict."""
        self._models.clear()
        path = path_of(self.plan, stage, self.store)
        self._sizes[stage.id] = weights_size(path)
        size = self._sizes[stage.id]
        if stage.step is None:
            size = self.plan.inputs.files.size or size
        row.figures["size"] = Figure(value=size, unit="bytes")
        if self.settings.data in self.plan.recipe.data:
            self._quality(stage, row)
        self._tasks(stage, row)
        if stage.step is not None and self.plan.recipe.guard.enabled:
            evidence = self._evidence(stage, stage.step)
            row.verdict = judge_stage(self.plan.recipe.guard, evidence)
        if self.settings.speed:
            row.figures.update(self._speed(stage, path))
        extra = self._kept("facts", stage, [], lambda: _facts(self._model(stage)))
        row.simulated = extra["simulated"]
        row.figures["parameters"] = Figure(value=extra["parameters"])
        if self.settings.prompts and self.plan.inputs.task == "causal-lm":
            self._texts[stage.id] = self._samples(stage)
        self._models.clear()

    def samples(self) -> list[Sample]:
        """What each stage wrote so far, prompt by prompt."""
        return [
            Sample(prompt=prompt, texts={name: texts[i] for name, texts in self._texts.items()})
            for i, prompt in enumerate(self.settings.prompts)
            if self._texts
        ]

    def _quality(self, stage: Stage, row: StageReport) -> None:
        reference = self._reference(stage)
        items = self._judged(stage, reference, self.settings.data)
        self._items[stage.id] = items
        base = self._items.get(reference.id) if reference else None
        row.figures.update(figures(items, base, self.plan.inputs.task))

    def _tasks(self, stage: Stage, row: StageReport) -> None:
        """One figure for each further dataset: stages and datasets are rows and columns."""
        found: dict[str, Figure] = {}
        for name in self.settings.also:
            judged = figures(self._judged(stage, None, name), None, self.plan.inputs.task)
            for what in ("accuracy", "perplexity"):
                if what in judged:
                    found[f"{what} on {name}"] = judged[what]
        self._alone.append(found)
        lost = forgetting(self._alone, list(found)) if found and stage.step else None
        row.figures.update(found if lost is None else {**found, "forgetting": lost})

    def _evidence(self, stage: Stage, step: Step) -> Evidence:
        """What the guard judges by; without data NaN and the step's promises are left."""
        parent = next(other for other in self.plan.stages if other.key == stage.parent)
        reference, items = self._reference(stage), self._items.get(stage.id)
        base = self._items.get(reference.id) if reference else None
        return Evidence(
            comparison=compare(items, base) if items and base else None,
            judged=items is not None,
            nan=items.nan if items else self._computes_nan(stage),
            size_before=self._sizes[parent.id],
            size_after=self._sizes[stage.id],
            changed=self._weights(parent) != self._weights(stage),
            promises=step.promises,
            looping=self._looping(stage, reference) if items else None,
            may_dip=stage.id in self.plan.recipe.guard.may_dip,
        )

    def _reference(self, stage: Stage) -> Stage | None:
        """The stage to compare with; None for it itself and for what comes before it."""
        names = [other.id for other in self.plan.stages]
        wanted = self.plan.recipe.guard.reference
        if wanted not in names or names.index(stage.id) <= names.index(wanted):
            return None
        return self.plan.stage(wanted)

    def _judged(self, stage: Stage, reference: Stage | None, data: str) -> Items:
        settings = self.settings
        parts = [
            self.plan.inputs.data_key(data),
            settings.sequences,
            settings.length,
            reference.key if reference else None,
            self.plan.precision,
        ]

        def work() -> dict[str, Any]:
            model = self._model(stage)
            other = self._reference_states(reference) if reference else None
            batches = self._held_out(data)
            return judge(model, batches, other, self.plan.precision, self.progress).to_plain()

        return Items.from_plain(self._kept("quality", stage, parts, work))

    def _reference_states(self, reference: Stage) -> States:
        """The reference's hidden states on the held-out data, computed once for all stages."""
        if reference.id not in self._states:
            model = open_stage(self.plan, reference, self.store)
            self._states[reference.id] = reference_states(
                model, self._held_out(), self.plan.precision, self.progress
            )
        return self._states[reference.id]

    def _held_out(self, data: str | None = None) -> list[Batch]:
        settings, name = self.settings, data or self.settings.data
        if name not in self._batches:
            inputs = self.plan.inputs
            original = path_of(self.plan, self.plan.stages[0], self.store)
            empty = skeleton(inputs.config, inputs.task, inputs.labels)
            self._batches[name] = held_out(
                inputs.dataset(name),
                load_tokenizer(Files(original)),
                inputs.task,
                length_for(empty, settings.length),
                settings.batch,
                settings.sequences,
                labels=inputs.labels or None,
            )
        return self._batches[name]

    def _computes_nan(self, stage: Stage) -> bool:
        precision = self.plan.precision

        def work() -> dict[str, Any]:
            return {"nan": computes_nan(self._model(stage), precision)}

        return bool(self._kept("nan", stage, [precision], work)["nan"])

    def _looping(self, stage: Stage, reference: Stage | None) -> Looping | None:
        """Held against the reference; up to the reference itself, against the original."""
        if self.plan.inputs.task != "causal-lm":
            return None
        other = reference or self.plan.stages[0]
        return Looping(self._loops(stage), self._loops(other), other.id)

    def _loops(self, stage: Stage) -> float:
        settings = self.settings
        parts = [self.plan.inputs.data_key(settings.data), self.plan.precision]
        parts += [settings.sequences, settings.length]

        def work() -> dict[str, Any]:
            model = self._model(stage)
            return {
                "share": looping_share(model, self._held_out(), self.plan.precision, self.progress)
            }

        return float(self._kept("looping", stage, parts, work)["share"])

    def _speed(self, stage: Stage, path: Path) -> dict[str, Figure]:
        precision, device = self.plan.precision, self.plan.device
        threads = self.settings.threads or torch.get_num_threads()

        def work() -> dict[str, Any]:
            self.progress.say("timing in a fresh process")
            self._models.clear()
            found = probe(path, self.plan.inputs.task, threads, precision, device)
            return {name: figure.model_dump() for name, figure in found.items()}

        parts = [threads, precision, torch.device(device).type, processor(device)]
        kept = self._kept("speed", stage, parts, work)
        return {name: Figure.model_validate(plain) for name, plain in kept.items()}

    def _samples(self, stage: Stage) -> list[str]:
        prompts, tokens = list(self.settings.prompts), self.settings.new_tokens
        parts = [prompts, tokens, self.plan.precision]

        def work() -> dict[str, Any]:
            return {"texts": write(self._model(stage), prompts, tokens, self.plan.precision)}

        return self._kept("samples", stage, parts, work)["texts"]

    def _weights(self, stage: Stage) -> list[str]:
        folder = path_of(self.plan, stage, self.store)
        return [self.store.hashes.of(path) for path in sorted(folder.glob("*.safetensors"))]

    def _model(self, stage: Stage) -> Model:
        if stage.id not in self._models:
            self._models[stage.id] = open_stage(self.plan, stage, self.store)
        return self._models[stage.id]

    def _kept(
        self, what: str, stage: Stage, parts: list[Any], work: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        key = f"{stage.key}-{key_of(what, VERSION, parts)}"
        kept = self.store.measurement(key)
        if kept is None:
            kept = work()
            self.store.keep_measurement(key, kept)
        return kept


def _facts(model: Model) -> dict[str, Any]:
    return {"simulated": model.simulated, "parameters": model.parameters_count()}
