"""One step of distillation beside TRL's: tokens a second and peak memory.

    python benchmarks/distill_speed.py --trl PYTHON [--rows chat] [--device cuda] [--only bf16]

Llama shapes with random weights: a student of 8 blocks of 512, a teacher of 11 of 768, tied heads,
at vocabularies of 32,000 and 150,000; batches of 4 x 256 random tokens (8 x 512 on a GPU), forward
KL and Jensen-Shannon. `--rows chat`: rows of at most as many tokens, of which those of a prompt are
not learned from, in lengths as chats have them (log-normal, medians of 48 and 96 tokens).

TRL's GKD trainer, all off-policy, and its distillation trainer, given the tokens that it would have
written; in float32, with their default bf16 autocast, and with both models held in bf16. Attar in
float32 and in bf16; and a plain loop over whole logits in both, which tells what of the gain is
precision, what the chunks, and what the rest. `--only` leaves one precision out: bf16 on processors
that have none, float32 where it is nobody's best. All take the same rows in each batch, made
beforehand; TRL's distillation trainer pads prompts and answers apart. Every run is a process of its
own (`--together`: all in one, for GPUs), in turns, twice; tokens a second, padding left out, are
the medians of the steps after the first three; memory is the process's, on a GPU the tensors'.
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
SHAPES = {"cpu": (4, 256), "cuda": (8, 512)}  # rows and tokens of a batch
DEVICE, ROWS = "cpu", "even"
Row = tuple[list[int], int]
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
        with torch.device(DEVICE):
            made.append(LlamaForCausalLM(config))
    return made[0], made[1].eval()


def tokens(vocabulary: int) -> list[Row]:
    """The rows of all steps, each with how many of its tokens are a prompt."""
    import torch

    draw = torch.Generator().manual_seed(1)
    rows, length = SHAPES[DEVICE]
    sizes = [(1, length)] * (STEPS * rows)
    if ROWS == "chat":
        spread = torch.randn(STEPS * rows, 2, generator=draw) * 0.8
        drawn = (torch.tensor([48.0, 96.0]) * spread.exp()).int().clamp(min=4)
        prompts = drawn[:, 0].clamp(max=length // 2)
        whole = (prompts + drawn[:, 1]).clamp(max=length)
        sizes = list(zip(prompts.tolist(), whole.tolist(), strict=True))
    return [
        (torch.randint(0, vocabulary, (size,), generator=draw).tolist(), prompt)
        for prompt, size in sizes
    ]


def batch_of(rows: list[Row]) -> dict[str, Any]:
    """Rows padded to the longest: token ids, which are real, and labels, -100 where none is."""
    return {
        "input_ids": padded([ids for ids, _ in rows]),
        "attention_mask": padded([[1] * len(ids) for ids, _ in rows]),
        "labels": padded([[-100] * prompt + ids[prompt:] for ids, prompt in rows], -100),
    }


def padded(rows: list[list[int]], blank: int = 0, before: bool = False) -> Any:
    """All as long as the longest, with blanks behind or before them."""
    import torch

    longest = max(map(len, rows))
    blanks = [[blank] * (longest - len(row)) for row in rows]
    pairs = zip(rows, blanks, strict=True)
    return torch.tensor([more + row if before else row + more for row, more in pairs])


def batches(vocabulary: int) -> list[list[Row]]:
    """The rows of each step."""
    rows, count = tokens(vocabulary), SHAPES[DEVICE][0]
    return [rows[at : at + count] for at in range(0, len(rows), count)]


def attar(vocabulary: int, divergence: Any, precision: str) -> list[float]:
    """Attar's training loop and objective; the seconds of each step."""

    from attar.core.context import Context
    from attar.data.batches import Batch
    from attar.models.model import Model
    from attar.ops.chunked import Mix
    from attar.train.fit import fit
    from attar.train.losses import Objective
    from attar.train.schedule import Training
    from attar.train.teacher import ready

    student, teacher = (Model(module, None, "causal-lm", ()) for module in models(vocabulary))
    given = [Batch(**batch_of(rows)) for rows in batches(vocabulary)]
    rows, length = SHAPES[DEVICE]
    times: list[float] = []

    class Rows:
        per_epoch = STEPS

        def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
            times.append(now())
            return given[step]

    context = Context(
        "causal-lm", lambda _: None, lambda _: None, precision=precision, device=DEVICE
    )
    teacher = ready(teacher, student, length, context)
    mix = Mix(divergence, weight=1.0, task_weight=0.0)
    schedule = Training(steps=STEPS, batch=rows, length=length)
    fit(student, Objective(student, teacher, lambda _: mix), Rows(), schedule, context)
    return [after - before for before, after in pairwise([*times, now()])]


def plain(vocabulary: int, divergence: str, precision: str) -> list[float]:
    """A loop that anyone would write: whole logits, autocast, AdamW."""
    import torch
    from torch.nn.functional import kl_div

    student, teacher = models(vocabulary)
    optimizer = torch.optim.AdamW(student.parameters(), 3e-4)
    times = []
    for part in map(batch_of, batches(vocabulary)):
        part = {name: value.to(DEVICE) for name, value in part.items()}
        judged = part.pop("labels")[:, 1:] != -100
        chosen = slice(None) if judged.all() else judged
        started = now()
        with torch.autocast(DEVICE, torch.bfloat16, enabled=precision == "bf16"):
            own = student(**part).logits[:, :-1][chosen]
            with torch.no_grad():
                theirs = teacher(**part).logits[:, :-1][chosen]
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
        times.append(now() - started)
    return times


def gkd(vocabulary: int, divergence: str, precision: str) -> list[float]:
    """TRL's GKD trainer without any on-policy batch; the seconds of each step."""
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    rows = tokens(vocabulary)
    data = Dataset.from_dict(
        {"input_ids": [ids for ids, _ in rows], "prompt": [prompt for _, prompt in rows]}
    )
    own = {"lmbda": 0.0, "max_length": SHAPES[DEVICE][1], "train_sampling_strategy": "sequential"}
    own |= {"dataset_kwargs": {"skip_prepare_dataset": True}}
    more = {
        "data_collator": lambda rows: batch_of([(row["input_ids"], row["prompt"]) for row in rows])
    }
    return trained(GKDTrainer, GKDConfig, own, more, data, vocabulary, divergence, precision)


def on_policy(vocabulary: int, divergence: str, precision: str) -> list[float]:
    """TRL's distillation trainer, given the tokens that it would have written."""
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    def made(rows: list[Row]) -> dict[str, Any]:
        prompts, answers = [ids[:at] for ids, at in rows], [ids[at:] for ids, at in rows]
        seen = padded([[1] * len(ids) for ids in answers])
        return {
            "prompt_ids": padded(prompts, before=True),
            "prompt_mask": padded([[1] * len(ids) for ids in prompts], before=True),
            "completion_ids": padded(answers),
            "completion_mask": seen,
            "num_items_in_batch": seen.sum(),
        }

    given = list(map(made, batches(vocabulary)))

    class Given(DistillationTrainer):
        def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
            batch = given[self.state.global_step]
            return {name: value.to(self.accelerator.device) for name, value in batch.items()}

    data = Dataset.from_dict({"prompt": ["."] * SHAPES[DEVICE][0] * len(given)})
    own: dict[str, Any] = {}
    return trained(Given, DistillationConfig, own, {}, data, vocabulary, divergence, precision)


def trained(
    kind: Any,
    config: Any,
    own: dict[str, Any],
    more: dict[str, Any],
    data: Any,
    vocabulary: int,
    divergence: str,
    precision: str,
) -> list[float]:
    """The seconds of each step of a trainer of TRL's, with settings of its own."""
    import tempfile

    from transformers import TrainerCallback

    student, teacher = models(vocabulary)
    if precision == "all bf16":
        student, teacher = student.bfloat16(), teacher.bfloat16()
    times: list[float] = []

    class Watch(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            times.append(now())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            times[-1] = now() - times[-1]

    with tempfile.TemporaryDirectory() as folder:
        settings = config(
            output_dir=folder,
            beta=DIVERGENCES[divergence],
            temperature=1.0,
            per_device_train_batch_size=SHAPES[DEVICE][0],
            max_steps=STEPS,
            learning_rate=3e-4,
            bf16=precision == "bf16",
            use_cpu=DEVICE == "cpu",
            gradient_checkpointing=False,
            report_to=[],
            save_strategy="no",
            remove_unused_columns=False,
            **own,
        )
        trainer = kind(
            model=student,
            teacher_model=teacher,
            args=settings,
            train_dataset=data,
            processing_class=_tokenizer(),
            callbacks=[Watch()],
            **more,
        )
        trainer.train()
    return times


def now() -> float:
    """Seconds, when all that was asked for so far is done."""
    import torch

    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.monotonic()


def run_here(name: str, vocabulary: int, divergence: str) -> dict[str, Any]:
    """Seconds of the steps, and the most memory, in bytes, that this process or the GPU held."""
    import gc

    import torch

    _, run, precision = RUNS[name]
    if DEVICE == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds = run(vocabulary, divergence, precision)[FIRST:]
    peak = torch.cuda.max_memory_allocated() if DEVICE == "cuda" else peak_memory()
    return {"seconds": seconds, "peak_memory": peak}


def run_apart(name: str, vocabulary: int, divergence: str, python: str) -> dict[str, Any]:
    """The same in a process of its own."""
    command = [python, __file__, "--device", DEVICE]
    command += ["--rows", ROWS, "--run", name, str(vocabulary), divergence]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


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
    "TRL GKD, bf16 autocast": ("trl", gkd, "bf16"),
    "TRL GKD, all bf16": ("trl", gkd, "all bf16"),
    "TRL GKD, float32": ("trl", gkd, "float32"),
    "TRL distillation, bf16 autocast": ("trl", on_policy, "bf16"),
    "TRL distillation, all bf16": ("trl", on_policy, "all bf16"),
    "TRL distillation, float32": ("trl", on_policy, "float32"),
}


def main() -> None:
    """Every run in turns; print and keep tokens a second, memory, and what Attar gains on TRL."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trl", help="the interpreter of an environment that holds TRL")
    parser.add_argument("--device", default="cpu", choices=list(SHAPES))
    parser.add_argument("--rows", default="even", choices=["even", "chat"])
    parser.add_argument("--only", choices=["float32", "bf16"], help="leave the other out")
    parser.add_argument("--together", action="store_true", help="all in this process, with TRL")
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    global DEVICE, ROWS
    DEVICE, ROWS = args.device, args.rows
    if args.run:
        name, vocabulary, divergence = args.run
        print(json.dumps(run_here(name, int(vocabulary), divergence)))
        return
    from attar.measure.machine import environment

    pythons = {"attar": sys.executable, "trl": args.trl}
    if args.together:
        pythons = dict.fromkeys(pythons, "here")
    names = [name for name, (package, _, _) in RUNS.items() if pythons[package]]
    if args.only:
        names = [name for name in names if name.endswith("float32") == (args.only == "float32")]
    rows: list[dict[str, Any]] = []
    result = {"environment": environment(), "device": DEVICE, "shape": SHAPES[DEVICE]}
    result |= {"rows_are": ROWS, "tokens": [sum(len(ids) for ids, _ in b) for b in batches(9)]}
    kept = f"distill_speed_{DEVICE}{'' if ROWS == 'even' else '_chat'}.json"
    for vocabulary in VOCABULARIES:
        for divergence in DIVERGENCES:
            rows += measured(names, pythons, vocabulary, divergence, args.turns)
            found = {**result, "rows": rows, "gains": gains(rows)}
            text = json.dumps(found, indent=1) + "\n"
            (HERE / "results" / kept).write_text(text)
    print(json.dumps(gains(rows), indent=1))


def measured(
    names: list[str], pythons: dict[str, Any], vocabulary: int, divergence: str, turns: int
) -> list[dict[str, Any]]:
    """The rows of one vocabulary and divergence."""
    counts = [sum(len(ids) for ids, _ in each) for each in batches(vocabulary)][FIRST:]
    speeds: dict[str, list[float]] = {name: [] for name in names}
    peak = dict.fromkeys(names, 0)
    for _ in range(turns):
        for name in names:
            python = pythons[RUNS[name][0]]
            if python == "here":
                found = run_here(name, vocabulary, divergence)
            else:
                found = run_apart(name, vocabulary, divergence, python)
            speeds[name] += [n / s for n, s in zip(counts, found["seconds"], strict=True)]
            peak[name] = max(peak[name], found["peak_memory"])
    found = [
        {
            "vocabulary": vocabulary,
            "divergence": divergence,
            "run": name,
            "tokens_per_second": round(statistics.median(each), 1),
            "peak_memory": peak[name],
        }
        for name, each in speeds.items()
    ]
    for row in found:
        print(json.dumps(row), flush=True)
    return found


def gains(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What Attar gains on each trainer of TRL's at the precision that is its best.

    Of the speed, `precision`: the plain loop in Attar's precision over the same in TRL's best;
    `chunks and loop`: Attar over the plain loop in its own; `rest`: what is left of the whole,
    the plain loop over TRL.
    """
    found = []
    for key in sorted({(row["vocabulary"], row["divergence"]) for row in rows}):
        some = {r["run"]: r for r in rows if (r["vocabulary"], r["divergence"]) == key}
        speed = {name: row["tokens_per_second"] for name, row in some.items()}
        own = max((name for name in speed if name.startswith("attar")), key=lambda n: speed[n])
        for trainer in ("TRL GKD", "TRL distillation"):
            theirs = [name for name in speed if name.startswith(trainer)]
            if not theirs:
                continue
            best = max(theirs, key=lambda name: speed[name])
            least = min(some[name]["peak_memory"] for name in theirs)
            loops = [f"plain loop, {name.split(', ')[1]}" for name in (own, best)]
            mine, other = (
                speed[n.replace("all bf16", "bf16").replace(" autocast", "")] for n in loops
            )
            found.append(
                {
                    "vocabulary": key[0],
                    "divergence": key[1],
                    "ours": own,
                    "theirs": best,
                    "speed": speed[own] / speed[best],
                    "precision": mine / other,
                    "chunks and loop": speed[own] / mine,
                    "rest": other / speed[best],
                    "memory": some[own]["peak_memory"] / some[best]["peak_memory"],
                    "memory, their least": some[own]["peak_memory"] / least,
                }
            )
    return found


if __name__ == "__main__":
    main()
