"""Whether a model that was loaded is whole, finite, and matched by its tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from attar.core.step import Task
from attar.errors import ModelError
from attar.models.source import Files

TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
    "vocab.json",
)
_SHOWN = 3


def check_keys(report: dict[str, Any], task: Task, files: Files, fresh_head: bool) -> None:
    """Raise ModelError where weights are missing or have other shapes than the config says."""
    shapes = {key: (tuple(ours), tuple(wanted)) for key, ours, wanted in report["mismatched_keys"]}
    missing = sorted({*report["missing_keys"]} - shapes.keys())
    headless = [key for key in (*missing, *shapes) if task == "classification" and of_head(key)]
    if headless and not fresh_head:
        raise ModelError(
            f"{files.folder} holds no classifier's head that fits ({headless[0]} is missing or "
            "has another shape), and no labels were given to make a fresh one for"
        )
    for key, (ours, wanted) in sorted(shapes.items()):
        if key not in headless:
            raise ModelError(
                f"{key} in {files.folder} has the shape {list(ours)}, but config.json asks for "
                f"{list(wanted)}: the weights and the config are not of the same model"
            )
    unread = [key for key in missing if task == "embedding" and "pooler." in key]
    lost = [key for key in missing if key not in (*headless, *unread)]
    if lost:
        raise ModelError(
            f"{files.folder} lacks {len(lost)} of the tensors of a model for {task}: "
            f"{_some(lost)}. Fetch its files again, or name the task that it was made for"
        )


def _some(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def of_head(key: str) -> bool:
    """Whether a weight is of a head that reads classes off the last states."""
    return key.split(".")[0] in ("classifier", "pre_classifier", "score", "head") or (
        ".pooler." in key
    )


def check_classes(config: Any, files: Files) -> None:
    """Raise ModelError where a classifier does not answer with the one class of a text."""
    many = config.problem_type == "multi_label_classification"
    if many or config.problem_type == "regression" or config.num_labels == 1:
        answers = "several classes at once" if many else "a number"
        raise ModelError(
            f"the classifier in {files.folder} answers with {answers}, and Attar would take it for "
            "one of several classes of which one is right. Take a model that answers so, or work "
            "with this one's encoder (task: embedding)"
        )


def check_finite(module: nn.Module, where: str) -> None:
    """Raise ModelError where a weight is NaN or infinite."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        # A sum is finite only if every number is. It may overflow on sound ones: then count.
        if not tensor.is_floating_point() or tensor.float().sum().isfinite():
            continue
        bad = (~tensor.isfinite()).nonzero()
        if len(bad):
            raise ModelError(
                f"{name} in {where} holds {len(bad)} numbers that are NaN or infinite, "
                f"the first at {bad[0].tolist()}: the weights are damaged, or training diverged "
                "before they were saved. Nothing can be made of them"
            )


def check_tokenizer(tokenizer: Any, rows: int, files: Files) -> None:
    """Raise ModelError where ids of the tokenizer lie beyond the embedding's `rows`.

    Special tokens may: Gemma 3 has one for images that its text models have no row for.
    """
    special = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids: Iterable[int] = tokenizer.get_vocab().values()
    largest = max((id_ for id_ in ids if id_ not in special), default=0)
    if largest >= rows:
        raise ModelError(
            f"the tokenizer in {files.folder} is another model's: its ids go up to {largest}, "
            f"but the model's embedding has {rows} rows. Put the model's own tokenizer there"
        )


def check_tokenizer_files(files: Files) -> None:
    """Raise ModelError where a folder has no tokenizer."""
    if files.gguf is None and not any((files.folder / name).exists() for name in TOKENIZERS):
        raise ModelError(
            f"{files.folder} holds no tokenizer; looked for {', '.join(TOKENIZERS)}. Copy the "
            "model's own tokenizer files there"
        )
