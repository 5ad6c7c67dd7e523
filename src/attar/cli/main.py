"""Where the command line begins, and the one place where errors become messages."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any

import typer

from attar.cli.augment import augment
from attar.cli.bench import bench
from attar.cli.bug import report_bug
from attar.cli.card import card
from attar.cli.demo import demo
from attar.cli.diff import diff
from attar.cli.distill import distill
from attar.cli.doctor import doctor
from attar.cli.export import export
from attar.cli.launched import give_way, leads
from attar.cli.list import list_
from attar.cli.message import problems_text, tell
from attar.cli.plan import plan
from attar.cli.prune import prune
from attar.cli.push import push
from attar.cli.quantize import quantize
from attar.cli.report import report
from attar.cli.run import run
from attar.cli.sensitivity import sensitivity
from attar.cli.serve import serve
from attar.cli.show import show
from attar.errors import AttarError

_DEBUG = "--debug"
_STOPPED = 130
_PANELS = {
    "Press a model": {"run": run, "plan": plan, "demo": demo},
    "One-line recipes, printed before they run": {
        "distill": distill,
        "quantize": quantize,
        "prune": prune,
        "augment": augment,
    },
    "Ship it": {"export": export, "serve": serve, "bench": bench, "card": card, "push": push},
    "Look": {
        "list": list_,
        "show": show,
        "report": report,
        "diff": diff,
        "sensitivity": sensitivity,
        "doctor": doctor,
    },
}


def _version(wanted: bool) -> None:
    if wanted:
        from attar import __version__

        typer.echo(f"attar {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
    debug: Annotated[
        bool, typer.Option(_DEBUG, help="Show the full traceback of an error; goes anywhere.")
    ] = False,
) -> None:
    """Press a large language model into one that can be shipped, and see what it cost."""


def _build() -> typer.Typer:
    app = typer.Typer(
        name="attar",
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=False, no_args_is_help=False)(_root)
    for panel, commands in _PANELS.items():
        for name, command in commands.items():
            app.command(name, rich_help_panel=panel)(command)
    return app


app = _build()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    # Threads that spin at barriers for a core another process has taken are many times slower,
    # those that never spin lose a sixth where none has
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = _DEBUG in given
    given = [word for word in given if word != _DEBUG]
    try:
        code = _invoke(given or ["--help"])
        sys.stdout.flush()
    except BrokenPipeError:
        return _reader_is_gone()
    except Exception as error:
        give_way()
        if debug:
            import traceback

            traceback.print_exception(error)
        return _failed(error, given, debug)
    if code == _STOPPED and leads():
        tell("stopped. The same command goes on where it was")
    return code


def _invoke(given: list[str]) -> int:
    """The exit code of one command; errors go on, but for those that only ask to leave."""
    try:
        result: Any = typer.main.get_command(app).main(
            args=given, prog_name="attar", standalone_mode=False
        )
    except (KeyboardInterrupt, typer.Abort):
        return _STOPPED
    except SystemExit:  # how the libraries leave when nobody reads standard output any more
        raise BrokenPipeError from None
    return result if isinstance(result, int) else 0


def _failed(error: Exception, given: list[str], debug: bool) -> int:
    """Say what went wrong in a readable form; returns the exit code."""
    if isinstance(error, AttarError):
        tell(problems_text(error), mark="error")
        return error.exit_code
    if hasattr(error, "format_message"):  # what the command line's library says of its arguments
        tell(_usage(error, given), mark="error")
        return 2
    if isinstance(error, MemoryError):
        tell(
            "memory ran out. Lower `batch` or `length`, or free some memory; what is finished is "
            "kept, and the same command goes on there",
            mark="error",
        )
        return 1
    tell(report_bug(error, given, debug), mark="error")
    return 1


def _usage(error: Any, given: list[str]) -> str:
    text = str(error.format_message()).strip().rstrip(".")
    text = text[:1].lower() + text[1:]
    command = given[0] if given and given[0] in {n for p in _PANELS.values() for n in p} else ""
    again = f"attar {command} --help".replace("  ", " ")
    return f"{text}{'' if text.endswith('?') else '.'} `{again}` shows what there is"


def _reader_is_gone() -> int:
    """Leave quietly where what reads our output has ended: `attar list | head -1`."""
    with suppress(OSError):  # what is still in the buffer must go somewhere at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
