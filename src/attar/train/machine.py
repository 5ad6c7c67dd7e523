"""What the loop runs on: Accelerate, the optimizer, and the processes that share the work."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, broadcast, gather_object
from torch import Tensor, nn

from attar.core.context import Context
from attar.data.batches import Batch
from attar.errors import OutOfMemory, TrainingDiverged, UserError
from attar.models.model import Model
from attar.train import trackers
from attar.train.checkpoint import Tensors
from attar.train.losses import Loss
from attar.train.schedule import Training
from attar.train.seen import kept_of

Part = tuple[float, int]  # of a loss: its mean, and over how many positions


@dataclass(frozen=True)
class Taken:
    """An optimizer step taken: means over the rows of every process."""

    loss: float
    parts: dict[str, float]
    tokens: int
    rate: float
    norm: float


class _Trained(nn.Module):
    """The model seen as a module that tells its loss, so that DDP sees a plain forward."""

    def __init__(self, module: nn.Module, loss: Callable[[Batch, float], Loss]) -> None:
        super().__init__()
        self.module, self.loss = module, loss

    def forward(self, batch: Batch, progress: float) -> Loss:
        """The loss of a batch."""
        return self.loss(batch, progress)


class Machine:
    """Takes optimizer steps, on one process or several."""

    def __init__(
        self, model: Model, loss: Callable[[Batch, float], Loss], schedule: Training, ctx: Context
    ) -> None:
        self.model, self.schedule, self.ctx = model, schedule, ctx
        if ctx.device.startswith("cuda:"):
            torch.cuda.set_device(ctx.device)  # Accelerate takes the current one
        # Accelerate keeps its precision for the life of a process; another step may want another.
        AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
        self.accelerator = Accelerator(
            cpu=ctx.device == "cpu",
            mixed_precision="bf16" if ctx.precision == "bf16" else "no",
            log_with=list(ctx.trackers) or None,
            project_dir=None if ctx.logs is None else str(ctx.logs),
            # Buffers are constants, or follow from the weights: no need to send them around
            kwargs_handlers=[
                DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
            ],
        )
        self.named = {n: p for n, p in model.module.named_parameters() if p.requires_grad}
        if not self.named:
            raise UserError("the scope holds nothing that can be trained here. Widen it")
        self.optimizer = _optimizer(list(self.named.values()), schedule)
        trained = _Trained(model.module, loss)
        self.trained, self._prepared = self.accelerator.prepare(trained, self.optimizer)
        self.kept = kept_of(model.module)

    def __enter__(self) -> Self:
        trackers.start(self.accelerator, self.ctx, self.schedule.model_dump())
        self.model.module.train()
        return self

    def __exit__(self, *_: object) -> None:
        # Not `end_training`: it would part the processes, which have more to do.
        for tracker in self.accelerator.trackers:
            tracker.finish()
        for parameter in self.named.values():
            parameter.grad = None
        self.accelerator.free_memory()

    @property
    def rank(self) -> int:
        """Which of the processes this is."""
        return self.accelerator.process_index

    @property
    def world(self) -> int:
        """How many processes there are."""
        return self.accelerator.num_processes

    @property
    def main(self) -> bool:
        """Whether this process writes."""
        return self.accelerator.is_main_process

    def step(self, batches: Sequence[Batch], step: int, rate: float, progress: float) -> Taken:
        """One optimizer step over batches, of which every judged position counts the same."""
        self.optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(3, dtype=torch.float64)  # loss, judged, tokens
        parts: dict[str, list[Part]] = {}
        for index, batch in enumerate(batches):
            last = index == len(batches) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.trained):
                loss = self.trained(batch.to(self.accelerator.device), progress)
                self.accelerator.backward(loss.value * loss.count)
            tokens = int(batch.attention_mask.sum())
            sums += sums.new_tensor([float(loss.value.detach()) * loss.count, loss.count, tokens])
            for name, part in loss.parts.items():
                parts.setdefault(name, []).append(part)
        total, judged, tokens = self._sum(sums).tolist()
        mean = total / max(judged, 1.0)
        norm = self._scale(self.world / max(judged, 1.0))
        if not (math.isfinite(mean) and math.isfinite(norm)):
            raise self.diverged(step + 1, rate, f"the loss is {mean:.4g}, its gradient {norm:.4g}")
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._prepared.step()
        means = {name: _mean(some) for name, some in self._together(parts).items()}
        return Taken(mean, means, int(tokens), rate, norm)

    def weights(self) -> Tensors:
        """The weights that are trained, and what views keep beside them."""
        return {name: tensor.detach() for name, tensor in (self.named | self.kept).items()}

    def parts(self) -> dict[str, Tensors]:
        """What a checkpoint holds: weights, and each kind of moment in a file of its own."""
        parts: dict[str, Tensors] = {"weights": self.weights()}
        for name, parameter in self.named.items():
            for kind, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    parts.setdefault(f"moment-{kind}", {})[name] = value
        return parts

    def restore(self, parts: dict[str, Tensors]) -> None:
        """Undo what happened since `parts` was written."""
        self.put(parts["weights"])
        for part, tensors in parts.items():
            kind = part.removeprefix("moment-")
            if kind == part:
                continue
            for name, value in tensors.items():
                parameter = self.named[name]
                self.optimizer.state[parameter][kind] = value.clone().to(parameter.device)

    def put(self, weights: Tensors) -> None:
        """Put these weights into the model."""
        own = self.weights()
        for name, value in weights.items():
            own[name].copy_(value)

    def share(self) -> None:
        """Give every process the first one's weights."""
        if self.world > 1:
            for tensor in self.weights().values():
                broadcast(tensor)

    @contextmanager
    def judging(self) -> Iterator[None]:
        """The model as it is used, without dropout."""
        self.model.module.eval()
        try:
            yield
        finally:
            self.model.module.train()

    def agree(self, score: float) -> float:
        """The first process's score, on every process: all must stop at the same step."""
        if self.world == 1:
            return score
        value = torch.tensor([score], dtype=torch.float64, device=self.accelerator.device)
        return cast("Tensor", broadcast(value)).item()

    def wait(self) -> None:
        """Wait for the other processes."""
        self.accelerator.wait_for_everyone()

    def log(self, values: dict[str, float], step: int) -> None:
        """Tell the trackers."""
        if self.ctx.trackers:
            self.accelerator.log(values, step=step)

    def check_finite(self, step: int) -> None:
        """Raise TrainingDiverged where the last update made a weight NaN or infinite."""
        name = self.not_finite()
        if name is not None:
            rate = self.optimizer.param_groups[0]["lr"]
            raise self.diverged(step, rate, f"{name} holds numbers that are not finite")

    def not_finite(self) -> str | None:
        """The first of the weights that is NaN or infinite somewhere."""
        each = self.named.items()
        return next((n for n, p in each if not p.sum(dtype=torch.float64).isfinite()), None)

    def _sum(self, values: Tensor) -> Tensor:
        if self.world == 1:
            return values
        there = values.to(self.accelerator.device)
        return cast("Tensor", self.accelerator.reduce(there, "sum")).cpu()

    def _together(self, parts: dict[str, list[Part]]) -> dict[str, list[Part]]:
        """The parts of every process, which need not have the same."""
        if self.world == 1:
            return parts
        found: dict[str, list[Part]] = {}
        for name, some in (item for each in gather_object([parts]) for item in each.items()):
            found.setdefault(name, []).extend(some)
        return found

    def _scale(self, scale: float) -> float:
        """Scale the gradients and clip their norm, in one pass; the norm before clipping."""
        grads = [p.grad for p in self.named.values() if p.grad is not None]
        norm = scale * float(torch.nn.utils.get_total_norm(grads)) if grads else 0.0
        clip = self.schedule.clip
        if clip is not None and norm > clip:
            scale *= clip / norm
        if math.isfinite(norm) and grads:
            torch._foreach_mul_(grads, scale)
        return norm

    def diverged(self, step: int, rate: float, what: str) -> TrainingDiverged:
        """The error of a training whose step number `step`, from 1 on, did that."""
        return TrainingDiverged(
            f"training went astray at step {step}: {what} (learning rate {rate:.3g}). Lower "
            f"learning_rate to {self.schedule.learning_rate / 3:.1g}, or raise warmup, or set clip "
            "if it is off"
        )


def _optimizer(parameters: list[nn.Parameter], schedule: Training) -> torch.optim.Optimizer:
    """AdamW or SGD; biases and norms are not drawn toward zero."""
    matrices = [p for p in parameters if p.dim() > 1]
    others = [p for p in parameters if p.dim() <= 1]
    groups: list[dict[str, Any]] = [
        {"params": some, "weight_decay": decay}
        for some, decay in ((matrices, schedule.weight_decay), (others, 0.0))
        if some
    ]
    rate = schedule.learning_rate
    if schedule.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=schedule.momentum)
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)


def _mean(parts: list[tuple[float, int]]) -> float:
    return sum(mean * count for mean, count in parts) / max(1, sum(count for _, count in parts))


@contextmanager
def memory_advice(schedule: Training) -> Iterator[None]:
    """Turn running out of memory into what to do about it."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error).lower()
        short = ("out of memory", "allocate memory", "not enough memory")
        if not isinstance(error, MemoryError) and not any(words in text for words in short):
            raise
        half, twice = max(1, schedule.batch // 2), schedule.accumulate * 2
        raise OutOfMemory(
            f"training with batch {schedule.batch} and length {schedule.length} does not fit the "
            "memory. Write recompute: yes, which trains the same in more time; or "
            f"batch: {half} and accumulate: {twice}, the same where rows of a batch are not "
            "compared with each other; or shorten `length`"
        ) from error
