"""Whether an exported file holds what the artifact holds, asked of the engine that reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from attar.errors import AttarError, MissingPackage
from attar.export._reference import Reference, alone
from attar.export.target import stored
from attar.layers import TiedHead
from attar.measure.machine import saturates_int8
from attar.models import Model
from attar.models.pooling import pooled, pooling_of
from attar.runtimes.runtime import Decoder, Encoder, Engine, Floats, StoredCodes, of_next

_FAR_KL, _FAR = 0.1, 0.1  # nats a token; of the spread of an encoder's answers
_NARROW = ("onnxruntime", "genai", "openvino")  # add 8-bit products in 16 bits without VNNI
_READS_TEXTS = "llama-cpp"  # whose users give it texts; Attar's server gives all others tokens
_LEAST = 1e-9  # of a share that float32 cannot tell from none


def compare_codes(
    model: Model, engine: Engine, folder: Path, floats: Sequence[str] = ()
) -> dict[str, int]:
    """How many linears and tables were compared, and numbers in them, all exactly equal.

    `floats` were written as floats on purpose. Raises AttarError, with the first few that differ,
    where one does or is missing.
    """
    ours, theirs = stored(model), engine.read_back(folder)
    shared = {
        name: module.table_name
        for name, module in model.module.named_modules()
        if isinstance(module, TiedHead)
    }
    wanted = {name: codes for name, codes in ours.items() if name not in floats}
    wanted |= {head: ours[table] for head, table in shared.items() if head in theirs}
    wrong = [text for name in wanted if (text := _difference(name, wanted, theirs))]
    strange = sorted(theirs.keys() - wanted.keys())
    wrong += [f"{name}: on a grid in the file, and float in the artifact" for name in strange]
    if wrong:
        raise AttarError(
            f"what {engine.name} reads back from {folder} is not what the artifact holds: "
            f"{'; '.join(wrong[:3])}. Nothing was published. This is a fault of Attar's; please "
            "report it"
        )
    return {"layers": len(wanted), "codes": sum(item.codes.size for item in wanted.values())}


def _difference(
    name: str, ours: Mapping[str, StoredCodes], theirs: Mapping[str, StoredCodes]
) -> str | None:
    if name not in theirs:
        return f"{name}: not there"
    text = ours[name].difference(theirs[name])
    return None if text is None else f"{name}: {text} differ"


def compare_outputs(
    model: Model, engine: Engine, folder: Path, reference: Reference
) -> dict[str, float]:
    """How far the engine's answers are from the artifact's own in PyTorch."""
    rows, answers = reference.held(model).rows, reference.answers(model)
    with engine.open(folder) as opened:
        if isinstance(opened, Decoder):
            found = _decoders(answers, opened, rows)
        else:
            found = _encoders(model, answers, opened, rows)
        return {**found, **_tokenized(model, opened, rows)}


def far(outputs: Mapping[str, float], engine: str) -> str | None:
    """What to say of an engine whose answers are far from the artifact's own, if they are.

    Engines round what goes into a product, each in its own way, which moves answers a little: at 4
    and 8 bits by a few thousandths of a nat.
    """
    moved = outputs.get("kl", 0.0)
    if not moved <= _FAR_KL:  # NaN is far
        off = f"{moved:.3g} nats a token"
    elif outputs.get("median_difference", 0.0) > _FAR * outputs.get("spread", float("inf")):
        off = f"{outputs['median_difference']:.3g}, where they spread over {outputs['spread']:.3g}"
    else:
        return _cut_otherwise(outputs.get("texts_tokenized_alike", 1.0))
    why = ""
    if engine in _NARROW and saturates_int8():
        why = (
            ". This processor has no VNNI: sums of 8-bit products may overflow in it, and would "
            "not on one that has"
        )
    return (
        f"the answers in {engine} are {off} away from the artifact's own in PyTorch, though codes "
        f"and scales are equal{why}. Judge it there on your own data before you ship it, or take "
        "another target"
    )


def _cut_otherwise(alike: float) -> str | None:
    if alike == 1:
        return None
    return (
        f"the tokenizer inside the file cuts {1 - alike:.0%} of the texts otherwise than the "
        "artifact's own: the engine's answers differ where it is given texts, and not tokens"
    )


def _decoders(
    answers: Sequence[Floats], theirs: Decoder, rows: Sequence[Sequence[int]]
) -> dict[str, float]:
    moved: list[float] = []
    divergence: list[float] = []
    agreed: list[bool] = []
    losses: list[tuple[float, float]] = []
    for row, one in zip(rows, answers, strict=True):
        other = theirs.logprobs(row)
        if theirs.known is None:
            _insist(theirs, other)
        for position in range(len(row)):
            known = ~np.isnan(other[position])
            gap = one[position][known] - other[position][known]
            divergence.append(_divergence(one[position], other[position], known))
            moved.append(float(np.abs(gap[np.exp(one[position][known]) > 0.01]).max(initial=0.0)))
            agreed.append(one[position].argmax() == np.nanargmax(other[position]))
        losses += zip(-of_next(one, row), -theirs.scores(row), strict=True)
    ours, engines = np.array(losses).mean(0)
    return {
        "positions": len(moved),
        "kl": float(np.mean(divergence)),
        "largest_difference": max(moved),
        "median_difference": float(np.median(moved)),
        "agreement": float(np.mean(agreed)),
        "perplexity_torch": float(np.exp(ours)),
        "perplexity_engine": float(np.exp(engines)),
    }


def _divergence(ours: Floats, theirs: Floats, known: NDArray[np.bool_]) -> float:
    """KL(ours || theirs) in nats. All tokens that the engine does not tell of count as one."""
    one, other = ours[known].astype(np.float64), theirs[known].astype(np.float64)
    found = float((np.exp(one) * (one - other)).sum())
    if not known.all():
        rest, told = (max(1 - float(np.exp(each).sum()), _LEAST) for each in (one, other))
        found += rest * float(np.log(rest / told))
    return found


def _insist(opened: Decoder | Encoder, answers: Floats) -> None:
    """Raise AttarError where an engine's answers are no numbers."""
    if not np.isfinite(answers).all():
        raise AttarError(
            f"{opened.engine} answers with numbers that are NaN or infinite. Nothing was "
            "published. This is a fault of Attar's; please report it"
        )


def _tokenized(
    model: Model, theirs: Decoder | Encoder, rows: Sequence[Sequence[int]]
) -> dict[str, float]:
    """The share of texts that the tokenizer inside the file cuts as the artifact's own does."""
    same: list[bool] = []
    for row in rows:
        text = model.tokenizer.decode(row, skip_special_tokens=True)
        found = theirs.tokens(text)
        if found is None:
            return {}
        same.append(found == model.tokenizer(text, add_special_tokens=False).input_ids)
    if theirs.engine == _READS_TEXTS and not any(same):
        raise AttarError(
            f"the tokenizer inside the file cuts none of the texts in {theirs.engine} as the "
            "artifact's own does. Nothing was published. Export to hf or onnx instead, and please "
            "report it"
        )
    return {"texts_tokenized_alike": float(np.mean(same))}


def _encoders(
    model: Model, ours: Sequence[Floats], theirs: Encoder, rows: Sequence[Sequence[int]]
) -> dict[str, float]:
    gaps: list[Floats] = []
    answers: list[Floats] = []
    agreed: list[Any] = []
    for row, one in zip(rows, ours, strict=True):
        ids, mask = alone(row)
        other = theirs.run(ids, mask)
        if theirs.pools:
            real = torch.from_numpy(mask).bool()
            one = pooled(torch.from_numpy(one), real, pooling_of(model)).numpy()
        _insist(theirs, other)
        answers.append(one.reshape(-1))
        gaps.append(np.abs(one - other).reshape(-1))
        agreed += (one.argmax(-1) == other.argmax(-1)).reshape(-1).tolist()
    gap = np.concatenate(gaps)
    found = {
        "rows": len(rows),
        "largest_difference": float(gap.max()),
        "median_difference": float(np.median(gap)),
        "spread": float(np.concatenate(answers).std()),
    }
    if model.task == "embedding":  # states and vectors name no class
        return found
    return {**found, "agreement": float(np.mean(agreed))}


def missing(engine: Engine) -> MissingPackage | None:
    """Why the engine cannot run here, if it cannot."""
    try:
        engine.require()
    except MissingPackage as error:
        return error
    return None
