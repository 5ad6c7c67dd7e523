"""Images and sounds: rows of tables and folders, their fingerprints, and batches of files."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny_media
import tiny_models
from attar.core.keys import FileHashes
from attar.core.recipe import DataSource
from attar.data import fingerprint, load
from attar.data.batches import Stream, held_out
from attar.data.example import Dataset, Example
from attar.data.media_batches import read_sound
from attar.errors import DataError


def source(path: Path, **settings) -> DataSource:
    return DataSource(path=str(path), **settings)


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Two images of either of two classes, a folder for each."""
    root = tmp_path / "classes"
    for number, name in enumerate(("boot/a.png", "boot/b.png", "shirt/c.png", "shirt/d.png")):
        tiny_media.write_image(root / name, number)
    (root / "README.md").write_text("about")
    return root


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table of three images, one of them without a text."""
    for number in range(3):
        tiny_media.write_image(tmp_path / f"pictures/{number}.png", number)
    rows = [
        {"file_name": "pictures/0.png", "text": "a red boot", "label": "boot"},
        {"file_name": "pictures/1.png", "text": "a shirt", "label": "shirt"},
        {"file_name": "pictures/2.png", "label": "shirt"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_class_is_called_like_its_folder(classes):
    found = load(source(classes, format="folder"), "classification", "train")
    assert found.labels == ("boot", "shirt")
    assert [row.label for row in found.examples] == ["boot", "boot", "shirt", "shirt"]
    assert [row.media.name for row in found.examples if row.media] == [
        "a.png",
        "b.png",
        "c.png",
        "d.png",
    ]


def test_a_caption_is_the_text_of_what_has_none(classes, table):
    captioned = source(classes, format="folder", caption="a photo of a {label}")
    found = load(captioned, "contrastive", "train")
    assert {row.text for row in found.examples} == {"a photo of a boot", "a photo of a shirt"}
    some = source(table, media="file_name", caption="one {label}")
    rows = load(some, "contrastive", "train").examples
    assert [row.text for row in rows] == ["a red boot", "a shirt", "one shirt"]


def test_a_text_is_needed_where_texts_are_matched(classes, table):
    with pytest.raises(DataError, match="Set caption"):
        load(source(classes, format="folder"), "contrastive", "train")
    with pytest.raises(DataError, match=r"rows\.jsonl:3: no text"):
        load(source(table, media="file_name"), "contrastive", "train")


def test_a_row_whose_file_is_missing_is_told_by_line(table):
    (table.parent / "pictures/1.png").unlink()
    with pytest.raises(DataError, match=r"rows\.jsonl:2: .*no such file"):
        load(source(table, media="file_name"), "classification", "train")
    kept = source(table, media="file_name", bad_lines="skip")
    assert len(load(kept, "classification", "train").examples) == 2


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_tables_of_cells_name_files_too(table, ending):
    cell = {"csv": ",", "tsv": "\t"}[ending]
    path = table.with_suffix(f".{ending}")
    path.write_text(f"file{cell}label\npictures/0.png{cell}boot\npictures/1.png{cell}shirt\n")
    rows = load(source(path, media="file"), "classification", "train").examples
    assert [(row.label, row.media) for row in rows] == [
        ("boot", table.parent / "pictures/0.png"),
        ("shirt", table.parent / "pictures/1.png"),
    ]
    with pytest.raises(DataError, match='no column "image"'):
        load(source(path, media="image"), "classification", "train")


def test_other_pixels_are_another_fingerprint(classes, table, tmp_path):
    hashes = FileHashes(tmp_path / "hashes.json")
    for wanted, file in (
        (source(classes, format="folder"), classes / "boot/a.png"),
        (source(table, media="file_name"), table.parent / "pictures/0.png"),
    ):
        before = fingerprint(wanted, hashes)
        assert before == fingerprint(wanted, hashes)
        tiny_media.write_image(file, 99)
        assert fingerprint(wanted, hashes) != before


def test_data_of_texts_keeps_the_fingerprint_that_it_had(tmp_path):
    """Settings that say nothing of texts are in no key of theirs (rules 2 of reading)."""
    (tmp_path / "a.tsv").write_text("one\tx\n")
    settings = source(tmp_path / "a.tsv").model_dump(mode="json", exclude={"path"})
    assert settings["media"] is None
    assert settings["caption"] is None
    plain = fingerprint(source(tmp_path / "a.tsv"), FileHashes(tmp_path / "hashes.json"))
    assert plain == "66d928971b574b45f5c4ecac"


def test_equal_pictures_land_on_one_side(tmp_path):
    for number in range(30):
        tiny_media.write_image(tmp_path / f"x/{number}.png", number)
        tiny_media.write_image(tmp_path / f"y/{number}.png", number)
    parts = {
        split: load(source(tmp_path, format="folder", split=split), "classification", split)
        for split in ("train", "dev", "test")
    }
    names = {
        split: {row.media.name for row in part.examples if row.media}
        for split, part in parts.items()
    }
    assert sum(len(part.examples) for part in parts.values()) == 60
    assert not names["train"] & names["dev"]
    assert not names["train"] & names["test"]


@pytest.mark.parametrize(("model_type", "task"), tiny_media.MODELS)
def test_a_batch_is_what_the_processor_makes_of_its_files(model_type, task, tmp_path):
    model = tiny_media.tiny(model_type)
    data = tiny_media.dataset(model, tmp_path, 6)
    (batch,) = held_out(data, model.tokenizer, task, 64, 8, None, model.labels or None)
    assert batch.media is not None
    assert batch.media.shape[0] == batch.size == 6
    if task == "contrastive":
        assert batch.attention_mask.sum(1).tolist() == [6] * 6  # four words, begin and end
        assert (batch.labels == -100).all()
    else:
        assert batch.labels.tolist() == [0, 1, 2, 0, 1, 2]
        assert int(batch.attention_mask.sum()) == 6  # a row counts as one token
    with torch.no_grad():
        model.module(**model.given(batch))


def test_pixels_are_as_pil_and_the_settings_say(tmp_path):
    from PIL import Image

    model = tiny_media.tiny("vit")
    data = tiny_media.dataset(model, tmp_path, 2)
    (batch,) = held_out(data, model.tokenizer, "classification", 64, 8, None, model.labels)
    path = data.examples[0].media
    assert path is not None
    assert batch.media is not None
    raw = np.asarray(Image.open(path), np.float64).transpose(2, 0, 1)
    assert np.allclose(batch.media[0].numpy(), (raw / 255 - 0.5) / 0.5, atol=1e-6)


def test_a_resumed_stream_gives_the_same_batches(tmp_path):
    model = tiny_media.tiny("clip")
    data = tiny_media.dataset(model, tmp_path, 7)
    one, other = (Stream(data, model.tokenizer, model.task, 16, 3, seed=5) for _ in "ab")
    [one.batch(step) for step in range(3)]
    first, again = one.batch(3), other.batch(3)
    assert first.media is not None
    assert again.media is not None
    assert torch.equal(first.media, again.media)
    assert torch.equal(first.input_ids, again.input_ids)


def test_all_files_that_cannot_be_read_are_told_at_once(tmp_path):
    model = tiny_media.tiny("vit")
    data = tiny_media.dataset(model, tmp_path, 4)
    for number in (1, 3):
        (tmp_path / f"{number}.png").write_text("no image")
    with pytest.raises(DataError) as told:
        Stream(data, model.tokenizer, model.task, 16, 2, 0, model.labels)
    assert [Path(str(p.file)).name for p in told.value.problems] == ["1.png", "3.png"]


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_samples_of_any_width_are_the_same_sound(width, tmp_path):
    wanted = np.array([0.0, 0.5, -0.5, -1.0, 0.25])
    levels = (wanted * (1 << (8 * width - 1))).astype(np.int64)
    raw = b"".join(
        int(level + 128).to_bytes(1, "little")
        if width == 1
        else int(level).to_bytes(width, "little", signed=True)
        for level in levels
    )
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(width)
        file.setframerate(8000)
        file.writeframes(raw)
    assert np.allclose(read_sound(tmp_path / "a.wav", 8000), wanted, atol=1 / 128)


def test_channels_are_averaged(tmp_path):
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(np.array([8192, 16384, 0, -16384], "<i2").tobytes())
    assert np.allclose(read_sound(tmp_path / "a.wav", 8000), [0.375, -0.25])


@pytest.mark.parametrize(
    ("name", "said"),
    [("slow.wav", "4000 samples a second.*ffmpeg"), ("none.wav", "no WAV file.*ffmpeg")],
)
def test_sounds_that_are_not_heard_say_what_to_do(name, said, tmp_path):
    tiny_media.write_tone(tmp_path / "slow.wav", 300, rate=4000)
    (tmp_path / "none.wav").write_bytes(b"ID3")
    with pytest.raises(DataError, match=said):
        read_sound(tmp_path / name, 8000)


def test_files_and_texts_are_not_mixed_up(tmp_path):
    seeing, reading = tiny_media.tiny("vit"), tiny_models.tiny("bert", "classification")
    files = tiny_media.dataset(seeing, tmp_path, 3)
    texts = Dataset("train", [Example("w1", "bad", where="a.tsv:1")], "f", ("bad",))
    with pytest.raises(DataError, match="the model reads text"):
        Stream(files, reading.tokenizer, reading.task, 16, 2, 0, reading.labels)
    with pytest.raises(DataError, match=r"a\.tsv:1: .*format: folder"):
        Stream(texts, seeing.tokenizer, seeing.task, 16, 2, 0, seeing.labels)


def test_a_folder_of_images_alone_says_how_to_read_it(classes):
    with pytest.raises(DataError, match="folder for images or sounds"):
        load(source(classes), "classification", "train")
