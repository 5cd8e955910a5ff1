"""One self-contained HTML page of sections: text, tables and pictures. It needs no network."""

import base64
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from probe_eval.report.tables import Table
from probe_eval.runs import write_text


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A PNG that is written into the page."""

    kind: ClassVar[str] = "picture"
    path: Path
    """The file."""
    alt: str
    """What it shows, for those who do not see it."""
    caption: str = ""
    """What stands below it."""

    @property
    def source(self) -> str:
        """The file as a data URI."""
        return "data:image/png;base64," + base64.b64encode(self.path.read_bytes()).decode("ascii")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """A paragraph, which the page shows as it stands."""

    kind: ClassVar[str] = "text"
    text: str
    """What it says."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Details:
    """Tables that are shown when asked for."""

    kind: ClassVar[str] = "details"
    title: str
    """What is there."""
    tables: tuple[Table, ...]
    """The tables."""


Part = Picture | Text | Details | Table


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A heading and what stands below it."""

    title: str
    """The heading."""
    parts: tuple[Part, ...]
    """In order."""


def write_page(
    path: Path, *, title: str, intro: Sequence[str], sections: Sequence[Section], footer: str
) -> None:
    """Writes the page, there whole or not at all.

    Args:
        path: the HTML file.
        title: of the page.
        intro: paragraphs.
        sections: in order; those without parts are left out.
        footer: the last line.
    """
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("probe_eval", "report/templates"), autoescape=True
    )
    html = environment.get_template("page.html.j2").render(
        title=title,
        intro=intro,
        sections=[section for section in sections if section.parts],
        footer=footer,
    )
    write_text(path, html)


def made_with(records: Sequence[Mapping[str, Any]]) -> str:
    """Where records were made, in one line."""
    machines = dict.fromkeys(
        f"{machine['platform']}, {machine['device']}, Python {machine['python']}, "
        f"torch {machine['packages'].get('torch', '?')}, {machine['processes']} process(es)"
        + (f", commit {machine['git_commit'][:12]}" if machine["git_commit"] else "")
        for machine in (record["environment"] for record in records)
    )
    return f"{len(records)} records; made on {'; '.join(machines)}."
