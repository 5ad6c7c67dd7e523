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


def check_length(model: Model, length: int) -> None:
    """Raise UserError where texts of so many tokens have more than the model has positions for."""
    places = places_of(model)
    if places is not None and length > places:
        raise UserError(
            f"texts of {length} tokens do not fit the model, which has {places} positions. Set "
            f"length: {places}, or less"
        )
