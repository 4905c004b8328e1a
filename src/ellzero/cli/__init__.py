"""The command line: thin, and nothing heavy is imported before a command needs it."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer  # noqa: TID253

from ellzero._version import __version__
from ellzero.cli.certify import certify
from ellzero.cli.compress import compress
from ellzero.cli.console import EXIT_BUG, EXIT_INPUT, EXIT_STOPPED, say
from ellzero.cli.denoise import denoise
from ellzero.cli.fit import fit
from ellzero.cli.options import parse_budgets, parse_hidden
from ellzero.cli.predict import predict
from ellzero.cli.reproduce import reproduce
from ellzero.cli.tour import tour
from ellzero.cli.train import train
from ellzero.errors import EllzeroError

__all__ = ["app", "main", "parse_budgets", "parse_hidden"]

app = typer.Typer(
    name="ellzero",
    help="Fit and train models with exactly as many nonzero parameters as asked for.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"ellzero {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Fit and train models with exactly as many nonzero parameters as asked for."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for command in (tour, fit, train, predict, denoise, certify, compress, reproduce):
    app.command()(command)


def main() -> None:
    """Run the command line; the entry point of the `ellzero` script."""
    debug = bool(os.environ.get("ELLZERO_DEBUG"))
    try:
        code = app(prog_name="ellzero", standalone_mode=False)
    except EllzeroError as error:
        if debug:
            raise
        say(f"error: {error.message}")
        if error.hint:
            say(f"hint: {error.hint}")
        sys.exit(EXIT_INPUT)
    except (typer.Abort, KeyboardInterrupt):
        say("Interrupted before there was a result; no result was written.")
        sys.exit(EXIT_STOPPED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_BUG)
    except Exception as error:
        # Wrong usage, as the parser of the command line says it.
        message = getattr(error, "format_message", None)
        if message is None or debug:
            raise
        context = getattr(error, "ctx", None)
        command = "ellzero" if context is None else context.command_path
        say(f"error: {message()}")
        say(f"hint: `{command} --help` lists what there is.")
        sys.exit(EXIT_INPUT)
    sys.exit(code or 0)
