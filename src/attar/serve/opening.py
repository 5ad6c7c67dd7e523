"""Loading one model with the fastest engine that holds it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from attar.errors import ModelError
from attar.runtimes import find
from attar.runtimes.runtime import Decoder, Encoder, Floats, Ids
from attar.serve.batching import Writer
from attar.serve.delegating import Delegated
from attar.serve.gathering import Bounds, Forward, Gatherer
from attar.serve.locating import Place, placed
from attar.serve.log import log
from attar.serve.memory import SLOTS, TORCH, footprint, text_bytes
from attar.serve.settings import Settings, Source

if TYPE_CHECKING:
    from attar.layers.exits import Pool


class Working(Protocol):
    """What does the work of a model: a writer or a gatherer."""

    @property
    def waiting(self) -> int: ...

    @property
    def running(self) -> int: ...

    def close(self) -> None: ...


@dataclass
class Loaded:
    """A model that is in memory. `ends` are the tokens that end its answers."""

    name: str
    task: str  # causal-lm, classification or embedding
    engine: str
    tokenizer: Any
    load: Working
    size: int  # bytes of weights
    context: int
    ends: frozenset[int] = frozenset()
    labels: tuple[str, ...] = ()
    cache: int = 0  # bytes of keys and values, when all its answers are as long as they may be

    @property
    def held(self) -> int:
        """What counts against the budget."""
        return self.size + self.cache

    @property
    def writer(self) -> Writer | None:
        """What writes answers, where it is a language model."""
        return self.load if isinstance(self.load, Writer) else None

    @property
    def encoder(self) -> Gatherer | None:
        """What runs texts, where it is an encoder."""
        return self.load if isinstance(self.load, Gatherer) else None

    def close(self) -> None:
        """Stop its thread and let go of its memory."""
        self.load.close()


def open_model(source: Source, settings: Settings) -> Loaded:
    """Load a model. Takes seconds; raises AttarError."""
    place, limits = placed(source, settings), settings.limits
    batch = footprint(place, source, settings).batch
    if batch < limits.batch:
        log("fewer answers at once", model=source.name, batch=batch, wanted=limits.batch)
        limits = limits.model_copy(update={"batch": batch})
        settings = settings.model_copy(update={"limits": limits})
    loaded = _open(source, place, settings)
    try:  # the first call drops a truncation that its file asks for, which two at once may not do
        loaded.tokenizer("a", verbose=False)
    except BaseException:
        loaded.close()
        raise
    return loaded


def _open(source: Source, place: Place, settings: Settings) -> Loaded:
    if place.engine == TORCH:
        from attar.serve.pytorch import open_torch

        return open_torch(source, place, settings)
    limits = settings.limits
    slots = min(limits.batch, SLOTS)
    opened = find(place.engine).serve(place.path, settings.threads, slots, limits.context)
    try:
        tokenizer = _tokenizer(place)
        if isinstance(opened, Decoder):
            return _decoder(source, place, settings, opened, tokenizer)
        return _encoder(source, place, settings, opened, tokenizer)
    except BaseException:
        opened.close()
        raise


def unit(found: Floats) -> Floats:
    """Vectors of length one: [rows, width]."""
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)


def gatherer(
    forward: Forward, settings: Settings, tokenizer: Any, free: Callable[[], None] = lambda: None
) -> Gatherer:
    """Micro-batching around an encoder; `free` is called once it is closed."""
    from attar.models.padding import filler

    limits, pad = settings.limits, filler(tokenizer)
    bounds = Bounds(limits.batch, limits.queue * limits.batch, limits.window)
    return Gatherer(forward, bounds, pad, free)


def _tokenizer(place: Place) -> Any:
    from attar.models.load import load_tokenizer
    from attar.models.source import Files
    from attar.runtimes._gguf import gguf_of

    gguf = None if (place.folder / "tokenizer.json").exists() else gguf_of(place.path)
    return load_tokenizer(Files(place.folder, gguf))


def _decoder(
    source: Source, place: Place, settings: Settings, opened: Decoder, tokenizer: Any
) -> Loaded:
    limits = settings.limits
    return Loaded(
        name=source.name,
        task="causal-lm",
        engine=place.engine,
        tokenizer=tokenizer,
        load=Delegated(opened, opened.slots, limits.queue),
        size=place.size,
        context=min(limits.context, opened.context),
        ends=ends_of(tokenizer, *_configs(place.folder)),
        cache=text_bytes(place, source, settings) * opened.slots,
    )


def _configs(folder: Path) -> list[Any]:
    """What an export says beside its tokenizer about the tokens that end an answer."""
    paths = (folder / name for name in ("generation_config.json", "config.json"))
    return [
        SimpleNamespace(**json.loads(path.read_text("utf-8"))) for path in paths if path.is_file()
    ]


def _encoder(
    source: Source, place: Place, settings: Settings, opened: Encoder, tokenizer: Any
) -> Loaded:
    import torch

    from attar.models.pooling import POOLING_KEY, pooled
    from attar.models.source import Files, read_config

    files = Files(place.folder)
    alone = opened.pools and not (place.folder / "config.json").is_file()
    config = {} if alone else read_config(files)
    names: dict[str, str] = config.get("id2label") or {}
    # a head that the config tells of is not in the file where an engine pools states
    kind = "" if opened.pools else next(iter(config.get("architectures") or ()), "")
    if kind.endswith("ForMaskedLM"):
        raise ModelError(
            f"{place.folder} holds a masked language model, of which {place.engine} gives no "
            "hidden states to make embeddings of. Serve the model that it was exported from"
        )
    classifier = kind.endswith("ForSequenceClassification")
    places = opened.context or config.get("max_position_embeddings")
    pool: Pool = config.get(POOLING_KEY, "mean")

    def forward(ids: Ids, mask: Ids) -> Floats:
        found = opened.run(ids, mask)
        if classifier:
            return found
        if not opened.pools:
            real = torch.from_numpy(mask).bool()
            found = pooled(torch.from_numpy(found), real, pool).numpy()
        return unit(found)

    labels = tuple(str(names[key]) for key in sorted(names, key=int)) if classifier else ()
    return Loaded(
        name=source.name,
        task="classification" if classifier else "embedding",
        engine=place.engine,
        tokenizer=tokenizer,
        load=gatherer(forward, settings, tokenizer, opened.close),
        size=place.size,
        context=min(settings.limits.context, longest(config.get("model_type"), places, 512)),
        labels=labels,
    )


def longest(family: str | None, places: int | None, otherwise: int) -> int:
    """Tokens that a text may have: RoBERTa's positions begin after its padding's."""
    return int(places or otherwise) - (2 if family == "roberta" else 0)


def ends_of(tokenizer: Any, *configs: Any) -> frozenset[int]:
    """The tokens that end an answer, by the tokenizer and every config that names some."""
    found: set[int] = set()
    for holder in (tokenizer, *configs):
        ids: int | Sequence[int] | None = getattr(holder, "eos_token_id", None)
        if ids is not None:
            found.update([ids] if isinstance(ids, int) else ids)
    return frozenset(found)
