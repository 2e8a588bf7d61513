"""Tables by columns. The macro `table` in `macros.html.jinja` renders them."""

import dataclasses
from collections.abc import Iterable, Sequence

# Most lines of a table, or most lines that show without a click. The JSON in the page has all of them.
MAX_LINES = 20


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
      text: First line.
      note: Second, smaller line.
      tone: One of `good`, `bad`, `muted` and none.
      share: Length of a bar, from 0 to 1, or None for no bar.
    """

    text: str = ""
    note: str = ""
    tone: str = ""
    share: float | None = None


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
      heading: Heading of the column.
      cells: A cell per line of the table.
      is_text: Whether the cells hold words, which are aligned left and wrap, instead of numbers.
    """

    heading: str
    cells: Sequence[Cell]
    is_text: bool = False


def nonempty_columns(*columns: Column) -> list[Column]:
    """Returns the columns in which any cell has text or a note."""
    return [column for column in columns if any(cell.text or cell.note for cell in column.cells)]


def text_column(heading: str, texts: Iterable[str]) -> Column:
    """Returns a column of names or sentences."""
    return Column(heading, [Cell(text) for text in texts], is_text=True)


def number_column(heading: str, texts: Iterable[str]) -> Column:
    """Returns a column of numbers."""
    return Column(heading, [Cell(text) for text in texts])
