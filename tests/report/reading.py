"""Reads a page as a browser would, and refuses what a browser would mend."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "img"}


@dataclass
class Cell:
    """What stands in a table: its tag, what its tag says, and its text."""

    tag: str
    said: dict[str, str]
    text: str = ""


@dataclass
class Page(HTMLParser):
    """Everything of a page that a test asks for."""

    tables: list[list[list[Cell]]] = field(default_factory=list)
    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = {name: value or "" for name, value in attrs}
        assert len(said) == len(attrs), f"<{tag}> says something twice"
        self.tags.append((tag, said))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append(Cell(tag, said))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("style", "script", "title"):
            self.texts[self.open[-1]] = self.texts.get(self.open[-1], "") + data
            return
        self.text += data
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1].text += data


def read(text: str) -> Page:
    """Return a page that is well formed."""
    page = Page()
    page.feed(text)
    page.close()
    assert not page.open, f"never closed: {page.open}"
    return page
