"""ONNX for browsers: a folder that a static page runs, ONNX Runtime there as WebAssembly."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from attar.export.graphs import decoder
from attar.export.onnx import Onnx, ends_of
from attar.models import Model
from attar.models.places import places_of

_PAGE = Path(__file__).with_name("web")
_QUESTION = "\ue000question\ue000"  # no text has these characters


class OnnxWeb(Onnx):
    """What `onnx` writes, and index.html, its script, and page.json, which says how to feed it.

    ONNX Runtime and a reader of tokenizers are files of others, which the user puts beside it. The
    file is verified with ONNX Runtime itself, whose speed says nothing of a browser's.
    """

    name = "onnx-web"
    others = ()
    timed = False

    def problems(self, model: Model) -> Sequence[str]:
        found = [*super().problems(model)]
        if model.task == "embedding":
            found.append("the model makes vectors, which a page has nothing to show of")
        if model.tokenizer is not None and not getattr(model.tokenizer, "is_fast", False):
            found.append(
                "its tokenizer has no tokenizer.json, which browsers read. Export to onnx instead"
            )
        return found

    def write(self, model: Model, folder: Path) -> Sequence[str]:
        super().write(model, folder)
        for file in _PAGE.iterdir():
            shutil.copyfile(file, folder / file.name)
        around, absent = ("", ""), list[str]()
        try:
            around = _template(model.tokenizer)
        except TemplateError as error:
            absent.append(
                f"the chat template takes no question ({error}), so that the page asks the model "
                "without it. Mend the template in the model's folder, and export again"
            )
        text = json.dumps(_described(model, folder, around), indent=1) + "\n"
        (folder / "page.json").write_text(text, "utf-8")
        return absent


def _described(model: Model, folder: Path, around: tuple[str, str]) -> dict[str, Any]:
    """What the page must know beside the graph; `around`: what stands around a question."""
    found: dict[str, Any] = {
        "task": model.task,
        "data": [path.name for path in folder.glob("model.onnx.data")],
    }
    if model.task == "causal-lm":
        before, after = around
        heads = [decoder.heads_of_block(model, index) for index in range(len(model.blocks))]
        kept = [[each.keys, each.size] for each in heads]
        found |= {"context": int(model.config.max_position_embeddings), "heads": kept}
        return {**found, "ends": ends_of(model), "before": before, "after": after}
    found["context"] = places_of(model)
    if model.task == "classification":
        return {**found, "labels": list(model.labels)}
    tokenizer = model.tokenizer
    return {**found, "mask": tokenizer.mask_token_id, "mask_token": tokenizer.mask_token}


def _template(tokenizer: Any) -> tuple[str, str]:
    """What the chat template puts before and after a question; nothing where there is none."""
    if not getattr(tokenizer, "chat_template", None):
        return "", ""
    asked = [{"role": "user", "content": _QUESTION}]
    text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    before, _, after = text.partition(_QUESTION)
    return before, after
