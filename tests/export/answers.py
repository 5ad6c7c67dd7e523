"""An engine's answers held against PyTorch's, on the same rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from attar.models.model import Model


def expected(model: Model, given: Any) -> Any:
    """PyTorch's own logits."""
    with torch.no_grad():
        found = model.module(input_ids=given.input_ids, attention_mask=given.attention_mask)
    return found.logits.float().numpy()


def alike(engine: Any, model: Model, given: Any, near: float = 2e-4) -> None:
    """An opened engine says what PyTorch does; padding of a masked language model is not read."""
    wanted = expected(model, given)
    if model.task == "causal-lm":
        found = engine.logprobs(given.input_ids[0].tolist())
        wanted = torch.from_numpy(wanted[0]).log_softmax(-1).numpy()
    else:
        found = engine.run(given.input_ids.numpy(), given.attention_mask.numpy())
        if model.task == "masked-lm":
            shown = given.attention_mask.numpy().astype(bool)
            found, wanted = found[shown], wanted[shown]
    np.testing.assert_allclose(found, wanted, atol=near * np.abs(wanted).max())
