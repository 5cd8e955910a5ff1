"""Where jobs run: here, on a Slurm cluster through submitit, or on a Ray cluster.

Jobs are files, and a function runs one of them. They are independent: one that fails stops no
other, and one that is finished is found so by the function itself, so that all of them may be
given again.
"""

import contextlib
import inspect
import json
import logging
import os
import shutil
import subprocess
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from probe_eval.progress import Tracker
from probe_eval.runs import write_json

Engine = Literal["local", "submitit", "ray"]
Run = Callable[[Path], None]

logger = logging.getLogger(__name__)
DISTRIBUTED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""The variables that tell a process of its peers."""
DEFAULT_MINUTES = 24 * 60
"""Time of a Slurm job that is given none; submitit's own would be 5 minutes."""
SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_BETWEEN_QUEUES = 15.0
"""How often Slurm is asked which jobs it has."""
SUBMITTED_FILE = "submitted.json"
LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"


def run_everywhere(
    paths: Sequence[Path],
    run: Run,
    *,
    engine: str,
    folder: Path,
    options: Mapping[str, str] | None = None,
) -> None:
    """Runs a function on each of many files, and comes back when all have ended.

    Args:
        paths: the jobs; every machine sees them under these names.
        run: function of an importable module.
        engine: `local`: one after the other in this process; `submitit`: one Slurm job each;
            `ray`: one task of a Ray cluster each.
        folder: for logs and what the engine keeps; every machine sees it.
        options: of the engine: parameters of submitit's executor such as `slurm_partition`,
            `timeout_min`, `nodes`, `tasks_per_node`, `gpus_per_node` and `slurm_setup` (the prefix
            may be left out); arguments of `ray.init`, such as `address`, or of a remote function
            of Ray, such as `num_gpus`. Values are read as JSON where they are JSON.

    Raises:
        RuntimeError: jobs failed; names each with its reason and its log, after all have ended.
        ValueError: for an unknown engine, an option that it does not have, an extra that is not
            installed, or several processes before an engine that starts its own.
    """
    if engine not in get_args(Engine):
        raise ValueError(f"engine {engine!r} is unknown; known: {', '.join(get_args(Engine))}")
    given = {name: parse_value(text) for name, text in (options or {}).items()}
    if engine == "local":
        if given:
            raise ValueError(f"engine 'local' has no options, but was given {', '.join(given)}")
        failed = run_here(paths, run)
    else:
        if (launched := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
            raise ValueError(
                f"engine {engine!r} was asked for by {launched} processes; it starts its own, so "
                "run the command without a launcher"
            )
        start = run_on_slurm if engine == "submitit" else run_on_ray
        failed = start([path.resolve() for path in paths], run, folder.resolve(), given)
    if failed:
        lines = [f"{path}: {reason}" for path, reason in failed.items()]
        raise RuntimeError(
            f"{len(failed)} of {len(paths)} jobs failed, the others are done; the same command "
            "tries again\n  " + "\n  ".join(lines)
        )


def parse_value(text: str) -> Any:
    """The value that a text spells in JSON, or else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def last_line(text: str) -> str:
    """The last line of a traceback, which says what was wrong."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no reason given"


def run_here(paths: Sequence[Path], run: Run) -> dict[Path, str]:
    """Runs jobs one after the other, and returns why some failed."""
    failed = {}
    with Tracker("jobs", len(paths)) as tracker:
        for path in paths:
            try:
                run(path)
            except Exception as error:
                failed[path] = f"{type(error).__name__}: {error}"
                logger.warning("job %s failed: %s", path, error)
            tracker.advance(note=f"{len(failed)} failed")
    return failed


# --- Slurm ---------------------------------------------------------------------------------------


class SlurmTask:
    """What a Slurm job runs, in each of its tasks.

    Slurm sends a signal when it takes the machine away or the time is up; submitit then asks
    `checkpoint` what to put in the queue instead. The job goes on from its own checkpoint.
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    def __call__(self, path: Path) -> None:
        import submitit

        logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
        here = submitit.JobEnvironment()
        introduce(here.global_rank, here.num_tasks, here.local_rank, here.hostnames[0], here.job_id)
        self.run(path)

    def checkpoint(self, path: Path) -> Any:
        """The same again."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, path)


def introduce(rank: int, world_size: int, local_rank: int, host: str, job: str) -> None:
    """Sets the variables of torch.distributed for this process, or clears them for one alone.

    Args:
        rank: number of the process.
        world_size: how many there are.
        local_rank: number of the process on its machine.
        host: the machine of rank 0.
        job: name that all processes know; the port follows from it.
    """
    for name in DISTRIBUTED:
        os.environ.pop(name, None)
    if world_size == 1:
        return
    import torch

    if gpus := torch.cuda.device_count():
        # Slurm may show each process all GPUs of the machine, or its own alone.
        local_rank %= gpus
    else:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    port = 15_000 + zlib.crc32(job.encode()) % 17_000  # below those that the kernel gives away
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(local_rank)}
    os.environ |= {"MASTER_ADDR": host, "MASTER_PORT": str(port)}


def run_on_slurm(
    paths: Sequence[Path], run: Run, folder: Path, options: dict[str, Any]
) -> dict[Path, str]:
    """Submits jobs, waits for them, and returns why some failed."""
    try:
        import submitit
    except ImportError as error:
        raise ValueError(
            "engine 'submitit' is not installed: pip install 'probe-eval[submitit]'"
        ) from error
    if lacking := [name for name in ("sbatch", "srun", "squeue") if not shutil.which(name)]:
        raise ValueError(
            f"engine 'submitit' needs Slurm, but {', '.join(lacking)} cannot be found; run the "
            "command on a machine of the cluster, or choose another engine"
        )
    executor = submitit.AutoExecutor(folder, cluster="slurm")
    set_options(executor, options)
    jobs = attach(paths, folder)
    if jobs:
        logger.info("%d of %d jobs are in the queue of Slurm already", len(jobs), len(paths))
    if new := [path for path in paths if path not in jobs]:
        try:
            jobs |= dict(zip(new, executor.map_array(SlurmTask(run), new), strict=True))
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            reason = " ".join(str(error).split())
            raise RuntimeError(f"sbatch refused the jobs: {reason}") from error
    remember(jobs, folder)
    ids = sorted({job.job_id.partition("_")[0] for job in jobs.values()})
    logger.info("waiting for Slurm jobs %s, whose logs are in %s", " ".join(ids), folder)
    try:
        return wait_for_slurm(jobs)
    except KeyboardInterrupt:
        logger.warning(
            "Slurm jobs go on without this command, which waits for them again when it is given "
            "again; to cancel them: scancel %s",
            " ".join(ids),
        )
        raise


def set_options(executor: Any, options: Mapping[str, Any]) -> None:
    """Gives options to an executor of submitit.

    Raises:
        ValueError: it has no such option, or refuses a value.
    """
    shared = {"name", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node"}
    shared |= {"tasks_per_node", "timeout_min", "stderr_to_stdout"}
    full: dict[str, Any] = {"name": "probe-eval", "timeout_min": DEFAULT_MINUTES}
    for name, value in options.items():
        name = "timeout_min" if name in ("time", "slurm_time") else name
        full[name if name in shared or name.startswith("slurm_") else f"slurm_{name}"] = value
    if {full.get("nodes", 1), full.get("tasks_per_node", 1)} != {1}:
        # One process that fails ends the others, which would wait for it.
        full.setdefault("slurm_srun_args", ["--kill-on-bad-exit=1"])
    try:
        executor.update_parameters(**full)
    except (NameError, TypeError, ValueError, AssertionError) as error:
        from submitit import SlurmExecutor

        known = sorted(shared | SlurmExecutor._valid_parameters())
        raise ValueError(
            f"engine 'submitit' does not take these options: {str(error).splitlines()[0]}; known: "
            f"{', '.join(known)}"
        ) from error


def result_paths(job: Any) -> list[Path]:
    """The files in which the tasks of a job leave what came of them."""
    return [job.task(number).paths.result_pickle for number in range(job.num_tasks)]


def wait_for_slurm(jobs: Mapping[Path, Any]) -> dict[Path, str]:
    """Waits until every job has left its results or the queue; returns why some failed."""
    waiting, failed = dict(jobs), {}
    missing: set[str] = set()
    asked = time.monotonic()
    with Tracker("jobs", len(jobs)) as tracker:
        while waiting:
            gone: set[str] = set()
            if time.monotonic() - asked > SECONDS_BETWEEN_QUEUES:
                asked, queue = time.monotonic(), queued()
                away = set() if queue is None else {j.job_id for j in waiting.values()} - queue
                # Twice: the last file of a job may be seen late on a network drive.
                gone, missing = away & missing, away
            for path, job in list(waiting.items()):
                if job.job_id not in gone and not all(p.is_file() for p in result_paths(job)):
                    continue
                del waiting[path]
                if reason := why_failed(job):
                    failed[path] = reason
                    logger.warning("job %s failed: %s", path, reason)
                tracker.advance(note=f"{len(failed)} failed")
            if waiting:
                time.sleep(SECONDS_BETWEEN_LOOKS)
    return failed


def why_failed(job: Any) -> str:
    """What was wrong with a job that has ended and where its log is; empty if nothing was."""
    from submitit.core.utils import pickle_load

    lost = ""
    for number, path in enumerate(result_paths(job)):
        log = job.task(number).paths.stderr
        if not path.is_file():
            lost = lost or f"ended without a result: killed, or out of time or memory (log: {log})"
            continue
        outcome, result = pickle_load(path)  # a file that our own job wrote
        if outcome != "success":
            return f"{last_line(result)} (log: {log})"
    return lost


def queued() -> set[str] | None:
    """Ids of this user's jobs that Slurm has not ended; None when it does not answer."""
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--user={os.getuid()}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        logger.debug("squeue did not answer: %s", error)
        return None
    return set(done.stdout.split())


def submitted(folder: Path) -> dict[str, list]:
    """Name of the job and number of its tasks for the paths that were submitted from a folder."""
    file = folder / SUBMITTED_FILE
    return json.loads(file.read_text()) if file.is_file() else {}


def remember(jobs: Mapping[Path, Any], folder: Path) -> None:
    """Notes which jobs were submitted, so that none is submitted twice."""
    new = {str(path): [job.job_id, job.num_tasks] for path, job in jobs.items()}
    write_json(folder / SUBMITTED_FILE, submitted(folder) | new)


def attach(paths: Sequence[Path], folder: Path) -> dict[Path, Any]:
    """Jobs of an earlier command that Slurm still has.

    Raises:
        RuntimeError: if Slurm does not say which it has.
    """
    from submitit import SlurmJob

    known = submitted(folder)
    queue = queued() if known else set()
    if queue is None:
        raise RuntimeError(f"squeue does not answer whether jobs of {folder} run; try again later")
    jobs = {}
    for path in paths:
        name, num_tasks = known.get(str(path), ["", 0])
        if name in queue:
            job = SlurmJob(folder, name, tasks=list(range(num_tasks)))
            # One that has left its results is only being cleared away.
            if not all(result.is_file() for result in result_paths(job)):
                jobs[path] = job
    return jobs


# --- Ray -----------------------------------------------------------------------------------------


def run_on_ray(
    paths: Sequence[Path], run: Run, folder: Path, options: dict[str, Any]
) -> dict[Path, str]:
    """Runs jobs as tasks of a Ray cluster, and returns why some failed."""
    try:
        import ray
    except ImportError as error:
        raise ValueError("engine 'ray' is not installed: pip install 'probe-eval[ray]'") from error
    of_task = {"num_cpus", "num_gpus", "resources"}
    of_init = options.keys() & inspect.signature(ray.init).parameters.keys() - of_task
    init = {name: options.pop(name) for name in of_init}
    ours = not ray.is_initialized()
    if ours:
        ray.init(**{"include_dashboard": False, "log_to_driver": False} | init)
    try:
        # Ray hides the GPUs from a task that asks for none.
        remote = {"num_gpus": min(1, ray.cluster_resources().get("GPU", 0))} | options
        try:
            task = ray.remote(**remote)(run_ray_task)
        except (TypeError, ValueError) as error:
            raise ValueError(f"engine 'ray' does not take these options: {error}") from error
        folder.mkdir(parents=True, exist_ok=True)
        logger.info("%d jobs on Ray, whose logs are in %s", len(paths), folder)
        logs = {path: folder / f"{path.stem}.log" for path in paths}
        waiting = {task.remote(run, path, logs[path]): path for path in paths}
        failed: dict[Path, str] = {}
        with Tracker("jobs", len(paths)) as tracker:
            while waiting:
                done, _ = ray.wait(list(waiting))
                for ended in done:
                    path = waiting.pop(ended)
                    try:
                        reason = ray.get(ended)
                    except ray.exceptions.RayError as error:  # the process died, or the machine
                        reason = last_line(str(error))
                    if reason:
                        failed[path] = f"{reason} (log: {logs[path]})"
                        logger.warning("job %s failed: %s", path, failed[path])
                    tracker.advance(note=f"{len(failed)} failed")
    except KeyboardInterrupt:
        logger.warning("Ray ends its tasks with this command; the same command resumes them")
        raise
    finally:
        if ours:
            ray.shutdown()
    return failed


def run_ray_task(run: Run, path: Path, log: Path) -> str:
    """Runs a job in a worker of Ray, with all that it says in a file; returns why it failed."""
    with log.open("a", buffering=1) as stream, contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(stream))
        stack.enter_context(contextlib.redirect_stderr(stream))
        handler = logging.StreamHandler(stream)
        handler.setFormatter(logging.Formatter(LOG_FORMAT))
        logging.getLogger().addHandler(handler)
        logging.getLogger().setLevel(logging.INFO)
        stack.callback(logging.getLogger().removeHandler, handler)
        introduce(0, 1, 0, "", "")
        try:
            run(path)
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            return f"{type(error).__name__}: {error}"
    return ""
