"""What a sweep is going to do: its jobs, and their forwards, heads, disk, memory and time.

A job is a file that names its cells. It is written before the job begins and removed when its
cells are finished, so that a sweep given again, also with more cells, goes on with the job that
was stopped and its scratch, and makes new jobs of what lacks.
"""

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from probe_eval import runs
from probe_eval.config import DataConfig, ProbeConfig
from probe_eval.probing.cells import read_cell, split_into_jobs, split_into_trainings
from probe_eval.records import RECORD_FILE, TEST_FILE, read_record

if TYPE_CHECKING:
    from probe_eval.sweeps.sweep import Cell

CELLS_FOLDER = "cells"
JOBS_FOLDER = "jobs"
FAILED_FILE = "failed.json"
ADAM_BYTES = 16
"""Of each parameter of a head in training: weight, gradient and two moments, in fp32."""

State = Literal["finished", "failed", "in progress", "open"]
STATES: tuple[State, ...] = get_args(State)
Kind = Literal["train", "test"]
RESULT: dict[Kind, str] = {"train": RECORD_FILE, "test": TEST_FILE}
"""Kind of job -> the file that says that a cell is done."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Cells that share forwards."""

    kind: Kind
    """Whether its readouts are trained, or measured on the test split."""
    cells: tuple[ProbeConfig, ...]
    """Its cells; those that are finished are not done again."""

    @property
    def names(self) -> list[str]:
        """Names of its cells."""
        return [Path(cell.output).name for cell in self.cells]

    @property
    def name(self) -> str:
        """Name of its file and its scratch."""
        text = "\n".join([self.kind, *sorted(self.names)])
        return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()

    @property
    def title(self) -> str:
        """What it is, in words."""
        first = self.cells[0]
        return (
            f"{first.features.backbone} timestep {first.features.timestep} on {first.data.dataset}"
        )

    @property
    def blocks(self) -> list[int]:
        """Blocks that its one forward of each clip is read at."""
        return sorted({cell.features.block for cell in self.cells})

    @property
    def tasks(self) -> list[str]:
        """Its tasks."""
        return sorted({cell.task for cell in self.cells})


def job_path(output: Path, job: Job) -> Path:
    """File of a job; its scratch is the folder of the same name without the suffix."""
    return output / JOBS_FOLDER / f"{job.name}.json"


# --- States --------------------------------------------------------------------------------------


def is_done(cell: ProbeConfig, kind: Kind) -> bool:
    """Whether the result of a cell is there; `check_records` says whether it is whole."""
    return (Path(cell.output) / RESULT[kind]).is_file()


def failure(cell: ProbeConfig) -> str:
    """Why a cell failed; empty if it did not."""
    path = Path(cell.output) / FAILED_FILE
    return str(runs.read_json(path).get("reason", "unknown")) if path.is_file() else ""


def states(cells: Iterable["Cell"], output: Path) -> dict[str, State]:
    """State of every cell, by the name of its folder."""
    begun = {name for job in begun_jobs(output, "train", with_scratch=True) for name in job}
    found: dict[str, State] = {}
    for cell in cells:
        name = cell.output.name
        if is_done(cell.config, "train"):
            found[name] = "finished"
        elif failure(cell.config):
            found[name] = "failed"
        else:
            found[name] = "in progress" if name in begun else "open"
    return found


def check_records(cells: Iterable["Cell"], hashes: Mapping[tuple[str, str], str]) -> None:
    """Checks every record that is there, and that it is of the weights that are there now.

    Args:
        cells: cells of a sweep.
        hashes: (backbone, pretrained) -> hash of its weights.

    Raises:
        ValueError: if a record was edited, damaged or written by another version; or naming the
            backbone whose weights have changed, its folder and both hashes.
    """
    for cell in cells:
        features = cell.config.features
        now = hashes[features.backbone, features.pretrained]
        for path in (cell.output / RECORD_FILE, cell.output / TEST_FILE):
            then = read_record(path)["backbone"]["weights_hash"] if path.is_file() else now
            if then != now:
                raise ValueError(
                    f"the weights of backbone {features.backbone!r} in {features.pretrained} have "
                    f"changed: {path} was measured with {then}, they are {now} now; choose another "
                    "--output, or put the former weights back"
                )


# --- Jobs ----------------------------------------------------------------------------------------


def begun_jobs(output: Path, kind: Kind, *, with_scratch: bool = False) -> list[list[str]]:
    """Names of the cells of each job that has a file, or a file and scratch."""
    found = [
        runs.read_json(path)
        for path in sorted((output / JOBS_FOLDER).glob("*.json"))
        if path.with_suffix("").is_dir() or not with_scratch
    ]
    return [job["names"] for job in found if job["kind"] == kind]


def plan_jobs(
    cells: Sequence[ProbeConfig],
    output: Path,
    kind: Kind,
    skip: Callable[[ProbeConfig], bool] = lambda cell: False,
) -> list[Job]:
    """Jobs of the cells that are not done: those that were begun, as they were, then new ones.

    Args:
        cells: all cells that are wanted.
        output: results folder of the sweep.
        kind: whether they are to be trained or to be tested.
        skip: cells that no new job is made for, although they are not done.
    """
    wanted = {Path(cell.output).name: cell for cell in cells}
    lacking = [name for name, cell in wanted.items() if not is_done(cell, kind) and not skip(cell)]
    left, jobs = set(lacking), []
    for names in begun_jobs(output, kind):
        if set(names) <= set(wanted) and left & set(names):
            jobs.append(Job(kind=kind, cells=tuple(wanted[name] for name in names)))
            left -= set(names)
    new = split_into_jobs([wanted[name] for name in lacking if name in left])
    return jobs + [Job(kind=kind, cells=tuple(members)) for members in new]


def write_job(output: Path, job: Job) -> Path:
    """Writes the file of a job, from which `probe_eval.sweeps.execution.run_job_file` runs it."""
    path = job_path(output, job)
    value = {
        "kind": job.kind,
        "names": job.names,
        "folder": str(Path.cwd()),
        "cells": [dataclasses.asdict(cell) for cell in job.cells],
    }
    runs.write_json(path, value)
    return path


def remove_job(output: Path, job: Job) -> None:
    """Forgets a job that is finished, and its scratch."""
    path = job_path(output, job)
    shutil.rmtree(path.with_suffix(""), ignore_errors=True)
    path.unlink(missing_ok=True)


def remove_finished(output: Path) -> None:
    """Forgets jobs that were killed after their last result had been written."""
    for path in sorted((output / JOBS_FOLDER).glob("*.json")):
        job, _ = read_job(path)
        done = [(output / CELLS_FOLDER / name / RESULT[job.kind]).is_file() for name in job.names]
        if all(done):
            remove_job(output, job)


def read_job(path: Path) -> tuple[Job, Path]:
    """The job of a file, and the folder that its paths are meant from.

    Raises:
        ValueError: if the file is not one of a job.
    """
    value = runs.read_json(path)
    try:
        cells = tuple(map(read_cell, value["cells"]))
        return Job(kind=value["kind"], cells=cells), Path(value["folder"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the file of a job: {error!r}") from error


# --- Numbers -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Clips:
    """How many clips a configuration reads."""

    train: int
    """Training clips, each random crop counted."""
    held_out: int
    """Clips kept from training; 0 where none are."""
    test: int
    """Clips of the test split."""

    @property
    def measured(self) -> int:
        """Clips that a cell is measured on."""
        return self.held_out or self.test


def forwards(job: Job, clips: Mapping[DataConfig, Clips]) -> int:
    """Forwards of a job: one for each clip, whatever is read from it and trained on it."""
    counts = clips[job.cells[0].data]
    if job.kind == "test":
        return counts.test
    if job.cells[0].data.draws:
        return counts.train + counts.measured
    trainings = split_into_trainings(job.cells)
    fresh = sum(cells[0].optim.steps * cells[0].optim.batch_size for cells in trainings)
    return fresh + counts.measured


def forwards_alone(job: Job, clips: Mapping[DataConfig, Clips]) -> int:
    """Forwards that the cells of a job would need one by one."""
    return sum(forwards(dataclasses.replace(job, cells=(cell,)), clips) for cell in job.cells)


def test_forwards(cells: Sequence["Cell"], clips: Mapping[DataConfig, Clips]) -> int:
    """Most forwards that testing what is chosen can need; none where all is tested already.

    The settings that are chosen for the tasks of one data set share a forward where their noise
    levels are equal.
    """
    tasks: dict[tuple, set[str]] = {}
    timesteps: dict[tuple, set[int]] = {}
    for cell in cells:
        if cell.config.held_out:
            key = (cell.backbone, cell.config.data)
            tasks.setdefault(key, set()).add(cell.recipe)
            timesteps.setdefault(key, set()).add(cell.config.features.timestep)
    return sum(min(len(tasks[key]), len(timesteps[key])) * clips[key[1]].test for key in tasks)


def describe(
    cells: Sequence["Cell"],
    jobs: Sequence[Job],
    found: Mapping[str, State],
    clips: Mapping[DataConfig, Clips],
) -> dict[str, Any]:
    """The plan as plain data: cells by state, heads, and forwards of every job.

    Args:
        cells: all cells of the sweep.
        jobs: those that are to be run.
        found: state of every cell.
        clips: how many clips there are.
    """
    rows = [
        {
            "name": job.name,
            "title": job.title,
            "backbone": job.cells[0].features.backbone,
            "timestep": job.cells[0].features.timestep,
            "dataset": job.cells[0].data.dataset,
            "tasks": job.tasks,
            "blocks": job.blocks,
            "cells": len(job.cells),
            "heads": len(open_cells(job)),
            "clips": dataclasses.asdict(clips[job.cells[0].data]),
            "forwards": forwards(job, clips),
            "forwards_one_by_one": forwards_alone(job, clips),
        }
        for job in jobs
    ]
    counts = [list(found.values()).count(state) for state in STATES]
    return {
        "cells": {"all": len(cells), **dict(zip(STATES, counts, strict=True))},
        "heads": sum(row["heads"] for row in rows),
        "forwards": sum(row["forwards"] for row in rows),
        "forwards_one_by_one": sum(row["forwards_one_by_one"] for row in rows),
        "test_forwards_at_most": test_forwards(cells, clips),
        "jobs": rows,
    }


def open_cells(job: Job) -> list[ProbeConfig]:
    """The cells of a job that are not done."""
    return [cell for cell in job.cells if not is_done(cell, job.kind)]
