"""An artifact: what made it, from what, how long that took, and how large it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attar.cli.message import print_facts

if TYPE_CHECKING:
    from attar.engine.store import Store


def show_artifact(store: Store, key: str) -> None:
    """Print what is known of one artifact of the store."""
    print_facts(_facts(store, key))


def _facts(store: Store, key: str) -> dict[str, str]:
    from attar.present.plain import bytes_text, clean, duration, flat, value_text

    step, made = store.step_of(key), store.report_of(key)
    path = store.path(key)
    files = [file for file in path.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    weights = sum(file.stat().st_size for file in files if file.suffix == ".safetensors")
    held = {"weights": bytes_text(weights)}
    if step.get("rows") is not None:  # data, and no model
        held = {"rows": f"{step['rows']:,}"}
    facts = {
        "key": key,
        "technique": f"{step.get('kind')}, version {step.get('version')}",
        "made from": str(step.get("parent") or "–"),
        "task": str(step.get("task")),
        **held,
        "all files": f"{bytes_text(size)}, {len(files)} files",
        "kept in": str(path),
    }
    if step.get("labels"):
        facts["labels"] = value_text(step["labels"])
    if made.get("seconds") is not None:
        facts["time"] = duration(made["seconds"])
    if made.get("peak_memory"):
        facts["peak memory"] = bytes_text(made["peak_memory"])
    for title in ("settings", "notes"):
        source: dict[str, Any] = (step if title == "settings" else made).get(title) or {}
        lines = [f"{name}: {value_text(value)}" for name, value in flat(source).items()]
        if lines:
            facts[title] = clean("\n".join(lines))
    if made.get("warnings"):
        facts["warnings"] = clean("\n".join(made["warnings"]))
    return facts
