"""Random tiny models that see or hear, with their processors, and files for them."""

from __future__ import annotations

import copy
import wave
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import tiny_models
from attar.core.step import Task
from attar.data.batches import Batch
from attar.data.example import Dataset, Example
from attar.models.media import input_shape
from attar.models.model import Model

SIDE, RATE = 16, 8000
MODELS: tuple[tuple[str, Task], ...] = (
    ("vit", "classification"),
    ("audio-spectrogram-transformer", "classification"),
    ("clip", "contrastive"),
)
_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "initializer_range": 0.3,
}
_SEEING = {"image_size": SIDE, "patch_size": 8}
_HEARING = {"max_length": 24, "num_mel_bins": 16}
_AUTO: dict[str, Any] = {
    "vit": transformers.AutoModelForImageClassification,
    "audio-spectrogram-transformer": transformers.AutoModelForAudioClassification,
    "clip": transformers.AutoModel,
}


def tiny(model_type: str, seed: int = 0, **more: Any) -> Model:
    """A random model of two blocks, or of two towers of two; `more` goes into its config."""
    labels = () if model_type == "clip" else tiny_models.LABELS
    config = transformers.AutoConfig.for_model(model_type, **_settings(model_type, labels, more))
    torch.manual_seed(seed)
    module = _AUTO[model_type].from_config(config)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter += 0.2 * torch.randn_like(parameter)
    task: Task = "contrastive" if model_type == "clip" else "classification"
    return Model(module.eval(), processor(model_type), task, labels)


def _settings(model_type: str, labels: tuple[str, ...], more: dict[str, Any]) -> dict[str, Any]:
    if model_type == "clip":
        text = {**_SIZES, "vocab_size": tiny_models.VOCABULARY, "max_position_embeddings": 16}
        text |= {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
        both = {"text_config": {**text, **more}, "vision_config": {**_SIZES, **_SEEING, **more}}
        return {**both, "projection_dim": more.get("projection_dim", 24)}
    named = {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}}
    senses = _SEEING if model_type == "vit" else {**_HEARING, "frequency_stride": 8}
    if model_type != "vit":
        senses |= {"time_stride": 8, "patch_size": 8}
    return {**_SIZES, **senses, **named, **more}


@cache
def processor(model_type: str) -> Any:
    """What reads its files: images of 16 by 16, or sounds of 8,000 samples a second."""
    size = {"height": SIDE, "width": SIDE}
    if model_type == "vit":
        return transformers.ViTImageProcessor(size=size)
    if model_type == "clip":
        images = transformers.CLIPImageProcessor(size=size, crop_size=size)
        words: Any = copy.deepcopy(tiny_models.tokenizer())
        words.model_max_length = 16
        return transformers.CLIPProcessor(images, words)
    return transformers.ASTFeatureExtractor(sampling_rate=RATE, **_HEARING)


def batch(model: Model, rows: int = 3, seed: int = 0) -> Batch:
    """Random inputs; texts end in the token that CLIP reads a text's vector at."""
    generator = torch.Generator().manual_seed(seed)
    media = torch.randn(rows, *input_shape(model.config), generator=generator)
    ids = torch.randint(6, tiny_models.VOCABULARY, (rows, 8), generator=generator)
    ids[:, -1] = 3
    labels = torch.arange(rows) % max(len(model.labels), 1)
    return Batch(ids, torch.ones_like(ids), labels, media=media)


def outputs(model: Model) -> torch.Tensor:
    """What the whole module answers to `batch`."""
    with torch.no_grad():
        found = model.module(**model.given(batch(model)))
    return found.logits_per_image if model.task == "contrastive" else found.logits


def write_image(path: Path, number: int) -> Path:
    """A picture of a bright stripe at a place of its own, and noise."""
    from PIL import Image

    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 60, (SIDE, SIDE, 3), dtype=np.uint8)
    pixels[number % SIDE] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_tone(path: Path, pitch: float, rate: int = RATE, seconds: float = 0.3) -> Path:
    """A tone of so many Hz, as 16-bit WAV."""
    times = np.arange(int(rate * seconds)) / rate
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((0.5 * np.sin(2 * np.pi * pitch * times) * 32767).astype("<i2").tobytes())
    return path


def dataset(model: Model, folder: Path, rows: int = 12) -> Dataset:
    """Rows of files that the model takes in, each with a text and a label."""
    examples: list[Example] = []
    for number, text in enumerate(tiny_models.texts(rows, 4)):
        hears = model.family.media == "input_values"
        path = folder / f"{number}.{'wav' if hears else 'png'}"
        media = write_tone(path, 200 + 100 * number) if hears else write_image(path, number)
        label = model.labels[number % len(model.labels)] if model.labels else None
        examples.append(Example(text, label, where=str(path), media=media))
    return Dataset("train", examples, "fingerprint", tuple(model.labels))
