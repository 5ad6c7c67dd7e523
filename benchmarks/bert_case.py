"""BERT's case in Chinese: pretrained from nothing, told reviews, and a student of half its size.

    python benchmarks/bert_case.py [--share 1.0] [--seeds 0 1 2] [--device cpu] [--only NAME ...]

A BERT of 6 blocks of 512, one token a character, is pretrained with masked tokens and next
sentences on a month of a newspaper and on reviews without their labels. It is fine-tuned on the
labels three times; the teacher is the same model once more, taught by these three together.

1. The teacher against TF-IDF of characters and pairs of them with a linear classifier.
2. A student of two of its blocks and two fifths of its bytes, cut from the teacher, by pretraining
   distillation and then task distillation: the share of the teacher's accuracy that is left.
3. The same student without a teacher: of the same shape, with weights of its own, pretrained on as
   many tokens and fine-tuned for as long, on what the texts and labels say.
4. The student cut from the teacher, that goes on without it: what of the gain is the weights.

Students are made three times, from three seeds, and judged on 3,000 reviews that nothing else saw.
`--share` shortens every training; every part goes on where it was when the script is started again.
`--only` makes some of the models (tuned-0, teacher, distilled-0, untaught-0, alone-0), in processes
beside each other where there is room.
The best state of each training, and how strongly the linear classifier is held back, are those
that do best on data of dev, which nothing is judged on.
"""

from __future__ import annotations

import argparse
import json
import statistics
from hashlib import sha256
from pathlib import Path
from typing import Any

import _chinese
import _texts

import attar
from attar.core.recipe import DataSource
from attar.data import load
from attar.data.batches import held_out
from attar.engine.run import Run
from attar.measure.machine import environment
from attar.measure.quality import judge
from attar.models.blank import blank
from attar.ops.bootstrap import interval

HERE = Path(__file__).parent
LENGTH = 128
SIZES = {
    "hidden_size": 512,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "max_position_embeddings": LENGTH,
    "attention_probs_dropout_prob": 0.0,  # drawing it costs more than attention itself
}
BLOCKS, STUDENT_BLOCKS = 6, 2
VOCABULARY = 4000
STUDENTS = ("distilled", "untaught", "alone")
TUNED = 3  # fine-tunings that the teacher learns from
# Passes over the raw text (4.7 million tokens) and over the labelled reviews: as many as ten
# minutes of one GPU have room for, the students' trainings beside each other.
PASSES = {"teacher": 40.0, "student": 8.0, "told": 5.0}
RAW = {
    "length": LENGTH,
    "batch": 256,
    "learning_rate": 1e-3,
    "evaluate_on": 256,
    "dropout": False,
    "checkpoint_minutes": 1.0,
}
TOLD = {"length": LENGTH, "batch": 64, "learning_rate": 1.5e-4}
SOFT = {"weight": 0.7, "temperature": 2.0}
SETTINGS = {
    "sizes": SIZES,
    "blocks": [BLOCKS, STUDENT_BLOCKS],
    "vocabulary": VOCABULARY,
    "passes": PASSES,
    "raw": RAW,
    "told": TOLD,
    "soft": SOFT,
    "tuned": TUNED,
    "times": _chinese.TIMES,
    "bundle": _chinese.BUNDLE,
}
HOME = _texts.HOME / f"bert-{sha256(json.dumps(SETTINGS).encode()).hexdigest()[:8]}"


def main() -> None:
    """Everything; print it, and keep it with the machine it was measured on."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="*", default=[])
    args = parser.parse_args()
    case = Case(args.share, args.device)
    for name in args.only:
        print(name, share(case.made(name)["right"]), flush=True)
    if args.only:
        return
    found = case.told(args.seeds)
    print(json.dumps(found, indent=1), flush=True)
    plain = {"environment": environment(), "device": args.device, "settings": SETTINGS, **found}
    if args.share >= 1:
        target = HERE / "results" / "bert_case.json"
        target.write_text(json.dumps(plain, indent=1) + "\n")


class Case:
    """All runs of a size."""

    def __init__(self, share: float, device: str) -> None:
        self.share, self.device = share, device
        self.home = HOME / f"{share:g}"
        self.data = HOME / "data"
        if not (self.data / "told" / "train.tsv").exists():
            _chinese.write(self.data)
        self.reviews = {name: rows(self.data / "told" / f"{name}.tsv") for name in ("train", "dev")}
        self.tests = rows(self.data / "told" / "test.tsv")
        for name, blocks in (("teacher", BLOCKS), ("student", STUDENT_BLOCKS)):
            folder = HOME / f"blank-{name}"
            if not (folder / "config.json").exists():
                raw = load(DataSource(path=str(self.data / "raw" / "train.jsonl")), "masked-lm", "")
                texts = [example.text for example in raw.examples]
                blank(folder, texts, VOCABULARY, num_hidden_layers=blocks, **SIZES)

    def told(self, seeds: list[int]) -> dict[str, Any]:
        """Teacher, TF-IDF, students with a teacher and without."""
        made = {"teacher": [self.made("teacher")]}
        made["tuned"] = [self.made(f"tuned-{number}") for number in range(TUNED)]
        for name in STUDENTS:
            made[name] = [self.made(f"{name}-{seed}") for seed in seeds]
        hits = {name: [one["right"] for one in each] for name, each in made.items()}
        hits["tfidf"] = [self.tfidf()]
        whole, kept = share(hits["teacher"][0]), statistics.mean(map(share, hits["distilled"]))
        return {
            "accuracy": {name: summary(each) for name, each in hits.items()},
            "teacher_over_tfidf": difference(hits["teacher"], hits["tfidf"]),
            "accuracy_kept": kept / whole,
            "distilled_over_alone": difference(hits["distilled"], hits["alone"]),
            "distilled_over_untaught": difference(hits["distilled"], hits["untaught"]),
            "bytes": {name: each[0]["bytes"] for name, each in made.items()},
            "student_share": made["distilled"][0]["bytes"] / made["teacher"][0]["bytes"],
            "seconds": {name: [one["seconds"] for one in each] for name, each in made.items()},
            "next_sentences_told": made["teacher"][0]["next_sentences_told"],
        }

    def made(self, name: str) -> dict[str, Any]:
        """Which reviews a model tells rightly, its bytes, and the seconds of its trainings."""
        kept = self.home / "made" / f"{name}.json"
        if not kept.exists():
            arm, _, seed = name.partition("-")
            first, second = getattr(self, arm)(int(seed or 0))
            notes = first.report.stages[-1].notes
            found = {
                "right": self.right(second.path),
                "bytes": size(second),
                "seconds": [spent(first), spent(second)],
                "next_sentences_told": notes["next sentences told"],
                "environment": environment(),
            }
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(found) + "\n")
        return json.loads(kept.read_text())

    def pretrained(self) -> Run:
        """The teacher before it is told labels, pretrained from nothing."""
        start = {"path": str(HOME / "blank-teacher"), "fresh": True}
        epochs = PASSES["teacher"] * self.share
        return self.run("teacher", start, [{"adapt/pretrain": {"epochs": epochs, **RAW}}])

    def tuned(self, seed: int) -> tuple[Run, Run]:
        """The pretrained model, fine-tuned."""
        first = self.pretrained()
        steps = [{"adapt/full": self.labels()}]
        return first, self.run(f"tuned-{seed}", first.path, steps, seed, labels=True)

    def teacher(self, seed: int = 0) -> tuple[Run, Run]:
        """The pretrained model, that learns the labels from itself, fine-tuned several times."""
        first = self.pretrained()
        others = [str(self.tuned(number)[1].path.resolve()) for number in range(TUNED)]
        steps = [{"distill/multi-teacher": {"teachers": others, **self.labels(), **SOFT}}]
        return first, self.run("teacher-told", first.path, steps, seed, labels=True)

    def distilled(self, seed: int) -> tuple[Run, Run]:
        """The student cut from the teacher, that learns from it what is masked and the labels."""
        teacher, tuned = self.teacher()
        raw = {"distill/pretrain": {"teacher": "original", **self.raw(), **SOFT}}
        labels = {"teacher": str(tuned.path.resolve()), **self.labels(), **SOFT}
        steps = ([self.cut(), raw], [{"distill/logits": labels}])
        return self.student(f"distilled-{seed}", teacher.path, *steps, seed)

    def untaught(self, seed: int) -> tuple[Run, Run]:
        """The student cut from the teacher, that learns on without it."""
        steps = ([self.cut(), {"adapt/pretrain": self.raw()}], [{"adapt/full": self.labels()}])
        return self.student(f"untaught-{seed}", self.pretrained().path, *steps, seed)

    def alone(self, seed: int) -> tuple[Run, Run]:
        """The same student, of weights of its own."""
        start = {"path": str(HOME / "blank-student"), "fresh": True}
        steps = ([{"adapt/pretrain": self.raw()}], [{"adapt/full": self.labels()}])
        return self.student(f"alone-{seed}", start, *steps, seed)

    def student(
        self, name: str, model: Any, raw: list[Any], labels: list[Any], seed: int
    ) -> tuple[Run, Run]:
        """The runs of a student: on raw text, and on the labelled reviews."""
        first = self.run(name, model, raw, seed)
        return first, self.run(f"{name}-told", first.path, labels, seed, labels=True)

    def cut(self) -> dict[str, Any]:
        """What makes the student out of the teacher: its blocks that matter most."""
        return {"prune/depth": {"keep": STUDENT_BLOCKS, "length": LENGTH, "sequences": 32}}

    def raw(self) -> dict[str, Any]:
        """How long and how fast a student learns on raw text."""
        return {"epochs": PASSES["student"] * self.share, **RAW}

    def labels(self) -> dict[str, Any]:
        """The same on the labelled reviews."""
        return {"epochs": PASSES["told"] * self.share, **TOLD}

    def run(
        self, name: str, model: Any, steps: list[Any], seed: int = 0, labels: bool = False
    ) -> Run:
        """One recipe; the guard is off, for every result is told here."""
        folder, ending = ("told", "tsv") if labels else ("raw", "jsonl")
        sources = {
            part: {"path": str(self.data / folder / f"{part}.{ending}")}
            for part in ("train", "dev", "test")
        }
        recipe = {
            "name": name,
            "model": model if isinstance(model, dict) else str(Path(model).resolve()),
            "task": "classification" if labels else "masked-lm",
            "seed": seed,
            "data": sources,
            "steps": steps,
            "measures": {"sequences": 256, "length": LENGTH, "batch": 32, "speed": False},
            "guard": {"enabled": False},
        }
        return attar.run(recipe, home=self.home, device=self.device)

    def right(self, folder: Path) -> list[int]:
        """For every review of the test, 1 where the model at `folder` tells its label."""
        model = attar.load(folder)
        model.module.to(self.device)
        tests = load(
            DataSource(path=str(self.data / "told" / "test.tsv")), "classification", "test"
        )
        batches = held_out(
            tests, model.tokenizer, "classification", LENGTH, 32, None, labels=model.labels
        )
        items = judge(model, batches)
        pairs = zip(items.predictions, items.targets, strict=True)
        return [int(guess == target) for guess, target in pairs]

    def tfidf(self) -> list[int]:
        """The same of logistic regression on TF-IDF of characters and pairs of them.

        How strongly it is held back is what is best on dev.
        """
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression

        parts = {**self.reviews, "test": self.tests}
        vectors = TfidfVectorizer(analyzer="char", ngram_range=(1, 2), min_df=2, sublinear_tf=True)
        seen = vectors.fit_transform([text for text, _ in parts["train"]])
        labels = {name: [label for _, label in part] for name, part in parts.items()}
        other = {name: vectors.transform([t for t, _ in parts[name]]) for name in ("dev", "test")}
        tried = [
            LogisticRegression(C=strength, max_iter=1000).fit(seen, labels["train"])
            for strength in (1.0, 3.0, 10.0, 30.0)
        ]
        best = max(tried, key=lambda one: one.score(other["dev"], labels["dev"]))
        pairs = zip(best.predict(other["test"]), labels["test"], strict=True)
        return [int(guess == label) for guess, label in pairs]


def rows(path: Path) -> list[tuple[str, str]]:
    """Texts and labels of a file, in its order."""
    lines = path.read_text("utf-8").splitlines()
    return [(text, label) for text, _, label in (line.rpartition("\t") for line in lines)]


def spent(done: Run) -> float:
    """Seconds that the steps of a run took when they were made."""
    return sum(stage.seconds or 0.0 for stage in done.report.stages[1:])


def size(done: Run) -> float:
    """Bytes of the weights that a run ended with."""
    return done.report.stages[-1].figures["size"].value


def share(hits: list[int]) -> float:
    return statistics.mean(hits)


def summary(seeds: list[list[int]]) -> dict[str, Any]:
    """Accuracy by seed; over all of them, with a bootstrap interval over the reviews."""
    return {**points(seeds), "by_seed": [100 * share(hits) for hits in seeds]}


def difference(ours: list[list[int]], theirs: list[list[int]]) -> dict[str, float]:
    """Points of accuracy gained, with a paired interval over the reviews."""
    pairs = zip(ours, theirs, strict=True)
    return points([[a - b for a, b in zip(*pair, strict=True)] for pair in pairs])


def points(seeds: list[list[int]]) -> dict[str, float]:
    """The mean over the reviews of all seeds in points; the interval is over the reviews.

    What the seeds make of one review is drawn together.
    """
    means = [statistics.mean(each) for each in zip(*seeds, strict=True)]
    found = interval(means, [1] * len(means), 0)
    return {"points": 100 * found.value, "low": 100 * found.low, "high": 100 * found.high}


if __name__ == "__main__":
    main()
