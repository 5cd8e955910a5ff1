"""Result records: versioned JSON that says everything a number depends on."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from probe_datasets import Coverage
from probe_eval.runs import read_json, write_json

SCHEMA_VERSION = 1
PACKAGES = (
    "probe-eval",
    "probe-datasets",
    "probe-readouts",
    "walt-core",
    "walt-tokenizer",
    "torch",
    "accelerate",
)
NUMBER = (int, float)
SPLIT = {"fingerprint": str, "expected": int, "evaluated": int, "missing": int, "failed": int}
FIELDS: dict[str, Any] = {
    "schema_version": int,
    "task": str,
    "metric": {"name": str, "direction": str, "value": NUMBER, "chance": NUMBER},
    "dataset": {
        "name": str,
        "train": SPLIT,
        "validation": SPLIT,
    },
    "backbone": {"name": str, "weights_hash": str, "num_parameters": int},
    "features": {"block": int, "timestep": int, "alpha": NUMBER, "sigma": NUMBER},
    "readout": {"name": str, "num_parameters": int},
    "shuffled_labels": bool,
    "seed": int,
    "config": dict,
    "final_loss": NUMBER,
    "environment": {"python": str, "platform": str, "processes": int, "packages": dict},
}
"""Required fields and their types; a record may hold more."""


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Writes a record after checking it.

    Raises:
        ValueError: if a field is missing or of the wrong type.
    """
    check_record(record, str(path))
    write_json(path, record)


def read_record(path: Path) -> dict[str, Any]:
    """Reads a record and checks it.

    Raises:
        ValueError: if the file is not JSON or not a record of this version.
    """
    record = read_json(path)
    check_record(record, str(path))
    return record


def check_record(record: Any, name: str) -> None:
    """Checks version and required fields.

    Raises:
        ValueError: naming the first field that is missing or wrong.
    """
    version = record.get("schema_version") if isinstance(record, dict) else None
    if version != SCHEMA_VERSION:
        raise ValueError(f"{name} has schema version {version!r}, expected {SCHEMA_VERSION}")
    _check(record, FIELDS, name)


def _check(value: Any, expected: Any, name: str) -> None:
    if isinstance(expected, dict):
        for key, kind in expected.items():
            if not isinstance(value, dict) or key not in value:
                raise ValueError(f"{name} lacks the field {key!r}")
            _check(value[key], kind, f"{name}: {key}")
    elif not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise ValueError(f"{name} is {value!r}, of the wrong type")


def coverage(counts: Coverage) -> dict[str, Any]:
    """What of a split was there, as plain values."""
    return {
        "expected": counts.expected,
        "missing": counts.missing,
        "failed": counts.failed,
        "reasons": [list(reason) for reason in counts.reasons],
    }


def environment(processes: int, device: str) -> dict[str, Any]:
    """Where a result was made: machine, versions, commit."""
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
        "packages": packages,
        "git_commit": git_commit(),
    }


def git_commit() -> str:
    """Commit of the checkout that this code runs from; empty outside one."""
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""
