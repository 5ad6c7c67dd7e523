"""PyTorch: Attar's own artifacts, and any folder that plain transformers loads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attar.runtimes._lengths import by_length
from attar.runtimes._sampling import log_softmax
from attar.runtimes._writing import Following, LogitsDecoder
from attar.runtimes.runtime import Decoder, Encoder, Engine, Floats, Ids, StoredCodes, ends_of

if TYPE_CHECKING:
    from attar.models import Model


class Torch(Engine):
    """Runs the model's own module on a CPU, in the dtype of its weights."""

    name = "torch"
    several = True

    def holds(self, folder: Path) -> bool:
        return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))

    def open(self, folder: Path, threads: int | None = None) -> Decoder | Encoder:
        from attar.models.load import load
        from attar.models.source import Files

        with redirect_stderr(StringIO()):  # compressed-tensors draws bars
            model = load(Files(folder))
            if hasattr(model.module, "ct_decompress_hook"):  # it unpacks in the first pass
                import torch

                model.module(input_ids=torch.tensor([[0]]))
        decodes = model.task == "causal-lm"
        return TorchDecoder(model, threads) if decodes else TorchEncoder(model, threads)

    def read_back(self, folder: Path) -> Mapping[str, StoredCodes]:
        from attar.runtimes._compressed import read_compressed

        config = json.loads((folder / "config.json").read_text("utf-8"))
        method = config.get("quantization_config", {}).get("quant_method")
        if method == "compressed-tensors":
            return read_compressed(folder, config["quantization_config"])
        if method == "attar":
            from attar.models.load import load
            from attar.models.source import Files

            return stored(load(Files(folder)))
        return {}

    def version(self) -> str:
        return f"torch {version('torch')}"


def stored(model: Model) -> dict[str, StoredCodes]:
    """The codes of every linear and table on a grid, as a model in memory has them."""
    from attar.layers import QuantizedEmbedding, QuantizedLinear, RoundedLinear, StaticLinear

    found: dict[str, StoredCodes] = {}
    for name, module in model.module.named_modules():
        if isinstance(module, QuantizedLinear | QuantizedEmbedding):
            codes, inputs, outputs = module.unpacked(), None, None
            if isinstance(module, StaticLinear):
                inputs = ends_of(module.input_grid.scale, module.input_grid.zero)
            if isinstance(module, RoundedLinear):
                outputs = ends_of(module.output_grid.scale, module.output_grid.zero)
            found[name] = StoredCodes(
                codes.codes.numpy(),
                codes.scales.float().numpy(),
                module.group,
                None if codes.zeros is None else codes.zeros.numpy().astype(np.int16),
                None if codes.minima is None else codes.minima.float().numpy(),
                inputs,
                outputs,
            )
    return found


class _Threads:
    """PyTorch's threads while a model is open: they are the whole process's."""

    def __init__(self, threads: int | None) -> None:
        import torch

        self._before = torch.get_num_threads()
        if threads is not None:
            torch.set_num_threads(threads)

    def restore(self) -> None:
        import torch

        torch.set_num_threads(self._before)


class TorchDecoder(LogitsDecoder):
    """A language model in PyTorch, with a cache of keys and values."""

    engine = "torch"

    def __init__(self, model: Model, threads: int | None = None) -> None:
        self.model, self._threads = model, _Threads(threads)
        self.context = getattr(model.config, "max_position_embeddings", None) or 1 << 20

    def logprobs(self, ids: Sequence[int]) -> Floats:
        return log_softmax(self._logits([list(ids)], None)[0][0].float().numpy())

    def begin(self, length: int) -> Following:
        cache = None

        def following(ids: Sequence[int]) -> Floats:
            nonlocal cache
            logits, cache = self._logits([list(ids)], cache, last=True)
            return logits[0, -1].float().numpy()

        return following

    def _logits(self, ids: list[list[int]], cache: Any, last: bool = False) -> tuple[Any, Any]:
        import torch

        with torch.inference_mode():
            kept = {"past_key_values": cache, "logits_to_keep": 1} if last else {}
            out = self.model.module(input_ids=torch.tensor(ids), use_cache=last, **kept)
        return out.logits, getattr(out, "past_key_values", None)

    def close(self) -> None:
        self._threads.restore()


class TorchEncoder(Encoder):
    """A classifier, masked language model, or plain encoder in PyTorch."""

    engine = "torch"

    def __init__(self, model: Model, threads: int | None = None) -> None:
        self.model, self._threads = model, _Threads(threads)

    def run(self, ids: Ids, mask: Ids) -> Floats:
        return by_length(self._together, ids, mask)

    def _together(self, ids: Ids, mask: Ids) -> Floats:
        import torch

        with torch.inference_mode():
            out = self.model.module(
                input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)
            )
        return out[0].float().numpy()  # logits, or last hidden states where there is no head

    def close(self) -> None:
        self._threads.restore()
