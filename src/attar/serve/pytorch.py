"""Models that PyTorch runs: decoders in one continuous batch, encoders in small ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch

from attar.core.recipe import ModelSource
from attar.errors import ModelError
from attar.layers.floats import keep_floats, multiplied
from attar.measure.machine import fast_bf16
from attar.models.load import config_of, load, skeleton, task_of
from attar.models.pooling import pooled, pooling_of
from attar.models.rows import Rows
from attar.runtimes.runtime import Floats, Ids
from attar.serve.batching import Batched
from attar.serve.locating import Place
from attar.serve.memory import TORCH, caches, text_bytes
from attar.serve.opening import Loaded, ends_of, gatherer, longest, unit
from attar.serve.settings import Settings, Source


def open_torch(source: Source, place: Place, settings: Settings) -> Loaded:
    """Load a model into PyTorch. Takes seconds; raises AttarError."""
    own = task_of(config_of(place.files), place.files)
    task: Any = source.task or own
    wanted = ModelSource(path=source.path, dtype=place.dtype)
    model = load(wanted, own if task == "embedding" else task)
    if place.floats:
        keep_floats(model.module, model.module.dtype)
    size = sum(
        tensor.numel() * tensor.element_size()
        for tensor in [*model.module.parameters(), *model.module.buffers()]
    )
    limits = settings.limits
    places = getattr(model.config, "max_position_embeddings", None)
    context = min(limits.context, longest(model.config.model_type, places, 2**20))
    common: dict[str, Any] = {
        "name": source.name,
        "engine": TORCH,
        "size": size,
        "context": context,
    }
    start = _threads(settings)
    if task == "causal-lm":
        ends = ends_of(model.tokenizer, model.module.generation_config, model.config)
        common["cache"] = text_bytes(place, source, settings) * caches(TORCH, limits.batch)
        batched = Batched(Rows(model), limits.batch, limits.queue, start)
        return Loaded(task=task, tokenizer=model.tokenizer, load=batched, ends=ends, **common)
    task = "classification" if task == "classification" else "embedding"
    load_ = gatherer(_forward(model, task, start), settings, model.tokenizer)
    labels = model.labels if task == "classification" else ()
    return Loaded(task=task, tokenizer=model.tokenizer, load=load_, labels=labels, **common)


@lru_cache(maxsize=64)
def as_floats(place: Place) -> Place:
    """The place of a model that is brought into floats which this processor is fast with.

    Codes of another tool stay as that one loads them.
    """
    config = config_of(place.files)
    task = task_of(config, place.files)
    try:
        module = skeleton(config, task).module
    except ModelError:
        return place
    count = sum(tensor.numel() for tensor in module.parameters())
    count += sum(table.rows * table.width for table in multiplied(module))
    dtype = "auto" if fast_bf16("cpu") else "float32"
    kept = config.dtype if dtype == "auto" and config.dtype else torch.float32
    size = count * kept.itemsize + sum(b.numel() * b.element_size() for b in module.buffers())
    return replace(place, floats=True, dtype=dtype, size=size)


def _threads(settings: Settings) -> Callable[[], None]:
    def start() -> None:
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)

    return start


def _forward(model: Any, task: str, start: Callable[[], None]) -> Callable[[Ids, Ids], Floats]:
    """A classifier's logits, or a text's vector, of length one."""
    started = False
    pool = "mean" if task == "classification" else pooling_of(model)

    def forward(ids: Ids, mask: Ids) -> Floats:
        nonlocal started
        if not started:
            start()
            started = True
        given = {
            "input_ids": torch.from_numpy(ids).to(model.device),
            "attention_mask": torch.from_numpy(mask).to(model.device),
        }
        with torch.no_grad():
            if task == "classification":
                return model.module(**given).logits.float().cpu().numpy()
            hidden = model.base(**given).last_hidden_state.float()
            vectors = pooled(hidden, given["attention_mask"].bool(), pool)
        return unit(vectors.cpu().numpy())

    return forward
