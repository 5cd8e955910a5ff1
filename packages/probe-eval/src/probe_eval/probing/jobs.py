"""Jobs: cells that share forwards, trained together, measured, and written one by one.

A job that was killed goes on at the shard, the step or the cell that it had come to.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from probe_eval import records
from probe_eval.backbone import FrozenBackbone, load_backbone
from probe_eval.clock import Clock
from probe_eval.config import FeatureConfig, ProbeConfig
from probe_eval.data import open_splits
from probe_eval.probing import results
from probe_eval.probing.cells import (
    cell_identity,
    cell_name,
    job_key,
    read_cell,
    split_into_jobs,
    split_into_trainings,
)
from probe_eval.probing.heads import Head, frames
from probe_eval.probing.measuring import by_block, measure
from probe_eval.probing.results import Measured
from probe_eval.probing.scratch import check_state, clear, read_state
from probe_eval.probing.training import Job, extract, is_done, load_tasks, whole_time
from probe_eval.sharding import load_sharded
from probe_eval.storage.cache import told_disk_errors

__all__ = [
    "cell_identity",
    "cell_name",
    "job_key",
    "run_cell",
    "run_job",
    "split_into_jobs",
    "test_job",
]

SCRATCH = "work"


def run_cell(cell: ProbeConfig, accelerator: Accelerator) -> dict[str, Any]:
    """Trains and measures one cell: a job of its own, whose scratch is `work` in its folder.

    Returns:
        The record, which also lies in `cell.output`.

    Raises:
        ValueError: see `run_job`.
    """
    return run_job([cell], accelerator, folder=Path(cell.output) / SCRATCH)[0]


def run_job(
    cells: Sequence[ProbeConfig], accelerator: Accelerator, *, folder: Path
) -> list[dict[str, Any]]:
    """Trains and measures cells that share forwards; what is finished is read back.

    Every clip goes through the backbone once, whatever the number of blocks, tasks, learning rates
    and seeds. Each cell is written when it has been measured.

    Reference: From Image to Video, Sec. 3.4 and App. E.

    Args:
        cells: with one `job_key`.
        accelerator: devices and processes.
        folder: scratch that all processes see; removed when all cells are finished.

    Returns:
        The records in the order of the cells.

    Raises:
        ValueError: for unknown names, values out of range, a folder of another run, weights that
            have changed; or, when all other cells are written, naming the cells that failed.
        FileNotFoundError: if the backbone's weights are not there.
    """
    check_cells(cells)
    state = read_state(folder, cells[0])
    backbone = open_backbone(cells[0].features, accelerator)
    check_state(state, backbone, folder)
    given = {cell_name(cell): cell for cell in cells}
    known = [read_cell(values) for values in state["training"]] if state else []
    # The folders are those that are given now: results may have been moved.
    under_way = [given.get(cell_name(cell), cell) for cell in known]
    candidates = [*under_way, *(cell for cell in cells if cell not in under_way)]
    todo = [cell for cell in candidates if not is_done(cell, backbone)]
    accelerator.wait_for_everyone()
    if todo:
        if all(cell not in todo for cell in under_way):
            under_way = []
        job = Job(todo, under_way, accelerator, folder, backbone, state)
        with told_disk_errors(folder):
            job.prepare()
            if under_way:
                job.train(under_way)
            job.forget_training()
            for training in split_into_trainings([cell for cell in todo if cell not in under_way]):
                job.train(training)
    if accelerator.is_main_process:
        clear(folder)
    accelerator.wait_for_everyone()
    failed = {cell_name(cell): reason for cell in cells if (reason := results.read_failed(cell))}
    if failed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise ValueError(
            f"{len(failed)} of {len(cells)} readouts could not be trained ({reasons}); delete "
            f"{results.FAILED_FILE} in the folder of a cell to train it again"
        )
    return [found for cell in cells if (found := results.read_finished(cell))]


def test_job(
    cells: Sequence[ProbeConfig], accelerator: Accelerator, *, folder: Path
) -> list[dict[str, Any]]:
    """Measures finished readouts on the test split, each once.

    Args:
        cells: with one `job_key`; each has its record.
        accelerator: devices and processes.
        folder: scratch that all processes see; removed at the end.

    Returns:
        What lies in `test.json` of the cells, in their order.

    Raises:
        ValueError: if a cell is not finished, or weights or readout have changed since.
    """
    check_cells(cells)
    clock, first = Clock(), cells[0]
    backbone = open_backbone(first.features, accelerator)
    found: dict[ProbeConfig, dict[str, Any]] = {}
    problems: list[str] = []
    for cell in cells:
        record = results.read_finished(cell)
        if record is None:
            raise ValueError(f"{cell.output} has no {records.RECORD_FILE}; train it first")
        results.check_weights(record, backbone, Path(cell.output))
        found[cell] = record
    todo = [cell for cell in cells if results.read_finished(cell, records.TEST_FILE) is None]
    accelerator.wait_for_everyone()
    if todo and not first.held_out:
        if accelerator.is_main_process:
            for cell in todo:
                records.write_record(Path(cell.output) / records.TEST_FILE, found[cell])
    elif todo:
        splits = open_splits(first.data, first.held_out)
        tasks = load_tasks(todo, splits)
        tables = extract(backbone, splits, "test", todo, tasks, accelerator, folder, clock)
        test = Measured(name="test", dataset=splits.test, failed=tables.features.failed)
        heads = [
            Head(
                name=cell_name(cell),
                cell=cell,
                task=tasks[cell.task],
                readout=results.readout_of(cell, backbone, found[cell]).to(accelerator.device),
                num_frames=frames(cell),
            )
            for cell in todo
        ]
        environment = results.environment(accelerator)
        for group in by_block(heads):
            numbers = measure(
                group,
                tables,
                accelerator,
                batch_size=first.features.batch_size,
                clock=clock,
                title=f"test {backbone.name} block {group[0].cell.features.block}",
            )
            time = whole_time(clock, accelerator)
            for head in group:
                result = numbers[head.name]
                if isinstance(result, str):
                    problems.append(f"{head.name}: {result}")
                elif accelerator.is_main_process:
                    results.write_test(
                        found[head.cell],
                        head.cell,
                        head.task,
                        result,
                        train=splits.train,
                        test=test,
                        time=time,
                        environment=environment,
                    )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        clear(folder)
    accelerator.wait_for_everyone()
    if problems:
        raise ValueError(
            f"{len(problems)} of {len(cells)} readouts cannot be measured on the test split "
            f"({'; '.join(problems)})"
        )
    return [record for cell in cells if (record := results.read_finished(cell, records.TEST_FILE))]


def open_backbone(features: FeatureConfig, accelerator: Accelerator) -> FrozenBackbone:
    """The backbone of a job, on this process's device or spread over all of them.

    Raises:
        ValueError: see `load_backbone` and `load_sharded`.
        FileNotFoundError: if its weights are not there.
    """
    if features.shard:
        return load_sharded(features.backbone, features.pretrained, accelerator)
    return load_backbone(features.backbone, features.pretrained, accelerator.device)


def check_cells(cells: Sequence[ProbeConfig]) -> None:
    """Checks that cells are of one job, each once and in a folder of its own.

    Raises:
        ValueError: naming what is wrong.
    """
    if not cells:
        raise ValueError("there are no cells")
    for cell in cells[1:]:
        if job_key(cell) != job_key(cells[0]):
            raise ValueError(
                f"{cell_name(cell)} and {cell_name(cells[0])} do not share forwards; give each "
                "of the jobs of split_into_jobs alone"
            )
    for what in ([cell_name(cell) for cell in cells], [cell.output for cell in cells]):
        if twice := [name for name in what if what.count(name) > 1]:
            raise ValueError(f"{twice[0]} is there twice; give each cell once, with its own output")
