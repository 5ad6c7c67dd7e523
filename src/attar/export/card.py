"""A model card: what a model came from, what was done to it, what it costs and gains."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attar.core.recipe import ModelSource
from attar.core.report import Figure, StageReport
from attar.export.artifact import Artifact
from attar.export.licence import hub_lines, licence_of
from attar.models.source import PACKAGE, at_hand, of_hub

CARD = "README.md"
_PLACE = re.compile(r'"[/~][^"]*/([^"/]+)/?"')  # of a teacher, say, on this machine
_PIPELINES = {
    "causal-lm": "text-generation",
    "masked-lm": "fill-mask",
    "classification": "text-classification",
    "embedding": "feature-extraction",
    "contrastive": "zero-shot-image-classification",
}
_QUALITY = ("perplexity", "kl", "agreement", "accuracy", "macro_f1")
_SPEED = (
    "tokens_per_second",
    "texts_per_second",
    "first_token",
    "latency_p50",
    "latency_p95",
    "peak_memory",
)
_USE = {
    "hf": "from transformers import {auto}, AutoTokenizer\n\n"
    'model = {auto}.from_pretrained("{folder}")\n'
    'tokenizer = AutoTokenizer.from_pretrained("{folder}")',
    "gguf": "llama-server -m model.gguf{flags}",
}
_AUTO = {
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "classification": "AutoModelForSequenceClassification",
    "embedding": "AutoModel",
    "contrastive": "AutoModel",
}


@dataclass(frozen=True)
class Base:
    """What a model was made of, as a card tells it: by no path of this machine.

    `licence` is None where its files tell of none, or are not at hand to look into (`here`).
    """

    name: str
    licence: str | None
    here: bool = True
    hub: bool = False

    @property
    def told(self) -> str:
        """Its name and its licence, in words."""
        if self.licence:
            return f"`{self.name}`, whose licence is {self.licence}."
        if self.here:
            return f"`{self.name}`. No licence was found in its files."
        return f"`{self.name}`. Its licence was not looked up: its files are not on this machine."


def card(artifact: Artifact, records: Sequence[Mapping[str, Any]] = ()) -> str:
    """The card as Markdown with a YAML header; `records` are those of its exports."""
    base = base_of(artifact)
    parts = [
        _header(artifact, base, records),
        f"# {artifact.name}\n",
        f"Pressed by Attar from {base.told}",
        _stages(artifact.stages),
        _numbers(artifact.stages),
        *(_export(record) for record in records),
    ]
    return "\n".join(part for part in parts if part).rstrip() + "\n"


def base_of(artifact: Artifact) -> Base:
    """Where the model came from, and the licence of that."""
    if artifact.report is None:
        return Base(artifact.name, licence_of(artifact.name, artifact.files))
    source = ModelSource.model_validate(artifact.report.recipe["model"])
    path, hub, files = source.path, of_hub(source.path), at_hand(source)
    licence = licence_of(path, files)
    name = path if hub or path.startswith(PACKAGE) else Path(path).absolute().name
    return Base(name, licence, files is not None, hub)


def _header(artifact: Artifact, base: Base, records: Sequence[Mapping[str, Any]]) -> str:
    task = artifact.report.task if artifact.report else None
    task = task or next((record["task"] for record in records), None)
    lines = ["---", *(hub_lines(base.licence) if base.licence else ())]
    rounded = any(stage.kind.startswith("quantize/") for stage in artifact.stages)
    rounded = rounded or any(record["grids"] for record in records)
    relation = "quantized" if rounded else "finetune"
    if base.hub:  # which refuses a card with any other name there
        lines += [f"base_model: {base.name}", f"base_model_relation: {relation}"]
    if task in _PIPELINES:
        lines.append(f"pipeline_tag: {_PIPELINES[task]}")
    kinds = {stage.kind.partition("/")[0] for stage in artifact.stages if "/" in stage.kind}
    tags = ["attar", *sorted(kinds), *(str(record["target"]) for record in records)]
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in tags), "---\n"])


def _stages(stages: Sequence[StageReport]) -> str:
    """What was done, a line a stage, with the settings."""
    lines = [
        f"{number}. `{stage.kind}`" + (f": {_plain(stage.settings)}" if stage.settings else "")
        for number, stage in enumerate(stages[1:], 1)
    ]
    return "\n".join(["\n## What was done\n", *lines]) if lines else ""


def _plain(settings: Mapping[str, Any]) -> str:
    told = ", ".join(f"{name} {json.dumps(value)}" for name, value in settings.items())
    return _PLACE.sub(r'"\1"', told)


def _numbers(stages: Sequence[StageReport]) -> str:
    """What it came to, the original beside every stage, with the intervals."""
    names = [name for name in _QUALITY if any(name in stage.figures for stage in stages)]
    names += ["size"] if any("size" in stage.figures for stage in stages) else []
    if not names:
        return ""
    rows = [f"| {' | '.join(['stage', *names])} |", f"|{'---|' * (len(names) + 1)}"]
    for stage in stages:
        cells = [_cell(stage.figures.get(name)) for name in names]
        rows.append(f"| {' | '.join([stage.id, *cells])} |")
    note = "In brackets are 95 % intervals; measured on held-out data."
    return "\n".join(["\n## What it came to\n", *rows, "", note])


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return ""
    text = number(figure.value, figure.unit)
    if figure.low is None or figure.high is None:
        return text
    return f"{text} [{number(figure.low)}, {number(figure.high)}]"


def number(value: float, unit: str = "") -> str:
    """A number in four digits with its unit; bytes in MB."""
    if unit == "bytes":
        return f"{value / 1e6:.1f} MB"
    return f"{value:.4g} {unit}".strip()


def _export(record: Mapping[str, Any]) -> str:
    """One export: its grids, how it was verified, and how fast it is in each engine."""
    grids = sorted({str(grid) for grid in record["grids"].values()})
    lines = [f"\n## {record['target']}\n", f"- size: {number(record['bytes'], 'bytes')}"]
    lines.append(f"- grids: {', '.join(grids) or 'none'}; floats in {record['floats']}")
    if record["as_floats"]:
        lines.append(
            f"- written as floats, for nothing else is loaded there: "
            f"{', '.join(record['as_floats'])}; exactly the numbers that the codes stand for"
        )
    if record["rounded"]:
        lines.append(
            f"- rounded a second time, as was allowed: {len(record['rounded'])} layers, to "
            + ", ".join(sorted({str(item["to"]) for item in record["rounded"].values()}))
        )
    codes = record["verified"]["codes"]
    if codes["layers"]:
        lines.append(
            f"- read back by {record['reads_with']}: {codes['codes']:,} codes of "
            f"{codes['layers']} layers, their scales and zero points exactly equal"
        )
    if "not_run" in record:
        lines.append(f"- not run: {record['not_run']}")
    for engine, found in record["engines"].items():
        lines += _in_engine(engine, found)
    use = _USE.get(str(record["target"]))
    if use:
        task = record["task"]
        flags = " --embedding" if task == "embedding" else ""
        use = use.format(auto=_AUTO[task], folder="this folder", flags=flags)
        lines.append(f"\n```\n{use}\n```")
    return "\n".join(lines)


def _in_engine(engine: str, found: Mapping[str, Any]) -> Iterator[str]:
    """How near an export's answers are in one engine, and how fast they come."""
    outputs = found.get("outputs")
    if outputs:
        measured = {name: value for name, value in outputs.items() if name != "text"}
        told = ", ".join(f"{name} {number(value)}" for name, value in measured.items())
        yield f"- its answers in {engine} beside PyTorch's on {outputs['text']}: {told}"
    for name in _SPEED:
        plain = found.get("speed", {}).get(name)
        if plain:
            figure = Figure.model_validate(plain)
            yield f"- {name} in {engine}: {number(figure.value, figure.unit)} ({figure.note})"
