"""`probe-eval cache ls`, `... verify` and `... gc`."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from probe_eval.cli.console import say
from probe_eval.cli.parsing import PROG, asks_for_list, known, parse, say_list

if TYPE_CHECKING:
    from probe_eval.storage.cache import Entry


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Ls:
    """What is kept for later runs, the latest used first."""

    folder: str = ""
    """The cache; empty: the folder in PROBE_EVAL_CACHE, or else ~/.cache/probe-eval."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Verify(Ls):
    """Reads all that is kept to the last byte; exit status 1 where something is damaged."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Gc(Ls):
    """Makes room; what a running program uses stays."""

    max_gb: float | None = None
    """How much may stay, in GB; what was used last stays."""
    older_than_days: float | None = None
    """What was not used for so many days goes."""
    incomplete: bool = False
    """What no run has finished goes."""
    dry_run: bool = False
    """Say what would go; remove nothing."""

    def __post_init__(self) -> None:
        for name in ("max_gb", "older_than_days"):
            if (value := getattr(self, name)) is not None and not value >= 0:
                raise ValueError(f"{name} {value} must be 0 or more")


def cache(words: list[str]) -> int:
    """What is kept on disk for later runs."""
    if asks_for_list(words):
        ending = f"`{PROG} cache ACTION --help` lists the options with defaults and units."
        say_list("cache ACTION [options]", "actions", SUMMARIES, ending)
        return 0
    return ACTIONS[known("action", words[0], ACTIONS)](words[1:])


def list_cache(words: list[str]) -> int:
    """`probe-eval cache ls`."""
    given = parse(Ls, words, "cache ls")
    from probe_eval.storage import cache

    root, cap = cache.cache_root(given.folder), cache.cap_gb()
    found = cache.entries(root)
    total = sum(entry.bytes for entry in found)
    lines = [describe(entry) for entry in found]
    lines.append(f"{len(found)} entries, {size(total)} of at most {cap:g} GB in {root}")
    document = {"folder": str(root), "bytes": total, "cap_gb": cap, "entries": as_rows(found)}
    say("\n".join(lines), document)
    return 0


def verify_cache(words: list[str]) -> int:
    """`probe-eval cache verify`."""
    given = parse(Verify, words, "cache verify")
    from probe_eval.storage import cache

    found = cache.entries(cache.cache_root(given.folder))
    problems = {str(entry.folder): cache.verify(entry) for entry in found}
    wrong = {folder: phrases for folder, phrases in problems.items() if phrases}
    lines = [phrase for phrases in wrong.values() for phrase in phrases]
    lines.append(f"{len(found)} entries, {len(wrong)} of them damaged")
    say("\n".join(lines), {"entries": len(found), "damaged": wrong})
    return 1 if wrong else 0


def make_room(words: list[str]) -> int:
    """`probe-eval cache gc`."""
    given = parse(Gc, words, "cache gc")
    if given.max_gb is None and given.older_than_days is None and not given.incomplete:
        raise ValueError(
            "nothing says what is to go; give --max-gb (0 removes all), --older-than-days or "
            "--incomplete"
        )
    from probe_eval.storage import cache

    root = cache.cache_root(given.folder)
    chosen = cache.select_garbage(
        cache.entries(root),
        max_gb=given.max_gb,
        older_than_days=given.older_than_days,
        incomplete=given.incomplete,
    )
    if given.dry_run:
        gone = [entry for entry in chosen if not cache.in_use(entry.folder)]
    else:
        gone = [entry for entry in chosen if cache.remove(entry)]
        cache.sweep_leftovers(root)
    kept = [entry for entry in chosen if entry not in gone]
    verb = "would remove" if given.dry_run else "removed"
    lines = [f"{verb}  {describe(entry)}" for entry in gone]
    lines += [f"in use, kept  {describe(entry)}" for entry in kept]
    lines.append(f"{verb} {size(sum(entry.bytes for entry in gone))} in {len(gone)} entries")
    document = {"dry_run": given.dry_run, "removed": as_rows(gone), "in_use": as_rows(kept)}
    say("\n".join(lines), document)
    return 0


ACTIONS: dict[str, Callable[[list[str]], int]] = {
    "ls": list_cache,
    "verify": verify_cache,
    "gc": make_room,
}
SUMMARIES = {
    "ls": "list what is kept: kind, size, when it was used, what it is of",
    "verify": "read all that is kept to the last byte",
    "gc": "remove what was used longest ago, or what no run has finished",
}


def describe(entry: "Entry") -> str:
    """An entry in one line."""
    state = f"{entry.rows} rows" if entry.complete else "incomplete"
    return "  ".join(
        [
            f"{entry.kind:8s}",
            f"{size(entry.bytes):>9s}",
            f"{state:>14s}",
            f"{age(time.time() - entry.used):>12s}",
            " ".join(f"{name} {value}" for name, value in entry.about.items()) or "unknown",
            f"[{entry.folder.name}]",
        ]
    )


def as_rows(found: "Sequence[Entry]") -> list[dict[str, Any]]:
    """Entries as plain values."""
    return [{**dataclasses.asdict(entry), "folder": str(entry.folder)} for entry in found]


def size(count: int) -> str:
    """Bytes for people."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count} B"


def age(seconds: float) -> str:
    """How long ago, for people."""
    for unit, factor in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * factor:
            return f"{seconds / factor:.0f} {unit} ago"
    return "just now"
