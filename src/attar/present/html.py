"""A report as one HTML file that needs nothing else: no script, no font, no other address."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from attar.core.report import Report, StageReport
from attar.present import figures
from attar.present.plain import bytes_text, clean, duration, flat, value_text
from attar.present.plots import plots
from attar.present.words import Words

_LANG = {"en": "en", "zh": "zh-CN"}
_LONG = 160  # characters of a note before it is folded away


def page(report: Report, language: str = "en") -> str:
    """The whole page as text, to be written as UTF-8."""
    import jinja2
    from markupsafe import Markup

    words = Words(language)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("attar.present"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pictures = [{"plot": plot, "svg": Markup(plot.svg)} for plot in plots(report, words)]
    return environment.get_template("report.html").render(
        w=words,
        lang=_LANG[language],
        clean=clean,
        title=clean(report.name),
        headline=figures.headline(report, words),
        model=_model(report.recipe),
        task=words.get(f"task.{report.task}", clean(report.task)),
        finished=report.finished,
        strip=_strip(report, words),
        columns=_columns(report, words),
        stages=[_stage(stage, report, words) for stage in report.stages],
        outside=[s for s in report.stages if s.verdict.status == "outside"],
        simulated=figures.is_simulated(report.stages),
        conditions=figures.conditions(report.stages, words),
        pictures=pictures,
        samples=[_sample(report, index, words) for index in range(len(report.samples))],
        warnings=[clean(warning) for warning in report.warnings],
        recipe=_yaml(report.model_dump(mode="json")["recipe"]),
        environment=_pairs(report.environment),
    )


def _model(recipe: Mapping[str, Any]) -> str:
    model = recipe.get("model", "")
    return clean(model.get("path", "") if isinstance(model, Mapping) else model)


def _strip(report: Report, words: Words) -> list[dict[str, str]]:
    """The few figures that matter most, before and after."""
    if report.pressed is None:
        return []
    first, last = report.stages[0], report.pressed
    names = ["size", figures.quality(report), "kl", figures.speed(report), "peak_memory"]
    found: list[dict[str, str]] = []
    for name in dict.fromkeys(name for name in names if name):
        before, after = figures.cell(first, name), figures.cell(last, name, first)
        if after is not None:
            found.append(
                {
                    "label": figures.label(name, words),
                    # The original differs from itself by nothing: no need to say so.
                    "before": "" if before is None or name == "kl" else before.value,
                    "after": after.value,
                    "simulated": words("simulated") if after.simulated else "",
                }
            )
    return found


def _columns(report: Report, words: Words) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    for name in figures.columns(report.stages):
        arrow, better = "", ""
        if figures.kind(name) in figures.HIGHER_IS_BETTER:
            arrow, better = "↑", words("plot.better_high")
        elif figures.kind(name) in figures.LOWER_IS_BETTER:
            arrow, better = "↓", words("plot.better_low")
        unit = figures.unit_label(name, report.stages, words)
        found.append(
            {"label": figures.label(name, words), "unit": unit, "arrow": arrow, "better": better}
        )
    return found


def _stage(stage: StageReport, report: Report, words: Words) -> dict[str, Any]:
    original = report.stages[0]
    facts = [
        (words("seconds"), "" if stage.seconds is None else duration(stage.seconds)),
        (words("memory"), "" if stage.peak_memory is None else bytes_text(stage.peak_memory)),
        (words("parent"), _parent(stage, report, words)),
        (words("key"), clean(stage.key)),
        (words("path"), clean(stage.path or "")),
    ]
    return {
        "name": figures.stage_name(stage, words),
        "kind": clean(stage.kind),
        "original": stage is original,
        "status": stage.verdict.status,
        "reasons": [clean(reason) for reason in stage.verdict.reasons],
        "cells": [figures.cell(stage, n, original) for n in figures.columns(report.stages)],
        "cached": stage.cached,
        "facts": [(name, value) for name, value in facts if value],
        "time": "" if stage.seconds is None else duration(stage.seconds),
        "settings": _pairs(stage.settings),
        "notes": _pairs(stage.notes),
        "warnings": [clean(warning) for warning in stage.warnings],
    }


def _parent(stage: StageReport, report: Report, words: Words) -> str:
    for other in report.stages:
        if stage.parent is not None and stage.parent in (other.id, other.key):
            return figures.stage_name(other, words)
    return clean(stage.parent or "")


def _pairs(values: dict[str, Any]) -> list[dict[str, Any]]:
    texts = {clean(name): value_text(value) for name, value in flat(values).items()}
    return [
        {"name": name, "text": text, "long": len(text) > _LONG, "start": text[:60]}
        for name, text in texts.items()
    ]


def _sample(report: Report, index: int, words: Words) -> dict[str, Any]:
    sample = report.samples[index]
    names = {stage.id: figures.stage_name(stage, words) for stage in report.stages}
    last = report.pressed.id if report.pressed is not None else None
    ids = [name for name in names if name in sample.texts]
    ids += [name for name in sample.texts if name not in names]
    return {
        "prompt": clean(sample.prompt).strip(),
        "texts": [
            {
                "name": names.get(name, clean(name)),
                "text": clean(sample.texts[name]).strip(),
                "last": name == last,
            }
            for name in ids
        ],
    }


def _yaml(recipe: dict[str, Any]) -> str:
    return clean(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=88)).rstrip()
