"""The table of families: where each architecture keeps its blocks, linears and widths.

To add a family, add an entry: paths are read off `print(model)`, widths off its config.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from attar.errors import UnknownFamily


@dataclass(frozen=True)
class Family:
    """Where things are. Paths of `blocks` and `norm` start at the base model, those of
    linears at a block, those of `head` at the whole model.

    `qkv` is one fused linear or three; `up` is what feeds the activation and, in gated
    families, its gate (one fused linear where `fused_up` is set); `down` ends the MLP.
    `head` are the modules applied in turn to the last hidden states of a language model.
    `ffn` names the config's inner width, `embedding_width` that of the tables where it may
    differ from the hidden size. `head_norms` are the norms over one head.
    `first_block_differs`: block 0 cannot be moved.

    `media` is the input that images or sounds come in by; text alone where there is none.
    `towers` are the parts that have blocks of their own each, which `blocks` is then a path in.

    `free_heads`: the attention reads `head_dim` off the config, so the number of heads need
    not be the hidden size divided by the head size. `heads_divide`: the config is refused
    unless the number of heads divides the hidden size, all the same. `alike`: the attention
    splits what its linear puts out where the config says, so all blocks have as many heads.
    """

    qkv: tuple[str, ...]
    out: str
    up: tuple[str, ...]
    down: str
    blocks: str = "layers"
    head: tuple[str, ...] = ("lm_head",)
    ffn: str = "intermediate_size"
    fused_up: bool = False
    embedding_width: str | None = None
    head_norms: tuple[str, ...] = ()
    free_heads: bool = False
    heads_divide: bool = False
    alike: bool = False
    first_block_differs: bool = False
    media: str | None = None
    towers: tuple[str, ...] = ()

    @property
    def attention(self) -> tuple[str, ...]:
        """The linears of the attention."""
        return (*self.qkv, self.out)

    @property
    def attention_name(self) -> str:
        """The path of the module that the attention's linears are in."""
        return self.qkv[0].rpartition(".")[0]

    @property
    def mlp(self) -> tuple[str, ...]:
        """The linears of the feed-forward part."""
        return (*self.up, self.down)


_SELF = "self_attn."
_LLAMA = Family(
    qkv=(_SELF + "q_proj", _SELF + "k_proj", _SELF + "v_proj"),
    out=_SELF + "o_proj",
    up=("mlp.gate_proj", "mlp.up_proj"),
    down="mlp.down_proj",
    free_heads=True,
)
_QK_NORMS = (_SELF + "q_norm", _SELF + "k_norm")
_BERT = Family(
    blocks="encoder.layer",
    qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
    out="attention.output.dense",
    up=("intermediate.dense",),
    down="output.dense",
    head=("cls.predictions",),
)
_VIT = Family(
    qkv=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    out="attention.o_proj",
    up=("mlp.fc1",),
    down="mlp.fc2",
    head=(),
    media="pixel_values",
)

FAMILIES: dict[str, Family] = {
    "llama": replace(_LLAMA, heads_divide=True),
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": replace(_LLAMA, head_norms=_QK_NORMS),
    "gemma2": replace(_LLAMA, heads_divide=True),
    "gemma3_text": replace(_LLAMA, head_norms=_QK_NORMS, heads_divide=True),
    "phi": replace(
        _LLAMA,
        out=_SELF + "dense",
        up=("mlp.fc1",),
        down="mlp.fc2",
        head_norms=(_SELF + "q_layernorm", _SELF + "k_layernorm"),
    ),
    "phi3": replace(
        _LLAMA, qkv=(_SELF + "qkv_proj",), up=("mlp.gate_up_proj",), fused_up=True, alike=True
    ),
    "gpt2": Family(
        blocks="h",
        qkv=("attn.c_attn",),
        out="attn.c_proj",
        up=("mlp.c_fc",),
        down="mlp.c_proj",
        ffn="n_inner",
        alike=True,
    ),
    "bert": _BERT,
    "roberta": replace(_BERT, head=("lm_head",)),
    "electra": replace(
        _BERT,
        head=("generator_predictions", "generator_lm_head"),
        embedding_width="embedding_size",
    ),
    "distilbert": Family(
        blocks="transformer.layer",
        qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        out="attention.out_lin",
        up=("ffn.lin1",),
        down="ffn.lin2",
        head=("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"),
        ffn="hidden_dim",
    ),
    "modernbert": Family(
        qkv=("attn.Wqkv",),
        out="attn.Wo",
        up=("mlp.Wi",),
        down="mlp.Wo",
        head=("head", "decoder"),
        fused_up=True,
        first_block_differs=True,
    ),
    "vit": _VIT,
    "audio-spectrogram-transformer": replace(_VIT, media="input_values"),
    "clip": Family(
        blocks="encoder.layers",
        qkv=(_SELF + "q_proj", _SELF + "k_proj", _SELF + "v_proj"),
        out=_SELF + "out_proj",
        up=("mlp.fc1",),
        down="mlp.fc2",
        head=(),
        media="pixel_values",
        towers=("text_model", "vision_model"),
    ),
}


def family_of(model_type: str) -> Family:
    """The entry of a config's `model_type`; raises UnknownFamily, which says what to add."""
    family = FAMILIES.get(model_type)
    if family is None:
        raise UnknownFamily(
            f"the architecture {model_type!r} has no entry in Attar's table of families. "
            f"There are: {', '.join(sorted(FAMILIES))}. To use another, add an entry to "
            "attar/models/families.py with the paths of its blocks and linears, as "
            "`print(model)` shows them"
        )
    return family


def vocabulary_of(config: Any) -> int:
    """How many tokens a model of this config knows; none where it reads no text."""
    return getattr(config.get_text_config(), "vocab_size", 0)
