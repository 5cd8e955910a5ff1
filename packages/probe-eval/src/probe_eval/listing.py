"""What lies in results folders: one line per record, and what keeps records from being compared."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from probe_eval.records import Found, comparable_key, differences, find_records, problem_of
from probe_eval.report.names import ARROWS

KEY_LENGTH = 6


def list_records(
    folders: Sequence[str],
    *,
    keep: Mapping[str, Sequence[str]],
    sort: Sequence[str] = (),
    reverse: bool = False,
) -> dict[str, Any]:
    """Records below folders as plain values.

    Args:
        folders: results folders.
        keep: column -> the values that are listed; no values list all.
        sort: columns, the first one first; ties stay in the order of the paths.
        reverse: whether the largest comes first.

    Returns:
        `records`, one value per line; `unusable`, files with the reason; `not_comparable`, pairs of
        keys of one task with the fields that differ.

    Raises:
        FileNotFoundError: if a folder does not exist.
    """
    found = find_records(folders)
    lines = [line_of(item) for item in found if not item.problem]
    kept = [
        line
        for line in lines
        if all(not values or str(line[name]) in values for name, values in keep.items())
    ]
    for name in reversed(sort):
        kept.sort(key=lambda line: line[name], reverse=reverse)
    shown = {line["path"] for line in kept}
    return {
        "records": kept,
        "unusable": [
            {"path": str(item.path), "problem": item.problem} for item in found if item.problem
        ],
        "not_comparable": why_not([item.record for item in found if str(item.path) in shown]),
    }


def line_of(found: Found) -> dict[str, Any]:
    """What is listed of one record."""
    record = found.record
    modified = datetime.datetime.fromtimestamp(found.path.stat().st_mtime, datetime.UTC)
    return {
        "path": str(found.path),
        "task": record["recipe"] or record["task"],
        "split": record["split"],
        "labels": "shuffled" if record["shuffled_labels"] else "true",
        "backbone": record["backbone"]["name"],
        "weights_hash": record["backbone"]["weights_hash"],
        "block": record["features"]["block"],
        "timestep": record["features"]["timestep"],
        "lr": record["optim"]["peak_lr"],
        "seed": record["seed"],
        "metric": record["metric"]["name"],
        "variant": record["metric"]["variant"],
        "direction": record["metric"]["direction"],
        "value": record["metric"]["value"],
        "chance": record["metric"]["chance"],
        "key": comparable_key(record),
        "when": modified.isoformat(timespec="seconds"),
    }


def why_not(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each task with records of several keys: the first key, another one, and what differs."""
    kinds: dict[tuple[Any, ...], dict[str, Mapping[str, Any]]] = {}
    for record in records:
        kinds.setdefault(problem_of(record), {}).setdefault(comparable_key(record), record)
    return [
        {"task": task, "keys": [first, key], "differences": differences(found[first], record)}
        for (task, *_), found in kinds.items()
        for first in list(found)[:1]
        for key, record in list(found.items())[1:]
    ]


def records_table(lines: Sequence[Mapping[str, Any]]) -> Table:
    """Records for people."""
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("task", "split", "backbone"):
        table.add_column(name)
    for name in ("block", "timestep", "lr", "seed"):
        table.add_column(name, justify="right")
    table.add_column("metric")
    for name in ("value", "chance"):
        table.add_column(name, justify="right")
    for name in ("key", "when (UTC)"):
        table.add_column(name)
    weights: dict[str, set[str]] = {}
    for line in lines:
        weights.setdefault(line["backbone"], set()).add(line["weights_hash"])
    for line in lines:
        mark = f" {line['weights_hash'][:6]}" if len(weights[line["backbone"]]) > 1 else ""
        control = " (shuffled)" if line["labels"] == "shuffled" else ""
        table.add_row(
            *(f"{line['task']}{control}", line["split"], line["backbone"] + mark),
            *(str(line["block"]), str(line["timestep"]), f"{line['lr']:g}", str(line["seed"])),
            f"{line['metric']}{' ' + line['variant'] if line['variant'] else ''} "
            f"{ARROWS[line['direction']]}",
            f"{line['value']:.4f}",
            "-" if line["chance"] is None else f"{line['chance']:.4f}",
            *(line["key"][:KEY_LENGTH], line["when"][:16].replace("T", " ")),
        )
    return table


def remarks(listed: Mapping[str, Any]) -> list[str]:
    """A line for each file that cannot be used, and for each pair of keys that do not compare."""
    unusable = [f"unusable: {item['problem']}" for item in listed["unusable"]]
    apart = [
        f"not comparable: {item['task']} {' and '.join(k[:KEY_LENGTH] for k in item['keys'])}: "
        f"{'; '.join(item['differences'])}"
        for item in listed["not_comparable"]
    ]
    return [*apart, *unusable]
