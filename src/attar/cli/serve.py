"""attar serve: models behind one port, as OpenAI's clients know them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attar.cli.options import HOME, Home, Task

if TYPE_CHECKING:
    from attar.export.first_use import Wish
    from attar.serve.run import Prepare
    from attar.serve.settings import Limits, Source

KEYS = "ATTAR_API_KEYS"
_GIGABYTE = 10**9
_PREFIX = 4  # characters of a key, at least
_MODULES = ("fastapi", "uvicorn", "prometheus_client")


def serve(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]MODEL...",
            help="A folder, a run's name, an artifact's key, an export's folder, a GGUF file, "
            "package:NAME or a hub name. NAME is what clients call it.",
            show_default=False,
        ),
    ],
    original: Annotated[
        str | None,
        typer.Option("--original", metavar="MODEL", help="What the page shows beside the others."),
    ] = None,
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="The address to listen on.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="N", help="The port; 0: a free one.", min=0, max=65535)
    ] = 8000,
    keys: Annotated[
        Path | None, typer.Option("--keys", metavar="FILE", help="API keys, one a line.")
    ] = None,
    secret: Annotated[
        str | None,
        typer.Option(envvar=KEYS, hidden=True, help="API keys with commas between them."),
    ] = None,
    anyone: Annotated[
        bool, typer.Option("--anyone", help="Listen beyond this machine without API keys.")
    ] = False,
    engine: Annotated[
        str | None,
        typer.Option("--engine", metavar="NAME", help="By default the fastest that holds it."),
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(
            "--memory",
            metavar="GB",
            help="What weights, and keys and values of answers, may take; by default most of "
            "what is free.",
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", help="Threads to compute on.", min=1)
    ] = None,
    limits: Annotated[
        list[str] | None,
        typer.Option(
            "--limit",
            metavar="NAME=VALUE",
            help="Set a bound: context=4096, tokens=512, batch=16. May be repeated; `--limit help` "
            "lists them.",
        ),
    ] = None,
    export: Annotated[
        bool,
        typer.Option(help="Make an export for the fastest engine where there is none."),
    ] = True,
    task: Task = None,
    home: Home = HOME,
) -> None:
    """Serve models over HTTP: chat, completions, embeddings, classes, and a page to try them."""
    if limits == ["help"]:
        _list_limits()
        return
    with _ended_by_sigterm():
        _require()
        from attar.serve.run import serve as run
        from attar.serve.settings import Settings

        sources = [_source(text, home, engine, task) for text in models]
        if original is not None:
            beside = _source(original, home, None, task)
            name = beside.name if beside.name not in {s.name for s in sources} else "original"
            sources.append(beside.model_copy(update={"name": name, "original": True}))
        run(
            Settings(
                models=tuple(sources),
                host=host,
                port=port,
                keys=_keys(keys, secret),
                anyone=anyone,
                memory=_bytes(memory),
                threads=threads,
                limits=_limits(limits or ()),
            ),
            _prepare(Path(home), export),
        )


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends what comes before the server, and after it, as Ctrl-C does.

    By itself it would leave a half-made export behind, and end nothing at all in a container,
    whose first process the kernel lets no signal end that it does not heed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _require() -> None:
    from importlib.util import find_spec

    from attar.errors import MissingPackage

    if any(find_spec(module) is None for module in _MODULES):
        raise MissingPackage("attar serve", "pip install 'attar[serve]'")


def _prepare(home: Path, export: bool) -> Prepare:
    """Puts the fastest export in the place of a model; the original stays what it is.

    None is made before every engine that was named is known to run its model.
    """

    def prepare(sources: tuple[Source, ...]) -> tuple[Source, ...]:
        from attar.export.first_use import Wish, chooses
        from attar.serve.locating import locate

        wishes = [Wish(source.engine, source.task, export) for source in sources]
        each = list(zip(sources, wishes, strict=True))
        for source, wish in each:
            if source.engine is not None and not chooses(source.path, home, wish):
                locate(source)
        return tuple(_fastest(source, home, wish) for source, wish in each)

    return prepare


def _fastest(source: Source, home: Path, wish: Wish) -> Source:
    if source.original:
        return source
    from attar.export.first_use import fastest, not_run
    from attar.serve.log import log

    def say(text: str) -> None:
        log("exporting", model=source.name, step=text)

    found = fastest(source.path, home, wish, say)
    if found is None:
        return source
    if found.folder is None:
        if source.engine is not None:
            raise not_run(source.path, wish, found.why)
        log("no export", model=source.name, reason=found.why)
        return source
    log("export", model=source.name, engine=found.engine, folder=found.folder, why=found.why)
    return source.model_copy(update={"path": str(found.folder), "engine": found.engine})


def _source(text: str, home: str, engine: str | None, task: str | None) -> Source:
    """A model by what the user calls it: `NAME=` in front, a run, or the beginning of a key."""
    from attar.cli.kept import run_folder
    from attar.engine.store import Store
    from attar.serve.settings import Source

    name, equals, place = text.partition("=")
    if not equals or Path(text).expanduser().exists():
        name, equals, place = "", "", text
    path = Path(place).expanduser()
    if not path.exists():
        store = Store(Path(home))
        keys, run = store.keys(), run_folder(home, place) / "model"
        if run.exists():
            name, path = name or place, run
        elif len(place) >= _PREFIX and any(key.startswith(place) for key in keys):
            path = store.path(store.find(place))
        else:
            return Source(name=name or _short(place), path=place, engine=engine, task=task)
    elif (path / "report.json").is_file() and (path / "model" / "config.json").is_file():
        name, path = name or path.name, path / "model"
    called = name if equals or name else path.absolute().name
    return Source(name=called, path=str(path), engine=engine, task=task)


def _short(place: str) -> str:
    return place.removeprefix("package:")


def _keys(file: Path | None, secret: str | None) -> tuple[str, ...]:
    from attar.errors import UserError
    from attar.serve.auth import read_keys

    lines = (secret or "").split(",")
    if file is not None:
        try:
            lines += file.expanduser().read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"the keys in {file} cannot be read: {error}") from None
    keys = read_keys(lines)
    if file is not None and not keys:
        raise UserError(f"{file} holds no key. Write one a line")
    return keys


def _bytes(memory: float | None) -> int:
    from attar.errors import UserError

    if memory is None:
        from attar.measure.machine import free_memory

        return max(int(0.8 * free_memory()), 1)
    if not 0 < memory < inf:
        raise UserError(f"--memory is {memory:g}; give gigabytes, above 0")
    return int(memory * _GIGABYTE)


def _limits(texts: Any) -> Limits:
    from pydantic import ValidationError

    from attar.errors import UserError
    from attar.serve.settings import Limits

    plain: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in Limits.model_fields:
            known = ", ".join(Limits.model_fields)
            raise UserError(f"--limit {text!r} is not NAME=VALUE with a NAME of {known}")
        plain[name] = value
    try:
        return Limits.model_validate(plain)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"--limit {first['loc'][0]}: {first['msg'].lower()}") from None


def _list_limits() -> None:
    from attar.cli.message import print_facts
    from attar.serve.settings import Limits

    print_facts(
        {
            name: f"{field.description}; {field.default:g} by default"
            for name, field in Limits.model_fields.items()
        }
    )
