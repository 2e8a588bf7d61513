"""Writes measured figures into the pages of docs/."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def fill(page: Path, tables: Mapping[str, str]) -> None:
    """Replaces the text between `<!-- mark -->` and `<!-- end -->` in a page by each mark's table."""
    text = page.read_text()
    for mark, content in tables.items():
        pattern = rf"(<!-- {mark} -->\n).*?(<!-- end -->)"
        if not re.search(pattern, text, re.DOTALL):
            raise SystemExit(f"{page.name} has no region <!-- {mark} --> … <!-- end -->.")
        text = re.sub(pattern, lambda match, new=content: f"{match[1]}{new}\n{match[2]}", text, flags=re.DOTALL)
    page.write_text(text)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table with a left-aligned first column and right-aligned others."""
    rule = ["---", *["--:" for _ in columns[1:]]]
    return "\n".join(f"| {' | '.join(row)} |" for row in (columns, rule, *rows))


def percent(fraction: float) -> str:
    """Formats a fraction as percent with one decimal."""
    return f"{100 * fraction:.1f}"
