"""An HTML report as a reader sees it."""

import html.parser
import json
from typing import Any


class Page(html.parser.HTMLParser):
    """A report as a person sees it: its text, its tables by the heading or summary above them, its scripts."""

    def __init__(self, source: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.scripts: list[str] = []
        self.pre: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._open: list[str] = []
        self._texts: list[str] = []
        self._above = ""
        self.feed(source)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    @property
    def text(self) -> str:
        return _plain(" ".join(self._texts))

    def specs(self) -> list[dict[str, Any]]:
        """What the plots draw."""
        return [json.loads(script) for script in self.scripts if script.startswith("{")]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.update(name for name, _ in attrs)
        if tag in ("meta", "br", "img"):
            return
        self._open.append(tag)
        if tag in ("h2", "h3", "h4", "summary"):
            self._above = ""
        if tag == "script":
            self.scripts.append("")
        elif tag == "pre":
            self.pre.append("")
        elif tag == "table":
            self.tables[_plain(self._above)] = []
        elif tag == "tr":
            self._rows().append([])
        elif tag in ("td", "th"):
            self._rows()[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag in ("td", "th"):
            self._rows()[-1][-1] = _plain(self._rows()[-1][-1])

    def handle_data(self, data: str) -> None:
        inside = self._open[-1] if self._open else ""
        if inside == "script":
            self.scripts[-1] += data
        elif inside == "pre":
            self.pre[-1] += data
        elif inside not in ("style", "title"):
            self._texts.append(data)
            if set(self._open) & {"td", "th"}:
                self._rows()[-1][-1] += data
            elif set(self._open) & {"h2", "h3", "h4", "summary"}:
                self._above += data

    def _rows(self) -> list[list[str]]:
        return list(self.tables.values())[-1]


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("−", "-")
