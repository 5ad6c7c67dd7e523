"""Loading a model whole, or only its empty skeleton."""

from __future__ import annotations

import copy
import logging
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer

from attar.core.recipe import ModelSource
from attar.core.step import Task
from attar.errors import ModelError
from attar.layers import QuantizedEmbedding
from attar.models import adapters, masks, pooling, structure
from attar.models.check import (
    check_classes,
    check_finite,
    check_keys,
    check_tokenizer,
    check_tokenizer_files,
)
from attar.models.families import FAMILIES, family_of, vocabulary_of
from attar.models.headers import gguf_trouble, quick_gguf
from attar.models.media import check_inputs, load_processor
from attar.models.model import Model
from attar.models.padding import pad_alike
from attar.models.source import Files, read_config, resolve

AUTO = {
    "causal-lm": transformers.AutoModelForCausalLM,
    "masked-lm": transformers.AutoModelForMaskedLM,
    "classification": transformers.AutoModelForSequenceClassification,
    "embedding": transformers.AutoModel,
    "contrastive": transformers.AutoModel,
}
_BOTH_HEADS = "BertForPreTraining"  # masked tokens and next sentences
_BY_MEDIA = {
    "pixel_values": transformers.AutoModelForImageClassification,
    "input_values": transformers.AutoModelForAudioClassification,
}
CLASSIFIERS = ("ForSequenceClassification", "ForImageClassification", "ForAudioClassification")
_ONE_AT_A_TIME = threading.RLock()  # what transformers swaps while it loads is the process's
_SUFFIXES = {
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
    "ForMaskedLM": "masked-lm",
    _BOTH_HEADS: "masked-lm",
    **dict.fromkeys(CLASSIFIERS, "classification"),
    "CLIPModel": "contrastive",
    "Model": "embedding",  # without a head, whose name would end otherwise
}


def config_of(files: Files, source: ModelSource | None = None) -> Any:
    """The transformers config. Raises UnknownFamily for an architecture not in the table."""
    trust = source is not None and source.trust_remote_code
    structure.register()
    adapters.adapted_in(files.folder)  # one that does not load is refused at once
    try:
        with quiet(files):
            config: Any = AutoConfig.from_pretrained(
                files.folder,
                gguf_file=files.gguf.name if files.gguf else None,
                trust_remote_code=trust,
            )
    except Exception as error:
        if files.gguf is None:
            family_of(read_config(files)["model_type"])
        raise ModelError(
            _gguf(files) or f"the config of {files.folder} cannot be read: {_first(error)}"
        ) from None
    if config.model_type == "gemma3":
        config = config.get_text_config()
    family_of(config.model_type)
    if files.gguf is not None and hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def auto_of(config: Any, task: Task) -> Any:
    """The class of transformers that makes a model of a config for a task.

    Raises ModelError where its architecture is for other tasks.
    """
    if task == "masked-lm" and _BOTH_HEADS in (config.architectures or ()):
        return transformers.AutoModelForPreTraining
    family = family_of(config.model_type)
    own = "contrastive" if family.towers else "classification" if family.media else None
    if (own and task != own) or (not own and task == "contrastive"):
        raise ModelError(
            f"a model of the architecture {config.model_type!r} is not for {task}, but for "
            f"{own or 'text'}. Leave out `task`, or take another model"
        )
    return _BY_MEDIA[family.media] if family.media and not family.towers else AUTO[task]


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
        f"{config.architectures}). Say it in the recipe: task: causal-lm, masked-lm, "
        "classification, embedding or contrastive"
    )


def skeleton(config: Any, task: Task, labels: Sequence[str] = ()) -> Model:
    """The model without weights, on the meta device: names and shapes only."""
    config = with_labels(copy.deepcopy(config), task, labels)
    swaps: Any = getattr(config, "quantization_config", None)
    with torch.device("meta"), quiet():
        module = auto_of(config, task).from_config(config)
        if swaps:
            structure.replay(module, structure.listed(swaps))
            module.tie_weights()  # a bias that a swapped head shares, say
    masks.restore(module, config)
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
    a fresh head is then drawn from `seed`, and so is all of a model that is to be fresh. Raises
    ModelError when weights are missing, of other shapes, NaN or infinite, or when the tokenizer
    belongs to another model.
    """
    if isinstance(source, Files):
        files, trust = source, False
    else:
        files, trust, dtype = resolve(source), source.trust_remote_code, source.dtype
    config = config_of(files, source if isinstance(source, ModelSource) else None)
    task = task or task_of(config, files)
    fresh_head = bool(labels)
    if task == "classification" and not labels:
        check_classes(config, files)
        names: dict[int, str] = config.id2label or {}
        labels = tuple(str(names[index]) for index in sorted(names))
    config = with_labels(config, task, labels)
    if task == "embedding":
        pooling.remember(config, files)
    tokenizer = load_tokenizer(files, trust)
    if vocabulary_of(config):
        reader = getattr(tokenizer, "tokenizer", tokenizer)
        check_tokenizer(reader, vocabulary_of(config), files)
    if family_of(config.model_type).media:
        check_inputs(tokenizer, config, files)
    with quiet(files), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module, report = _from_files(files, config, task, dtype, trust)
    if adapters.adapted_in(files.folder):
        adapters.read(module, files.folder)
        report["missing_keys"] = adapters.lacking(module, files.folder)
    check_keys(report, task, files, fresh_head)
    if hasattr(module, "score"):
        pad_alike(module.config, tokenizer)
    check_finite(module, str(files.folder))
    if files.gguf is not None:
        _forget_gguf(module)
    if dtype != "auto":
        _look_up_in(module, getattr(torch, dtype))
    masks.restore(module, config)
    return Model(module.eval(), tokenizer, task, tuple(labels) if task == "classification" else ())


def load_tokenizer(files: Files, trust: bool = False) -> Any:
    """The tokenizer of a model's files, or the processor where the model sees or hears."""
    family = None
    if files.gguf is None and (files.folder / "config.json").is_file():  # exports may have none
        family = FAMILIES.get(read_config(files)["model_type"])
    if family is not None and family.media:
        with quiet(files):
            return load_processor(files, family)
    check_tokenizer_files(files)
    try:
        with quiet(files):
            return AutoTokenizer.from_pretrained(
                files.folder,
                gguf_file=files.gguf.name if files.gguf else None,
                trust_remote_code=trust,
            )
    except Exception as error:
        raise ModelError(
            f"the tokenizer in {files.folder} cannot be read ({_first(error)}). Put the model's "
            "own tokenizer.json and tokenizer_config.json beside the weights"
        ) from None


def _from_files(files: Files, config: Any, task: Task, dtype: str, trust: bool) -> Any:
    if files.fresh:
        drawn = torch.float32 if dtype == "auto" else getattr(torch, dtype)
        module = auto_of(config, task).from_config(config, dtype=drawn)
        return module, {"missing_keys": (), "mismatched_keys": ()}
    try:
        return auto_of(config, task).from_pretrained(
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
        raise ModelError(
            _gguf(files) or f"the weights of {files.folder} do not load: {_first(error)}"
        ) from error


def _gguf(files: Files) -> str | None:
    return gguf_trouble(files.gguf) if files.gguf else None


def with_labels(config: Any, task: Task, labels: Sequence[str]) -> Any:
    """The config, which now names these classes."""
    if task == "classification" and labels:
        config.num_labels = len(labels)
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
        config.problem_type = "single_label_classification"
    return config


def _look_up_in(module: Any, dtype: torch.dtype) -> None:
    """Let what is looked up in quantized tables be of the dtype of the other weights."""
    for table in module.modules():
        if isinstance(table, QuantizedEmbedding):
            table.dtype = dtype


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
def quiet(files: Files | None = None) -> Iterator[None]:
    """Keep transformers' own bars and remarks off the terminal while it reads these files.

    Other threads that would read wait meanwhile: it puts its own dtype and methods in the place
    of the process's as it loads, and two at once would leave those of the other there.
    """
    from transformers import modeling_gguf_pytorch_utils as gguf_reader
    from transformers.utils import logging as hf_logging

    with _ONE_AT_A_TIME:
        yield from _quiet(files, gguf_reader, hf_logging)


def _quiet(files: Files | None, gguf_reader: Any, hf_logging: Any) -> Iterator[None]:
    before = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled(), gguf_reader.tqdm
    hf_logging.set_verbosity(logging.CRITICAL)
    hf_logging.disable_progress_bar()
    gguf_reader.tqdm = _no_bar  # it heeds no setting of transformers
    try:
        with warnings.catch_warnings(), quick_gguf() if files and files.gguf else nullcontext():
            warnings.simplefilter("ignore")
            yield
    finally:
        hf_logging.set_verbosity(before[0])
        if before[1]:
            hf_logging.enable_progress_bar()
        gguf_reader.tqdm = before[2]


def _no_bar(items: Iterable[Any], **_: Any) -> Iterable[Any]:
    return items
