"""Data steps on tiny models: settings of every kind, what they are given, what they make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

import tiny_models
from attar.core import registry
from attar.core.context import Context
from attar.core.step import DataStep
from attar.core.step import Task as Task
from attar.data.example import Dataset, Example

LETTERS = "wxyz"
SMALL: dict[str, dict[str, Any]] = {
    "data/synonyms": {"variants": 3, "share": 0.5},
    "data/mlm": {"variants": 3, "batch": 4},
    "data/back-translation": {"variants": 2, "batch": 4, "length": 16},
    "data/generate": {"texts": 12, "new_tokens": 8, "batch": 4},
    "data/label": {"batch": 4},
}


def kinds() -> list[str]:
    """The kinds that make data."""
    return [kind for kind in registry.kinds() if issubclass(registry.find(kind), DataStep)]


def synonyms(folder: Path) -> Path:
    """A list of a few words with one or two synonyms each."""
    path = folder / "synonyms.tsv"
    lines = [f"a{letter}\tb{letter}\tc{letter}" for letter in LETTERS]
    lines += [f"{word}\t{word}er" for word in ("good", "bad")]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


SIZES: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
    "init_std": 0.5,
}


def translator(folder: Path, seed: int) -> Path:
    """A random Marian model, with a tokenizer of words."""
    config = transformers.MarianConfig(
        vocab_size=tiny_models.VOCABULARY,
        **SIZES,
        pad_token_id=0,
        eos_token_id=5,
        decoder_start_token_id=0,
        forced_eos_token_id=None,
    )
    torch.manual_seed(seed)
    transformers.MarianMTModel(config).save_pretrained(folder)
    tiny_models.tokenizer().save_pretrained(folder)
    return folder


def many_languages(folder: Path) -> Path:
    """A random model of NLLB's kind, whose tokens are letters."""
    letters = ["<s>", "<pad>", "</s>", "<unk>", *"▁abcdefghijklmnopqrstuvwxyz0123456789", "en"]
    tokenizer = transformers.NllbTokenizer(
        vocab={letter: number for number, letter in enumerate(letters)}, merges=[]
    )
    config = transformers.M2M100Config(
        vocab_size=len(tokenizer),
        **SIZES,
    )
    torch.manual_seed(0)
    transformers.M2M100ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def settings(kind: str, folder: Path) -> dict[str, Any]:
    """Small settings of a kind, with the files and models that it needs."""
    folder.mkdir(parents=True, exist_ok=True)
    more: dict[str, Any] = {}
    if kind == "data/synonyms":
        more = {"words": str(synonyms(folder))}
    if kind == "data/back-translation":
        more = {
            name: str(translator(folder / name, at)) for at, name in enumerate(("there", "back"))
        }
    return {**SMALL[kind], **more}


def rows(count: int = 12, labels: tuple[str, ...] = tiny_models.LABELS) -> Dataset:
    """Rows of words that the tiny tokenizer knows, and of some that have synonyms."""
    examples = [
        Example(f"good a{LETTERS[at % 4]} {text}", labels[at % len(labels)] if labels else None)
        for at, text in enumerate(tiny_models.texts(count=count, length=8))
    ]
    return Dataset("train", examples, "fingerprint", labels)


def context(folder: Path, task: Task = "classification", seed: int = 0, **more: Any) -> Context:
    """Rows, and a tiny model for every task."""
    folder.mkdir(parents=True, exist_ok=True)
    data = rows()

    def model(_: str, wanted: Task | None = None) -> Any:
        names = {"causal-lm": "llama", "masked-lm": "bert", "classification": "bert"}
        return tiny_models.tiny(names[wanted or task], wanted or task)

    given = {"data": lambda _: data, "scratch": folder, **more}
    return Context(task, model=model, seed=seed, **given)


def made(kind: str, folder: Path, seed: int = 0, **more: Any) -> Dataset:
    """What a kind makes of these rows."""
    step = registry.find(kind).model_validate({**settings(kind, folder / "given"), **more})
    assert isinstance(step, DataStep)
    return step.make(context(folder / "scratch", seed=seed))
