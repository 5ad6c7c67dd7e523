"""Language models of the Llama kind as graphs: norm, attention, norm, gated MLP."""

from __future__ import annotations

from typing import Any, TypeVar

import torch

from attar.export._refused import own_modules
from attar.export.graphs.graph import HELD, Function, Graph, Heads, Norm, Rotary
from attar.export.graphs.weights import floats, weights_of
from attar.models import Model
from attar.models.model import width_of

V = TypeVar("V")
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text")
FUNCTIONS: dict[str, Function] = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
}
_ROTARY = ("default", "linear", "llama3", "yarn")  # angles that no input changes


def problems(model: Model) -> list[str]:
    """Why a language model cannot be written as a graph; empty where it can."""
    config = model.config
    if config.model_type not in FAMILIES:
        return [
            f"decoders of the family {config.model_type} have no graph yet. "
            f"There are graphs of {', '.join(FAMILIES)}"
        ]
    found = own_modules(model, HELD, "a graph")
    rotaries = _each(config.rope_parameters)
    kinds = {str(each.get("rope_type", "default")) for each in rotaries}
    if not kinds <= set(_ROTARY):
        found.append(
            f"rotary positions of the kind {', '.join(sorted(kinds - set(_ROTARY)))} change with "
            "the length of a text, which no graph here does. Export to hf or gguf"
        )
    if any(each.get("partial_rotary_factor", 1.0) != 1.0 for each in rotaries):
        found.append(
            "its rotary positions turn a part of each head alone, which no graph here does. Export "
            "to hf"
        )
    if _activation(config) not in FUNCTIONS:
        found.append(f"the activation {_activation(config)} is not among {', '.join(FUNCTIONS)}")
    return found


def _each(parameters: dict[str, Any]) -> list[dict[str, Any]]:
    """Rotary positions of every kind of attention, or the ones of all."""
    return [value for value in parameters.values() if isinstance(value, dict)] or [parameters]


def _activation(config: Any) -> str:
    return getattr(config, "hidden_act", None) or config.hidden_activation


def write_decoder(graph: Graph[V], model: Model) -> None:
    """Write a language model: token ids to logits, [rows, length, vocabulary]."""
    base, config = model.base, model.config
    names = {module: name for name, module in model.module.named_modules()}
    table = model.module.get_input_embeddings()
    total = graph.embed(graph.ids(), weights_of(model, names[table]))
    factor = float(getattr(table, "scalar_embed_scale", getattr(table, "factor", 1.0)))
    if factor != 1.0:
        total = graph.scaled(total, factor)
    rotaries = _rotaries(base, config)
    branch: V | None = None
    for index, block in enumerate(model.blocks):
        name = f"{model.blocks_name}.{index}"
        x, total = _joined(graph, total, branch, _norm(block.input_layernorm, names))
        kind = "sliding_attention" if _slides(model, index) else "full_attention"
        rotary = rotaries.get(kind, rotaries["all"])
        branch = _attention(graph, model, index, x, rotary)
        if not hasattr(block, "pre_feedforward_layernorm"):
            x, total = _joined(graph, total, branch, _norm(block.post_attention_layernorm, names))
            branch = _mlp(graph, model, name, x)
            continue
        branch = graph.norm(branch, _norm(block.post_attention_layernorm, names))
        x, total = _joined(graph, total, branch, _norm(block.pre_feedforward_layernorm, names))
        branch = _mlp(graph, model, name, x)
        branch = graph.norm(branch, _norm(block.post_feedforward_layernorm, names))
    x, _ = _joined(graph, total, branch, _norm(base.norm, names))
    logits = graph.linear(x, names[model.module.get_output_embeddings()])
    cap = getattr(config, "final_logit_softcapping", None)
    if cap:
        logits = graph.scaled(graph.function(graph.scaled(logits, 1 / cap), "tanh"), cap)
    graph.result(logits, "logits", ["rows", "length", config.vocab_size])


def _joined(graph: Graph[V], total: V, branch: V | None, norm: Norm) -> tuple[V, V]:
    """What comes next is given, and what it will be added to."""
    if branch is None:
        return graph.norm(total, norm), total
    return graph.add_norm(total, branch, norm)


def _attention(graph: Graph[V], model: Model, index: int, x: V, rotary: Rotary) -> V:
    block, family, name = model.blocks[index], model.family, f"{model.blocks_name}.{index}."
    heads = heads_of_block(model, index)
    attention: Any = block.self_attn
    qkv = graph.linears(x, [name + path for path in family.qkv])
    if len(qkv) == 1:
        keys = heads.keys * heads.size
        qkv = graph.split(qkv[0], [heads.queries * heads.size, keys, keys])
    for place, path in enumerate(family.head_norms):
        norm = attention.get_submodule(path.rpartition(".")[2])
        count = heads.keys if place else heads.queries
        qkv[place] = graph.norm_heads(qkv[place], _norm(norm, {norm: name + path}), count)
    found = graph.attend_before(qkv, index, heads, rotary)
    return graph.linear(found, name + family.out)


def heads_of_block(model: Model, index: int) -> Heads:
    """The heads of a block, which may have fewer than its config says."""
    attention: Any = model.blocks[index].self_attn
    sizes = model.sizes
    queries = width_of(model.blocks[index].get_submodule(model.family.out)) // sizes.head
    return Heads(
        queries=queries,
        keys=queries * sizes.keys // sizes.queries,
        size=sizes.head,
        scale=float(attention.scaling),
        window=getattr(model.config, "sliding_window", None) if _slides(model, index) else None,
        cap=getattr(attention, "attn_logit_softcapping", None),
    )


def _slides(model: Model, index: int) -> bool:
    kinds = getattr(model.config, "layer_types", None)
    return kinds is None or kinds[index] == "sliding_attention"


def _mlp(graph: Graph[V], model: Model, name: str, x: V) -> V:
    family, config = model.family, model.config
    found = graph.linears(x, [f"{name}.{path}" for path in family.up])
    if family.fused_up:
        rows = model.module.get_submodule(f"{name}.{family.up[0]}").out_features
        found = graph.split(found[0], [rows // 2, rows // 2])
    gated = graph.times(graph.function(found[0], FUNCTIONS[_activation(config)]), found[1])
    return graph.linear(gated, f"{name}.{family.down}")


def _norm(module: Any, names: dict[Any, str]) -> Norm:
    gain = floats(module.weight)
    if type(module).__name__.startswith("Gemma"):
        gain = gain + 1
    epsilon = getattr(module, "variance_epsilon", None) or module.eps
    return Norm(names[module], gain, None, float(epsilon), centered=False)


def _rotaries(base: Any, config: Any) -> dict[str, Rotary]:
    """The angles of each kind of attention; `all` where there is one for all."""
    module, found = base.rotary_emb, {}
    for kind in ("sliding_attention", "full_attention"):
        frequencies = getattr(module, f"{kind}_inv_freq", None)
        if frequencies is not None:
            scale = getattr(module, f"{kind}_attention_scaling")
            found[kind] = _rotary(kind, frequencies, scale, config)
    if not found:
        found["all"] = _rotary("all", module.inv_freq, module.attention_scaling, config)
    return {"all": next(iter(found.values())), **found}


def _rotary(kind: str, frequencies: Any, scale: float, config: Any) -> Rotary:
    positions = torch.arange(config.max_position_embeddings, dtype=torch.float32)
    angles = positions[:, None] * frequencies.detach().float()[None]
    cosines, sines = angles.cos() * scale, angles.sin() * scale
    return Rotary(kind, floats(cosines), floats(sines))
