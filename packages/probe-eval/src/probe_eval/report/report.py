"""A report: all records below some folders, as one page with its tables and figures."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from probe_eval.report.checkpoints import read_sheet
from probe_eval.report.config import ReportConfig
from probe_eval.report.page import made_with, write_page
from probe_eval.report.results import Results, write_results
from probe_eval.report.rows import read_groups, read_selections
from probe_eval.runs import write_json

REPORT_FILE = "report.json"
PAGE_FILE = "index.html"


def write_report(folders: Sequence[str], config: ReportConfig) -> dict[str, Any]:
    """Writes `index.html`, `tables/`, `figures/` and `report.json` to `config.output`.

    Args:
        folders: results folders, whose records are read from all folders below them.
        config: where to, and what to compare.

    Returns:
        What `report.json` says: the folders, the settings, the records by their hashes, the files.

    Raises:
        FileNotFoundError: if a folder does not exist.
        ValueError: if there is no record, one is damaged or edited, records of one task cannot be
            compared, or the output folder holds something else.
    """
    groups = read_groups(folders, separate=config.separate)
    sheet = read_sheet(config.checkpoints) if config.checkpoints else {}
    output = Path(config.output)
    clear(output)
    sections = write_results(
        Results(
            groups=groups,
            selections=read_selections(folders),
            pair=config.relative,
            sheet=sheet,
            folder=output,
        )
    )
    records = [record for group in groups for row in group.rows for record in row.records]
    tasks = ", ".join(dict.fromkeys(group.label for group in groups))
    write_page(
        output / PAGE_FILE,
        title="Probes of frozen features",
        intro=[f"{len(records)} readouts were measured: {tasks}."],
        sections=sections,
        footer=made_with(records),
    )
    files = sorted(
        str(path.relative_to(output))
        for part in ("tables", "figures")
        for path in (output / part).rglob("*")
        if path.is_file()
    )
    value = {
        "kind": "report",
        "folders": [str(folder) for folder in folders],
        "separate": config.separate,
        "relative": list(config.relative),
        "records": [record["sha256"] for record in records],
        "files": [PAGE_FILE, *files],
    }
    write_json(output / REPORT_FILE, value)
    return value


def clear(output: Path) -> None:
    """Removes the tables and figures of an earlier report, so that none of them stays by accident.

    Raises:
        ValueError: if the folder holds something that is no report.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"output {output} is a file; choose another --output")
    if not output.exists() or not any(output.iterdir()):
        # Said first, so that a report that was stopped is known for one.
        write_json(output / REPORT_FILE, {"kind": "report", "files": []})
    elif not (output / REPORT_FILE).is_file():
        raise ValueError(
            f"output {output} holds files that are no report; choose an empty or new folder as "
            "--output"
        )
    for name in ("tables", "figures"):
        shutil.rmtree(output / name, ignore_errors=True)
    (output / PAGE_FILE).unlink(missing_ok=True)
