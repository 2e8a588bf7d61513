"""A terminal that shows what a person needs, while everything that TensorFlow, Beam and TFX print goes to a file."""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner


@contextlib.contextmanager
def output_to(log: Path) -> Iterator[Console]:
    """Sends this process's standard output and error, that of C++ and of child processes included, to `log`.

    Yields:
      A console on what was standard output before.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with log.open("w") as file, os.fdopen(os.dup(1), "w") as terminal:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
        try:
            yield Console(file=terminal, soft_wrap=True)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, original in zip((1, 2), saved, strict=True):
                os.dup2(original, descriptor)
                os.close(original)


def working(console: Console, text: str) -> Live:
    """A line that turns while something long runs; what is printed meanwhile goes where it went before."""
    spinner = Spinner("dots", text=text)
    return Live(spinner, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)


class Progress(logging.Handler):
    """Prints a line per component as LocalDagRunner runs it, from the lines that it logs.

    Attributes:
      running: the component that runs now, or that failed.
      started: whether any has run.
    """

    def __init__(self, console: Console):
        super().__init__()
        self.running: str | None = None
        self.started = False
        self._console = console
        self._started = 0.0
        self._cached = False

    def emit(self, record: logging.LogRecord) -> None:
        message = str(record.msg)
        self.started = self.started or message == "Component %s is running."
        if message == "Component %s is running.":
            self.running, self._started, self._cached = str(record.args[0]), time.monotonic(), False
        elif message.startswith("A cached execution"):
            self._cached = True
        elif message == "Component %s is finished.":
            seconds = "cached" if self._cached else f"{time.monotonic() - self._started:5.1f} s"
            self._console.print(f"  [green]✓[/] {self.running:32}[dim]{seconds:>8}[/]", highlight=False)
            self.running = None
