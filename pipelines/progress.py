"""Progress of a local run on the terminal."""

import logging
import time

from rich.console import Console


class Progress(logging.Handler):
    """Prints a line for each component that LocalDagRunner finishes, from the runner's log records.

    Attributes:
      running: Id of the component that is running or has failed, or None.
      started: Whether any component has started.
    """

    def __init__(self, console: Console):
        super().__init__()
        self.running: str | None = None
        self.started = False
        self._console = console
        self._start_time = 0.0
        self._cached = False

    def emit(self, record: logging.LogRecord) -> None:
        message = str(record.msg)
        self.started = self.started or message == "Component %s is running."
        if message == "Component %s is running.":
            self.running, self._start_time, self._cached = str(record.args[0]), time.monotonic(), False
        elif message.startswith("A cached execution"):
            self._cached = True
        elif message == "Component %s is finished.":
            seconds = "cached" if self._cached else f"{time.monotonic() - self._start_time:5.1f} s"
            self._console.print(f"  [green]✓[/] {self.running:32}[dim]{seconds:>8}[/]", highlight=False)
            self.running = None
