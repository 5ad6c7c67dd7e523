"""What a GGUF file says of a model's widths, heads and positions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attar.export.target import quantized
from attar.models import Model
from attar.models.pooling import pooling_of

ARCHITECTURES = {  # by task and by transformers' name
    "causal-lm": {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"},
    "embedding": {"bert": "bert"},
}
_GELUS = ("gelu", "gelu_new", "gelu_pytorch_tanh")  # llama.cpp's own is that by tanh
POOLER = "pooler.dense"  # of an encoder: no vector of a text is read from it
_POOLINGS = {"mean": "MEAN", "first": "CLS", "last": "LAST"}  # llama.cpp's names


def architecture(model: Model) -> str:
    """What the file calls the model's architecture."""
    return ARCHITECTURES[model.task][model.config.model_type]


def settings_problems(model: Model) -> Iterator[str]:
    """What of a model llama.cpp would compute otherwise."""
    if architecture(model) == "bert":
        yield from _encoder_problems(model)
        return
    head = model.module.get_output_embeddings()
    if head is not None and head.bias is not None:
        yield "its head has a bias, which llama.cpp does not add"
    config = model.config
    rotary: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    kind = rotary.get("rope_type", "default")
    known = ("default", "linear", "llama3")
    if kind not in known or rotary.get("partial_rotary_factor", 1.0) != 1.0:
        yield f"its rotary positions are {kind}, and only {', '.join(known)} ones are written"
    elif kind != "default" and architecture(model) != "llama":
        yield f"its rotary positions are {kind}, which llama.cpp reads for Llama alone"
    yield from _activation_problem(getattr(config, "hidden_act", "silu"), ("silu",))


def _encoder_problems(model: Model) -> Iterator[str]:
    config, sizes = model.config, model.sizes
    yield from _activation_problem(config.hidden_act, _GELUS)
    if getattr(config, "is_decoder", False):
        yield "its tokens see those before them alone (is_decoder), and an encoder's see all"
    if sizes.queries * sizes.head != sizes.hidden:
        yield (
            f"its {sizes.queries} heads of {sizes.head} are not as wide as the model, "
            f"{sizes.hidden}, and llama.cpp takes an encoder's to be"
        )
    if any(item.name == POOLER for item in quantized(model)):
        yield f"{POOLER} is on a grid, and GGUF has no place for it. Leave it out of that step"


def _activation_problem(own: str, computed: tuple[str, ...]) -> Iterator[str]:
    if own not in computed:
        yield f"its activation is {own}, and llama.cpp computes {computed[0]}"


def add_settings(writer: Any, model: Model) -> None:
    """Add all that llama.cpp needs to build the model."""
    from gguf import PoolingType

    config, sizes = model.config, model.sizes
    writer.add_type("model")
    writer.add_name(Path(getattr(config, "name_or_path", "")).name or config.model_type)
    writer.add_file_type(_file_type(model))
    writer.add_quantization_version(2)
    writer.add_context_length(context_length(config))
    writer.add_embedding_length(sizes.hidden)
    writer.add_block_count(len(model.blocks))
    writer.add_feed_forward_length(sizes.neurons)
    writer.add_head_count(sizes.queries)
    writer.add_vocab_size(config.vocab_size)
    if architecture(model) == "bert":
        writer.add_layer_norm_eps(config.layer_norm_eps)
        writer.add_causal_attention(False)
        writer.add_pooling_type(PoolingType[_POOLINGS[pooling_of(model)]])
        writer.add_token_type_count(config.type_vocab_size)
        return
    writer.add_head_count_kv(sizes.keys)
    writer.add_key_length(sizes.head)
    writer.add_value_length(sizes.head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(sizes.head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])


def context_length(config: Any) -> int:
    """Positions that the file promises: within a window of attention, where there is one."""
    window = getattr(config, "sliding_window", None)
    if not getattr(config, "use_sliding_window", True):
        window = None
    return min(config.max_position_embeddings, window or config.max_position_embeddings)


def _file_type(model: Model) -> int:
    """The type that most weights have, by llama.cpp's number for it."""
    from gguf import LlamaFileType

    weights: Counter[str] = Counter()
    for item in quantized(model):
        kind = "Q8_0" if item.grid.bits == 8 else "Q4_0" if item.grid.offset == "none" else "Q4_1"
        weights[f"MOSTLY_{kind}"] += item.rows * item.width
    if not weights:
        floats = {"torch.bfloat16": "MOSTLY_BF16", "torch.float16": "MOSTLY_F16"}
        weights[floats.get(str(model.module.dtype), "ALL_F32")] = 1
    return LlamaFileType[weights.most_common(1)[0][0]].value
