"""A module with its tokenizer and task, and one view of its blocks and linears."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from attar.core.scope import ModuleFact, Scope
from attar.core.step import Task
from attar.layers import LowRank, QuantizedEmbedding, QuantizedLinear, TiedHead
from attar.models.adapters import is_adapted
from attar.models.axes import Sizes, heads_of, sizes_of, unsplit
from attar.models.axes import in_block as axes_in_block
from attar.models.axes import outside as axes_outside
from attar.models.families import Family, family_of, vocabulary_of
from attar.models.media import tower_facts

_LINEAR = (nn.Linear, Conv1D, QuantizedLinear, TiedHead)
_TABLE = (nn.Embedding, QuantizedEmbedding)
NEXT = "cls.seq_relationship"  # BERT's head that tells whether one text follows another


@dataclass
class Model:
    """A transformers module, its tokenizer, its task, and where its parts are.

    Of models that see or hear, `tokenizer` is the processor of their files. `labels` are the class
    names of a classifier, in the order of its outputs.
    """

    module: Any
    tokenizer: Any
    task: Task
    labels: tuple[str, ...] = ()
    family: Family = field(init=False)

    def __post_init__(self) -> None:
        self.family = family_of(self.module.config.model_type)

    @property
    def config(self) -> Any:
        """The transformers config."""
        return self.module.config

    @property
    def base(self) -> Any:
        """The model without its head."""
        return self.module.base_model

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.module.parameters()).device

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks, first to last; of towers, one tower's after another's."""
        if self.family.towers:
            towers = [self.module.get_submodule(name) for name in self.family.towers]
            lists = [tower.get_submodule(self.family.blocks) for tower in towers]
            return nn.ModuleList([block for blocks in lists for block in blocks])
        return cast("nn.ModuleList", self.base.get_submodule(self.family.blocks))

    @property
    def blocks_name(self) -> str:
        """The name of the list of blocks within the module."""
        prefix = self.module.base_model_prefix if self.base is not self.module else ""
        return f"{prefix}.{self.family.blocks}".lstrip(".")

    @property
    def sizes(self) -> Sizes:
        """The widths, all blocks alike."""
        return sizes_of(self.config, self.family)

    def facts(self) -> list[ModuleFact]:
        """What there is: every linear, table and norm, in the order of the model."""
        if self.family.towers:
            return tower_facts(self, _kind, shape_of)
        start = self.blocks_name + "."
        roles = {
            self.module.get_output_embeddings(): "head",
            self.module.get_input_embeddings(): "embedding",
        }
        facts: list[ModuleFact] = []
        adapted = "\0"  # what names in an adapted linear begin with
        heads = [
            heads_of(self.config, self.family, width_of(block.get_submodule(self.family.out)))
            for block in self.blocks
        ]
        for name, module in self.module.named_modules():
            kind = "" if name.startswith(adapted) else _kind(module)
            if not kind:
                continue
            if is_adapted(module):
                adapted = f"{name}."
            shape, linear = shape_of(module), kind == "linear"
            if not name.startswith(start):
                whole = self.module.get_submodule(unsplit(name))
                factor = whole is not module and isinstance(whole, LowRank)
                role = roles.get(whole if factor else module, "norm" if kind == "norm" else "other")
                wide = self.sizes.embedding == self.sizes.hidden
                axes = axes_outside(name, role if role == "head" else kind, wide)
                if factor:
                    axes = ("",)  # a factor has nothing that a model is narrowed in
                facts.append(ModuleFact(name, role, linear, None, shape, axes))
                continue
            index, _, inner = name[len(start) :].partition(".")
            role = self.role(inner, kind)
            axes = axes_in_block(inner, kind, self.family)
            own = heads[int(index)] if role == "attention" else None
            facts.append(ModuleFact(name, role, linear, int(index), shape, axes, own))
        return facts

    def role(self, inner: str, kind: str) -> str:
        """What a module is for; `inner` is its path in a block."""
        whole = unsplit(inner)
        if whole in self.family.attention:
            return "attention"
        if whole in self.family.mlp:
            return "mlp"
        return "norm" if kind == "norm" else "other"

    def select(self, scope: Scope) -> list[str]:
        """Names of the modules in scope."""
        return scope.select(self.facts())

    def linears(self, scope: Scope) -> dict[str, nn.Module]:
        """The linears in scope by name."""
        linear = {fact.name for fact in self.facts() if fact.linear}
        return {
            name: self.module.get_submodule(name) for name in self.select(scope) if name in linear
        }

    def hidden(self, batch: Any) -> Tensor:
        """Hidden states that the head reads, [batch, length, hidden]."""
        given = {**self.given(batch), **self._plain()}
        if getattr(batch, "segments", None) is not None:
            given["token_type_ids"] = batch.segments
        return self.base(**given).last_hidden_state

    def given(self, batch: Any) -> dict[str, Tensor]:
        """What of a batch goes into the module: tokens, images or sounds, or both."""
        text = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        if self.family.media is None:
            return text
        return {self.family.media: batch.media, **(text if self.family.towers else {})}

    @property
    def vocabulary(self) -> int:
        """How many tokens it knows; none where it reads no text."""
        return vocabulary_of(self.config)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits of a language model from its hidden states, [..., vocabulary]."""
        for path in self.family.head:
            hidden = self.module.get_submodule(path)(hidden)
        cap = getattr(self.config, "final_logit_softcapping", None)
        return hidden if not cap else torch.tanh(hidden / cap) * cap

    @property
    def linear_head(self) -> nn.Linear | None:
        """The head, where it is one plain linear and nothing else."""
        modules = [self.module.get_submodule(path) for path in self.family.head]
        if len(modules) != 1 or getattr(self.config, "final_logit_softcapping", None):
            return None
        (only,) = modules
        hooked = only._forward_hooks or only._forward_pre_hooks
        return only if type(only) is nn.Linear and not hooked else None

    @property
    def tells_next(self) -> bool:
        """Whether it has a head that tells whether one text follows another."""
        return hasattr(self.module, "cls") and hasattr(self.module.cls, "seq_relationship")

    def next_sentence(self, hidden: Tensor) -> Tensor:
        """Logits that the second text follows the first, and that it does not: [batch, 2]."""
        return self.module.get_submodule(NEXT)(self.base.pooler(hidden))

    def logits(self, batch: Any) -> Tensor:
        """Logits for a batch: [batch, length, vocabulary], or [batch, classes]."""
        if self.task == "classification":
            return self.module(**self.given(batch)).logits
        return self.head(self.hidden(batch))

    def parameters_count(self) -> int:
        """Numbers that the model holds, quantized ones included, shared ones once."""
        count = sum(parameter.numel() for parameter in self.module.parameters())
        coded = QuantizedLinear | QuantizedEmbedding
        tables = [module for module in self.module.modules() if isinstance(module, coded)]
        return count + sum(table.rows * table.width for table in tables)

    @property
    def simulated(self) -> bool:
        """Whether PyTorch only simulates some of the weights."""
        return any(getattr(module, "simulated", False) for module in self.module.modules())

    def _plain(self) -> dict[str, Any]:
        return {"use_cache": False} if self.task == "causal-lm" else {}


def _kind(module: nn.Module) -> str:
    """`linear`, `table`, `norm`, or nothing."""
    if isinstance(module, _LINEAR) or is_adapted(module):
        return "linear"
    if isinstance(module, _TABLE):
        return "table"
    return "norm" if "norm" in type(module).__name__.lower() else ""


def shape_of(module: nn.Module) -> tuple[int, ...]:
    """(outputs, inputs) of a linear, (rows, width) of a table, a norm's width."""
    if isinstance(module, QuantizedLinear | QuantizedEmbedding):
        return module.rows, module.width
    if is_adapted(module):
        return shape_of(cast("nn.Module", module.base_layer))
    if isinstance(module, TiedHead):  # its own weight would have to be computed first
        return shape_of(module.__dict__["table"])
    weight = getattr(module, "weight", None)
    if weight is None:
        return ()
    shape = tuple(weight.shape)
    return shape[::-1] if isinstance(module, Conv1D) else shape


def width_of(linear: nn.Module) -> int:
    """The inputs of a linear, of one in two factors too."""
    return linear.in_features if isinstance(linear, LowRank) else shape_of(linear)[1]


def weight_of(linear: nn.Module) -> Tensor:
    """A linear's weight as [outputs, inputs], whatever way round the module keeps it."""
    return outputs_first(linear, cast("Tensor", linear.weight))


def outputs_first(linear: nn.Module, kept: Tensor) -> Tensor:
    """A tensor kept as the linear's weight is (its gradient, say), as [outputs, inputs]."""
    return kept.t() if isinstance(linear, Conv1D) else kept


def set_weight(linear: nn.Module, weight: Tensor) -> None:
    """Put a weight of [outputs, inputs] into a linear, in its own dtype.

    In new memory: what is mapped from a file would be copied page by page as it is written to,
    and these copies stay for as long as anything of the file is mapped.
    """
    kept = cast("nn.Parameter", linear.weight)
    kept.data = torch.empty_like(kept).copy_(outputs_first(linear, weight))


@contextmanager
def inference(device: str | torch.device, precision: str) -> Iterator[None]:
    """No gradients, and bf16 arithmetic where asked for; what comes of it may be trained on."""
    with torch.no_grad(), autocast(device, precision):
        yield


def autocast(device: str | torch.device, precision: str) -> Any:
    """Compute in bf16 where asked for; sums and weights stay as they are."""
    if precision != "bf16":
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)


def names_under(prefix: str, names: Sequence[str]) -> list[str]:
    """The names inside the module called `prefix`."""
    return [name for name in names if name.startswith(prefix + ".")]
