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
from attar.errors import MissingPackage, ModelError
from attar.models.check import check_finite, check_keys
from attar.models.load import quiet
from attar.models.model import autocast
from attar.models.source import Files, resolve

_PIECES = ("source.spm", "spiece.model", "sentencepiece.bpe.model")  # of SentencePiece


Languages = tuple[str, str]  # codes of the one that is read, and of the one that is written


@dataclass(frozen=True)
class Translator:
    """A sequence-to-sequence model with its tokenizer, set to the languages that it is told.

    `told`: words of `generate` that make it write another language.
    """

    module: Any
    tokenizer: Any
    told: Mapping[str, int]

    def room(self, length: int) -> int:
        """`length`, or where it is less the tokens that there are positions for."""
        return min(length, getattr(self.module.config, "max_position_embeddings", None) or length)

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
                **self.told,
                **how,
            )
        written: list[str] = self.tokenizer.batch_decode(made, skip_special_tokens=True)
        return [text.strip() for text in written]


def translator_problem(source: ModelSource, languages: Languages | None = None) -> str | None:
    """Why a model cannot translate so, if it cannot; reads its config and tokenizer alone."""
    return _read(resolve(source), languages)[1]


def open_translator(
    source: ModelSource, device: str, languages: Languages | None = None
) -> Translator:
    """Load a sequence-to-sequence model; raises ModelError where it is none, is not whole, or does
    not translate between these languages.
    """
    files = resolve(source)
    tokenizer, problem = _read(files, languages)
    if problem is not None:
        raise ModelError(f"{source.path} {problem}")
    try:
        with quiet(files):
            module, report = AutoModelForSeq2SeqLM.from_pretrained(
                files.folder,
                use_safetensors=True,
                output_loading_info=True,
                dtype="auto",
                trust_remote_code=False,
            )
    except Exception as error:
        raise ModelError(f"{files.folder} does not load: {_line(error)}") from error
    check_keys(report, "causal-lm", files, fresh_head=False)
    check_finite(module, str(files.folder))
    told: dict[str, int] = {}
    if languages is not None:
        tokenizer.src_lang = languages[0]
        told = {"forced_bos_token_id": _languages(tokenizer)[languages[1]]}
    return Translator(module.to(device).eval(), tokenizer, told)


def _read(files: Files, languages: Languages | None) -> tuple[Any, str | None]:
    """The tokenizer, and why the model cannot translate so."""
    config = _config(files)
    if type(config) not in transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        return None, "is no sequence-to-sequence model such as Marian or T5"
    tokenizer = _tokenizer(files)
    return tokenizer, _languages_problem(tokenizer, config.model_type, languages)


def _languages_problem(tokenizer: Any, name: str, languages: Languages | None) -> str | None:
    wants = hasattr(tokenizer, "src_lang")
    if languages is None:
        if wants:
            return (
                f"is a {name}, which translates between many languages. Write languages: [CODE, "
                "CODE], of the texts' own and the other, as its model card has them"
            )
        return None
    if not wants:
        return f"is a {name}, which is not told languages by codes. Leave out `languages`"
    known = _languages(tokenizer)
    strange = [code for code in languages if code not in known]
    return f"is a {name} that knows no language {strange[0]!r}" if strange else None


def _languages(tokenizer: Any) -> dict[str, int]:
    """The token of each language; its name is no code where that is a piece of a word."""
    if hasattr(tokenizer, "get_lang_id"):  # of M2M100, whose tokens are not the codes
        return tokenizer.lang_code_to_id
    return {str(token): id_ for id_, token in tokenizer.added_tokens_decoder.items()}


def _tokenizer(files: Files) -> Any:
    pieces = any((files.folder / name).exists() for name in _PIECES)
    if pieces and not find_spec("sentencepiece"):
        purpose = f"reading the tokenizer of {files.folder}"
        raise MissingPackage(purpose, "pip install 'attar[translate]'")
    try:
        with quiet(files):
            return AutoTokenizer.from_pretrained(files.folder, trust_remote_code=False)
    except Exception as error:
        raise ModelError(
            f"the tokenizer of {files.folder} does not load: {_line(error)}"
        ) from error


def _config(files: Files) -> Any:
    try:
        with quiet(files):
            return AutoConfig.from_pretrained(files.folder, trust_remote_code=False)
    except Exception as error:
        raise ModelError(f"the config of {files.folder} cannot be read: {_line(error)}") from None


def _line(error: Exception) -> str:
    """The beginning of what an error says."""
    return str(error).strip().partition("\n")[0][:300]
