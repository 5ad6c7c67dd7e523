"""How long a text may be for a model that knows its positions by a table."""

from __future__ import annotations

from attar.errors import UserError
from attar.models.model import Model

_TABLES = ("embeddings.position_embeddings", "wpe")


def places_of(model: Model) -> int | None:
    """How many tokens a text may have; None where positions are computed, and none is the last."""
    if model.family.media is not None:
        return None
    if {name for name, _ in model.base.named_modules()}.isdisjoint(_TABLES):
        return None
    most = int(model.config.max_position_embeddings)
    if model.config.model_type != "roberta":
        return most
    return most - model.config.pad_token_id - 1  # positions begin after padding's


def room_for(model: Model, length: int) -> int:
    """`length`, or where it is less the tokens that a text may have."""
    places = places_of(model)
    return length if places is None else min(length, places)


def length_for(model: Model, length: int) -> int:
    """The same for texts to learn from or to measure on: longer ones are cut there.

    Raises UserError for language models, whose sequences are all of that length.
    """
    room = room_for(model, length)
    if room < length and model.task in ("causal-lm", "masked-lm"):
        raise UserError(
            f"sequences of {length} tokens do not fit the model, which has {room} positions. Set "
            f"length: {room}, or less"
        )
    return room
