"""How measured figures come into the pages of docs/."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def fill(page: Path, tables: Mapping[str, str]) -> None:
    """Writes tables between their marks in a page: `<!-- mark -->` … `<!-- end -->`."""
    text = page.read_text()
    for mark, content in tables.items():
        pattern = rf"(<!-- {mark} -->\n).*?(<!-- end -->)"
        if not re.search(pattern, text, re.DOTALL):
            raise SystemExit(f"{page.name} has no place for {mark!r}: <!-- {mark} --> … <!-- end -->.")
        text = re.sub(pattern, lambda found, new=content: f"{found[1]}{new}\n{found[2]}", text, flags=re.DOTALL)
    page.write_text(text)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its first column to the left, the others to the right."""
    rule = ["---", *["--:" for _ in columns[1:]]]
    return "\n".join(f"| {' | '.join(row)} |" for row in (columns, rule, *rows))


def percent(fraction: float) -> str:
    """Per cent, to a tenth."""
    return f"{100 * fraction:.1f}"
