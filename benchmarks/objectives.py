"""Objectives of distillation against peers' own code: the same inputs, values and gradients.

    python benchmarks/objectives.py --peer PYTHON

PYTHON is the interpreter of an environment that holds TRL and TextBrewer. A row tells what both
compute from the same random inputs: how far apart the values are, relative to the peer's, and the
gradients, by their norm. TextBrewer's cross-entropies are the divergences and the teacher's own
entropy, which is taken off; its square of hidden states is Attar's times the teacher's mean square;
TRL and TextBrewer leave out the T^2 of temperatures, which is divided out of Attar's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

HERE = Path(__file__).parent
RESULT = HERE / "results" / "objectives.json"
BETAS, TEMPERATURES = (0.0, 0.1, 0.5, 0.9, 1.0), (1.0, 2.0)

Given = dict[str, Any]  # tensors by name
Objective = Callable[[Given], Any]


def main() -> None:
    """Compute, let the peers compute, and compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", metavar="PYTHON", required=True)
    parser.add_argument("--run", metavar="FOLDER", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        computed(theirs(), Path(args.run), "theirs")
        return
    from safetensors.torch import load_file, save_file

    from attar.measure.machine import environment

    with TemporaryDirectory() as name:
        folder = Path(name)
        save_file(inputs(), folder / "given.safetensors")
        command = [args.peer, __file__, "--peer", "-", "--run", name]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        computed(ours(), folder, "ours")
        mine, other = (load_file(folder / f"{side}.safetensors") for side in ("ours", "theirs"))
    rows = []
    for name in sorted({key.partition("/")[0] for key in other}):
        value, theirs_ = mine[f"{name}/value"], other[f"{name}/value"]
        row: dict[str, Any] = {"objective": name.replace("_", " "), "value": float(theirs_)}
        row["value_off"] = float((value - theirs_).abs() / theirs_.abs())
        for key in (key for key in other if key.startswith(f"{name}/slope")):
            row[key.partition("/")[2]] = float((mine[key] - other[key]).norm() / other[key].norm())
        rows.append(row)
        print(json.dumps(row))
    RESULT.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")


def inputs() -> Given:
    """Logits and what leads to them, of a student and a teacher."""
    import torch

    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> Any:
        return scale * torch.randn(*shape, generator=draw, dtype=torch.float64)

    return {
        "student": normal(2, 24, 500, scale=3.0),
        "teacher": normal(2, 24, 500, scale=3.0),
        "student_hidden": normal(2, 24, 32),
        "teacher_hidden": normal(2, 24, 48),
        "student_head": normal(500, 32, scale=0.4),
        "teacher_head": normal(500, 48, scale=0.4),
        "student_states": normal(2, 24, 64),
        "teacher_states": normal(2, 24, 64),
        "student_scores": normal(2, 4, 24, 24),
        "teacher_scores": normal(2, 4, 24, 24),
        "mask": (torch.arange(24) < torch.tensor([[24], [17]])).double(),
    }


def computed(
    objectives: dict[str, tuple[Objective, tuple[str, ...]]], folder: Path, to: str
) -> None:
    """Write the value of each objective, and its slopes in these inputs."""
    import torch
    from safetensors.torch import load_file, save_file

    found: Given = {}
    for name, (objective, wanted) in objectives.items():
        given = load_file(folder / "given.safetensors")
        for key in wanted:
            given[key].requires_grad_()
        value = objective(given)
        value.backward()
        found[f"{name}/value"] = value.detach().double()
        for key in wanted:
            found[f"{name}/slope in {key}"] = given[key].grad.double()
    save_file(
        {key: torch.as_tensor(each).contiguous() for key, each in found.items()},
        folder / f"{to}.safetensors",
    )


def theirs() -> dict[str, tuple[Objective, tuple[str, ...]]]:
    """What TRL and TextBrewer compute."""
    import torch
    from textbrewer import losses
    from trl.experimental.gkd import GKDTrainer
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    found: dict[str, tuple[Objective, tuple[str, ...]]] = {}
    for beta in BETAS:
        for heat in TEMPERATURES:

            def gkd(given: Given, beta: float = beta, heat: float = heat) -> Any:
                logits = given["student"], given["teacher"]
                labels = torch.where(given["mask"].bool(), 0, -100)
                count = int(given["mask"].sum())
                return GKDTrainer.generalized_jsd_loss(
                    *logits, labels, beta, heat, num_items_in_batch=count
                )

            def tiles(given: Given, beta: float = beta, heat: float = heat) -> Any:
                parts = [given[key] for key in (*HIDDEN, *HEADS)]
                return _chunked_divergence_loss(*parts, given["mask"], beta, temperature=heat)[0]

            found[f"GKD, beta {beta}, T {heat}"] = gkd, ("student",)
            found[f"TRL by tiles, beta {beta}, T {heat}"] = tiles, (HIDDEN[0], HEADS[0])
    for heat in TEMPERATURES:

        def soft(given: Given, heat: float = heat) -> Any:
            entropy = torch.distributions.Categorical(logits=given["teacher"] / heat).entropy()
            return losses.kd_ce_loss(given["student"], given["teacher"], heat) - entropy.mean()

        found[f"TextBrewer kd_ce, T {heat}"] = soft, ("student",)
    found["TextBrewer kd_mse"] = (
        lambda g: losses.kd_mse_loss(g["student"], g["teacher"]),
        ("student",),
    )
    states = ("student_states", "teacher_states")
    found["TextBrewer hid_mse"] = (
        lambda g: losses.hid_mse_loss(*(g[key] for key in states), g["mask"]),
        states[:1],
    )
    found["TextBrewer cos"] = (
        lambda g: losses.cos_loss(*(g[key] for key in states), g["mask"]),
        states[:1],
    )

    def maps(given: Given) -> Any:
        teacher = given["teacher_scores"].abs()  # it takes negative scores for masked ones
        entropy = torch.distributions.Categorical(logits=teacher).entropy().mean()
        return losses.att_ce_loss(given["student_scores"], teacher) - entropy

    scores = ("student_scores", "teacher_scores")
    found["TextBrewer att_ce"] = maps, scores[:1]
    found["TextBrewer att_mse"] = (
        lambda g: losses.att_mse_loss(*(g[key] for key in scores), g["mask"]),
        scores[:1],
    )
    return found


HIDDEN = ("student_hidden", "teacher_hidden")
HEADS = ("student_head", "teacher_head")


def ours() -> dict[str, tuple[Objective, tuple[str, ...]]]:
    """The same by Attar."""
    import torch

    from attar.ops.alike import maps_kl, missed, scores_missed, turned
    from attar.ops.chunked import Mix, Side, chunked

    names: dict[float, Any] = {0.0: "forward", 1.0: "reverse"}

    def chunks(student: Side, teacher: Side, beta: float, heat: float) -> Any:
        kind = names.get(beta, "jensen-shannon")
        mix = Mix(kind, heat, weight=1.0, task_weight=0.0, share=beta)
        labels = torch.full((len(student.hidden),), -100)
        return chunked(student, teacher, labels, mix, chunk=7).total / heat**2

    def same(logits: Any) -> Any:
        return logits

    found: dict[str, tuple[Objective, tuple[str, ...]]] = {}
    for beta in BETAS:
        for heat in TEMPERATURES:

            def gkd(given: Given, beta: float = beta, heat: float = heat) -> Any:
                seen = given["mask"].bool()
                sides = (Side(same, given[key][seen]) for key in ("student", "teacher"))
                return chunks(*sides, beta, heat)

            def tiles(given: Given, beta: float = beta, heat: float = heat) -> Any:
                seen = given["mask"].bool()
                own, other = (given[key] for key in HEADS)
                student = Side(lambda x: x @ own.t(), given[HIDDEN[0]][seen], [own])
                return chunks(
                    student, Side(lambda x: x @ other.t(), given[HIDDEN[1]][seen]), beta, heat
                )

            found[f"GKD, beta {beta}, T {heat}"] = gkd, ("student",)
            found[f"TRL by tiles, beta {beta}, T {heat}"] = tiles, (HIDDEN[0], HEADS[0])
    for heat in TEMPERATURES:

        def soft(given: Given, heat: float = heat) -> Any:
            sides = (Side(same, given[key].flatten(0, 1)) for key in ("student", "teacher"))
            return chunks(*sides, 0.0, heat)

        found[f"TextBrewer kd_ce, T {heat}"] = soft, ("student",)

    def squares(given: Given) -> Any:
        sides = [Side(same, given[key].flatten(0, 1)) for key in ("student", "teacher")]
        mix = Mix("logits", weight=1.0, task_weight=0.0)
        return chunked(*sides, torch.full((48,), -100), mix, chunk=7).total

    def states(given: Given) -> Any:
        seen, other = given["mask"].bool(), given["teacher_states"]
        return missed(given["student_states"], other, seen) * other[seen].square().mean()

    def angle(given: Given) -> Any:
        return turned(given["student_states"], given["teacher_states"], given["mask"].bool())

    def maps(given: Given) -> Any:
        own, other = given["student_scores"], given["teacher_scores"].abs()
        seen = torch.ones(2, 24, dtype=torch.bool)
        return maps_kl(own.softmax(-1), other.softmax(-1), seen)

    def scores(given: Given) -> Any:
        return scores_missed(given["student_scores"], given["teacher_scores"], given["mask"].bool())

    found["TextBrewer kd_mse"] = squares, ("student",)
    found["TextBrewer hid_mse"] = states, ("student_states",)
    found["TextBrewer cos"] = angle, ("student_states",)
    found["TextBrewer att_ce"] = maps, ("student_scores",)
    found["TextBrewer att_mse"] = scores, ("student_scores",)
    return found


if __name__ == "__main__":
    main()
