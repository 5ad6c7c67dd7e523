"""Batches of images and sounds; a file is read when its row's turn comes, and not kept."""

from __future__ import annotations

import wave
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from attar.core.step import Task
from attar.data.batch import Batch, padded
from attar.data.example import Dataset
from attar.data.files import fail
from attar.data.media import check_medium
from attar.data.tokenize import Encoded, class_number, encode
from attar.errors import DataError, Problem
from attar.models.padding import filler

_INPUTS = ("pixel_values", "input_values")
_MOST = 20


def medium_of(tokenizer: Any) -> str | None:
    """The input that a processor makes of files; None of what makes numbers of texts alone."""
    names: Sequence[str] = getattr(tokenizer, "model_input_names", ())
    return next((name for name in _INPUTS if name in names), None)


class MediaRows:
    """Rows of files with their class or their text, and how they become a batch.

    A file is opened once beforehand, so that all that cannot be read are told of at once.
    """

    lengths: torch.Tensor | None = None

    def __init__(
        self,
        dataset: Dataset,
        processor: Any,
        task: Task,
        length: int,
        labels: Sequence[str] | None,
    ) -> None:
        medium = medium_of(processor)
        check_medium(dataset, medium)
        self._open = _opener(processor, medium)
        self.files = [path for each in dataset.examples if (path := each.media) is not None]
        if not self.files:
            raise fail(f"data {dataset.name}: it holds no row")
        self._check(dataset)
        self.length, self.pad = length, 0
        self.tokens: list[Encoded]
        if task == "contrastive":
            tokenizer = processor.tokenizer
            self.length, self.pad = min(length, tokenizer.model_max_length), filler(tokenizer)
            self.tokens = encode(dataset, tokenizer, self.length, None)
        else:
            numbers = {label: number for number, label in enumerate(labels or ())}
            self.tokens = [
                Encoded([0], class_number(each, numbers, dataset.name)) for each in dataset.examples
            ]

    def __len__(self) -> int:
        return len(self.files)

    def some(self, numbers: torch.Tensor) -> MediaRows:
        """The rows of these numbers, as rows."""
        rows, chosen = copy(self), numbers.tolist()
        rows.files = [self.files[number] for number in chosen]
        rows.tokens = [self.tokens[number] for number in chosen]
        return rows

    def joined(self, others: Sequence[MediaRows]) -> MediaRows:
        """These rows, and after them others of the same model and length."""
        rows = copy(self)
        rows.files = [path for each in (self, *others) for path in each.files]
        rows.tokens = [row for each in (self, *others) for row in each.tokens]
        return rows

    def batch(self, numbers: list[int], seeds: list[int]) -> Batch:
        """The rows of these numbers; nothing about them is random."""
        read = padded([self.tokens[number] for number in numbers], self.length, self.pad)
        return replace(read, media=self._open([self.files[number] for number in numbers]))

    def _check(self, dataset: Dataset) -> None:
        problems: list[Problem] = []
        for path in dict.fromkeys(self.files):
            try:
                self._open([path], True)
            except DataError as error:
                problems += error.problems
        if problems:
            more = [Problem(f"and {len(problems) - _MOST} more")] if len(problems) > _MOST else []
            raise DataError([*problems[:_MOST], *more])


def _opener(processor: Any, medium: str | None) -> Callable[..., torch.Tensor]:
    """What makes a batch of files; asked to look only, it opens them and makes nothing."""
    reader = getattr(processor, "image_processor", processor)
    if medium == "pixel_values":

        def images(paths: Sequence[Path], look: bool = False) -> torch.Tensor:
            opened = [read_image(path, look) for path in paths]
            return torch.empty(0) if look else reader(opened, return_tensors="pt")[medium]

        return images
    rate: int = reader.sampling_rate

    def sounds(paths: Sequence[Path], look: bool = False) -> torch.Tensor:
        opened = [read_sound(path, rate, look) for path in paths]
        if look:
            return torch.empty(0)
        return reader(opened, sampling_rate=rate, return_tensors="pt")[medium]

    return sounds


def read_image(path: Path, look: bool = False) -> Any:
    """An image in three colors; only its head is read where one only looks."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return None if look else image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise fail(f"no image that can be read: {error}", path) from None


def read_sound(path: Path, rate: int, look: bool = False) -> NDArray[np.float32]:
    """Samples between -1 and 1 of an uncompressed WAV file, its channels' mean, [samples]."""
    try:
        with wave.open(str(path), "rb") as file:
            found, width, channels = file.getframerate(), file.getsampwidth(), file.getnchannels()
            raw = b"" if look else file.readframes(file.getnframes())
            empty = file.getnframes() == 0
    except (OSError, EOFError, wave.Error) as error:
        raise fail(
            f"no WAV file that can be read: {error}. Write it as uncompressed WAV of {rate} Hz, "
            f"such as with `ffmpeg -i IN -ar {rate} -c:a pcm_s16le OUT.wav`",
            path,
        ) from None
    if found != rate or empty:
        what = "it holds no sound" if empty else f"it has {found} samples a second"
        raise fail(
            f"{what}, and the model hears {rate}. Convert it, such as with "
            f"`ffmpeg -i IN -ar {rate} OUT.wav`",
            path,
        )
    return np.asarray(_samples(raw, width).reshape(-1, channels).mean(1), np.float32)


def _samples(raw: bytes, width: int) -> NDArray[np.float32]:
    """Integers of 1 (unsigned), 2, 3 or 4 bytes as numbers between -1 and 1."""
    if width == 1:
        unsigned = np.frombuffer(raw, np.uint8).astype(np.float32)
        return ((unsigned - 128) / 128).astype(np.float32)
    if width == 3:  # beneath the sign's byte an empty one, as four bytes
        wide = np.zeros((len(raw) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        raw, width = wide.tobytes(), 4
    found = np.frombuffer(raw, np.dtype(f"<i{width}"))
    return (found / float(1 << (8 * width - 1))).astype(np.float32)
