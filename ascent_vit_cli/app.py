# SPDX-License-Identifier: Apache-2.0
"""The `ascent-vit` command: its subcommands, and how it ends when something is wrong."""

import logging
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from .annotate import annotate
from .check import check
from .convert import convert
from .demo import demo
from .edit import edit
from .evaluate import evaluate
from .explain import explain
from .export import export
from .guard import guard
from .index import index
from .prepare import prepare
from .publish import publish
from .report import report
from .space import space
from .train import train


USAGE_ERROR, FAILURE, INTERRUPTED = 2, 1, 130

app = typer.Typer(
    name="ascent-vit",
    help="Vision transformers that explain themselves in human concepts.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        # Importing the package for its version would take a hundred times as long.
        print(version("ascent-vit"))
        raise typer.Exit()


@app.callback()
def ascent_vit(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="On an error, show the traceback; with any command.")] = False,
) -> None:
    """Vision transformers that explain themselves in human concepts."""


app.command("annotate")(annotate)
app.command("check")(check)
app.command("convert")(convert)
app.command("demo")(demo)
app.command("edit")(edit)
app.command("evaluate")(evaluate)
app.command("explain")(explain)
app.command("export")(export)
app.command("guard")(guard)
app.command("index")(index)
app.command("prepare")(prepare)
app.command("publish")(publish)
app.command("report")(report)
app.command("space")(space)
app.command("train")(train)


class _ProgressHandler(logging.Handler):
    """Writes log records to stderr without breaking a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)


def _is_wrong_input(error: Exception) -> bool:
    if isinstance(error, ValueError | FileNotFoundError | FileExistsError | NotADirectoryError):
        return True
    # A library that nothing has imported has not raised.
    errors = sys.modules.get("huggingface_hub.errors")
    return errors is not None and isinstance(error, errors.StrictDataclassError)


def _fail(error: BaseException, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    sentence = " ".join(str(error).split()) or type(error).__name__
    if code == FAILURE and not debug:
        sentence += " (--debug shows where.)"
    print(f"Error: {sentence}", file=sys.stderr)
    return code


def run(arguments: Sequence[str]) -> int:
    """
    Runs one command.

    Args:
        arguments: command line without the program's name.

    Returns:
        The exit code: 0, 2 for bad usage or input, 1 for a failure, 130 when interrupted.
    """
    arguments = list(arguments)
    debug = "--debug" in arguments
    logger = logging.getLogger("ascent_vit")
    handler = _ProgressHandler()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            # `datasets` decodes images itself, and Pillow would only warn of one that is too large.
            warnings.filterwarnings("error", message="Image size .* could be decompression bomb")
            code = app([a for a in arguments if a != "--debug"], prog_name="ascent-vit", standalone_mode=False)
    except typer.TyperException as error:
        # Without any argument the help has been shown, and the message is empty.
        message = error.format_message()
        if message:
            print(f"Error: {message} See ascent-vit {' '.join(arguments[:1])} --help.", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        return _fail(error, USAGE_ERROR if _is_wrong_input(error) else FAILURE, debug)
    finally:
        logger.removeHandler(handler)
    if code == INTERRUPTED:
        print("Interrupted.", file=sys.stderr)
    return code if isinstance(code, int) else 0


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))
