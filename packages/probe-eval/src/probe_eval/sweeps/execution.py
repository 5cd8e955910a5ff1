"""Runs the jobs of a sweep: here, one after the other, or by their files on other machines."""

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from accelerate import Accelerator

from probe_eval.distributed import create_accelerator
from probe_eval.probing import jobs as running
from probe_eval.storage.shards import DamagedTableError
from probe_eval.sweeps import engines, plan
from probe_eval.sweeps.engines import Engine
from probe_eval.sweeps.plan import Job

logger = logging.getLogger(__name__)


def execute(
    jobs: Sequence[Job],
    output: Path,
    accelerator: Accelerator,
    *,
    engine: Engine,
    options: Mapping[str, str],
) -> dict[str, str]:
    """Runs jobs on an engine.

    Args:
        jobs: the jobs.
        output: results folder of the sweep.
        accelerator: devices and processes of the jobs that run here.
        engine: what runs them.
        options: of the engine.

    Returns:
        Why jobs failed, by their titles.
    """
    if not jobs:
        return {}
    if engine == "local":
        return execute_here(jobs, output, accelerator)
    paths = [plan.write_job(output, job) for job in jobs]
    failed: dict[str, str] = {}
    try:
        engines.run_everywhere(
            paths, run_job_file, engine=engine, folder=output / "engine", options=options
        )
    except RuntimeError as error:
        if not all(map(is_over, jobs)):
            failed[engine] = str(error)
    clear(jobs, output)
    return failed


def execute_here(jobs: Sequence[Job], output: Path, accelerator: Accelerator) -> dict[str, str]:
    """Runs jobs one after the other, in the processes that were launched."""
    failed: dict[str, str] = {}
    started, total, done = time.monotonic(), sum(len(job.cells) for job in jobs), 0
    for number, job in enumerate(jobs, start=1):
        if accelerator.is_main_process:
            plan.write_job(output, job)
            elapsed = time.monotonic() - started
            left = f", about {elapsed / done * (total - done):.0f} s left" if done else ""
            logger.info(
                "job %d/%d (%s)  %s: %s, blocks %s, %d heads%s",
                *(number, len(jobs), job.kind, job.title, " ".join(job.tasks)),
                *(",".join(map(str, job.blocks)), len(job.cells), left),
            )
        accelerator.wait_for_everyone()
        try:
            run_one(job, output, accelerator)
        except Exception as error:
            # With several processes, one may have failed alone, and the others wait for it.
            alone = isinstance(error, DamagedTableError) or not isinstance(error, ValueError)
            if accelerator.num_processes > 1 and alone:
                raise
            reason = " ".join(str(error).split()) or repr(error)
            logger.warning("job %d/%d failed: %s", number, len(jobs), reason)
            logger.debug("its traceback", exc_info=True)
            if not is_over(job):
                failed[f"job {number} ({job.kind}), {job.title}"] = reason
        done += len(job.cells)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            clear([job], output)
        accelerator.wait_for_everyone()
    return failed


def run_one(job: Job, output: Path, accelerator: Accelerator) -> None:
    """Runs one job in the processes that were launched."""
    run = running.run_job if job.kind == "train" else running.test_job
    run(job.cells, accelerator, folder=plan.job_path(output, job).with_suffix(""))


def run_job_file(path: Path) -> None:
    """Runs the job of a file; what an engine calls on a machine that sees the results folder.

    Raises:
        ValueError: if the file is not one of a job, or naming the cells that failed.
    """
    path = path.resolve()
    job, folder = plan.read_job(path)
    # Folders of weights and results may be relative to where the sweep was started.
    with contextlib.chdir(folder):
        run_one(job, path.parents[1], create_accelerator())


def clear(jobs: Sequence[Job], output: Path) -> None:
    """Removes the files of jobs that are finished."""
    for job in filter(is_over, jobs):
        plan.remove_job(output, job)


def is_over(job: Job) -> bool:
    """Whether each cell of a job has its result or has failed."""
    return all(plan.is_done(cell, job.kind) or plan.failure(cell) for cell in job.cells)
