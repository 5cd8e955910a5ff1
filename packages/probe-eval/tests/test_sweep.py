"""Sweeps: the grid, what is refused at once, what is run again, and what is said of failures."""

import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from probe_eval import cli, records, runs
from probe_eval.config import ProbeConfig
from probe_eval.probing import jobs
from probe_eval.probing.cells import cell_name, split_into_jobs
from probe_eval.recipes import recipe
from probe_eval.sweeps import plan, survey
from probe_eval.sweeps.estimate import Survey, backbone_key
from probe_eval.sweeps.execution import run_job_file
from probe_eval.sweeps.plan import Clips
from probe_eval.sweeps.sweep import SweepConfig, expand, run_sweep, split_backbone


def small(output: Path, **more: Any) -> SweepConfig:
    """A sweep of 16 cells and 4 jobs."""
    given: dict[str, Any] = {
        "tasks": ("synthetic-action", "synthetic-depth"),
        "backbones": ("i-walt", "v-walt"),
        "blocks": (0, 2),
        "timesteps": (0, 50),
        "seeds": (0,),
        "preset": "smoke",
        "output": str(output),
    }
    return SweepConfig(**{**given, **more})


# --- The grid ------------------------------------------------------------------------------------


def test_every_combination_is_a_cell_with_a_folder_of_its_own(tmp_path: Path) -> None:
    config = small(tmp_path, seeds=(0, 1, 2), peak_lrs=(1e-3, 3e-3))
    cells = expand(config)
    assert len(cells) == 2 * 2 * 2 * 2 * 3 * 2
    assert len({cell.config.output for cell in cells}) == len(cells)
    for cell in cells:
        start = recipe(cell.recipe, "smoke")
        assert cell.output == tmp_path / "cells" / cell_name(cell.config)
        assert cell.config.task == start.task
        assert cell.config.data == start.data
        assert cell.config.held_out == 0.1
        assert cell.config.features.backbone == cell.backbone
    found = {
        (c.recipe, c.backbone, c.config.features.block, c.config.features.timestep, c.config.seed)
        for c in cells
        if c.config.optim.peak_lr == 1e-3
    }
    assert len(found) == 48


def test_tasks_of_one_data_set_share_jobs(tmp_path: Path) -> None:
    """Two backbones at two noise levels, whatever the tasks, blocks, rates and seeds."""
    cells = expand(small(tmp_path, seeds=(0, 1, 2), peak_lrs=(1e-3, 3e-3)))
    assert len(split_into_jobs([cell.config for cell in cells])) == 4


def test_settings_are_those_of_the_recipe_unless_set(tmp_path: Path) -> None:
    words = ("optim.steps=7", "data.size=32", "synthetic-depth:optim.steps=9")
    cells = expand(small(tmp_path, set=words))
    steps = {cell.recipe: cell.config.optim.steps for cell in cells}
    assert steps == {"synthetic-action": 7, "synthetic-depth": 9}
    assert {cell.config.data.size for cell in cells} == {32}
    rates = {cell.config.optim.peak_lr for cell in cells}
    assert rates == {recipe("synthetic-action", "smoke").optim.peak_lr}


def test_each_data_set_is_given_its_folder(tmp_path: Path) -> None:
    config = small(
        tmp_path,
        tasks=("ssv2", "kinetics400"),
        roots=("ssv2=/data/ssv2", "kinetics400=/data/k=4"),
    )
    roots = {cell.config.data.dataset: cell.config.data.root for cell in expand(config)}
    assert roots == {"ssv2": "/data/ssv2", "kinetics400": "/data/k=4"}
    config = small(tmp_path, tasks=("point-tracks",), roots=("perception_test=/p", "movi_e=/m"))
    data = expand(config)[0].config.data
    assert (data.root, data.test_root) == ("/m", "/p")


@pytest.mark.parametrize(
    ("word", "backbone", "folder"),
    [
        ("v-walt", "v-walt", "given"),
        ("v-walt@weights/b", "v-walt", "weights/b"),
        ("adapter.py:load", "adapter.py:load", "given"),
        ("me/adapter.py:load@weights/a@2", "me/adapter.py:load", "weights/a@2"),
        ("me@home/adapter.py:load", "me@home/adapter.py:load", "given"),
        ("package.module:load@weights", "package.module:load", "weights"),
    ],
)
def test_a_backbone_may_be_a_function_and_have_a_folder(
    word: str, backbone: str, folder: str
) -> None:
    assert split_backbone(word, "given") == (backbone, folder)


def test_two_folders_of_one_backbone_are_two_backbones(tmp_path: Path) -> None:
    cells = expand(small(tmp_path, backbones=("v-walt@a", "v-walt@b")))
    assert {backbone_key(cell.config) for cell in cells} == {("v-walt", "a"), ("v-walt", "b")}
    assert len({cell.config.output for cell in cells}) == 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ("synthetic-acton",)}, "unknown recipe 'synthetic-acton'.*synthetic-action"),
        ({"tasks": ()}, "tasks is empty"),
        ({"seeds": (1, 1)}, "seeds has 1 twice"),
        ({"blocks": (-1,)}, "blocks -1 must not be negative"),
        ({"peak_lrs": (0.0,)}, "peak_lrs 0.0 must be above 0"),
        ({"held_out": 1.0}, "held_out 1.0 must be"),
        ({"backbones": (":load",)}, "backbone ':load' must be a name"),
        ({"engine_options": ("gpu",)}, "--engine-options takes NAME=VALUE"),
        ({"engine_options": ("gpu=1",)}, "the local engine has none"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        small(tmp_path, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"set": ("optim.stps=3",)}, "recipe synthetic-action: unknown setting 'optim.stps'"),
        ({"set": ("features.block=3",)}, "cannot be set here: --blocks decides it"),
        ({"set": ("optim.peak_lr=3",)}, "--peak-lrs decides it"),
        ({"set": ("ssv2:optim.steps=3",)}, "unknown recipe before ':' in --set 'ssv2'"),
        ({"peak_lrs": (1e-9,)}, "recipe synthetic-action: end_lr"),
        ({"roots": ("ssv2=/data",)}, "unknown data set in --roots 'ssv2'; known: synthetic"),
        ({"roots": ("ssv2",)}, "--roots takes NAME=VALUE"),
        ({"backbones": ("v-walt", "v-walt@results/pretrained")}, "is the same as"),
    ],
)
def test_a_cell_that_makes_no_sense_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        expand(small(tmp_path, **change))


# --- Running, with a stand-in for the jobs -------------------------------------------------------


@dataclasses.dataclass
class Runs:
    """What was asked of the stand-in."""

    trained: list[list[str]] = dataclasses.field(default_factory=list)
    """Cells of each job that were not finished."""
    tested: list[list[str]] = dataclasses.field(default_factory=list)
    refuse: Callable[[ProbeConfig], bool] = lambda cell: False
    """Cells whose loss is not finite."""
    broken: Callable[[ProbeConfig], bool] = lambda cell: False
    """Cells whose job fails."""


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch, make_record: Callable[..., dict[str, Any]]) -> Runs:
    """Jobs that write records at once; the score is the better, the deeper and cleaner."""
    asked = Runs()

    def record_of(cell: ProbeConfig, split: str) -> dict[str, Any]:
        value = 0.1 * cell.features.block + 0.01 * cell.seed - cell.features.timestep / 1000
        fields = {
            "split": split,
            "task": cell.task,
            "held_out": cell.held_out,
            "features.block": cell.features.block,
            "features.timestep": cell.features.timestep,
            "backbone.name": cell.features.backbone,
            "optim": dataclasses.asdict(cell.optim),
            "seed": cell.seed,
            "metric.value": value + 0.5,
            "config": dataclasses.asdict(cell),
        }
        return make_record(fields)

    def run_job(cells: Sequence[ProbeConfig], accelerator: Accelerator, *, folder: Path) -> None:
        assert plan.read_job(folder.with_suffix(".json"))[0].cells == tuple(cells)
        folder.mkdir(parents=True, exist_ok=True)
        if any(map(asked.broken, cells)):
            raise ValueError("the disk is full")
        open_cells = [c for c in cells if not plan.is_done(c, "train") and not plan.failure(c)]
        asked.trained.append([Path(cell.output).name for cell in open_cells])
        failed = []
        for cell in open_cells:
            if asked.refuse(cell):
                runs.write_json(Path(cell.output, "failed.json"), {"reason": "loss is nan"})
                failed.append(cell.output)
                continue
            split = "held-out" if cell.held_out else "test"
            records.write_record(Path(cell.output, "record.json"), record_of(cell, split))
        if failed:
            raise ValueError(f"{len(failed)} cells failed")

    def test_job(cells: Sequence[ProbeConfig], accelerator: Accelerator, *, folder: Path) -> None:
        asked.tested.append([Path(cell.output).name for cell in cells])
        for cell in cells:
            records.write_record(Path(cell.output, "test.json"), record_of(cell, "test"))

    def look(cells: Sequence[Any], *args: Any, **kwargs: Any) -> Survey:
        configs = [cell.config for cell in cells]
        return Survey(
            clips={c.data: Clips(train=60, held_out=6, test=72) for c in configs},
            weights={backbone_key(c): "abc" for c in configs},
            backbones={},
            heads={},
        )

    monkeypatch.setattr(jobs, "run_job", run_job)
    monkeypatch.setattr(jobs, "test_job", test_job)
    monkeypatch.setattr(survey, "look", look)
    return asked


def stats(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every result."""
    paths = [*folder.rglob("record.json"), *folder.rglob("test.json")]
    return {str(p): (p.stat().st_ino, p.stat().st_mtime_ns) for p in paths}


def test_a_sweep_trains_chooses_and_tests_once(
    tmp_path: Path, accelerator: Accelerator, done: Runs
) -> None:
    found = run_sweep(small(tmp_path), accelerator)
    assert [len(names) for names in done.trained] == [4, 4, 4, 4]
    assert found["failed"] == {}
    assert [(row["task"], row["block"], row["timestep"]) for row in found["results"]] == [
        ("synthetic-action", 2, 0),
        ("synthetic-action", 2, 0),
        ("synthetic-depth", 2, 0),
        ("synthetic-depth", 2, 0),
    ]
    tested = [name for names in done.tested for name in names]
    assert len(tested) == 4, "more than what was chosen was measured on the test split"
    assert sorted(path.parent.name for path in tmp_path.rglob("test.json")) == sorted(tested)
    assert list((tmp_path / "jobs").iterdir()) == []
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["config"]["tasks"] == ["synthetic-action", "synthetic-depth"]
    assert (written["forwards"], written["forwards_one_by_one"]) == (4 * 66, 16 * 66)

    before = stats(tmp_path)
    again = run_sweep(small(tmp_path), accelerator)
    assert stats(tmp_path) == before
    assert again["results"] == found["results"]
    assert len(done.trained) == 4
    assert len(done.tested) == 2, "one job for each backbone, which both tasks share"


def test_a_sweep_that_is_widened_runs_what_lacks(
    tmp_path: Path, accelerator: Accelerator, done: Runs
) -> None:
    run_sweep(small(tmp_path), accelerator)
    before = stats(tmp_path)
    done.trained.clear()
    found = run_sweep(small(tmp_path, seeds=(0, 1), blocks=(0, 2, 4)), accelerator)
    assert sum(map(len, done.trained)) == 48 - 16
    after = stats(tmp_path)
    assert {name: after[name] for name in before} == before
    assert {row["block"] for row in found["results"]} == {4}
    assert len(found["changed"]) == 4
    assert "block 2, timestep 0" in found["changed"][0]


def test_without_held_out_clips_nothing_is_chosen(
    tmp_path: Path, accelerator: Accelerator, done: Runs
) -> None:
    found = run_sweep(small(tmp_path, held_out=0.0), accelerator)
    assert len(found["results"]) == 16
    assert done.tested == []
    assert not (tmp_path / "selection.json").exists()


def test_a_cell_that_fails_is_named_and_not_repeated(
    tmp_path: Path, accelerator: Accelerator, done: Runs
) -> None:
    done.refuse = lambda cell: cell.features.block == 0 and cell.features.timestep == 50
    found = run_sweep(small(tmp_path), accelerator)
    cells = list(found["failed"])
    assert set(found["failed"].values()) == {"loss is nan"}
    assert len(cells) == 4
    assert len(list(tmp_path.rglob("record.json"))) == 12
    assert len(found["results"]) == 4, "what is left is chosen from"
    done.trained.clear()
    again = run_sweep(small(tmp_path), accelerator)
    assert done.trained == []
    assert list(again["failed"]) == cells
    done.refuse = lambda cell: False
    last = run_sweep(small(tmp_path, retry_failed=True), accelerator)
    assert last["failed"] == {}
    assert sorted(name for names in done.trained for name in names) == sorted(cells)


def test_a_job_that_fails_leaves_the_others_alone(
    tmp_path: Path, accelerator: Accelerator, done: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    done.broken = lambda cell: cell.features.timestep == 0 and cell.features.backbone == "i-walt"
    with caplog.at_level(logging.INFO, logger="probe_eval"):
        found = run_sweep(small(tmp_path), accelerator)
    assert list(found["failed"].values()) == ["the disk is full"]
    assert "i-walt timestep 0 on synthetic" in next(iter(found["failed"]))
    assert len(list(tmp_path.rglob("record.json"))) == 12
    assert len(list((tmp_path / "jobs").glob("*.json"))) == 1, "its scratch is kept"
    assert "job 2/4" in caplog.text
    assert "s left" in caplog.text
    done.broken = lambda cell: False
    done.trained.clear()
    assert run_sweep(small(tmp_path), accelerator)["failed"] == {}
    assert [len(names) for names in done.trained] == [4]
    assert list((tmp_path / "jobs").iterdir()) == []


def test_a_job_killed_after_its_last_record_is_forgotten(
    tmp_path: Path, accelerator: Accelerator, done: Runs
) -> None:
    run_sweep(small(tmp_path), accelerator)
    cells = [cell.config for cell in expand(small(tmp_path))]
    job = plan.Job(kind="train", cells=tuple(cells[:4]))
    plan.write_job(tmp_path, job).with_suffix("").mkdir()
    run_sweep(small(tmp_path), accelerator)
    assert list((tmp_path / "jobs").iterdir()) == []


def test_an_engine_runs_the_jobs_by_their_files(
    tmp_path: Path,
    accelerator: Accelerator,
    done: Runs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From another folder, as on another machine: paths are meant from where the sweep began."""
    engines = pytest.importorskip("probe_eval.sweeps.engines")
    calls: list[dict[str, Any]] = []
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)

    def run_everywhere(paths: Sequence[Path], run: Callable[[Path], None], **more: Any) -> None:
        calls.append(more)
        paths = [path.resolve() for path in paths]
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path / "elsewhere")
            for path in paths:
                run(path)

    monkeypatch.setattr(engines, "run_everywhere", run_everywhere)
    config = small(
        Path("results"), engine="submitit", engine_options=("partition=gpu", "timeout_min=5")
    )
    found = run_sweep(config, accelerator)
    assert found["failed"] == {}
    assert len(list((tmp_path / "results").rglob("record.json"))) == 16
    assert calls[0]["engine"] == "submitit"
    assert calls[0]["options"] == {"partition": "gpu", "timeout_min": "5"}
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(
    tmp_path: Path,
    accelerator: Accelerator,
    done: Runs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*args: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(runs, "write_text", refuse)
    with pytest.raises(OSError, match=r"cannot be written to \(Read-only file system\)") as refusal:
        run_sweep(small(tmp_path / "results"), accelerator)
    assert str(tmp_path / "results") in str(refusal.value)
    assert done.trained == []


def test_a_folder_of_something_else_is_refused(
    tmp_path: Path, accelerator: Accelerator, done: Runs
) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="holds files that are not a run"):
        run_sweep(small(tmp_path), accelerator)
    assert done.trained == []


def test_a_job_file_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match="is not the file of a job"):
        run_job_file(path)


# --- The command line ----------------------------------------------------------------------------

WORDS = [
    *("sweep", "--tasks", "synthetic-action,synthetic-depth", "--backbones", "i-walt", "v-walt"),
    *("--blocks", "0,2", "--timesteps=0,50", "--seeds", "0", "--preset", "smoke"),
]


def test_numbers_may_be_parted_by_commas_or_spaces(
    tmp_path: Path, done: Runs, capsys: pytest.CaptureFixture
) -> None:
    assert cli.main([*WORDS, "--output", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert len(list(tmp_path.rglob("record.json"))) == 16
    assert "1 of at least 3 seeds" in out
    assert f"probe-eval report {tmp_path}" in out
    assert out.count("synthetic-action") == 2, "a row for each backbone"


def test_a_failure_is_told_and_is_the_exit_status(
    tmp_path: Path, done: Runs, capsys: pytest.CaptureFixture
) -> None:
    done.refuse = lambda cell: cell.features.block == 0
    assert cli.main([*WORDS, "--output", str(tmp_path), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert len(found["results"]) == 4
    assert "loss is nan" in found["failed"].values()
    assert cli.main([*WORDS, "--output", str(tmp_path), "--seeds", "0"]) == 1
    out = capsys.readouterr().out
    assert "--retry-failed" in out
    assert "loss is nan" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--blocks", "0,x"], "blocks"),
        (["--tasks", "nothing"], "unknown recipe 'nothing'"),
        (["--engine", "cloud"], "engine"),
        (["--preset", "huge"], "preset"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    assert cli.main([*WORDS, "--output", str(tmp_path / "results"), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "results").exists()


# --- The real jobs -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_clip_is_forwarded_once_for_each_noise_level(
    tmp_path: Path, twins: Path, capsys: pytest.CaptureFixture
) -> None:
    """As planned, as counted while it ran, and as clips times noise levels times backbones."""
    words = [
        *("sweep", "--tasks", "moving-shapes-action,moving-shapes-shape", "--preset", "smoke"),
        *("--backbones", "i-walt,v-walt", "--pretrained", str(twins), "--blocks", "0,2,4"),
        *("--timesteps", "0,200", "--seeds", "0,1", "--held-out", "0.3"),
        *("--output", str(tmp_path / "sweep"), "--json", "--set", "data.size=16"),
        *("data.num_frames=5", "data.limit=20", "data.workers=0", "optim.steps=2"),
        *("optim.batch_size=4", "readout.width=8", "readout.num_heads=2"),
        *("optim.warmup_steps=1", f"features.cache_folder={tmp_path / 'cache'}"),
    ]
    assert cli.main([*words, "--dry-run"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert not list(tmp_path.iterdir()), "planning left something behind"
    assert (planned["cells"]["all"], planned["cells"]["open"]) == (48, 48)
    assert (planned["encodes"], planned["encodes_held"]) == (20, 0), "twins share their tokenizer"
    assert 0 < planned["disk_gb"] < planned["memory_gb"] < 0.1
    assert planned["seconds"] > 0

    assert cli.main(words) == 0
    done = json.loads(capsys.readouterr().out)
    found = [records.read_record(path) for path in (tmp_path / "sweep").rglob("record.json")]
    counted = {
        (r["backbone"]["name"], r["features"]["timestep"]): r["time"]["forwards"] for r in found
    }
    assert len(found) == 48
    assert counted == {(name, step): 20 for name in ("i-walt", "v-walt") for step in (0, 200)}
    assert planned["forwards"] == sum(counted.values())
    assert planned["forwards_one_by_one"] == 48 * 20
    assert {row["test"]["seeds"] for row in done["results"]} == {2}
    assert len(list((tmp_path / "sweep").rglob("test.json"))) == 2 * 2 * 2

    assert cli.main([*words, "--dry-run"]) == 0
    after = json.loads(capsys.readouterr().out)
    assert (after["cells"]["finished"], after["jobs"], after["forwards"]) == (48, [], 0)
    assert cli.main([*words, "--timesteps", "0,50", "--dry-run"]) == 0
    wider = json.loads(capsys.readouterr().out)
    assert wider["forwards"] == 2 * 20
    assert (wider["encodes"], wider["encodes_held"]) == (0, 20)


def test_a_block_beyond_the_depth_is_refused_at_once(
    tmp_path: Path, twins: Path, capsys: pytest.CaptureFixture
) -> None:
    words = [*WORDS, "--pretrained", str(twins), "--output", str(tmp_path / "sweep")]
    assert cli.main([*words, "--blocks", "0,9"]) == 2
    assert "block 9 must be 0 to 4" in capsys.readouterr().err
    assert cli.main([*words, "--timesteps", "0,1000"]) == 2
    assert "1000" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
