"""`probe-eval validate`: how much of a dataset is there, split by split."""

import dataclasses
import json
from typing import Any

from probe_datasets import DATASETS
from probe_datasets.validation import SplitReport, validate_split
from probe_eval.config import ValidateConfig
from probe_eval.progress import Tracker

EXAMPLES = 5


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
                    progress=counter,
                )
            )
    return reports


class Counter:
    """A progress bar that learns how many items there are when the first is done."""

    def __init__(self, title: str) -> None:
        self.title, self.tracker = title, Tracker(title, 0)

    def __enter__(self) -> "Counter":
        return self

    def __exit__(self, *error: Any) -> None:
        if self.tracker.total:
            self.tracker.__exit__(*error)

    def __call__(self, done: int, total: int) -> None:
        if total != self.tracker.total or done < self.tracker.done:
            self.__exit__(None, None, None)
            self.tracker = Tracker(self.title, total)
            if total:
                self.tracker.__enter__()
        self.tracker.advance(done - self.tracker.done)


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
        counts = (f"{number:,}" for number in numbers)
        table.append((report.split, *counts, f"{report.share:.1%}", published))
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    cells = ([c.rjust(w) for c, w in zip(row, widths, strict=True)] for row in table)
    lines = ["  ".join(row) for row in cells]
    for report in reports:
        if report.problem:
            lines.append(f"{report.split}: {report.problem}")
            continue
        lines.append(f"{report.split}: layout: {report.layout}")
        lines += [f"  {name}: {why}" for name, why in report.coverage.reasons[:EXAMPLES]]
        more = report.coverage.missing + report.coverage.failed - EXAMPLES
        if more > 0 and report.coverage.reasons:
            lines.append(f"  and {more:,} more")
        if report.share < threshold:
            lines.append(f"  {report.share:.1%} is below the threshold of {threshold:.1%}")
    return "\n".join(lines)
