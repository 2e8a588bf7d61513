"""Standard output of the commands."""

import sys
from typing import Any

from rich.console import Console
from rich.markup import escape

from tfx_compression.printable import printable


def print_rich(renderable: Any) -> None:
    """Prints Rich markup or a table to standard output, without breaking lines.

    In a pipe a table is as wide as its content, so that programs don't read names broken in two.
    """
    width = None if sys.stdout.isatty() else 10_000
    Console(soft_wrap=True, emoji=False, highlight=False, width=width).print(renderable)


def shown(value: object) -> str:
    """Returns a value as text that a terminal shows as it is: without markup of Rich's and without control characters.

    Names that come from models, stores and metadata go through it.
    """
    return escape(printable(str(value)))


def readable(value: Any) -> str:
    """Returns a JSON value as text for people: nested objects in parentheses, numbers with separators."""
    if isinstance(value, dict):
        items = ", ".join(f"{key}={readable(item)}" for key, item in value.items())
        return f"({items})" if items else "none"
    if isinstance(value, float):
        return f"{value:.5g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
