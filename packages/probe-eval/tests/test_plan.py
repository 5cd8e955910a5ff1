"""What a sweep is going to do, counted without doing it."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from probe_eval import runs
from probe_eval.config import DataConfig, FeatureConfig, OptimConfig, ProbeConfig, ReadoutConfig
from probe_eval.probing.cells import cell_name
from probe_eval.sweeps import plan
from probe_eval.sweeps.estimate import (
    BackboneCost,
    HeadCost,
    Survey,
    backbone_key,
    head_key,
    of_jobs,
)
from probe_eval.sweeps.plan import Clips, Job
from probe_eval.sweeps.sweep import Cell

OPTIM = OptimConfig(steps=5, batch_size=4, warmup_steps=1)


def cell(folder: Path, **features: Any) -> ProbeConfig:
    """A cell with a folder of its own; `task`, `seed` and `data` are its own settings."""
    own = {name: features.pop(name) for name in ("task", "seed", "data") if name in features}
    made = ProbeConfig(
        **{"task": "action", **own}, features=FeatureConfig(**features), optim=OPTIM, held_out=0.1
    )
    return dataclasses.replace(made, output=str(folder / "cells" / cell_name(made)))


def grid(folder: Path, **axes: Any) -> list[ProbeConfig]:
    """A cell for every combination."""
    return [
        cell(folder, **dict(zip(axes, values, strict=True)))
        for values in itertools.product(*axes.values())
    ]


@pytest.fixture
def finish(make_record: Any) -> Any:
    """Function that writes the record of a cell."""
    from probe_eval.records import write_record

    def write(cell: ProbeConfig, name: str = "record.json") -> None:
        write_record(Path(cell.output, name), make_record(split="held-out", held_out=0.1))

    return write


AXES = {
    "task": ("action", "shape", "depth"),
    "timestep": (0, 50),
    "block": (0, 2, 4, 6),
    "seed": (0, 1, 2),
}


def test_one_forward_serves_all_blocks_tasks_and_seeds(tmp_path: Path) -> None:
    cells = grid(tmp_path, **AXES)
    jobs = plan.plan_jobs(cells, tmp_path, "train")
    clips = {cells[0].data: Clips(train=90, held_out=10, test=40)}
    assert [len(job.cells) for job in jobs] == [36, 36]
    assert [job.blocks for job in jobs] == [[0, 2, 4, 6]] * 2
    assert [plan.forwards(job, clips) for job in jobs] == [100, 100]
    assert [plan.forwards_alone(job, clips) for job in jobs] == [3600, 3600]
    assert not list(tmp_path.iterdir()), "a plan left a file"


def test_without_held_out_clips_the_test_split_is_measured() -> None:
    assert Clips(train=90, held_out=0, test=40).measured == 40
    assert Clips(train=90, held_out=10, test=40).measured == 10


def test_clips_that_are_new_in_every_epoch_are_forwarded_at_every_step(tmp_path: Path) -> None:
    """Seeds share the order of the clips, and with it their forwards."""
    cells = grid(tmp_path, seed=(0, 1, 2), block=(0, 2), data=(DataConfig(draws=0),))
    longer = [dataclasses.replace(c, optim=dataclasses.replace(OPTIM, steps=7)) for c in cells]
    clips = {cells[0].data: Clips(train=90, held_out=10, test=40)}
    (job,) = plan.plan_jobs(cells, tmp_path, "train")
    assert plan.forwards(job, clips) == 5 * 4 + 10
    assert plan.forwards(Job(kind="train", cells=(*cells, *longer)), clips) == 20 + 28 + 10
    assert plan.forwards(Job(kind="test", cells=tuple(cells)), clips) == 40


def test_a_sweep_with_more_seeds_plans_what_lacks(tmp_path: Path, finish: Any) -> None:
    for one in grid(tmp_path, **AXES):
        finish(one)
    more = grid(tmp_path, **{**AXES, "seed": (0, 1, 2, 3)})
    jobs = plan.plan_jobs(more, tmp_path, "train")
    assert {c.seed for job in jobs for c in job.cells} == {3}
    assert [len(job.cells) for job in jobs] == [12, 12]
    assert plan.plan_jobs(grid(tmp_path, **AXES), tmp_path, "train") == []


def test_a_job_that_was_stopped_is_resumed_with_its_own_cells(tmp_path: Path, finish: Any) -> None:
    """Its scratch is of these cells; new ones are a job of their own."""
    first = grid(tmp_path, seed=(0, 1), block=(0, 2))
    (job,) = plan.plan_jobs(first, tmp_path, "train")
    path = plan.write_job(tmp_path, job)
    finish(first[0])
    again = plan.plan_jobs(first, tmp_path, "train")
    assert [j.name for j in again] == [job.name], "it has its scratch no more"
    jobs = plan.plan_jobs(grid(tmp_path, seed=(0, 1, 2), block=(0, 2)), tmp_path, "train")
    assert jobs[0].name == job.name
    assert [c.seed for c in jobs[1].cells] == [2, 2]
    assert plan.job_path(tmp_path, jobs[0]) == path


def test_settings_that_decide_no_result_are_those_of_the_new_run(tmp_path: Path) -> None:
    """A job that was refused for want of disk goes on once it is given more."""
    cells = grid(tmp_path, seed=(0, 1))
    (job,) = plan.plan_jobs(cells, tmp_path, "train")
    plan.write_job(tmp_path, job)
    larger = [
        dataclasses.replace(c, features=dataclasses.replace(c.features, disk_gb=99.0))
        for c in cells
    ]
    (again,) = plan.plan_jobs(larger, tmp_path, "train")
    assert again.name == job.name
    assert {c.features.disk_gb for c in again.cells} == {99.0}


def test_a_job_of_a_wider_sweep_is_left_alone(tmp_path: Path) -> None:
    wide, narrow = grid(tmp_path, seed=(0, 1, 2)), grid(tmp_path, seed=(0, 1))
    (job,) = plan.plan_jobs(wide, tmp_path, "train")
    path = plan.write_job(tmp_path, job)
    (other,) = plan.plan_jobs(narrow, tmp_path, "train")
    assert other.name != job.name
    assert path.is_file()


def test_cells_that_failed_are_not_tried_again_unasked(tmp_path: Path) -> None:
    cells = grid(tmp_path, seed=(0, 1, 2))
    runs.write_json(Path(cells[1].output, "failed.json"), {"reason": "loss is nan"})
    assert plan.failure(cells[1]) == "loss is nan"
    (job,) = plan.plan_jobs(cells, tmp_path, "train", lambda c: bool(plan.failure(c)))
    assert [c.seed for c in job.cells] == [0, 2]


def test_a_job_survives_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job = Job(
        kind="train", cells=tuple(grid(tmp_path, seed=(0, 1), data=(DataConfig(options=("a=1",)),)))
    )
    path = plan.write_job(tmp_path, job)
    assert plan.read_job(path) == (job, tmp_path)
    plan.job_path(tmp_path, job).with_suffix("").mkdir()
    plan.remove_job(tmp_path, job)
    assert list((tmp_path / "jobs").iterdir()) == []
    path.write_text(json.dumps({"kind": "train"}))
    with pytest.raises(ValueError, match="is not the file of a job"):
        plan.read_job(path)


def test_states_tell_finished_failed_begun_and_open(tmp_path: Path, finish: Any) -> None:
    cells = [
        Cell(recipe="r", backbone="b", config=config) for config in grid(tmp_path, seed=range(4))
    ]
    finish(cells[0].config)
    runs.write_json(cells[1].output / "failed.json", {"reason": "nan"})
    job = Job(kind="train", cells=tuple(c.config for c in cells[:3]))
    plan.write_job(tmp_path, job)
    names = [c.output.name for c in cells]
    before = plan.states(cells, tmp_path)
    assert [before[name] for name in names] == ["finished", "failed", "open", "open"]
    plan.job_path(tmp_path, job).with_suffix("").mkdir()
    after = plan.states(cells, tmp_path)
    assert [after[name] for name in names] == ["finished", "failed", "in progress", "open"]


@pytest.mark.parametrize("name", ["record.json", "test.json"])
def test_an_edited_record_is_named(tmp_path: Path, finish: Any, name: str) -> None:
    (one,) = grid(tmp_path, seed=(0,))
    finish(one, name)
    path = Path(one.output, name)
    path.write_text(path.read_text().replace('"value": 0.5', '"value": 0.9'))
    cells = [Cell(recipe="r", backbone="v-walt", config=one)]
    with pytest.raises(ValueError, match="edited") as refusal:
        plan.check_records(cells, {backbone_key(one): "abc"})
    assert str(path) in str(refusal.value)


def test_weights_that_changed_are_named(tmp_path: Path, finish: Any) -> None:
    (config,) = grid(tmp_path, seed=(0,), backbone=("v-walt",), pretrained=("here",))
    finish(config)
    cells = [Cell(recipe="r", backbone="v-walt", config=config)]
    plan.check_records(cells, {("v-walt", "here"): "abc"})
    with pytest.raises(ValueError, match="weights of backbone 'v-walt' in here have changed") as no:
        plan.check_records(cells, {("v-walt", "here"): "new"})
    assert "abc" in str(no.value)
    assert "new" in str(no.value)


def test_the_choice_needs_a_forward_for_each_noise_level_at_most(tmp_path: Path) -> None:
    clips = {DataConfig(): Clips(train=90, held_out=10, test=40)}
    for tasks, timesteps, wanted in ((1, 3, 40), (3, 2, 80), (3, 1, 40)):
        configs = grid(tmp_path, task=("a", "b", "c")[:tasks], timestep=range(timesteps))
        cells = [Cell(recipe=c.task, backbone="b", config=c) for c in configs]
        assert plan.test_forwards(cells, clips) == wanted


# --- Disk, memory, time --------------------------------------------------------------------------


def survey(cells: list[ProbeConfig], encoder_hash: str = "tokenizer") -> Survey:
    """Round numbers."""
    cost = BackboneCost(
        read_seconds=0.5,
        encode_seconds=2.0,
        forward_seconds=1.0,
        input_bytes=10,
        block_bytes=1000,
        feature_bytes=2000,
        num_parameters=7,
        encoder_hash=encoder_hash,
    )
    return Survey(
        clips={c.data: Clips(train=90, held_out=10, test=40) for c in cells},
        weights={backbone_key(c): "abc" for c in cells},
        backbones={(backbone_key(c), c.data): cost for c in cells},
        heads={head_key(c): HeadCost(parameters=100, step_seconds=0.25) for c in cells},
    )


def test_what_is_kept_of_one_job_costs_the_next_nothing(tmp_path: Path) -> None:
    cells = grid(tmp_path, timestep=(0, 50), block=(0, 2), seed=(0, 1, 2))
    jobs = plan.plan_jobs(cells, tmp_path, "train")
    first, second = of_jobs(jobs, [plan.open_cells(job) for job in jobs], survey(cells))
    heads = 6 * (5 * 4 * 0.25 + 10 * 0.25 / 3)
    assert (first["encodes"], second["encodes"]) == (100, 0)
    assert first["seconds"] == pytest.approx(100 * 2.0 + 100 * 1.0 + heads)
    assert second["seconds"] == pytest.approx(100 * 1.0 + heads)
    assert first["kept_gb"] == pytest.approx(100 * 10 / 1e9)
    assert second["kept_gb"] == 0
    assert first["disk_gb"] == pytest.approx(100 * 2 * 1000 / 1e9)
    assert first["memory_gb"] == pytest.approx((6 * 100 * 16 + 7 * 4 + 4 * 2 * 2000) / 1e9)


def test_without_a_cache_every_job_encodes(tmp_path: Path) -> None:
    for cells, found in (
        (grid(tmp_path, timestep=(0, 50), cache=("none",)), "tokenizer"),
        (grid(tmp_path, timestep=(0, 50)), ""),
    ):
        jobs = plan.plan_jobs(cells, tmp_path, "train")
        costs = of_jobs(jobs, [plan.open_cells(job) for job in jobs], survey(cells, found))
        assert [cost["encodes"] for cost in costs] == ([100, 100] if found else [0, 0])
        assert [cost["kept_gb"] for cost in costs] == [0, 0]


def test_reading_that_is_slower_than_the_backbone_decides_the_time(tmp_path: Path) -> None:
    cells = grid(tmp_path, seed=(0,))
    found = survey(cells)
    (key,) = found.backbones
    slow = dataclasses.replace(
        found, backbones={key: dataclasses.replace(found.backbones[key], read_seconds=9.0)}
    )
    jobs = plan.plan_jobs(cells, tmp_path, "train")
    (cost,) = of_jobs(jobs, [cells], slow)
    (usual,) = of_jobs(jobs, [cells], found)
    assert cost["seconds"] - usual["seconds"] == pytest.approx(100 * (9.0 - 3.0))


def test_features_that_are_kept_are_no_scratch(tmp_path: Path) -> None:
    cells = grid(tmp_path, block=(0, 2), cache=("features",))
    (cost,) = of_jobs(plan.plan_jobs(cells, tmp_path, "train"), [cells], survey(cells))
    assert cost["disk_gb"] == 0
    assert cost["kept_gb"] == pytest.approx(100 * (10 + 2 * 1000) / 1e9)


def test_readouts_of_other_sizes_are_timed_on_their_own(tmp_path: Path) -> None:
    one = cell(tmp_path)
    other = dataclasses.replace(one, readout=ReadoutConfig(width=128))
    assert head_key(one) != head_key(other)
    assert head_key(one) == head_key(dataclasses.replace(one, seed=5))
