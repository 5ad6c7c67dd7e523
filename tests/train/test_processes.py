"""Two processes with a batch each train as one process with both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = '''
import json, sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
import tiny_models
from attar.core import registry
from attar.core.context import Context
from attar.data.batches import Batch, Stream
from attar.techniques.distill import _guided, logits
from safetensors.torch import save_file
from train import small
torch.set_num_threads(1)


class Parted:
    """The same rows for any number of processes, whatever their lengths."""

    made = 0

    def __init__(self, dataset, model, *_):
        Parted.made += 1
        self.whole = Stream(dataset, model.tokenizer, model.task, 16, 8, 0, model.labels or None)
        self.per_epoch = self.whole.per_epoch

    def batch(self, step, rank=0, world=1):
        rows, batch = slice(rank * 8 // world, (rank + 1) * 8 // world), self.whole.batch(step)
        return Batch(batch.input_ids[rows], batch.attention_mask[rows], batch.labels[rows])


data = {{"train": small.dataset(labeled=30), "dev": small.dataset("dev", 12)}}
calm = {{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}}
for task in ("masked-lm", "classification"):
    if task == "classification":  # texts of like length are brought together by the batch
        _guided.stream_of = Parted
    model = tiny_models.tiny("bert", task, **calm)
    teacher = tiny_models.tiny("bert", task, seed=1)
    ctx = Context(task, data.__getitem__, lambda _: teacher, scratch=Path(sys.argv[1]) / task)
    logits.Logits(batch=int(sys.argv[2]), steps=6, length=16, learning_rate=0.02, optimizer="sgd",
           evaluate_every=2, checkpoint_minutes=0, weight=0.5).apply(model, ctx)
    assert Parted.made == (task == "classification")
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        own = {{name: p.detach().clone() for name, p in model.module.named_parameters()}}
        save_file(own, Path(sys.argv[1]) / (task + ".safetensors"))
        parts = {{name: curve for name, curve in ctx.curves.items() if name != "loss/dev"}}
        (Path(sys.argv[1]) / (task + ".json")).write_text(json.dumps(parts))
        print(task, ctx.notes["tokens"], ctx.curves["loss/dev"])
model = tiny_models.tiny("bert", "masked-lm", **calm)
ctx = Context("masked-lm", data.__getitem__, lambda _: tiny_models.tiny("bert", seed=1))
step = registry.find("prune/gradual")
step(batch=int(sys.argv[2]), steps=6, length=16, learning_rate=0.02, optimizer="sgd",
     evaluate_every=1, every=2).apply(model, ctx)
if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
    own = {{name: p.detach().clone() for name, p in model.module.named_parameters()}}
    save_file(own, Path(sys.argv[1]) / "gradual.safetensors")
'''


def test_two_ranks_are_one_of_twice_the_batch(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent.parent)))
    alone, both = tmp_path / "alone", tmp_path / "both"
    alone.mkdir()
    both.mkdir()
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]
    launch += ["--multi_gpu"]  # Accelerate's word for several processes: `--cpu` starts only one
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["--num_cpu_threads_per_process", "1", "--main_process_port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    told = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for command in (
            [sys.executable, str(script), str(alone), "8"],
            [*launch, str(script), str(both), "4"],
        )
    ]
    outputs = [process.communicate()[0] for process in told]
    assert [process.returncode for process in told] == [0, 0]
    tokens = [[line.split()[:2] for line in text.splitlines()] for text in outputs]
    assert tokens[0] == tokens[1]
    for name in ("masked-lm", "classification", "gradual"):
        one = load_file(alone / f"{name}.safetensors")
        two = load_file(both / f"{name}.safetensors")
        assert one.keys() == two.keys()
        for weight, tensor in one.items():
            torch.testing.assert_close(two[weight], tensor, rtol=1e-4, atol=1e-5)
    for task in ("masked-lm", "classification"):  # what is told is of both processes' rows
        one, two = (json.loads((each / f"{task}.json").read_text()) for each in (alone, both))
        assert {"loss/train", "loss/divergence", "loss/task"} <= one.keys() == two.keys()
        for name, curve in one.items():
            found, wanted = ([value for _, value in points] for points in (two[name], curve))
            assert found == pytest.approx(wanted, rel=1e-3), (task, name)
