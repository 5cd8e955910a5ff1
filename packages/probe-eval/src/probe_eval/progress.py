"""Progress with rate and time left: a bar on a terminal, a line every few seconds elsewhere."""

import logging
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from probe_eval.distributed import is_main_process

T = TypeVar("T")
logger = logging.getLogger(__name__)
SECONDS_BETWEEN_LINES = 20.0


class RateColumn(ProgressColumn):
    """Items per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.2f}/s" if task.speed else "-/s")


class Tracker:
    """Counts `total` items under a title; silent on every rank but 0.

    Args:
        title: what is being done.
        total: how many items there are.
        done: how many of them an earlier run did.
    """

    def __init__(self, title: str, total: int, done: int = 0) -> None:
        self.title, self.total, self.done, self.first = title, total, done, done
        self.note = ""
        self.console = Console(stderr=True)
        self.bar = self.console.is_terminal and is_main_process()
        self.started = self.last_line = time.monotonic()

    def __enter__(self) -> "Tracker":
        if self.bar:
            self.progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                RateColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self.console,
            )
            self.progress.start()
            self.task = self.progress.add_task(
                self.title, total=self.total, completed=self.done, note=""
            )
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if self.bar:
            self.progress.stop()
        elif error is None and is_main_process() and self.done > self.first:
            self.print_line()

    def advance(self, items: int = 1, note: str = "") -> None:
        """Counts items as done; `note` stands behind the numbers."""
        items = min(items, self.total - self.done)
        self.done += items
        self.note = note or self.note
        if self.bar:
            self.progress.update(self.task, advance=items, note=self.note)
        elif is_main_process() and time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES:
            self.print_line()

    def print_line(self) -> None:
        """One line with count, rate and time left."""
        self.last_line = time.monotonic()
        elapsed = self.last_line - self.started
        rate = (self.done - self.first) / max(elapsed, 1e-9)
        left = (self.total - self.done) / rate if rate else float("inf")
        logger.info(
            "%s  %d/%d  %.2f/s  %.0f s elapsed, %.0f s left  %s",
            self.title,
            self.done,
            self.total,
            rate,
            elapsed,
            left,
            self.note,
        )


def track(items: Iterable[T], title: str, total: int) -> Iterator[T]:
    """Yields items, counting each."""
    with Tracker(title, total) as tracker:
        for item in items:
            yield item
            tracker.advance()
