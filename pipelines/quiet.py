"""The components of a run, a line each."""

import logging
import time

from rich.console import Console


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
