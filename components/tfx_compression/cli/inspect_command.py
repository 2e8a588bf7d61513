"""`tfx-compression inspect`: the contents of a model."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from tfx_compression.cli.arguments import AsJson
from tfx_compression.cli.output import print_rich, readable, shown


def inspect(
    model: Annotated[Path, typer.Argument(help="A .tflite file, a SavedModel, a .keras or .h5 file.")],
    as_json: AsJson = False,
) -> None:
    """Show a model's kernels, their sparsity, and its operators or parameters."""
    with _native_output_dropped():
        from tfx_compression.cli.inspection import describe

        description = describe(str(model))
    if as_json:
        print(json.dumps(description, indent=1))
        return
    table = Table(title=shown(model), title_justify="left")
    for column in ("kernel", "weights", "zeros"):
        table.add_column(column, justify="left" if column == "kernel" else "right")
    for layer in description["layers"]:
        table.add_row(shown(layer["name"]), f"{layer['size']:,}", f"{100 * layer['sparsity']:.1f} %")
    print_rich(table)
    for key, value in description.items():
        if key != "layers":
            print_rich(f"[dim]{key.replace('_', ' ')}[/] {shown('unknown' if value is None else readable(value))}")


@contextlib.contextmanager
def _native_output_dropped() -> Iterator[None]:
    """Drops what C++ code writes to standard error: TensorFlow 2.21 greets there at any log level."""
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with open(os.devnull, "w") as devnull:
            os.dup2(devnull.fileno(), 2)
            yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, 2)
        os.close(saved)
