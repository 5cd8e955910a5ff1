"""Progress with rate and time left: a bar on a terminal, a line every few seconds elsewhere."""

import logging
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

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
WORTH_TELLING = 2.0
"""Seconds that indexing takes before a line says that it is done."""


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
        worth_telling: seconds that it takes before a line says that it is done.
    """

    def __init__(
        self, title: str, total: int, done: int = 0, *, worth_telling: float = 0.0
    ) -> None:
        self.title, self.total, self.done, self.first = title, total, done, done
        self.worth_telling = worth_telling
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
            self.print_line(least=self.worth_telling)

    def advance(self, items: int = 1, note: str = "") -> None:
        """Counts items as done; `note` stands behind the numbers."""
        items = min(items, self.total - self.done)
        self.done += items
        self.note = note or self.note
        if self.bar:
            self.progress.update(self.task, advance=items, note=self.note)
        elif is_main_process() and time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES:
            self.print_line()

    def print_line(self, least: float = 0.0) -> None:
        """One line with count, rate and time left; none if it took fewer seconds than `least`."""
        self.last_line = time.monotonic()
        elapsed = self.last_line - self.started
        if elapsed < least:
            return
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


class Counter:
    """Progress of one stage after another, each of which says itself how many items it has.

    It is called with (items done, items in all), as indexing of data sets does, and closes itself
    with the last item; where it may end before, use it in a `with`.

    Args:
        title: what is being done.
        worth_telling: seconds that a stage takes before a line says that it is done.
    """

    def __init__(self, title: str, *, worth_telling: float = 0.0) -> None:
        self.title, self.worth_telling = title, worth_telling
        self.tracker: Tracker | None = None
        self.finished = ("", 0)
        self.last_call = self.last_line = time.monotonic()

    def __enter__(self) -> "Counter":
        return self

    def __exit__(self, *error: Any) -> None:
        tracker, self.tracker = self.tracker, None
        if tracker is not None:
            self.finished = (tracker.title, tracker.total)
            tracker.__exit__(*(error or (None,)))

    def __call__(self, done: int, total: int, stage: str = "") -> None:
        """Shows that so many items are done; a total of 0 means that it is not known."""
        title = f"{self.title}: {stage}" if stage else self.title
        if not total:
            if is_main_process() and time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES:
                self.last_line = time.monotonic()
                logger.info("%s  %s files so far", title, f"{done:,}")
            return
        if self.tracker is None and self.finished == (title, total):
            return
        if self.tracker is None or (title, total) != (self.tracker.title, self.tracker.total):
            self.__exit__()
            self.tracker = Tracker(title, total, worth_telling=self.worth_telling)
            self.tracker.started = self.last_call  # the first items are done already
            self.tracker.__enter__()
        self.last_call = time.monotonic()
        self.tracker.advance(done - self.tracker.done)
        if done >= total:
            self.__exit__()


def index_progress(title: str) -> Counter:
    """What a data set of files calls while it is indexed: `progress=index_progress("ssv2 train")`.

    It says nothing of what takes no time, as an index that is there already does.
    """
    return Counter(f"{title}: indexing", worth_telling=WORTH_TELLING)
