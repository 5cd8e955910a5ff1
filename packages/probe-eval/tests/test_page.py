"""The page: one file that needs no network and says what it was given, as it was given."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from probe_eval.report.page import Details, Picture, Section, Text, made_with, write_page
from probe_eval.report.tables import Table

NASTY = "<b>dog & 'cat' {{ 7 }}"
TABLE = Table(
    name="t",
    caption=f"Of {NASTY}",
    head=("backbone", "score"),
    body=(("a", "0.5 \N{DAGGER}"), (NASTY, "0.25")),
    bold=frozenset([(0, 1)]),
    muted=frozenset([1]),
)


class Reader(HTMLParser):
    """Links, text, and the rows of tables."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.rows: list[list[str]] = []
        self.text = ""
        self.in_cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        kinds = ("src", "href", "srcset", "action", "data", "poster")
        self.links += [value or "" for name, value in attrs if name in kinds]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.in_cell:
            self.rows[-1][-1] += data


@pytest.fixture
def page(tmp_path: Path) -> tuple[str, Reader]:
    """A page with every kind of part, as text and as its reader sees it."""
    picture = tmp_path / f"{NASTY[3:]}.png"
    matplotlib.image.imsave(picture, np.eye(4))
    sections = [
        Section(
            title=NASTY,
            parts=(
                Picture(path=picture, alt=NASTY, caption=NASTY),
                TABLE,
                Text(text=NASTY),
                Details(title="more", tables=(TABLE,)),
            ),
        ),
        Section(title="nothing here", parts=()),
    ]
    path = tmp_path / "out" / "index.html"
    write_page(path, title=NASTY, intro=[NASTY], sections=sections, footer=NASTY)
    assert list(path.parent.iterdir()) == [path]
    html = path.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(html)
    return html, reader


def test_the_page_needs_nothing_else(page: tuple[str, Reader]) -> None:
    html, reader = page
    assert len(reader.links) == 1
    assert all(link.startswith("data:image/png;base64,") for link in reader.links)
    markup = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", html)
    assert not re.search(r"https?:|//|@import|url\(", markup)
    assert reader.tags.isdisjoint({"script", "link", "iframe", "object"})


def test_names_are_escaped(page: tuple[str, Reader]) -> None:
    html, reader = page
    assert "b" not in reader.tags
    assert NASTY not in html
    assert reader.text.count(NASTY) == 11


def test_tables_stand_as_they_are(page: tuple[str, Reader]) -> None:
    html, reader = page
    rows = [list(TABLE.head), *map(list, TABLE.body)]
    assert reader.rows == [*rows, *rows]
    assert html.count("<strong>0.5 \N{DAGGER}</strong>") == 2
    assert html.count('<tr class="control">') == 2
    assert html.count("\N{DAGGER} fewer than 3 seeds") == 2


def test_empty_sections_are_left_out(page: tuple[str, Reader]) -> None:
    assert "nothing here" not in page[1].text


def test_the_machine_is_said_once(make_record: Any) -> None:
    other = make_record({"environment.git_commit": "0123456789abcdef"})
    said = made_with([make_record(), make_record(), other])
    assert said.startswith("3 records; made on Linux, cpu, Python 3.11.0, torch 2.13.0, 1 process")
    assert said.count("Linux") == 2
    assert said.endswith("commit 0123456789ab.")
