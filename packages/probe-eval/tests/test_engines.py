"""Jobs run in every engine that is here, failures stop no other, and mistakes are said at once.

Slurm itself is in the tests of the repository. What jobs run is in a file of its own, as other
processes import it by its name.
"""

import importlib.util
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from probe_eval.sweeps import engines
from probe_eval.sweeps.engines import introduce, parse_value, run_everywhere

JOBS = """
import logging
import os


def run(path):
    done = path.with_suffix(".done")
    if done.exists():
        return
    what = path.read_text()
    logging.getLogger("jobs").info("running %s", path.name)
    if what == "fail":
        raise ValueError("this job cannot work")
    done.write_text(f"{what} {os.environ.get('WORLD_SIZE')}")
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """What jobs run, importable here and in the processes that are started."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "engine_jobs.py").write_text(JOBS)
    paths = [str(tmp_path / "code"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    yield __import__("engine_jobs")
    sys.modules.pop("engine_jobs")


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Three jobs, of which the second fails."""
    found = [tmp_path / f"{number}.json" for number in range(3)]
    for path, what in zip(found, ("work", "fail", "work"), strict=True):
        path.write_text(what)
    return found


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_job_that_fails_stops_no_other_and_is_tried_again(
    engine: str, module: ModuleType, paths: list[Path], tmp_path: Path
) -> None:
    if engine != "local" and importlib.util.find_spec(engine) is None:
        pytest.skip(f"{engine} is not installed")
    folder = tmp_path / "engine"
    with pytest.raises(RuntimeError) as caught:
        run_everywhere(paths, module.run, engine=engine, folder=folder)
    first, second = str(caught.value).splitlines()
    assert first.startswith("1 of 3 jobs failed, the others are done")
    assert second.startswith(f"  {paths[1]}: ValueError: this job cannot work")
    if engine != "local":
        log = Path(second.rpartition("(log: ")[2].removesuffix(")"))
        assert "ValueError: this job cannot work" in log.read_text()
        assert "running 1.json" in log.read_text()
    for path in (paths[0], paths[2]):
        assert path.with_suffix(".done").read_text() == "work None"
    paths[1].write_text("work")
    before = paths[0].with_suffix(".done").stat().st_mtime_ns
    run_everywhere(paths, module.run, engine=engine, folder=folder)
    assert paths[1].with_suffix(".done").exists()
    assert paths[0].with_suffix(".done").stat().st_mtime_ns == before


def test_progress_is_told(
    module: ModuleType, paths: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO), pytest.raises(RuntimeError):
        run_everywhere(paths, module.run, engine="local", folder=tmp_path)
    assert any("jobs" in text and "3/3" in text and "1 failed" in text for text in caplog.messages)


def test_an_interrupt_is_not_a_failure(paths: list[Path], tmp_path: Path) -> None:
    seen = []

    def run(path: Path) -> None:
        seen.append(path)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_everywhere(paths, run, engine="local", folder=tmp_path)
    assert seen == paths[:1]


@pytest.mark.parametrize("engine", ["submitit", "ray"])
def test_a_missing_extra_names_the_way_out(
    engine: str, paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, engine, None)
    with pytest.raises(ValueError, match=rf"pip install 'probe-eval\[{engine}\]'"):
        run_everywhere(paths, print, engine=engine, folder=tmp_path)


def test_mistakes_are_said_before_anything_runs(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(path: Path) -> None:
        raise AssertionError("ran")

    with pytest.raises(ValueError, match="'slurm' is unknown; known: local, submitit, ray"):
        run_everywhere(paths, run, engine="slurm", folder=tmp_path)
    with pytest.raises(ValueError, match="'local' has no options, but was given partition"):
        run_everywhere(paths, run, engine="local", folder=tmp_path, options={"partition": "gpu"})
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"asked for by 2 processes.*without a launcher"):
        run_everywhere(paths, run, engine="submitit", folder=tmp_path)


def test_no_slurm_is_said(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="needs Slurm, but sbatch, srun, squeue cannot be found"):
        run_everywhere(paths, print, engine="submitit", folder=tmp_path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8", 8),
        ("0.5", 0.5),
        ("true", True),
        ("gpu", "gpu"),
        ("1:30:00", "1:30:00"),
        ('["module load cuda"]', ["module load cuda"]),
    ],
)
def test_values_are_json_where_they_can_be(text: str, value: Any) -> None:
    assert parse_value(text) == value


def test_options_reach_sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submitit = pytest.importorskip("submitit")
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    executor = submitit.AutoExecutor(tmp_path, cluster="slurm")
    options = {"partition": "gpu", "slurm_qos": "high", "tasks_per_node": 8, "gpus_per_node": 8}
    engines.set_options(executor, {**options, "nodes": 2, "setup": ["module load cuda"]})
    script = executor._executor._make_submission_file_text("true", "1")
    for line in (
        *("#SBATCH --partition=gpu", "#SBATCH --qos=high", "#SBATCH --ntasks-per-node=8"),
        *("#SBATCH --gpus-per-node=8", "#SBATCH --nodes=2", "#SBATCH --time=1440"),
        *("module load cuda", "#SBATCH --job-name=probe-eval"),
    ):
        assert line in script.splitlines(), line
    assert "--kill-on-bad-exit=1" in script
    one = submitit.AutoExecutor(tmp_path, cluster="slurm")
    engines.set_options(one, {"time": 30})
    script = one._executor._make_submission_file_text("true", "1")
    assert "#SBATCH --time=30" in script
    assert "--kill-on-bad-exit" not in script
    for wrong in ({"colour": "red"}, {"nodes": "two"}):
        with pytest.raises(ValueError, match=rf"(?s){next(iter(wrong))}.*known: .*partition"):
            engines.set_options(one, wrong)


def test_ranks_are_introduced_and_one_alone_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*engines.DISTRIBUTED, "ACCELERATE_USE_CPU"):
        monkeypatch.setenv(name, "left over")
    introduce(5, 8, 1, "node-a", "123_4")
    first = {name: os.environ.get(name) for name in engines.DISTRIBUTED}
    assert (first["RANK"], first["WORLD_SIZE"], first["MASTER_ADDR"]) == ("5", "8", "node-a")
    assert 15_000 <= int(first["MASTER_PORT"] or 0) < 32_000
    introduce(6, 8, 2, "node-a", "123_4")
    assert os.environ["MASTER_PORT"] == first["MASTER_PORT"]
    introduce(0, 1, 0, "node-a", "123_4")
    assert not set(engines.DISTRIBUTED) & os.environ.keys()


@pytest.mark.parametrize(
    ("gpus", "local_rank", "cpu"), [(8, "3", None), (1, "0", None), (0, "3", "true")]
)
def test_a_rank_uses_a_gpu_that_it_sees(
    monkeypatch: pytest.MonkeyPatch, gpus: int, local_rank: str, cpu: str | None
) -> None:
    for name in (*engines.DISTRIBUTED, "ACCELERATE_USE_CPU"):
        monkeypatch.setenv(name, "")
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    introduce(3, 4, 3, "node-a", "1")
    assert os.environ["LOCAL_RANK"] == local_rank
    assert os.environ.get("ACCELERATE_USE_CPU") == cpu
    introduce(0, 1, 0, "", "")
    os.environ.pop("ACCELERATE_USE_CPU", None)


def test_jobs_that_may_still_run_are_not_submitted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    path = tmp_path / "a.json"
    monkeypatch.setattr(engines, "queued", lambda: None)
    assert engines.attach([path], tmp_path) == {}
    (tmp_path / engines.SUBMITTED_FILE).write_text(json.dumps({str(path): ["1_0", 1]}))
    with pytest.raises(RuntimeError, match="squeue does not answer whether"):
        engines.attach([path], tmp_path)
