"""`probe-eval validate`: how much of a dataset is there, split by split."""

import dataclasses
from functools import partial
from inspect import signature
from typing import Any

from probe_datasets import DATASETS
from probe_datasets.validation import SplitReport, validate_split
from probe_eval.config import ValidateConfig
from probe_eval.data import parse_options
from probe_eval.progress import Counter

EXAMPLES = 5
MAX_REASONS = 100  # of each kind, in a coverage


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
    options = parse_options(config.options, signature(validate_split).parameters)
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
                    progress=partial(counter, stage="indexing"),
                    reading=partial(counter, stage="reading"),
                    **options,
                )
            )
    return reports


def passes(reports: list[SplitReport], threshold: float) -> bool:
    """Whether every split has its share of samples."""
    return all(not report.problem and report.share >= threshold for report in reports)


def as_rows(reports: list[SplitReport]) -> list[dict[str, Any]]:
    """The reports for programs."""
    return [{**dataclasses.asdict(report), "share": report.share} for report in reports]


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
