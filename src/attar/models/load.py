"""Loading a model whole, or only its empty skeleton."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer

from attar.core.recipe import ModelSource
from attar.core.step import Task
from attar.errors import ModelError
from attar.models import structure
from attar.models.families import family_of
from attar.models.model import Model
from attar.models.source import Files, resolve

_AUTO = {
    "causal-lm": transformers.AutoModelForCausalLM,
    "masked-lm": transformers.AutoModelForMaskedLM,
    "classification": transformers.AutoModelForSequenceClassification,
}
_SUFFIXES = {
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
    "ForMaskedLM": "masked-lm",
    "ForSequenceClassification": "classification",
}


def config_of(files: Files, source: ModelSource | None = None) -> Any:
    """The transformers config. Raises UnknownFamily for an architecture not in the table."""
    trust = source is not None and source.trust_remote_code
    structure.register()
    try:
        with quiet():
            config = AutoConfig.from_pretrained(
                files.folder,
                gguf_file=files.gguf.name if files.gguf else None,
                trust_remote_code=trust,
            )
    except Exception as error:
        from attar.models.source import read_config

        if files.gguf is None:
            family_of(read_config(files)["model_type"])
        raise ModelError(f"the config of {files.folder} cannot be read: {_first(error)}") from None
    if config.model_type == "gemma3":
        config = config.get_text_config()
    family_of(config.model_type)
    if files.gguf is not None and hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def task_of(config: Any, files: Files) -> Task:
    """The task that a config was made for; raises ModelError when it does not say."""
    for name in config.architectures or ():
        for suffix, task in _SUFFIXES.items():
            if name.endswith(suffix):
                return task  # type: ignore[return-value]
    if files.gguf is not None:
        return "causal-lm"
    raise ModelError(
        f"the config of {files.folder} does not say what the model is for (its architectures: "
        f"{config.architectures}). Say it in the recipe: task: causal-lm, masked-lm or "
        "classification"
    )


def skeleton(config: Any, task: Task, labels: Sequence[str] = ()) -> Model:
    """The model without weights, on the meta device: names and shapes only."""
    config = _with_labels(config, task, labels)
    swaps = getattr(config, "quantization_config", None)
    with torch.device("meta"), quiet():
        module = _AUTO[task].from_config(config)
        if swaps:
            structure.replay(module, swaps["structure"] if isinstance(swaps, dict) else swaps.structure)
    return Model(module, None, task, tuple(labels))


def load(
    source: ModelSource | Files,
    task: Task | None = None,
    labels: Sequence[str] = (),
    seed: int = 0,
    dtype: str = "auto",
) -> Model:
    """Load a model with its tokenizer, in evaluation mode, and check that it is sound.

    `labels` name the classes of a classifier whose files hold no head, or none of these;
    a fresh head is then drawn from `seed`. Raises ModelError when weights are missing, of
    other shapes, NaN or infinite, or when the tokenizer belongs to another model.
    """
    if isinstance(source, Files):
        files, trust = source, False
    else:
        files, trust, dtype = resolve(source), source.trust_remote_code, source.dtype
    config = config_of(files, source if isinstance(source, ModelSource) else None)
    task = task or task_of(config, files)
    if task == "classification" and not labels:
        names: dict[int, str] = config.id2label or {}
        labels = tuple(str(names[index]) for index in sorted(names))
    config = _with_labels(config, task, labels)
    torch.manual_seed(seed)
    with quiet():
        module, report = _from_files(files, config, task, dtype, trust)
    _check_keys(report, task, files)
    _check_finite(module, files)
    if files.gguf is not None:
        _forget_gguf(module)
    tokenizer = load_tokenizer(files, trust)
    _check_tokenizer(tokenizer, module, files)
    return Model(module.eval(), tokenizer, task, tuple(labels) if task == "classification" else ())


def load_tokenizer(files: Files, trust: bool = False) -> Any:
    """The tokenizer of a model's files."""
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(
                files.folder,
                gguf_file=files.gguf.name if files.gguf else None,
                trust_remote_code=trust,
            )
    except Exception as error:
        raise ModelError(
            f"{files.folder} holds no tokenizer that can be read ({_first(error)}). Put its "
            "tokenizer.json and tokenizer_config.json beside the weights"
        ) from None


def _from_files(files: Files, config: Any, task: Task, dtype: str, trust: bool) -> Any:
    try:
        return _AUTO[task].from_pretrained(
            files.folder,
            config=None if files.gguf else config,
            gguf_file=files.gguf.name if files.gguf else None,
            dtype="auto" if dtype == "auto" else getattr(torch, dtype),
            trust_remote_code=trust,
            use_safetensors=None if files.gguf else True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except Exception as error:
        raise ModelError(f"the weights of {files.folder} do not load: {_first(error)}") from error


def _with_labels(config: Any, task: Task, labels: Sequence[str]) -> Any:
    if task == "classification" and labels:
        config.num_labels = len(labels)
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
        config.problem_type = "single_label_classification"
    return config


def _check_keys(report: dict[str, Any], task: Task, files: Files) -> None:
    mismatched = [key[0] if isinstance(key, tuple) else key for key in report["mismatched_keys"]]
    lost = sorted({*report["missing_keys"], *mismatched})
    if task == "classification":
        lost = [key for key in lost if not _of_head(key)]
    if lost:
        kind = "have another shape than the config says" if mismatched else "are missing"
        raise ModelError(
            f"{len(lost)} weights of {files.folder} {kind}, {lost[0]} among them. The files do "
            f"not hold a complete model for {task}"
        )


def _of_head(key: str) -> bool:
    return key.split(".")[0] in ("classifier", "pre_classifier", "score", "head") or (
        ".pooler." in key
    )


def _check_finite(module: torch.nn.Module, files: Files) -> None:
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        # the sum is finite only if all are; overflow of a sound tensor is told apart below
        if tensor.is_floating_point() and not tensor.sum(dtype=torch.float32).isfinite():
            bad = int((~tensor.isfinite()).sum())
            if bad:
                raise ModelError(
                    f"{name} in {files.folder} holds {bad} numbers that are NaN or infinite; the "
                    "weights are damaged, or training diverged before they were saved"
                )


def _check_tokenizer(tokenizer: Any, module: Any, files: Files) -> None:
    rows = module.config.vocab_size
    if len(tokenizer) > rows:
        raise ModelError(
            f"the tokenizer in {files.folder} knows {len(tokenizer)} tokens, but the model has "
            f"{rows}: it is the tokenizer of another model. Put the model's own beside it"
        )


def _forget_gguf(module: Any) -> None:
    if hasattr(module.config, "quantization_config"):
        del module.config.quantization_config
    for name in ("hf_quantizer", "quantization_method"):
        if hasattr(module, name):
            delattr(module, name)
    module.is_quantized = False


def _first(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    return text[:300] or type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' own bars and remarks off the terminal."""
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import logging as hf_logging

    before = hf_logging.get_verbosity()
    hf_logging.set_verbosity(logging.CRITICAL)
    hf_logging.disable_progress_bar()
    disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hf_logging.set_verbosity(before)
