"""One step of distillation beside TRL's: tokens a second and peak memory.

    python benchmarks/distill_speed.py --trl PYTHON

Llama shapes with random weights: a student of 8 blocks of 512, a teacher of 11 of 768, tied heads,
at vocabularies of 32,000 and 150,000; batches of 4 x 256 random tokens, forward KL and
Jensen-Shannon. TRL's GKD trainer, all off-policy, in float32, with its default bf16 autocast, and
with both models held in bf16; Attar in float32 and in bf16; and a plain loop over whole logits in
both, which tells what of the gain is precision, what the chunks, and what the rest. Every run is a
process of its own, in turns, twice; seconds are the medians of the steps after the first three.
PYTHON is the interpreter of an environment that holds TRL.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from _compare import HERE, peak_memory

VOCABULARIES = (32_000, 150_000)
DIVERGENCES = {"forward": 0.0, "jensen-shannon": 0.5}  # and TRL's beta for each
STEPS, FIRST = 12, 3
ROWS, LENGTH = 4, 256
TURNS = 2


def models(vocabulary: int) -> tuple[Any, Any]:
    """Student and teacher, the same in every process."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    made = []
    for hidden, inner, blocks, heads in ((512, 1408, 8, 8), (768, 2048, 11, 12)):
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=blocks,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            tie_word_embeddings=True,
            max_position_embeddings=512,
        )
        made.append(LlamaForCausalLM(config))
    return made[0], made[1].eval()


def tokens(vocabulary: int) -> list[list[int]]:
    """The rows of all steps."""
    import torch

    draw = torch.Generator().manual_seed(1)
    return torch.randint(0, vocabulary, (STEPS * ROWS, LENGTH), generator=draw).tolist()


def attar(vocabulary: int, divergence: Any, precision: str) -> list[float]:
    """Attar's training loop and objective; the seconds of each step."""
    import torch

    from attar.core.context import Context
    from attar.data.batches import Batch
    from attar.models.model import Model
    from attar.ops.chunked import Mix
    from attar.train.fit import fit
    from attar.train.losses import Objective
    from attar.train.schedule import Training
    from attar.train.teacher import ready

    student, teacher = (Model(module, None, "causal-lm", ()) for module in models(vocabulary))
    ids = torch.tensor(tokens(vocabulary))
    times = [time.monotonic()]

    class Rows:
        per_epoch = STEPS

        def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
            times.append(time.monotonic())
            part = ids[step * ROWS : (step + 1) * ROWS]
            return Batch(part, torch.ones_like(part), part)

    context = Context("causal-lm", lambda _: None, lambda _: None, precision=precision)
    teacher = ready(teacher, student, "cpu", precision)
    mix = Mix(divergence, weight=1.0, task_weight=0.0)
    schedule = Training(steps=STEPS, batch=ROWS, length=LENGTH)
    fit(student, Objective(student, teacher, lambda _: mix), Rows(), schedule, context)
    return [after - before for before, after in pairwise(times[1:])]


def plain(vocabulary: int, divergence: str, precision: str) -> list[float]:
    """A loop that anyone would write: whole logits, autocast, AdamW."""
    import torch
    from torch.nn.functional import kl_div

    student, teacher = models(vocabulary)
    ids = torch.tensor(tokens(vocabulary))
    optimizer = torch.optim.AdamW(student.parameters(), 3e-4)
    times = []
    for part in ids.split(ROWS):
        started = time.monotonic()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            own = student(input_ids=part).logits[:, :-1]
            with torch.no_grad():
                theirs = teacher(input_ids=part).logits[:, :-1]
        own, theirs = own.float().log_softmax(-1), theirs.float().log_softmax(-1)
        if divergence == "forward":
            loss = kl_div(own, theirs, reduction="none", log_target=True).sum(-1).mean()
        else:
            both = torch.logaddexp(own, theirs) - torch.tensor(2.0).log()
            sides = [kl_div(both, one, reduction="none", log_target=True) for one in (own, theirs)]
            loss = (sum(sides) / 2).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        times.append(time.monotonic() - started)
    return times


def trl(vocabulary: int, divergence: str, precision: str) -> list[float]:
    """TRL's GKD trainer without any on-policy batch; the seconds of each step."""
    import tempfile

    from datasets import Dataset
    from transformers import TrainerCallback, default_data_collator
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    student, teacher = models(vocabulary)
    if precision == "all bf16":
        student, teacher = student.bfloat16(), teacher.bfloat16()
    times: list[float] = []

    class Watch(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            times.append(time.monotonic())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            times[-1] = time.monotonic() - times[-1]

    rows = tokens(vocabulary)
    data = Dataset.from_dict(
        {"input_ids": rows, "labels": rows, "attention_mask": [[1] * LENGTH] * len(rows)}
    )
    with tempfile.TemporaryDirectory() as folder:
        config = GKDConfig(
            output_dir=folder,
            lmbda=0.0,
            beta=DIVERGENCES[divergence],
            temperature=1.0,
            per_device_train_batch_size=ROWS,
            max_steps=STEPS,
            max_length=LENGTH,
            learning_rate=3e-4,
            bf16=precision == "bf16",
            use_cpu=True,
            gradient_checkpointing=False,
            report_to=[],
            save_strategy="no",
            remove_unused_columns=False,
            dataset_kwargs={"skip_prepare_dataset": True},
        )
        trainer = GKDTrainer(
            model=student,
            teacher_model=teacher,
            args=config,
            train_dataset=data,
            data_collator=default_data_collator,
            processing_class=_tokenizer(),
            callbacks=[Watch()],
        )
        trainer.train()
    return times


def _tokenizer() -> Any:
    """TRL asks for one and never uses it here."""
    from tokenizers import Tokenizer
    from tokenizers import models as kinds
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(kinds.WordLevel({"<pad>": 0, "<eos>": 1}, "<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>")


RUNS: dict[str, tuple[str, Callable[..., list[float]], str]] = {
    "attar, bf16": ("attar", attar, "bf16"),
    "attar, float32": ("attar", attar, "float32"),
    "plain loop, bf16": ("attar", plain, "bf16"),
    "plain loop, float32": ("attar", plain, "float32"),
    "TRL GKD, bf16 autocast": ("trl", trl, "bf16"),
    "TRL GKD, all bf16": ("trl", trl, "all bf16"),
    "TRL GKD, float32": ("trl", trl, "float32"),
}


def main() -> None:
    """Every run in turns; print and keep tokens a second, memory, and Attar's ratios to TRL."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trl", help="the interpreter of an environment that holds TRL")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        name, vocabulary, divergence = args.run
        _, run, precision = RUNS[name]
        seconds = run(int(vocabulary), divergence, precision)[FIRST:]
        print(json.dumps({"seconds": seconds, "peak_memory": peak_memory()}))
        return
    from attar.measure.machine import environment

    pythons = {"attar": sys.executable, "trl": args.trl}
    rows: list[dict[str, Any]] = []
    for vocabulary in VOCABULARIES:
        for divergence in DIVERGENCES:
            rows += measured(pythons, vocabulary, divergence)
            result = {"environment": environment(), "rows": rows}
            (HERE / "results" / "distill_speed.json").write_text(
                json.dumps(result, indent=1) + "\n"
            )


def measured(
    pythons: dict[str, str | None], vocabulary: int, divergence: str
) -> list[dict[str, Any]]:
    """The rows of one vocabulary and divergence."""
    runs = {name: run for name, run in RUNS.items() if pythons[run[0]]}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    memory = dict.fromkeys(runs, 0)
    for _ in range(TURNS):
        for name, (package, _, _) in runs.items():
            command = [str(pythons[package]), __file__, "--run", name, str(vocabulary), divergence]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
            found = json.loads(done.stdout.strip().splitlines()[-1])
            seconds[name] += found["seconds"]
            memory[name] = max(memory[name], found["peak_memory"])
    rows = [
        {
            "vocabulary": vocabulary,
            "divergence": divergence,
            "run": name,
            "tokens_per_second": round(ROWS * LENGTH / statistics.median(each), 1),
            "peak_memory": memory[name],
        }
        for name, each in seconds.items()
    ]
    for row in rows:
        print(json.dumps(row), flush=True)
    return rows


if __name__ == "__main__":
    main()
