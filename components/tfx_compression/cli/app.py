"""The program: its commands, and how it reports errors."""

import logging
import os
import platform
import sys
import tempfile
import traceback
import warnings

import typer
from rich.console import Console

from tfx_compression.cli import evaluate_command, inspect_command, lineage_command, store_commands
from tfx_compression.cli.output import shown
from tfx_compression.errors import CompressionError
from tfx_compression.version import __version__

_BUG_STATUS = 70  # EX_SOFTWARE in BSD's sysexits.h

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Inspect, evaluate, trace and release compressed models.",
    epilog="Exit status: 0 success, 1 error, 2 wrong arguments or no model chosen, 70 bug.",
)
app.command("lineage")(lineage_command.lineage)
app.command("inspect")(inspect_command.inspect)
app.command("evaluate")(evaluate_command.evaluate)
app.add_typer(store_commands.app, name="store")


def main() -> None:
    """Runs the command line.

    Exit status:
      0: Success.
      1: An error that the user can mend, printed as one paragraph.
      2: The command line is wrong, or `evaluate` chose no model.
      70: A bug, printed as one line that names the file with the traceback.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", FutureWarning)  # Google's clients warn about the age of Python 3.10.
    try:
        app()
    except (CompressionError, OSError) as error:
        _print_error("error:", " ".join(str(error).split("\n")))
        raise SystemExit(1) from error
    except Exception as error:
        _print_error("bug:", f"{_summary(error)}. Remedy: report it with {_log(error)}, which holds the traceback.")
        raise SystemExit(_BUG_STATUS) from error


def _print_error(label: str, message: str) -> None:
    Console(stderr=True, soft_wrap=True, emoji=False).print(f"[bold red]{label}[/] {shown(message)}", highlight=False)


def _summary(error: Exception) -> str:
    """Returns an error's class and the first line of its message, at most 200 characters."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')[:200]}" if lines else type(error).__name__


def _log(error: Exception) -> str:
    """Writes versions, arguments and traceback to a new temporary file; returns its path."""
    descriptor, path = tempfile.mkstemp(prefix="tfx-compression-", suffix=".log")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(f"tfx-compression {__version__}, Python {platform.python_version()}, {platform.platform()}\n")
        file.write(f"{sys.argv}\n\n")
        traceback.print_exception(error, file=file)
    return path
