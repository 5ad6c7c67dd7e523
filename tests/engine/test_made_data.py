"""Datasets that steps make: in the plan, in keys, in the store, in the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import data_steps
import tiny_models
from attar.core.recipe_file import build
from attar.engine import make_data as making
from attar.engine.plan import make_plan
from attar.engine.run import run
from attar.engine.store import Store
from attar.errors import DataError, PlanError, RecipeError, Unreachable
from attar.models import save
from loopback import serving

GROW, TEACH = "data/synonyms", "adapt/full"


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny classifier."""
    folder = tmp_path_factory.mktemp("models") / "bert"
    save(tiny_models.tiny("bert", "classification"), folder)
    return folder


@pytest.fixture
def recipe(bert: Path, tmp_path: Path) -> dict[str, Any]:
    """Rows are grown, then trained on."""
    folder = tmp_path / "given"
    folder.mkdir()
    for seed, name in enumerate(("train", "dev", "test")):
        texts = tiny_models.texts(12, 6, seed)
        lines = [
            f"good a{data_steps.LETTERS[at % 4]} {t}\t{tiny_models.LABELS[at % 3]}"
            for at, t in enumerate(texts)
        ]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", "utf-8")
    words = str(data_steps.synonyms(tmp_path))
    return {
        "name": "grown",
        "model": str(bert),
        "data": str(folder),
        "precision": "float32",
        "steps": [
            {GROW: {"id": "more", "words": words, "variants": 2, "batch": 5}},
            {TEACH: {"data": "more", "steps": 2, "batch": 4, "length": 16}},
        ],
        "measures": {"sequences": 4, "length": 16, "speed": False},
        "guard": {"enabled": False},
    }


def keys(recipe: dict[str, Any], home: Path) -> list[str]:
    return [stage.key for stage in make_plan(build(recipe), Store(home)).stages]


def test_a_later_step_reads_what_an_earlier_one_made(recipe: dict[str, Any], tmp_path: Path):
    done = run(recipe, home=tmp_path / "home")
    _, more, taught = done.report.stages
    assert [stage.id for stage in done.report.stages] == ["original", "more", "full"]
    assert more.parent is None
    assert taught.parent == "original"
    assert more.figures.keys() == {"rows", "kept"}
    assert more.figures["rows"].value == len(done.data("more").examples) > 12
    assert more.notes["kept"] == 1.0
    assert more.seconds is not None
    assert "accuracy" in taught.figures
    assert done.report.pressed is taught
    assert done.path == tmp_path / "home" / "store" / taught.key
    assert (done.folder / "model").resolve() == done.path.resolve()
    texts = {example.text for example in done.data("more").examples}
    assert {example.text for example in done.data("train").examples} < texts


def test_a_second_run_makes_nothing(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = run(recipe, home=tmp_path / "home")
    monkeypatch.setattr("attar.engine.run.make", None)
    monkeypatch.setattr("attar.engine.run.make_data", None)
    second = run(recipe, home=tmp_path / "home")
    assert [stage.cached for stage in second.report.stages] == [True, True, True]
    assert [s.figures for s in second.report.stages] == [s.figures for s in first.report.stages]


def test_what_was_killed_goes_on(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    calm = run(recipe, home=tmp_path / "calm")

    def full(*_: Any) -> None:
        raise KeyboardInterrupt  # all rows are made, and none is published

    with monkeypatch.context() as patched:
        patched.setattr(making, "publish", full)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, home=tmp_path / "home")
    key = calm.report.stages[1].key
    scratch = tmp_path / "home" / "scratch" / key
    assert len((scratch / "writing-variants.jsonl").read_text().splitlines()) == 3
    done = run(recipe, home=tmp_path / "home")
    assert done.data("more").examples == calm.data("more").examples
    assert not scratch.exists()
    rows = [tmp_path / home / "store" / key / "rows.jsonl" for home in ("calm", "home")]
    assert rows[0].read_bytes() == rows[1].read_bytes()


def test_keys_follow_what_the_data_is_made_of(recipe: dict[str, Any], tmp_path: Path):
    before = keys(recipe, tmp_path)
    grow = recipe["steps"][0][GROW]
    grow["variants"] = 3
    other = keys(recipe, tmp_path)
    assert [a == b for a, b in zip(before, other, strict=True)] == [True, False, False]
    grow["variants"] = 2
    words = Path(grow["words"])
    words.write_text(words.read_text() + "new\tnewer\n", "utf-8")
    assert [a == b for a, b in zip(before, keys(recipe, tmp_path), strict=True)] == [
        True, False, False,
    ]  # fmt: skip
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    moved = folder / words.name
    moved.write_text(words.read_text().replace("new\tnewer\n", ""), "utf-8")
    grow |= {"words": str(moved), "id": "other"}
    recipe["steps"][1][TEACH]["data"] = "other"
    assert keys(recipe, tmp_path) == before  # neither place nor name is in a key


def test_the_models_keys_know_nothing_of_data_that_they_do_not_read(
    recipe: dict[str, Any], tmp_path: Path
):
    recipe["steps"][1][TEACH]["data"] = "train"
    with_data = keys(recipe, tmp_path)
    del recipe["steps"][0]
    assert keys(recipe, tmp_path) == [with_data[0], with_data[2]]


def test_unhashed_data_is_unknown_to_a_plan(recipe: dict[str, Any], tmp_path: Path):
    plan = make_plan(build(recipe), Store(tmp_path / "home"), peek=True)
    assert [stage.key for stage in plan.stages] == ["?", "?", "?"]
    assert [stage.makes_data for stage in plan.stages] == [False, True, False]


def refused(recipe: dict[str, Any]) -> str:
    with pytest.raises(RecipeError) as caught:
        build(recipe)
    return str(caught.value)


def test_data_used_before_it_is_made(recipe: dict[str, Any]):
    recipe["steps"].reverse()
    assert (
        "step 1 (adapt/full): `data` reads the data 'more', which step 2 makes later. Move that "
        "step before this one"
    ) in refused(recipe)


def test_data_of_a_name_that_is_near(recipe: dict[str, Any]):
    recipe["steps"][1][TEACH]["data"] = "moer"
    said = refused(recipe)
    assert "which is not there; did you mean 'more'?" in said
    assert "`data` has train, dev, test, more" in said


def test_data_that_makes_itself(recipe: dict[str, Any]):
    recipe["steps"][0][GROW]["data"] = "more"
    assert "which is what it makes" in refused(recipe)


def test_data_of_a_name_that_is_taken(recipe: dict[str, Any]):
    recipe["steps"][0][GROW]["id"] = "train"
    assert "it makes the data 'train', a name that `data` has already" in refused(recipe)


def test_data_is_no_model(recipe: dict[str, Any]):
    recipe["steps"][1] = {"distill/logits": {"teacher": "more"}}
    recipe["guard"] = {"reference": "more", "may_dip": ["more"]}
    said = refused(recipe)
    assert said.count("the id of step 1, which makes data and no model") == 2
    assert "`guard.may_dip` names 'more', which is no stage" in said


def test_models_are_judged_on_data_as_it_was_given(recipe: dict[str, Any]):
    recipe["measures"]["data"] = "more"
    assert "which step 1 makes: models are judged on data that no step made" in refused(recipe)


def test_held_out_data_is_grown_into_nothing(recipe: dict[str, Any]):
    recipe["steps"][0][GROW]["data"] = "test"
    assert "held-out data is never calibration data" in refused(recipe)


def planned(recipe: dict[str, Any], tmp_path: Path) -> str:
    with pytest.raises(PlanError) as caught:
        make_plan(build(recipe), Store(tmp_path))
    return str(caught.value)


def test_files_and_models_are_looked_for_before_any_work(
    recipe: dict[str, Any], tmp_path: Path, tiny_folder: Path
):
    recipe["steps"] = [
        {GROW: {"words": "nowhere.tsv"}},
        {"data/mlm": {"mlm": str(tiny_folder)}},
        {"data/generate": {"texts": 3}},
        {"data/label": {"ask": "{text}", "classes": ["a", "b"], "teacher": "full"}},
        {TEACH: {}},
    ]
    recipe["steps"].insert(3, recipe["steps"].pop())
    said = planned(recipe, tmp_path)
    assert "step 1 (data/synonyms): `words`: no such file or folder" in said
    assert "step 2 (data/mlm): `mlm`" in said
    assert "is a model for causal-lm, and one for masked-lm is needed" in said
    assert "step 3 (data/generate): `teacher` original is a model for classification" in said
    assert "step 5 (data/label): `teacher` is the stage 'full', a model for classification" in said


def test_a_judge_is_for_the_recipes_own_task(
    recipe: dict[str, Any], tmp_path: Path, tiny_folder: Path
):
    """It is known before any weight loads, and not when the first text is there to be judged."""
    writer = {"data": "train", "teacher": str(tiny_folder)}
    recipe["steps"] = [{"data/generate": {**writer, "judge": str(tiny_folder)}}]
    assert (
        f"step 1 (data/generate): `judge` {tiny_folder} is a model for causal-lm, and one for "
        "classification is needed"
    ) in planned(recipe, tmp_path)
    recipe["steps"] = [{"data/generate": {**writer, "judge": "original"}}]
    make_plan(build(recipe), Store(tmp_path))
    recipe["steps"] = [{GROW: {"words": str(data_steps.synonyms(tmp_path)), "teacher": "original"}}]
    make_plan(build(recipe), Store(tmp_path))
    folder = tmp_path / "filler"
    save(tiny_models.tiny("bert", "masked-lm"), folder)
    recipe |= {"model": str(folder)}
    recipe["steps"] += [{"data/generate": {**writer, "judge": "original"}}]
    recipe["data"] = {"train": {"path": recipe["data"], "split": "train", "labeled": False}}
    said = planned(recipe, tmp_path)
    for setting in ("1 (data/synonyms): `teacher`", "2 (data/generate): `judge`"):
        assert (
            f"step {setting} must be a model for causal-lm or classification, and those of this "
            "recipe are for masked-lm"
        ) in said


def test_texts_of_a_teacher_behind_an_address(plain: dict[str, Any], tmp_path: Path):
    """It dies, and goes on; what is made is read from the store when nobody is there."""
    ask = {"teacher": "", "data": "train", "texts": 12, "server": {"tries": 1, "at_once": 2}}
    plain["steps"] = [{"data/generate": {**ask, "id": "more", "new_tokens": 4}}]
    text = tmp_path / "rows.tsv"
    text.write_text("text\tlabel\n" + "\n".join(f"w{n} w1\tx" for n in range(12)), "utf-8")
    plain["data"] = {"train": {"path": str(text), "labeled": False}}
    del plain["guard"]
    left = 5

    def reply(path: str, asked: dict[str, Any]) -> tuple[int, Any]:
        nonlocal left
        left -= 1
        said = {"text": f" {asked['seed']}", "finish_reason": "stop"}
        return (200, {"choices": [said]}) if left >= 0 else (503, {})

    with serving() as server:
        server.reply = reply
        plain["steps"][0]["data/generate"]["teacher"] = server.url
        with pytest.raises(Unreachable, match="what it has told is kept"):
            run(plain, home=tmp_path / "home")
        before, left = len(server.asked), 100
        done = run(plain, home=tmp_path / "home")
        assert len(server.asked) == before + 7
        calm = run(plain, home=tmp_path / "calm")
    assert done.report.stages[1].notes["writing"] == {"stop": 12}
    assert done.data("more").examples == calm.data("more").examples
    assert [row.text.split()[0] for row in done.data("more").examples][:2] == ["w0", "w1"]
    again = run(plain, home=tmp_path / "home")
    assert again.report.stages[1].cached


def test_rows_keep_their_domains_on_their_way(recipe: dict[str, Any], tmp_path: Path):
    """From a column, through data that a step makes, to the teachers of distill/routed."""
    lines = [
        {"text": f"good w{n} w2", "label": tiny_models.LABELS[n % 3], "topic": "ab"[n % 2]}
        for n in range(12)
    ]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    test = {"path": f"{recipe['data']}/test.tsv"}
    recipe["data"] = {"train": {"path": str(rows), "domain": "topic"}, "test": test}
    routed = {"teachers": ["original"] * 2, "domains": ["a", "b"], "data": ["more"]}
    recipe["steps"][1] = {"distill/routed": {**routed, "steps": 2, "batch": 4, "length": 16}}
    done = run(recipe, home=tmp_path / "home")
    assert {row.domain for row in done.data("more").examples} == {"a", "b"}
    assert len(done.data("more").examples) > 12
    recipe["steps"][1]["distill/routed"]["domains"] = ["a", "c"]
    with pytest.raises(DataError, match="no teacher is for the domain 'b'"):
        run(recipe, home=tmp_path / "home")


def test_a_random_head_is_no_teacher(recipe: dict[str, Any], tmp_path: Path):
    folder = tmp_path / "headless"
    save(tiny_models.tiny("bert", "masked-lm"), folder)
    recipe |= {"model": str(folder), "task": "classification"}
    recipe["steps"] = [{"data/label": {}}]
    assert "is drawn at random here. Fine-tune it first" in planned(recipe, tmp_path)
    recipe["steps"] = [{TEACH: {"id": "teacher"}}, {"data/label": {"teacher": "teacher"}},
                       {"data/mlm": {}}]  # fmt: skip
    make_plan(build(recipe), Store(tmp_path))  # the original's own head fills words in


def test_nothing_kept_is_told(recipe: dict[str, Any], tmp_path: Path):
    recipe["steps"][0][GROW] |= {"originals": False, "teacher": "original", "confidence": 1.0}
    with pytest.raises(DataError, match=r"step 'more' \(data/synonyms\) kept no row at all"):
        run(recipe, home=tmp_path / "home")


def test_rows_that_are_judged_on_are_told(recipe: dict[str, Any], tmp_path: Path):
    train = Path(recipe["data"]) / "train.tsv"
    test = Path(recipe["data"]) / "test.tsv"
    text, label = train.read_text().splitlines()[0].split("\t")
    twin = text.replace("good", "gooder").replace("aw", "bw")
    test.write_text(f"{test.read_text()}{twin}\t{label}\n", "utf-8")
    recipe["steps"][0][GROW] |= {"variants": 40, "share": 0.9}
    (tmp_path / "also.tsv").write_text(f"{twin}\t{label}\nelse\t{label}\n", "utf-8")
    given = {name: {"path": recipe["data"], "split": name} for name in ("train", "dev", "test")}
    recipe["data"] = given | {"also": {"path": str(tmp_path / "also.tsv")}}
    recipe["measures"]["also"] = ["also"]
    done = run(recipe, home=tmp_path / "home")
    said = done.report.stages[1].warnings
    assert "1 of 13 rows of test are in more too" in said[0]
    assert "1 of 2 rows of also are in more too" in said[1]
    again = run(recipe, home=tmp_path / "home")
    assert again.report.stages[1].warnings == done.report.stages[1].warnings


def test_data_alone_needs_no_held_out_data(recipe: dict[str, Any], tmp_path: Path):
    recipe["data"] = {"train": {"path": f"{recipe['data']}/train.tsv"}}
    recipe["steps"] = recipe["steps"][:1]
    done = run(recipe, home=tmp_path / "home")
    assert [stage.id for stage in done.report.stages] == ["original", "more"]
    assert done.report.pressed is None
    facts = json.loads((done.path.parent / done.report.stages[1].key / "step.json").read_text())
    assert facts["rows"] == done.report.stages[1].figures["rows"].value
    assert facts["files"].keys() == {"rows.jsonl"}


def test_a_student_learns_what_another_family_writes(tiny_folder: Path, tmp_path: Path):
    """The teacher has other tokens than the student; only its text is used."""
    save(tiny_models.tiny("gpt2", vocab_size=110), tmp_path / "teacher")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(tiny_models.texts(300, 12)), "utf-8")
    sequence = {
        "teacher": str(tmp_path / "teacher"),
        "steps": 2,
        "batch": 2,
        "length": 16,
        "prompts": 4,
        "prompt_tokens": 4,
        "new_tokens": 8,
    }
    done = run(
        {
            "model": str(tiny_folder),
            "data": str(text),
            "precision": "float32",
            "steps": [{"distill/sequence": sequence}],
            "measures": {"sequences": 4, "length": 16, "speed": False},
            "guard": {"enabled": False},
        },
        home=tmp_path / "home",
    )
    assert 0 < done.report.stages[1].notes["prompts"] <= 4  # of some it writes nothing
