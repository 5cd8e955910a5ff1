"""`probe-eval report FOLDER...`."""

import dataclasses

import tyro

from probe_eval.cli.console import say
from probe_eval.cli.parsing import parse, plain
from probe_eval.distributed import is_main_process
from probe_eval.report.config import ReportConfig


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Report(ReportConfig):
    """Tables (Markdown, LaTeX, CSV) and figures (PNG, PDF) of all records below some folders."""

    folders: tyro.conf.Positional[tuple[str, ...]]
    """Results folders; those of runs, sweeps and demos alike."""


def report(words: list[str]) -> int:
    """Turns records into tables and figures."""
    given = parse(Report, words, "report")
    if not given.folders:
        raise ValueError("no folder was given; name at least one, such as results/sweep")
    from probe_eval.report.report import PAGE_FILE, write_report

    if is_main_process():
        config = plain(ReportConfig, given)
        value = write_report(given.folders, config)
        say(
            f"{len(value['records'])} records, {len(value['files'])} files  "
            f"{config.output}/{PAGE_FILE}",
            {"output": config.output} | value,
        )
    return 0
