"""Sequence-to-sequence models: a text in, another out. They are read, and never pressed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer

from attar.core.recipe import ModelSource
from attar.errors import MissingPackage, ModelError, UserError
from attar.models.check import check_finite, check_keys
from attar.models.load import quiet
from attar.models.model import autocast
from attar.models.source import Files, resolve

_PIECES = ("source.spm", "spiece.model", "sentencepiece.bpe.model")  # of SentencePiece


@dataclass(frozen=True)
class Translator:
    """A sequence-to-sequence model with its tokenizer."""

    module: Any
    tokenizer: Any

    def into(self, languages: tuple[str, str] | None) -> dict[str, int]:
        """Words of `generate` that make it translate from one language into another, by codes.

        Raises UserError where it wants to be told, or has no such codes. A model of one direction
        takes none.
        """
        name, wants = self.module.config.model_type, hasattr(self.tokenizer, "src_lang")
        if languages is None:
            if wants:
                raise UserError(
                    f"this {name} translates between many languages. Write languages: [CODE, "
                    "CODE], of the texts' own and the other, as its model card has them"
                )
            return {}
        if not wants:
            raise UserError(f"this {name} is not told languages by codes. Leave out `languages`")
        for code in languages:
            if self._number(code) == self.tokenizer.unk_token_id:
                raise UserError(f"this {name} knows no language {code!r}")
        self.tokenizer.src_lang = languages[0]
        return {"forced_bos_token_id": self._number(languages[1])}

    def _number(self, code: str) -> int:
        """The token of a language."""
        if hasattr(self.tokenizer, "get_lang_id"):  # of M2M100, whose tokens are not the codes
            known = self.tokenizer.lang_code_to_id
            return known.get(code, self.tokenizer.unk_token_id)
        return self.tokenizer.convert_tokens_to_ids(code)

    def translate(
        self, texts: Sequence[str], length: int, precision: str, how: Mapping[str, Any]
    ) -> list[str]:
        """What it makes of each text, cut to `length` tokens; as many are written at most.

        `how` are words of transformers' `generate`.
        """
        given = self.tokenizer(
            list(texts), truncation=True, max_length=length, padding=True, return_tensors="pt"
        ).to(self.module.device)
        with torch.no_grad(), autocast(self.module.device, precision):
            made = self.module.generate(
                input_ids=given.input_ids,
                attention_mask=given.attention_mask,
                max_new_tokens=length,
                **how,
            )
        written: list[str] = self.tokenizer.batch_decode(made, skip_special_tokens=True)
        return [text.strip() for text in written]


def is_translator(source: ModelSource) -> bool:
    """Whether a model's config is that of a sequence-to-sequence model; reads no weights."""
    return type(_config(resolve(source))) in transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING


def open_translator(source: ModelSource, device: str) -> Translator:
    """Load a sequence-to-sequence model; ModelError where it is none, or not whole."""
    files = resolve(source)
    if not is_translator(source):
        raise ModelError(f"{files.folder} holds no sequence-to-sequence model such as Marian or T5")
    if any((files.folder / name).exists() for name in _PIECES) and not find_spec("sentencepiece"):
        purpose = f"reading the tokenizer of {files.folder}"
        raise MissingPackage(purpose, "pip install 'attar[translate]'")
    try:
        with quiet(files):
            tokenizer = AutoTokenizer.from_pretrained(files.folder, trust_remote_code=False)
            module, report = AutoModelForSeq2SeqLM.from_pretrained(
                files.folder,
                use_safetensors=True,
                output_loading_info=True,
                dtype="auto",
                trust_remote_code=False,
            )
    except Exception as error:
        line = str(error).strip().partition("\n")[0][:300]
        raise ModelError(f"{files.folder} does not load: {line}") from error
    check_keys(report, "causal-lm", files, fresh_head=False)
    check_finite(module, str(files.folder))
    return Translator(module.to(device).eval(), tokenizer)


def _config(files: Files) -> Any:
    try:
        with quiet(files):
            return AutoConfig.from_pretrained(files.folder, trust_remote_code=False)
    except Exception as error:
        line = str(error).strip().partition("\n")[0][:300]
        raise ModelError(f"the config of {files.folder} cannot be read: {line}") from None
