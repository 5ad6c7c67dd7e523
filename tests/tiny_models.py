"""Random tiny models of every family, and a tokenizer for them: `tiny("llama")`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from attar.core.grid import Grid
from attar.core.recipe import ModelSource
from attar.core.scope import Scope
from attar.core.step import Task
from attar.data.batches import Batch
from attar.layers import QuantizedEmbedding, QuantizedLinear, TiedHead, swap
from attar.models import load, save
from attar.models.model import Model, weight_of
from attar.models.structure import untie
from attar.ops.rounding import fit_scales, quantize

VOCABULARY = 100
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "</s>")
DECODERS = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "phi",
    "phi3",
)
ENCODERS = ("bert", "roberta", "electra", "distilbert", "modernbert")
PAIRS: tuple[tuple[str, Task], ...] = (
    *((name, "causal-lm") for name in DECODERS),
    *((name, "masked-lm") for name in ENCODERS),
    *((name, "classification") for name in ENCODERS),
)
LABELS = ("bad", "good", "mixed")

_AUTO: dict[str, Any] = {
    "causal-lm": transformers.AutoModelForCausalLM,
    "masked-lm": transformers.AutoModelForMaskedLM,
    "classification": transformers.AutoModelForSequenceClassification,
    "embedding": transformers.AutoModel,
}
_BOTH_HEADS = "BertForPreTraining"
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 5,
    "initializer_range": 0.3,  # so that logits differ by more than rounding
}
_GROUPED = {"num_key_value_heads": 2}
_WINDOWS = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 6}
# What a family has of its own, each with a form that is easily got wrong: scaled and capped
# embeddings, windows, biases, heads of another size than hidden / heads, no tied table.
_OWN: dict[str, dict[str, Any]] = {
    "llama": {**_GROUPED, "tie_word_embeddings": True, "mlp_bias": True},
    "mistral": {**_GROUPED, "sliding_window": 6},
    "qwen2": {
        **_GROUPED,
        "use_sliding_window": True,
        "sliding_window": 6,
        "max_window_layers": 1,
        "tie_word_embeddings": True,
    },
    "qwen3": {**_GROUPED, "head_dim": 16, "tie_word_embeddings": True},
    "gemma2": {**_GROUPED, **_WINDOWS},
    "gemma3_text": {
        **_GROUPED,
        **_WINDOWS,
        "head_dim": 16,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "phi": {**_GROUPED, "qk_layernorm": True},
    "phi3": {**_GROUPED, "original_max_position_embeddings": 64},
    "gpt2": {"n_inner": 64},
    "bert": {},
    "roberta": {"pad_token_id": 0},
    "electra": {"embedding_size": 16},
    "distilbert": {"hidden_dim": 64},
    "modernbert": {
        "global_attn_every_n_layers": 2,
        "local_attention": 6,
        "cls_token_id": 2,
        "sep_token_id": 3,
    },
}


def tiny(model_type: str, task: Task | None = None, **overrides: Any) -> Model:
    """A random model: hidden 32, 4 heads, feed-forward 64, 3 blocks. `seed` draws another.

    `both_heads`: of BERT, the one that tells masked tokens and next sentences.
    """
    task = task or ("causal-lm" if model_type in DECODERS else "masked-lm")
    seed = overrides.pop("seed", 0)
    dtype = overrides.pop("dtype", torch.float32)
    labels = LABELS if task == "classification" else ()
    settings = {**_SIZES, **_OWN[model_type], **overrides}
    if labels:
        settings["id2label"] = dict(enumerate(labels))
        settings["label2id"] = {label: index for index, label in enumerate(labels)}
        settings["problem_type"] = "single_label_classification"
    made = _AUTO[task]
    if settings.pop("both_heads", False):
        settings["architectures"], made = [_BOTH_HEADS], transformers.AutoModelForPreTraining
    config = transformers.AutoConfig.for_model(model_type, **_known(model_type, settings))
    torch.manual_seed(seed)
    module = made.from_config(config, dtype=dtype)
    _shake(module)
    return Model(module.eval(), tokenizer(), task, labels)


def _known(model_type: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Without the inner width where the family calls it otherwise."""
    if model_type in ("gpt2", "distilbert"):
        settings.pop("intermediate_size")
    return settings


def _shake(module: Any) -> None:
    """Make biases and norms random too: at 0 and 1 they would hide a wrong slice."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter += 0.2 * torch.randn_like(parameter)


@cache
def tokenizer() -> Any:
    """Words `w0` to `w93`, and the special tokens; texts get [CLS] and [SEP] around them."""
    words = [*SPECIAL, *(f"w{index}" for index in range(VOCABULARY - len(SPECIAL)))]
    plain = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]")
    )
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        eos_token="</s>",
        model_max_length=64,
    )


def texts(count: int = 8, length: int = 12, seed: int = 0) -> list[str]:
    """Texts of random words that the tokenizer knows."""
    generator = torch.Generator().manual_seed(seed)
    last = VOCABULARY - len(SPECIAL)
    rows = torch.randint(0, last, (count, length), generator=generator).tolist()
    return [" ".join(f"w{index}" for index in row) for row in rows]


def batch(model: Model, rows: int = 2, length: int = 16, seed: int = 0) -> Batch:
    """A batch of random tokens; an encoder's second row is padded."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(len(SPECIAL), VOCABULARY, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    if model.task != "causal-lm":
        mask[1, length // 2 :] = 0
        ids = ids.where(mask.bool(), 0)
    labels = ids
    if model.task == "classification":
        labels = torch.arange(rows) % len(model.labels)
    return Batch(ids, mask, labels)


def logits(model: Model, seed: int = 0, rows: int = 2, length: int = 16) -> torch.Tensor:
    """What the whole module answers to `batch`, where a token is real."""
    given = batch(model, rows, length, seed)
    with torch.no_grad():
        found = model.module(input_ids=given.input_ids, attention_mask=given.attention_mask)
    found = found.last_hidden_state if model.task == "embedding" else found[0]
    return found if model.task == "classification" else found[given.attention_mask.bool()]


def press(model: Model, linears: str = "int4-g32", table: str = "int8-channel") -> Model:
    """The same model with quantized linears, and a quantized table with its tied head."""
    grid = Grid.parse(linears)
    for name, linear in model.linears(Scope.linears()).items():
        weight = weight_of(linear)
        new = QuantizedLinear(*weight.shape, grid, linear.bias)
        swap(model.module, name, new.fill(quantize(weight, fit_scales(weight, grid), grid)))
    grid = Grid.parse(table)
    names = {fact.role: fact.name for fact in model.facts()}
    old, head = model.module.get_input_embeddings(), model.module.get_output_embeddings()
    tied = head is not None and head.weight is old.weight
    factor = float(getattr(old, "scalar_embed_scale", 1.0))
    new = QuantizedEmbedding(*old.weight.shape, grid, old.weight.dtype, factor)
    new.fill(quantize(old.weight, fit_scales(old.weight, grid), grid))
    swap(model.module, names["embedding"], new)
    if tied:
        swap(model.module, names["head"], TiedHead(new, names["embedding"], head.bias))
    untie(model.module)
    return model


def assert_ordinary(model: Model, folder: Path) -> None:
    """The model reloads bit-equal without Attar."""
    expected = logits(model)
    save(model, folder)
    assert "quantization_config" not in (folder / "config.json").read_text()
    plain = _AUTO[model.task].from_pretrained(folder).eval()
    given = batch(model)
    with torch.no_grad():
        found = plain(input_ids=given.input_ids, attention_mask=given.attention_mask).logits
    if model.task != "classification":
        found = found[given.attention_mask.bool()]
    assert torch.equal(found, expected)
    again = load(ModelSource(path=str(folder)))
    assert again.facts() == model.facts()
    assert torch.equal(logits(again), expected)


def shuffled(count: int, seed: int) -> list[int]:
    """The numbers below `count` in a random order."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()


def behind(model: Model) -> Any:
    """How a server answers that has this model, as vLLM does; its own tokens too."""

    def reply(path: str, asked: dict[str, Any]) -> tuple[int, Any]:
        if path == "/tokenize":
            plain = {"add_special_tokens": False}
            return 200, {"tokens": model.tokenizer(asked["prompt"], **plain).input_ids}
        with torch.no_grad():
            logits = model.module(input_ids=torch.tensor([asked["prompt"]])).logits[0, :-1]
        logs, ids = logits.log_softmax(-1).topk(asked["prompt_logprobs"])
        told = [
            {str(i): {"logprob": log} for i, log in zip(some, few, strict=True)}
            for some, few in zip(ids.tolist(), logs.tolist(), strict=True)
        ]
        return 200, {"choices": [{"text": "", "prompt_logprobs": [None, *told]}]}

    return reply
