"""The training loop: one for every technique that trains the whole model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import torch

from attar.core.context import Bar, Context
from attar.core.keys import seed_of
from attar.data.batches import Batch
from attar.errors import TrainingDiverged
from attar.models.blocks import recomputed
from attar.models.mapped import trim
from attar.models.model import Model, inference
from attar.train import astray, trackers
from attar.train.checkpoint import Checkpoints, State
from attar.train.losses import Loss
from attar.train.machine import Machine, Taken, memory_advice
from attar.train.schedule import Training, rate_at, steps_of
from attar.train.scoped import in_float32
from attar.train.seen import final, moving, renew

POINTS = 200  # of a curve, about
_MEMORY = 0.9  # how much of the running mean of the loss stays in a step


class Batches(Protocol):
    """Batches by their number, as `attar.data.batches.Stream` gives them."""

    per_epoch: int

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The batch that a rank works on."""
        ...


@dataclass(frozen=True)
class FitResult:
    """What came of a training.

    steps: optimizer steps done; best: the lowest evaluation, None where nothing was evaluated;
    best_step: the step of the state that the model was left in; curves: as in the report.
    """

    steps: int
    best: float | None
    best_step: int
    tokens: int
    seconds: float
    curves: dict[str, list[tuple[float, float]]]


def fit(
    model: Model,
    loss: Callable[[Batch, float], Loss],
    stream: Batches,
    schedule: Training,
    ctx: Context,
    evaluate: Callable[[], float] | None = None,
) -> FitResult:
    """Train the parameters that want a gradient, in place, and leave the best state in them.

    Weights and moments are held in float32 while training, whatever the model's own dtype,
    which it gets back at the end; with `ctx.precision` bf16 the arithmetic is in bf16. Every
    step is a function of the settings, the seed and its number alone: a training that was
    killed goes on from its checkpoint in `ctx.scratch` and ends bit-equal to an undisturbed
    one. Under `accelerate launch` every process works on its own rows, and the gradient is
    that of all rows together. Views that weights are seen through are renewed before each step,
    and no state is kept as the best before they are final.

    A loss that is no number, or far beyond where it began, stops the training at once: it ends
    with the best state where that was better on held-out data than the start, and else raises
    TrainingDiverged.
    """
    trackers.check(ctx)
    with ExitStack() as stack:
        stack.enter_context(memory_advice(schedule))
        stack.enter_context(torch.random.fork_rng())
        stack.enter_context(in_float32(model.module))
        if schedule.recompute:
            stack.enter_context(recomputed(model))
        folder = ctx.scratch
        if folder is None:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="attar-")))
        checkpoints = Checkpoints(folder / "train")
        trim()  # what was freed on the way here, such as a teacher's float32 weights
        machine = stack.enter_context(Machine(model, loss, schedule, ctx))
        run = _Run(machine, stream, schedule, ctx, checkpoints, evaluate)
        run.resume()
        try:
            run.train()
        finally:
            model.module.eval()
        return run.finish()


class _Run:
    """A training under way."""

    def __init__(
        self,
        machine: Machine,
        stream: Batches,
        schedule: Training,
        ctx: Context,
        checkpoints: Checkpoints,
        evaluate: Callable[[], float] | None,
    ) -> None:
        self.machine, self.stream, self.schedule, self.ctx = machine, stream, schedule, ctx
        self.checkpoints, self.evaluate = checkpoints, evaluate
        self.steps = steps_of(schedule, stream.per_epoch, machine.world)
        self.state = State(steps=self.steps, world=machine.world)
        self.every = schedule.evaluate_every or math.ceil(self.steps / 4)
        self.saved = time.monotonic()
        self.moving, self.stopped = moving(machine.model.module), False

    def resume(self) -> None:
        """Go on from the newest checkpoint that fits, if there is one."""
        if self.ctx.scratch is None:
            return
        found = self.checkpoints.latest()
        self.machine.wait()
        if found is None or (found[0].steps, found[0].world) != (self.steps, self.machine.world):
            return
        self.state = found[0]
        self.machine.restore(found[1])
        self.ctx.progress.say(f"goes on from the checkpoint of step {self.state.step}")

    def train(self) -> None:
        """Take the steps that are left."""
        try:
            self._steps()
            self.machine.check_finite(self.state.step)
        except TrainingDiverged as error:
            good = f"the state of step {self.state.best_step}, the best on held-out data, is kept"
            if not self._better():
                raise TrainingDiverged(f"{error}; {self._kept()}") from error
            self.ctx.warn(f"{error}; {good}")
            self.stopped = True

    def _steps(self) -> None:
        state = self.state
        starts = self.schedule.keep_best and not self.moving and not state.step
        with self.ctx.progress.bar("training", self.steps) as bar:
            if state.step:
                bar.advance(state.step)
            if self.evaluate is not None and starts:
                state.start = self._score(self.evaluate)
            while state.step < self.steps and not self._enough():
                began = time.monotonic()
                taken = self._step()
                seconds = time.monotonic() - began
                state.step += 1
                state.tokens += taken.tokens
                state.seconds += seconds
                self._follow(taken, seconds, bar)
                if self.evaluate is not None and self._due(self.every):
                    self._judge(self.evaluate)
                self._checkpoint()

    def _better(self) -> bool:
        """Whether a state is at hand that is better on held-out data than the start."""
        best, start = self.state.best, self.state.start
        there = self.schedule.keep_best and self.state.best_step < self.steps
        return there and best is not None and start is not None and best < start

    def _kept(self) -> str:
        """What is left of a training that went astray."""
        written = self.ctx.scratch is not None and self.checkpoints.last_step() is not None
        folder = f"the last good state is kept in {self.checkpoints.folder}"
        return folder if written else "the model that the step began with is kept"

    def finish(self) -> FitResult:
        """Put the best state into the model and say how it went."""
        state = self.state
        ends_at = state.step
        passed = self.stopped or state.best_step != state.step
        if self.schedule.keep_best and state.best is not None and passed:
            ends_at = state.best_step
            if self.machine.main:
                self.machine.put(self.checkpoints.best(ends_at))
            self.machine.share()
        self._tell_worse(ends_at)
        for curve, points in state.curves.items():
            for x, y in points:
                self.ctx.point(curve, x, y)
        self.ctx.note("steps", state.step)
        self.ctx.note("tokens", state.tokens)
        self.ctx.note("tokens_per_second", round(state.tokens / max(state.seconds, 1e-9), 1))
        self.ctx.note("training_seconds", round(state.seconds, 1))
        self.ctx.note("precision", self.ctx.precision)
        if state.best is not None:
            self.ctx.note("best", {"step": state.best_step, "loss": state.best})
        return FitResult(state.step, state.best, ends_at, state.tokens, state.seconds, state.curves)

    def _step(self) -> Taken:
        """One optimizer step: `accumulate` batches, each weighted by what it judges."""
        step, machine, count = self.state.step, self.machine, self.schedule.accumulate
        torch.manual_seed(seed_of(self.ctx.seed, "step", step, machine.rank))
        batches = [
            self.stream.batch(step * count + index, machine.rank, machine.world)
            for index in range(count)
        ]
        rate = rate_at(self.schedule, step, self.steps)
        renew(machine.model.module, step, self.steps)
        return machine.step(batches, step, rate, step / self.steps)

    def _follow(self, taken: Taken, seconds: float, bar: Bar) -> None:
        """Show the loss, and keep a point of its running mean now and then."""
        state, machine = self.state, self.machine
        state.mean = _MEMORY * state.mean + (1 - _MEMORY) * taken.loss
        state.share = _MEMORY * state.share + (1 - _MEMORY)
        mean = state.mean / state.share
        speed = taken.tokens / max(seconds, 1e-9)
        bar.advance(1, f"loss {mean:.3f}, {speed:,.0f} tokens/s")
        if self._due(math.ceil(self.steps / POINTS)):
            state.point("loss/train", mean)
            for name, value in taken.parts.items():
                state.point(f"loss/{name}", value)
        astray.follow(state.course, taken.parts or {"loss": taken.loss})
        lost = None if self.moving else astray.lost(state.course)
        if machine.agree(float(lost is not None)):  # all processes, or none
            raise machine.diverged(state.step, taken.rate, lost or "the loss rose")
        followed = {"loss/train": taken.loss, "learning_rate": taken.rate, "gradient": taken.norm}
        machine.log(followed, state.step)

    def _score(self, evaluate: Callable[[], float]) -> float:
        """The loss on held-out data."""
        machine = self.machine
        with machine.judging(), inference(self.ctx.device, self.ctx.precision):
            score = machine.agree(evaluate())
        self.state.point("loss/dev", score)
        machine.log({"loss/dev": score}, self.state.step)
        return score

    def _judge(self, evaluate: Callable[[], float]) -> None:
        """Evaluate; keep the state where it is the best so far of those that may be the end."""
        state, machine = self.state, self.machine
        score = self._score(evaluate)
        if not final(machine.model.module, state.step, self.steps):
            return
        better = math.isfinite(score) and (state.best is None or score < state.best)
        if better and machine.not_finite() is None:
            state.best, state.best_step, state.waited = score, state.step, 0
            # The last step's state is at hand when training ends, no need to write it.
            if self.schedule.keep_best and state.step < self.steps and machine.main:
                self.checkpoints.write_best(state.step, machine.weights())
        else:
            state.waited += 1

    def _tell_worse(self, ends_at: int) -> None:
        """Say so where the state that it ends with is worse than what it began with.

        Not where weights are seen through views that change as training goes on, and the task
        with them.
        """
        state, start = self.state, self.state.start
        if self.moving or self.stopped:
            return
        worse = astray.worse(state.curves) if ends_at == state.step else None
        if worse is not None:
            told = f"training made its own loss worse: {worse}"
        elif start is not None and state.best is not None and astray.above(start, state.best):
            told = (
                "no state of the training was as good on held-out data as what it began with: "
                f"{start:.4g}, at best {state.best:.4g}"
            )
        else:
            return
        rate = self.schedule.learning_rate / 3
        self.ctx.warn(f"{told}. Lower learning_rate to {rate:.1g}, or raise warmup")

    def _checkpoint(self) -> None:
        """Write a checkpoint where it is time; none after the last step, which is the end.

        None of weights that are not finite either: the next step tells all processes.
        """
        due = time.monotonic() - self.saved >= 60 * self.schedule.checkpoint_minutes
        if self.ctx.scratch is None or not self.machine.main or not due:
            return
        going = self.state.step < self.steps and not self._enough()
        if going and self.machine.not_finite() is None:
            self.checkpoints.write(self.state, self.machine.parts())
            self.saved = time.monotonic()

    def _due(self, every: int) -> bool:
        return self.state.step % every == 0 or self.state.step == self.steps

    def _enough(self) -> bool:
        patience = self.schedule.patience
        return patience is not None and self.state.waited >= patience
