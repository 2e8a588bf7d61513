"""A terminal that shows only what people need, while the output of TensorFlow, Beam and TFX goes to a log."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table

from tfx_compression.cli.output import shown

if TYPE_CHECKING:
    from tfx_compression.compressed_evaluator.evaluation import Evaluation


@contextlib.contextmanager
def output_to(log: Path) -> Iterator[Console]:
    """Redirects standard output and error to a file, including that of C++ code and child processes.

    Args:
      log: Path of the file. It is overwritten.

    Yields:
      A console on the original standard output.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with log.open("w") as file, os.fdopen(os.dup(1), "w") as terminal:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
        logging.getLogger("tfx_compression").setLevel(logging.INFO)
        try:
            yield Console(file=terminal, soft_wrap=True)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, original in zip((1, 2), saved, strict=True):
                os.dup2(original, descriptor)
                os.close(original)


def working(console: Console, text: str) -> Live:
    """Returns a spinner with a line of text, shown while the context is active. Other output isn't redirected."""
    spinner = Spinner("dots", text=text)
    return Live(spinner, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)


def evaluation_table(title: str, evaluation: "Evaluation") -> Table:
    """Returns a table of the models of an evaluation, narrow enough for a terminal of 80 columns."""
    from tfx_compression.compressed_evaluator.summary_table import shown_metric, summary_rows

    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0))
    metric = shown_metric(evaluation).replace("sparse_categorical_", "")
    for heading in ("model", metric, "drop", "bytes", "gzipped", "ms", "speed", "zeros", "verdict"):
        table.add_column(heading, justify="left" if heading in ("model", "verdict") else "right", no_wrap=True)
    colors = {"chosen": "bold green", "held": "green", "refused": "red", "failed": "red"}
    for row in summary_rows(evaluation):
        table.add_row(
            shown(row.name.replace("baseline as", "  as")),
            _formatted(row.metric, "{:.4f}"),
            _formatted(row.drop.value if row.drop else None, "{:+.4f}"),
            f"{row.model.bytes:,}",
            f"{row.model.bytes_gzip:,}",
            _formatted(row.model.latency_ms, "{:.3f}"),
            _formatted(row.speedup, "{:.1f}x"),
            _formatted(row.model.sparsity, "{:.0%}"),
            f"[{colors.get(row.verdict, 'default')}]{row.verdict}[/]",
        )
    return table


def _formatted(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
