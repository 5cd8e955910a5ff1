"""Result records: versioned JSON that says everything a number depends on, and what it compares to.

Two records are *comparable* when their numbers may be ranked, and *replicates* when their numbers
may be averaged, as they differ in nothing but seeds.
"""

import copy
import dataclasses
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from probe_datasets import Coverage
from probe_eval.record_schema import (
    SCHEMA_VERSION,
    check_record,
    content_hash,
    fractions,
    record_hash,
)
from probe_eval.runs import read_json, write_json

RECORD_FILE = "record.json"
TEST_FILE = "test.json"
"""Beside a record of held-out clips: the record of the same readout on the test split."""
PACKAGES = (
    "probe-eval",
    "probe-datasets",
    "probe-readouts",
    "walt-core",
    "walt-tokenizer",
    "torch",
    "accelerate",
)
SELECTION_FILE = "selection.json"
"""What a sweep chose."""
MIN_SEEDS = 3
"""Fewer say little of the spread."""
Setting = tuple[int, int, float]
"""Block, timestep, peak learning rate: what is chosen, and which comes first in a tie."""
OTHER_TASKS = ("generate", "reconstruct")
"""What other commands write into their record.json, which is no result of a probe."""

# --- Writing and reading -------------------------------------------------------------------------


def write_record(path: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Writes a record with its hash after checking it.

    Args:
        path: the file, there whole or not at all.
        record: all fields as plain values; `schema_version` and `sha256` are put in.

    Returns:
        The record as `read_record` gives it back.

    Raises:
        ValueError: if the record does not fit `record.schema.json`, or contradicts itself.
    """
    # Tuples become lists, as they are once read back.
    plain = json.loads(json.dumps({"schema_version": SCHEMA_VERSION, "sha256": "", **record}))
    for place, value in fractions(plain):
        if value != value or value in (float("inf"), float("-inf")):
            raise ValueError(f"{path}: {place} is {value}, expected a finite number")
    plain["sha256"] = record_hash(plain)
    check_record(plain, str(path))
    write_json(path, plain)
    return plain


def read_record(path: Path) -> dict[str, Any]:
    """Reads a record and checks it.

    Raises:
        ValueError: if the file is not JSON, not a record of this version, or was edited.
    """
    record = read_json(path)
    check_record(record, str(path))
    return record


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A record's file, and either the record or why it is none."""

    path: Path
    """The file."""
    record: dict[str, Any]
    """The record; empty where there is a problem."""
    problem: str = ""
    """Why the file cannot be used: damaged, edited or of another version."""


def find_records(folders: Iterable[str | Path]) -> list[Found]:
    """All records of probes in and below folders, in the order of their paths, damaged ones too.

    Args:
        folders: folders, or files that are records.

    Raises:
        FileNotFoundError: if a folder does not exist.
    """
    paths: dict[Path, Path] = {}
    for folder in map(Path, folders):
        if not folder.exists():
            raise FileNotFoundError(f"results folder {folder} does not exist")
        found = (
            [folder]
            if folder.is_file()
            else [path for name in (RECORD_FILE, TEST_FILE) for path in folder.rglob(name)]
        )
        for path in sorted(found):
            paths.setdefault(path.resolve(), path)
    return [found for path in paths.values() for found in _find(path)]


def _find(path: Path) -> Iterator[Found]:
    """The record in a file, if it is one of a probe."""
    try:
        value = read_json(path)
        if isinstance(value, dict) and ("kind" in value or value.get("task") in OTHER_TASKS):
            return
        check_record(value, str(path))
    except (ValueError, OSError) as error:
        yield Found(path=path, record={}, problem=" ".join(str(error).split()))
    else:
        yield Found(path=path, record=value)


# --- What compares -------------------------------------------------------------------------------


def comparable_fields(record: Mapping[str, Any]) -> dict[str, Any]:
    """What must agree for two numbers to be ranked, by the place of each field in the record."""
    metric, dataset, config = record["metric"], record["dataset"], record["config"]
    fields = {
        "task": record["task"],
        "split": record["split"],
        **{f"metric.{name}": metric[name] for name in ("name", "variant", "direction")},
        **{f"dataset.{name}": dataset[name] for name in ("name", "test_name")},
        **{f"dataset.clip.{name}": value for name, value in dataset["clip"].items()},
        **{
            f"dataset.{split}.{name}": dataset[split][name]
            for split in ("train", "test")
            for name in ("fingerprint", "evaluated")
        },
        "readout.name": record["readout"]["name"],
        **{f"readout.{name}": value for name, value in config["readout"].items()},
        # `accumulate` parts a batch as the number of processes does, which decides nothing either.
        **{
            f"optim.{name}": value
            for name, value in record["optim"].items()
            if name not in ("peak_lr", "accumulate")
        },
        "draws": config["data"].get("draws", 1),
        "held_out": record["held_out"],
        "precision": record["environment"]["precision"],
        "shuffled_labels": record["shuffled_labels"],
    }
    return copy.deepcopy(fields)


def problem_of(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """What one expects to be comparable: one task on one data set, and how it was measured."""
    dataset = record["dataset"]
    names = record["task"], dataset["name"], dataset["test_name"]
    return *names, record["split"], record["shuffled_labels"]


def replicate_fields(record: Mapping[str, Any]) -> dict[str, Any]:
    """What must agree for two numbers to be averaged: everything but the seeds."""
    return comparable_fields(record) | {
        **{f"backbone.{name}": record["backbone"][name] for name in ("name", "weights_hash")},
        **{f"features.{name}": value for name, value in record["features"].items()},
        "optim.peak_lr": record["optim"]["peak_lr"],
    }


def comparable_key(record: Mapping[str, Any]) -> str:
    """Short hash of what must agree for two numbers to be ranked."""
    return content_hash(comparable_fields(record))[:12]


def replicate_key(record: Mapping[str, Any]) -> str:
    """Short hash of what must agree for two numbers to be averaged."""
    return content_hash(replicate_fields(record))[:12]


def differences(
    one: Mapping[str, Any], other: Mapping[str, Any], *, replicates: bool = False
) -> list[str]:
    """One phrase for each field that keeps two records from being compared.

    Args:
        one: a record.
        other: another.
        replicates: whether they are to be averaged, not only ranked.
    """
    pick = replicate_fields if replicates else comparable_fields
    first, second = pick(one), pick(other)
    names = list(first) + [name for name in second if name not in first]
    return [
        f"{name} is {first.get(name)!r} in one, {second.get(name)!r} in the other"
        for name in names
        if first.get(name) != second.get(name)
    ]


def setting_of(record: Mapping[str, Any]) -> Setting:
    """Block, timestep and learning rate of a record."""
    features = record["features"]
    return features["block"], features["timestep"], record["optim"]["peak_lr"]


def check_comparable(records: Sequence[Mapping[str, Any]]) -> None:
    """Checks that the numbers of records can be ranked.

    Raises:
        ValueError: if they are not comparable, naming the fields that differ.
    """
    for record in records[1:]:
        if found := differences(records[0], record):
            raise ValueError(
                f"records of {records[0]['task']} and {record['task']} cannot be ranked: "
                f"{'; '.join(found)}; compare runs that agree in these"
            )


def rank(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records from the best to the worst; equal ones keep their order.

    Raises:
        ValueError: if they are not comparable, naming the fields that differ.
    """
    check_comparable(records)
    return sorted(
        records,
        key=lambda record: record["metric"]["value"],
        reverse=bool(records) and records[0]["metric"]["direction"] == "up",
    )


# --- What goes into a record ---------------------------------------------------------------------


def coverage(counts: Coverage) -> dict[str, Any]:
    """What of a split was there, as plain values."""
    return {
        "expected": counts.expected,
        "missing": counts.missing,
        "failed": counts.failed,
        "reasons": [list(reason) for reason in counts.reasons],
    }


def environment(processes: int, device: str, precision: str = "no") -> dict[str, Any]:
    """Where a result was made: machine, precision (`no` is fp32), versions, commit."""
    packages = {}
    for package in PACKAGES:
        try:
            packages[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            packages[package] = "not installed"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "device": device,
        "processes": processes,
        "precision": precision,
        "packages": packages,
        "git_commit": git_commit(),
    }


def git_commit() -> str:
    """Commit of the checkout that this code runs from; empty outside one.

    An installed package may lie within the checkout of something else, which does not track it.
    """
    file = Path(__file__)
    for command in (["ls-files", "--error-unmatch", file.name], ["rev-parse", "HEAD"]):
        try:
            answer = subprocess.run(
                ["git", *command],
                cwd=file.parent,
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return ""
    return answer.stdout.strip()
