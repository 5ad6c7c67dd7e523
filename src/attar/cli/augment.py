"""attar augment: more data from data, or from a teacher, in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from attar.cli.launched import leads
from attar.cli.options import HOME, Device, DryRun, Home, Language, ModelName, Name, Set, Task

ROWS, AUGMENTED = "rows", "augmented"
# Options that name files or models, which a recipe must find from anywhere.
_PATHS = ("words", "vectors", "mlm", "there", "back", "teacher", "judge")


def augment(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="WAY",
            help="synonyms, mlm, back-translation, generate or label: `attar list data`.",
            show_default=False,
        ),
    ],
    model: ModelName,
    out: Annotated[
        Path,
        typer.Option("--out", metavar="FILE", help="Where to write: .jsonl, .tsv or .csv."),
    ],
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="PATH", help="The rows; generate can do without."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write over a file that is there.")
    ] = False,
    words: Annotated[
        str | None, typer.Option("--words", metavar="PATH", help="Synonyms: the list to use.")
    ] = None,
    mlm: Annotated[
        str | None, typer.Option("--mlm", metavar="MODEL", help="Who fills in; MODEL by default.")
    ] = None,
    vectors: Annotated[
        str | None, typer.Option("--vectors", metavar="FILE", help="mlm: word vectors.")
    ] = None,
    there: Annotated[
        str | None, typer.Option("--there", metavar="MODEL", help="The first translator.")
    ] = None,
    back: Annotated[
        str | None, typer.Option("--back", metavar="MODEL", help="The second translator.")
    ] = None,
    languages: Annotated[
        tuple[str, str] | None,
        typer.Option("--languages", metavar="OWN OTHER", help="Codes that translators are told."),
    ] = None,
    prefixes: Annotated[
        tuple[str, str] | None,
        typer.Option("--prefixes", metavar="THERE BACK", help="Words that translators are told."),
    ] = None,
    variants: Annotated[
        int | None, typer.Option("--variants", metavar="N", help="Variants to try of each row.")
    ] = None,
    share: Annotated[
        float | None, typer.Option("--share", help="How likely a word is replaced.")
    ] = None,
    candidates: Annotated[
        int | None, typer.Option("--candidates", metavar="N", help="Words that may stand for one.")
    ] = None,
    originals: Annotated[
        bool | None, typer.Option("--originals/--no-originals", help="Keep the rows themselves.")
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            "--teacher",
            metavar="MODEL",
            help="Who agrees, writes or labels; original is MODEL. generate: or an address.",
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            "--server",
            metavar="{key: NAME}",
            help="generate: how a teacher behind an address is asked, and its key's variable.",
        ),
    ] = None,
    judge: Annotated[
        str | None, typer.Option("--judge", metavar="MODEL", help="generate: who must agree.")
    ] = None,
    confidence: Annotated[
        float | None, typer.Option("--confidence", help="Probability that is sure enough.")
    ] = None,
    surprise: Annotated[
        float | None, typer.Option("--surprise", help="Nats a token that are unlikely enough.")
    ] = None,
    texts: Annotated[
        int | None, typer.Option("--texts", metavar="N", help="generate: texts to write.")
    ] = None,
    start: Annotated[
        int | None, typer.Option("--start", metavar="N", help="generate: tokens to go on from.")
    ] = None,
    ask: Annotated[
        str | None, typer.Option("--ask", help="What to ask about a row, with {text} in it.")
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option("--classes", metavar="NAME", help="label: a class; may be repeated."),
    ] = None,
    probabilities: Annotated[
        bool | None, typer.Option("--probabilities", help="label: keep those of all classes.")
    ] = None,
    new_tokens: Annotated[
        int | None, typer.Option("--new-tokens", metavar="N", help="Tokens to write, at most.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", help="0: always the likeliest token.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option("--top-p", help="Probability of the tokens that are drawn.")
    ] = None,
    beams: Annotated[
        int | None, typer.Option("--beams", metavar="N", help="Beams, at temperature 0.")
    ] = None,
    length: Annotated[
        int | None, typer.Option("--length", metavar="N", help="Tokens that are looked at.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", metavar="N", help="Rows at a time.")
    ] = None,
    task: Task = None,
    sets: Set = None,
    name: Name = None,
    dry_run: DryRun = False,
    home: Home = HOME,
    language: Language = "en",
    device: Device = "cpu",
) -> None:
    """Write variants of rows, new texts or labels to a file; options are the step's settings."""
    given = dict(locals())
    from attar.cli.shortcut import absolute, press
    from attar.cli.shortcut import start as begin

    way = _way(kind)
    _check(out, overwrite)
    plain = begin("augment", model, None, task, name)
    step = {"id": AUGMENTED, **_settings(given, SETTINGS)}
    if data is not None:
        rows: dict[str, Any] = {"path": absolute(str(data))}
        plain["data"] = {ROWS: {**rows, "labeled": False} if kind == "label" else rows}
        step["data"] = ROWS
    plain["steps"] = [{way: step}]
    plain["measures"] = {"speed": False}
    finished = press(plain, sets, (home, language, device), dry_run)
    if finished is not None and leads():
        _write(finished.data(AUGMENTED).examples, out)


SETTINGS = (
    *_PATHS,
    *("variants", "share", "candidates", "originals", "confidence", "surprise", "texts", "start"),
    *("ask", "classes", "probabilities", "new_tokens", "temperature", "top_p", "beams"),
    *("length", "batch", "server", "languages", "prefixes"),
)


def _settings(given: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """The options that were given, as a step's settings."""
    from attar.cli.shortcut import absolute
    from attar.core.yaml_lines import read_yaml

    found = {name: given[name] for name in names if given[name] not in (None, [], ())}
    if "server" in found:
        found["server"] = read_yaml(found["server"], "--server").plain
    found |= {name: list(v) for name, v in found.items() if isinstance(v, tuple)}
    return {name: absolute(v) if name in _PATHS else v for name, v in found.items()}


def _way(kind: str) -> str:
    from attar.core.registry import kinds, nearest
    from attar.errors import UserError

    known = [name.removeprefix("data/") for name in kinds() if name.startswith("data/")]
    if kind not in known:
        hint = nearest(kind, known) or "."
        raise UserError(
            f"no way to make data is called {kind!r}{hint} There are {', '.join(known)}"
        )
    return f"data/{kind}"


def _check(out: Path, overwrite: bool) -> None:
    """Refuse at once what could not be written after all the work."""
    from attar.data.made import check_table
    from attar.errors import UserError

    check_table(out)
    if out.exists() and not overwrite:
        raise UserError(f"{out.absolute()} is there already. Give another --out, or --overwrite")


def _write(examples: Any, out: Path) -> None:
    from attar.data.made import write_table

    write_table(examples, out)
    typer.echo(f"Data: {out.absolute()} ({len(examples):,} rows)")
