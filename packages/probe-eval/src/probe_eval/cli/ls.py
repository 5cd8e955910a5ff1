"""`probe-eval ls FOLDER...`."""

import dataclasses
from typing import Literal

import tyro

from probe_eval.cli.console import say, table_text
from probe_eval.cli.parsing import parse


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Ls:
    """The records below some folders, one a line, and why some of them cannot be compared.

    Numbers may be ranked where keys are equal. Exit status 1 where a record is damaged, was edited
    or is of another version.
    """

    folders: tyro.conf.Positional[tuple[str, ...]] = ("results",)
    """Results folders, or records."""
    task: tuple[str, ...] = ()
    """List these tasks or recipes only."""
    backbone: tuple[str, ...] = ()
    """List these backbones only."""
    block: tuple[int, ...] = ()
    """List these blocks only."""
    timestep: tuple[int, ...] = ()
    """List these timesteps only."""
    split: tuple[Literal["test", "held-out"], ...] = ()
    """List these splits only."""
    sort: tuple[
        Literal[
            "task", "split", "backbone", "block", "timestep", "lr", "seed", "value", "key", "when"
        ],
        ...,
    ] = ("task", "split", "backbone", "block", "timestep", "lr", "seed")
    """Columns to sort by, the first one first."""
    reverse: bool = False
    """Largest first."""


def ls(words: list[str]) -> int:
    """Lists records."""
    given = parse(Ls, words, "ls")
    from probe_eval.listing import list_records, records_table, remarks

    names = ("task", "backbone", "block", "timestep", "split")
    listed = list_records(
        given.folders,
        keep={name: [str(value) for value in getattr(given, name)] for name in names},
        sort=given.sort,
        reverse=given.reverse,
    )
    found = listed["records"]
    lines = [table_text(records_table(found)) if found else "no records"]
    say("\n".join([*lines, *remarks(listed)]), listed)
    return 1 if listed["unusable"] else 0
