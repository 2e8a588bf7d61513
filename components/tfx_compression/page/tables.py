"""Tables by columns, as the macro `table` shows them."""

import dataclasses
from collections.abc import Iterable, Sequence

# How many lines a table has at most, or is shown with without a click; the JSON has them all.
LONGEST = 20


@dataclasses.dataclass(frozen=True)
class Cell:
    """`note` is a second, smaller line, `tone` one of good, bad and muted, `share` the length of a bar, from 0 to 1."""

    text: str = ""
    note: str = ""
    tone: str = ""
    share: float | None = None


@dataclasses.dataclass(frozen=True)
class Column:
    """A heading and a cell for each line; `words` stand to the left and wrap, numbers do neither."""

    heading: str
    cells: Sequence[Cell]
    words: bool = False


def columns(*candidates: Column) -> list[Column]:
    """Those that hold anything."""
    return [column for column in candidates if any(cell.text or cell.note for cell in column.cells)]


def words(heading: str, texts: Iterable[str]) -> Column:
    """A column of names or sentences."""
    return Column(heading, [Cell(text) for text in texts], words=True)


def numbers(heading: str, texts: Iterable[str]) -> Column:
    """A column of numbers."""
    return Column(heading, [Cell(text) for text in texts])
