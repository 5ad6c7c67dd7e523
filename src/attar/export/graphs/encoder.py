"""Encoders of the BERT kind as graphs: attention and MLP, each with a norm after it."""

from __future__ import annotations

from typing import Any, TypeVar

from attar.export._refused import own_modules
from attar.export.graphs.graph import HELD, Function, Graph, Heads, Norm
from attar.export.graphs.weights import Dense, floats, weights_of
from attar.models import Model
from attar.models.model import width_of

V = TypeVar("V")
FAMILIES = ("bert", "roberta", "electra", "distilbert")
_FUNCTIONS: dict[str, Function] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
_NORMS = {"distilbert": ("sa_layer_norm", "output_layer_norm")}  # after attention, after MLP
_MASKED = {  # linear, norm, and linear of a masked language model's head
    "bert": ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm"),
    "roberta": ("lm_head.dense", "lm_head.layer_norm"),
    "electra": ("generator_predictions.dense", "generator_predictions.LayerNorm"),
    "distilbert": ("vocab_transform", "vocab_layer_norm"),
}
_CLASSES: dict[str, tuple[str, Function, str]] = {  # of a classifier's
    "bert": ("bert.pooler.dense", "tanh", "classifier"),
    "roberta": ("classifier.dense", "tanh", "classifier.out_proj"),
    "electra": ("classifier.dense", "gelu", "classifier.out_proj"),
    "distilbert": ("pre_classifier", "relu", "classifier"),
}


def problems(model: Model) -> list[str]:
    """Why an encoder cannot be written as a graph; empty where it can."""
    kind = model.config.model_type
    if kind not in FAMILIES:
        return [
            f"encoders of the family {kind} have no graph yet. There are graphs of "
            f"{', '.join(FAMILIES)}"
        ]
    found = own_modules(model, HELD, "a graph")
    if getattr(model.config, "is_decoder", False):
        found.append("its tokens see those before them alone (is_decoder), and a graph's see all")
    if model.tells_next:
        found.append(
            "it also tells whether one text follows another, and a graph has one head. Export to hf"
        )
    if _activation(model) not in _FUNCTIONS:
        found.append(f"the activation {_activation(model)} is not among {', '.join(_FUNCTIONS)}")
    return found


def write_encoder(graph: Graph[V], model: Model) -> None:
    """Write an encoder: token ids and their mask to its head's answers, or last hidden states."""
    x = _embedded(graph, model)
    for index in range(len(model.blocks)):
        x = _block(graph, model, index, x)
    if model.task == "embedding":
        graph.result(x, "last_hidden_state", ["rows", "length", model.sizes.hidden])
        return
    kind = model.config.model_type
    if model.task == "classification":
        dense, function, out = _CLASSES[kind]
        x = graph.function(graph.linear(graph.first(x), dense), function)
        graph.result(graph.linear(x, out), "logits", ["rows", len(model.labels)])
        return
    dense, norm = _MASKED[kind]
    function = "gelu" if kind in ("roberta", "electra") else _FUNCTIONS[_activation(model)]
    x = graph.norm(graph.function(graph.linear(x, dense), function), _norm(model, norm))
    head = model.module.get_output_embeddings()
    name = next(name for name, found in model.module.named_modules() if found is head)
    graph.result(graph.linear(x, name), "logits", ["rows", "length", model.config.vocab_size])


def _embedded(graph: Graph[V], model: Model) -> V:
    """Words, positions and the one kind of segment that Attar's batches have, normalized."""
    base = f"{model.module.base_model_prefix}." if model.base is not model.module else ""
    name = f"{base}embeddings"
    embeddings: Any = model.base.embeddings
    places = floats(embeddings.position_embeddings.weight)
    if hasattr(embeddings, "token_type_embeddings"):
        places = places + floats(embeddings.token_type_embeddings.weight)[0]
    table = Dense(f"{name}.places", places)
    first = model.config.pad_token_id if model.config.model_type == "roberta" else None
    words = graph.embed(graph.ids(), weights_of(model, f"{name}.word_embeddings"))
    found = graph.places(table, first)
    x, _ = graph.add_norm(words, found, _norm(model, f"{name}.LayerNorm"))
    if hasattr(model.base, "embeddings_project"):
        x = graph.linear(x, f"{base}embeddings_project")
    return x


def _block(graph: Graph[V], model: Model, index: int, x: V) -> V:
    family, name = model.family, f"{model.blocks_name}.{index}."
    block = model.blocks[index]
    after_attention, after_mlp = _NORMS.get(
        model.config.model_type, ("attention.output.LayerNorm", "output.LayerNorm")
    )
    size = model.sizes.head
    queries = width_of(block.get_submodule(family.out)) // size
    heads = Heads(queries, queries, size, size**-0.5)
    qkv = graph.linears(x, [name + path for path in family.qkv])
    branch = graph.linear(graph.attend(qkv, heads), name + family.out)
    x, _ = graph.add_norm(x, branch, _norm(model, name + after_attention))
    inner = graph.function(graph.linear(x, name + family.up[0]), _FUNCTIONS[_activation(model)])
    x, _ = graph.add_norm(
        x, graph.linear(inner, name + family.down), _norm(model, name + after_mlp)
    )
    return x


def _activation(model: Model) -> str:
    config = model.config
    return getattr(config, "hidden_act", None) or getattr(config, "activation", "gelu")


def _norm(model: Model, name: str) -> Norm:
    module: Any = model.module.get_submodule(name)
    return Norm(name, floats(module.weight), floats(module.bias), module.eps, centered=True)
