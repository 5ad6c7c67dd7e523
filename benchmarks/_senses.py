"""Images and spoken words for the benchmarks, as files in a folder for each class."""

from __future__ import annotations

import gzip
import itertools
import shutil
import subprocess
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HOME = Path(".attar/bench/senses")
FASHION = Path("/usr/share/datasets/fashion-mnist")  # of the Debian package dataset-fashion-mnist
CLASSES = (
    "t-shirt",
    "pair of trousers",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
WORDS = ("yes", "no", "up", "down", "left", "right", "stop", "go")
_LANGUAGES = ("en-us", "en-gb", "en-gb-scotland", "en-029")
_TRAIN = ("m1", "m2", "m3", "m4", "f1", "f2")  # espeak-ng's variants of a voice
_TEST = ("m5", "m7", "f3", "f4")


def clothes(train: int, test: int) -> Path:
    """Fashion-MNIST's first images as PNG files, `train` of the one part, `test` of the other."""
    root = HOME / f"clothes-{train}-{test}"
    if root.exists():
        return root
    draft = root.with_suffix(".draft")
    shutil.rmtree(draft, ignore_errors=True)
    for part, name, count in (("train", "train", train), ("test", "t10k", test)):
        pixels = _idx(FASHION / f"{name}-images-idx3-ubyte.gz")[:count]
        labels = _idx(FASHION / f"{name}-labels-idx1-ubyte.gz")[:count]
        for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            folder = draft / part / CLASSES[int(label)]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number:05}.png")
    draft.rename(root)
    return root


def words() -> Path:
    """Eight words by espeak-ng; the voices of the test part are none of the training part's."""
    root = HOME / "words"
    if root.exists():
        return root
    draft = root.with_suffix(".draft")
    shutil.rmtree(draft, ignore_errors=True)
    for part, variants in (("train", _TRAIN), ("test", _TEST)):
        ways = itertools.product(WORDS, _LANGUAGES, variants, (150, 190), (50,))
        for number, (word, language, variant, speed, pitch) in enumerate(ways):
            path = draft / part / word / f"{number:05}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            voice = ["-v", f"{language}+{variant}", "-s", str(speed), "-p", str(pitch)]
            subprocess.run(["espeak-ng", *voice, "-w", str(path), word], check=True)
    draft.rename(root)
    return root


def _idx(path: Path) -> NDArray[np.uint8]:
    """An array in the format of MNIST: a head of four bytes, sizes, and bytes."""
    with gzip.open(path) as file:
        raw = file.read()
    sizes = np.frombuffer(raw, ">i4", raw[3], 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(sizes)
