"""The files of a cell: what claims its folder, its readout, its curve and its record."""

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from probe_datasets import ClipDataset, Coverage
from probe_eval import records, runs
from probe_eval.backbone import FrozenBackbone
from probe_eval.config import ProbeConfig
from probe_eval.harness import Row
from probe_eval.probing.cells import cell_identity, read_cell
from probe_eval.probing.heads import Head
from probe_eval.probing.measuring import Numbers
from probe_eval.storage.forwards import NOISE
from probe_eval.tasks.base import Task
from probe_readouts import BackboneIdentity, Readout, load_readout, save_readout

READOUT_FILE = "readout.safetensors"
LOSSES_FILE = "losses.json"
EVALUATIONS_FILE = "evaluations.json"
FAILED_FILE = "failed.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """A split that was trained on or measured."""

    name: str
    """`train`, `held-out` or `test`."""
    dataset: ClipDataset
    """Its clips."""
    failed: Mapping[str, str]
    """Why clips could not be read, by their names."""

    def describe(self) -> dict[str, Any]:
        """Fingerprint and coverage, as plain values."""
        counts: Coverage = self.dataset.coverage.with_failed(self.failed)
        return {
            "fingerprint": self.dataset.fingerprint,
            "evaluated": counts.found,
            **records.coverage(counts),
        }


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """Where and in which precision results are made."""
    return records.environment(
        accelerator.num_processes, str(accelerator.device), accelerator.mixed_precision
    )


def identify(backbone: FrozenBackbone, cell: ProbeConfig) -> BackboneIdentity:
    """Which features a cell's readout reads, as `probe_readouts.load_readout` wants it told."""
    return BackboneIdentity(
        name=backbone.name,
        weights=backbone.weights_hash,
        block=cell.features.block,
        timestep=cell.features.timestep,
        time_method=cell.readout.time,
    )


def claim(cell: ProbeConfig, *, write: bool) -> bool:
    """Makes the folder of a cell its own, or recognises it as such; see `runs.claim`."""
    return runs.claim(Path(cell.output), "probe", cell_identity(cell), write=write)


def read_finished(cell: ProbeConfig, name: str = records.RECORD_FILE) -> dict[str, Any] | None:
    """The record of a finished cell.

    Raises:
        ValueError: if it is damaged, was edited, or is of another cell.
    """
    path = Path(cell.output) / name
    if not path.is_file():
        return None
    record = records.read_record(path)
    found = runs.compare(cell_identity(read_cell(record["config"])), cell_identity(cell))
    if found:
        raise ValueError(
            f"{path} is of another run ({'; '.join(found)}); choose another --output, or delete "
            "the folder"
        )
    return record


def read_failed(cell: ProbeConfig) -> str | None:
    """Why a cell failed in an earlier run."""
    path = Path(cell.output) / FAILED_FILE
    return runs.read_json(path)["reason"] if path.is_file() else None


def check_weights(record: Mapping[str, Any], backbone: FrozenBackbone, place: Path) -> None:
    """Checks that a record is of the weights that the backbone has now.

    Raises:
        ValueError: naming both hashes.
    """
    found = record["backbone"]["weights_hash"]
    if found != backbone.weights_hash:
        raise ValueError(
            f"the weights of backbone {backbone.name!r} have changed: they are "
            f"{backbone.weights_hash} now, and were {found} for {place}; choose another --output, "
            "or put the former weights back"
        )


def write_result(
    head: Head,
    backbone: FrozenBackbone,
    numbers: Numbers,
    *,
    train: Measured,
    test: Measured,
    losses: Sequence[Row],
    evaluations: Sequence[Row],
    time: Mapping[str, Any],
    environment: Mapping[str, Any],
) -> None:
    """Writes readout, curves and, last, the record of a cell.

    Raises:
        OSError: if the disk is full or the folder cannot be written to.
    """
    cell, folder = head.cell, Path(head.cell.output)
    metric = numbers.values[head.task.metric]
    about = {"task": cell.task, "dataset": cell.data.dataset, head.task.metric: metric}
    save_readout(head.readout, folder / READOUT_FILE, identify(backbone, cell), about)
    with (folder / READOUT_FILE).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    curve = [[row["step"], row[head.name]] for row in losses]
    runs.write_json(folder / LOSSES_FILE, curve)
    if rows := own_rows(evaluations, head.name):
        runs.write_json(folder / EVALUATIONS_FILE, rows)
    level: dict[str, Any] = dict(backbone.noise_level(cell.features.timestep))
    level["log_snr"] = level["log_snr"] if math.isfinite(level["log_snr"]) else None
    data = cell.data
    record = {
        "task": cell.task,
        "recipe": cell.recipe,
        **score(head.task, numbers, train.dataset, test.name),
        "dataset": {
            "name": data.dataset,
            "test_name": data.dataset
            if test.name == "held-out"
            else data.test_dataset or data.dataset,
            "clip": {"num_frames": data.num_frames, "stride": data.stride, "size": data.size},
            "train": train.describe(),
            "test": test.describe(),
        },
        "backbone": {
            "name": backbone.name,
            "weights_hash": backbone.weights_hash,
            "num_parameters": backbone.num_parameters,
        },
        "features": {
            "block": cell.features.block,
            "timestep": cell.features.timestep,
            **{name: level[name] for name in ("alpha", "sigma", "log_snr")},
            "noise": NOISE,
            "noise_seed": cell.features.noise_seed,
            "average_time": cell.features.average_time,
            "dtype": cell.features.dtype,
        },
        "readout": {
            "name": type(head.readout).__name__,
            "num_parameters": sum(p.numel() for p in head.readout.parameters()),
            "sha256": digest,
        },
        "optim": dataclasses.asdict(cell.optim),
        "seed": cell.seed,
        "order_seed": cell.order_seed,
        "shuffled_labels": cell.shuffle_labels,
        "held_out": cell.held_out,
        "final_loss": curve[-1][1],
        "time": dict(time),
        "config": dataclasses.asdict(cell),
        "environment": dict(environment),
    }
    records.write_record(folder / records.RECORD_FILE, record)


def own_rows(rows: Sequence[Row], name: str) -> list[Row]:
    """The part of the evaluations of all readouts that is of one."""
    start = f"{name}/"
    return [
        {
            "step": row["step"],
            **{
                key.removeprefix(start): value
                for key, value in row.items()
                if key.startswith(start)
            },
        }
        for row in rows
    ]


def score(task: Task, numbers: Numbers, train: ClipDataset, split: str) -> dict[str, Any]:
    """`split`, `metric` and `metrics` of a record."""
    return {
        "split": split,
        "metric": {
            "name": task.metric,
            "variant": numbers.variant,
            "direction": task.direction,
            "value": numbers.values[task.metric],
            "chance": task.chance(train),
            "samples": numbers.samples,
        },
        "metrics": dict(numbers.values),
    }


def write_test(
    record: Mapping[str, Any],
    cell: ProbeConfig,
    task: Task,
    numbers: Numbers,
    *,
    train: ClipDataset,
    test: Measured,
    time: Mapping[str, Any],
    environment: Mapping[str, Any],
) -> None:
    """Writes the record of a finished readout on the test split."""
    tested = {
        **record,
        **score(task, numbers, train, test.name),
        "dataset": {
            **record["dataset"],
            "test_name": cell.data.test_dataset or cell.data.dataset,
            "test": test.describe(),
        },
        "time": dict(time),
        "environment": dict(environment),
    }
    records.write_record(Path(cell.output) / records.TEST_FILE, tested)


def readout_of(cell: ProbeConfig, backbone: FrozenBackbone, record: Mapping[str, Any]) -> Readout:
    """The readout that a finished cell left.

    Raises:
        ValueError: if it is damaged, or not the one that was measured.
    """
    path = Path(cell.output) / READOUT_FILE
    if not path.is_file():
        raise ValueError(f"{path} is missing; delete the folder, and run again to train it anew")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != record["readout"]["sha256"]:
        raise ValueError(
            f"{path} is not the readout that {records.RECORD_FILE} beside it was measured with; "
            "delete the folder and run again"
        )
    return load_readout(path, identify(backbone, cell))
