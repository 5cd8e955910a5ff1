"""`probe-eval validate`: how much of a dataset is there, split by split."""

import ast
import dataclasses
import json
import logging
import time
from collections.abc import Sequence
from functools import partial
from inspect import signature
from typing import Any

from probe_datasets import DATASETS
from probe_datasets.validation import SplitReport, validate_split
from probe_eval.config import ValidateConfig
from probe_eval.progress import SECONDS_BETWEEN_LINES, Tracker

EXAMPLES = 5
MAX_REASONS = 100  # of each kind, in a coverage
logger = logging.getLogger(__name__)


def run_validate(config: ValidateConfig) -> list[SplitReport]:
    """Looks at every split that is asked for.

    Raises:
        ValueError: for an unknown dataset or split, or a number out of range.
    """
    if not 0 <= config.threshold <= 1:
        raise ValueError(f"threshold {config.threshold} must be from 0 to 1")
    if config.dataset not in DATASETS:
        raise ValueError(f"dataset {config.dataset!r} must be one of {', '.join(DATASETS)}")
    splits = config.splits or DATASETS[config.dataset].splits
    options = parse_options(config.options)
    reports = []
    for split in splits:
        with Counter(f"{config.dataset} {split}") as counter:
            reports.append(
                validate_split(
                    config.dataset,
                    config.root or None,
                    split,
                    decode=config.decode,
                    num_workers=config.workers,
                    progress=partial(counter, "indexing"),
                    reading=partial(counter, "reading"),
                    **options,
                )
            )
    return reports


def parse_options(words: Sequence[str]) -> dict[str, Any]:
    """Options of a data set from NAME=VALUE: Python literals where they are such, else text.

    Raises:
        ValueError: for a word without a name or "=".
    """
    options: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier() or name in signature(validate_split).parameters:
            raise ValueError(
                f"option {word!r} must be NAME=VALUE of a data set's own, such as sparse=True"
            )
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name] = value
    return options


class Counter:
    """Progress of one stage after another, each of which says itself how many items it has."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.tracker: Tracker | None = None
        self.last_call = self.last_line = time.monotonic()

    def __enter__(self) -> "Counter":
        return self

    def __exit__(self, *error: Any) -> None:
        if self.tracker is not None:
            self.tracker.__exit__(*(error or (None,)))
            self.tracker = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Shows that of a stage so many items are done; a total of 0 means that it is not known."""
        title = f"{self.title}: {stage}"
        if not total:
            if time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES:
                self.last_line = time.monotonic()
                logger.info("%s  %s files so far", title, f"{done:,}")
            return
        tracker = self.tracker
        if tracker is None or (title, total) != (tracker.title, tracker.total):
            self.__exit__()
            tracker = self.tracker = Tracker(title, total)
            tracker.started = self.last_call  # the first items are done already
            tracker.__enter__()
        self.last_call = time.monotonic()
        tracker.advance(done - tracker.done)


def passes(reports: list[SplitReport], threshold: float) -> bool:
    """Whether every split has its share of samples."""
    return all(not report.problem and report.share >= threshold for report in reports)


def as_json(reports: list[SplitReport]) -> str:
    """The reports for programs."""
    rows = [{**dataclasses.asdict(report), "share": report.share} for report in reports]
    return json.dumps(rows, indent=2)


def as_text(reports: list[SplitReport], threshold: float) -> str:
    """The reports for people: a table, then what is wrong, with examples."""
    head = ("split", "found", "expected", "missing", "unreadable", "read", "share", "published")
    table: list[tuple[str, ...]] = [head]
    for report in reports:
        seen = report.coverage
        numbers = (seen.found, seen.expected, seen.missing, seen.failed, report.decoded)
        published = f"{report.published:,}" if report.published else "-"
        counts = [f"{number:,}" for number in numbers] + [f"{report.share:.1%}"]
        if report.problem:
            counts = ["-"] * len(counts)
        table.append((report.split, *counts, published))
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    cells = ([c.rjust(w) for c, w in zip(row, widths, strict=True)] for row in table)
    lines = ["  ".join(row) for row in cells]
    for report in reports:
        if report.problem:
            lines.append(f"{report.split}: {report.problem}")
            continue
        lines.append(f"{report.split}: layout: {report.layout}")
        reasons = report.coverage.reasons
        lines += [f"  {name}: {why.removeprefix(name + ': ')}" for name, why in reasons[:EXAMPLES]]
        bad = report.coverage.missing + report.coverage.failed
        # Samples that are listed have a reason, up to a hundred; those that are not have none.
        named = len(reasons) if len(reasons) < MAX_REASONS else bad
        if named > EXAMPLES:
            lines.append(f"  and {named - EXAMPLES:,} more")
        if bad > named:
            lines.append(f"  {bad - named:,} more that were published are not there")
        if report.share < threshold:
            lines.append(f"  {report.share:.1%} is below the threshold of {threshold:.1%}")
    return "\n".join(lines)
