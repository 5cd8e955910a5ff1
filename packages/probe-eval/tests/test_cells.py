"""What decides a result, what cells are called, and which of them go together."""

import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest

from probe_eval.config import DataConfig, FeatureConfig, OptimConfig, ProbeConfig, ReadoutConfig
from probe_eval.probing.cells import (
    cell_identity,
    cell_name,
    job_key,
    read_cell,
    split_into_jobs,
    split_into_trainings,
)

CELL = ProbeConfig(
    task="action",
    data=DataConfig(options=("sparse=True",)),
    optim=OptimConfig(steps=9, batch_size=4, warmup_steps=0),
)


def changed(cell: ProbeConfig, place: str, value: Any) -> ProbeConfig:
    """A cell with another value of one setting, such as `optim.steps`."""
    first, _, rest = place.partition(".")
    new = dataclasses.replace(getattr(cell, first), **{rest: value}) if rest else value
    return dataclasses.replace(cell, **{first: new})


INCIDENTAL = [
    ("output", "elsewhere"),
    ("recipe", "synthetic-shape"),
    ("trackers", ()),
    ("checkpoint_every", 7),
    ("data.workers", 5),
    ("features.cache", "features"),
    ("features.cache_folder", "there"),
    ("features.disk_gb", 1.0),
    ("features.shard", True),
]
DECISIVE = [
    ("task", "shape"),
    ("data.limit", 3),
    ("data.options", ("sparse=False",)),
    ("features.block", 3),
    ("features.timestep", 0),
    ("features.pretrained", "elsewhere"),
    ("readout.width", 8),
    ("optim.peak_lr", 1e-3),
    ("optim.weight_decay", 0.0),
    ("seed", 1),
    ("order_seed", 1),
    ("shuffle_labels", True),
    ("held_out", 0.1),
]


@pytest.mark.parametrize(("place", "value"), INCIDENTAL)
def test_what_decides_no_result_changes_no_name(place: str, value: Any) -> None:
    other = changed(CELL, place, value)
    assert cell_identity(other) == cell_identity(CELL)
    assert cell_name(other) == cell_name(CELL)
    assert split_into_jobs([CELL, other]) == [(CELL, other)]


@pytest.mark.parametrize(("place", "value"), DECISIVE)
def test_what_decides_a_result_changes_the_name(place: str, value: Any) -> None:
    assert cell_name(changed(CELL, place, value)) != cell_name(CELL)


def test_every_setting_is_one_or_the_other() -> None:
    """A new setting of cells belongs to the identity unless it is listed as incidental."""
    identity = cell_identity(CELL)
    for name, part in {"": CELL, "data": CELL.data, "features": CELL.features}.items():
        left_out = {place.rpartition(".")[2] for place, _ in INCIDENTAL if place.startswith(name)}
        fields = {field.name for field in dataclasses.fields(part)}
        assert (identity[name] if name else identity).keys() >= fields - left_out


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "action-v-walt-b04-t200-lr3e-4-s0-"),
        ({"optim.peak_lr": 0.0125}, "action-v-walt-b04-t200-lr1.25e-2-s0-"),
        ({"optim.peak_lr": 1.0}, "action-v-walt-b04-t200-lr1e0-s0-"),
        ({"shuffle_labels": True, "seed": 12}, "action-v-walt-b04-t200-lr3e-4-s12-shuffled-"),
        ({"features.timestep": 0, "features.block": 24}, "action-v-walt-b24-t000-lr3e-4-s0-"),
        (
            {"features.backbone": "my nets/mine.py:load"},
            "action-my_nets_mine.py_load-b04-t200-lr3e-4-s0-",
        ),
    ],
)
def test_names_say_what_cells_are(changes: dict, name: str) -> None:
    cell = CELL
    for place, value in changes.items():
        cell = changed(cell, place, value)
    start, digest = cell_name(cell)[: len(name)], cell_name(cell)[len(name) :]
    assert start == name
    assert len(digest) == 8
    assert set(digest) <= set("0123456789abcdef")


def test_a_cell_is_read_back_from_plain_values() -> None:
    cell = dataclasses.replace(
        CELL, features=FeatureConfig(dtype="bfloat16"), readout=ReadoutConfig(width=0), seed=3
    )
    assert read_cell(json.loads(json.dumps(dataclasses.asdict(cell)))) == cell
    with pytest.raises(ValueError, match=r"not those of a probe: .*colour"):
        read_cell({"task": "action", "colour": "red"})


@pytest.mark.parametrize(
    ("place", "value", "together"),
    [
        ("features.block", 3, True),
        ("task", "shape", True),
        ("seed", 1, True),
        ("order_seed", 1, True),
        ("optim.peak_lr", 1e-3, True),
        ("optim.steps", 4, True),
        ("readout.width", 8, True),
        ("shuffle_labels", True, True),
        ("features.timestep", 0, False),
        ("features.noise_seed", 1, False),
        ("features.backbone", "i-walt", False),
        ("features.pretrained", "elsewhere", False),
        ("features.average_time", True, False),
        ("features.dtype", "bfloat16", False),
        ("features.batch_size", 1, False),
        ("data.size", 16, False),
        ("data.dataset", "synthetic", False),
        ("held_out", 0.1, False),
    ],
)
def test_cells_of_the_same_forwards_are_one_job(place: str, value: Any, together: bool) -> None:
    other = changed(CELL, place, value)
    assert (job_key(CELL) == job_key(other)) == together
    assert len(split_into_jobs([CELL, other])) == (1 if together else 2)


def test_new_crops_in_every_epoch_are_those_of_one_order() -> None:
    cell = changed(CELL, "data.draws", 0)
    assert job_key(cell) == job_key(changed(cell, "seed", 1))
    assert job_key(cell) != job_key(changed(cell, "order_seed", 1))


def test_groups_keep_the_order_of_cells() -> None:
    cells = [
        changed(changed(CELL, "features.timestep", timestep), "seed", seed)
        for seed in (0, 1)
        for timestep in (5, 0)
    ]
    assert split_into_jobs(cells) == [(cells[0], cells[2]), (cells[1], cells[3])]


@pytest.mark.parametrize(
    ("place", "value", "together"),
    [
        ("optim.peak_lr", 1e-3, True),
        ("optim.clip_norm", 1.0, True),
        ("optim.weight_decay", 0.0, True),
        ("seed", 1, True),
        ("optim.steps", 4, False),
        ("optim.batch_size", 2, False),
        ("optim.accumulate", 2, False),
        ("optim.name", "adafactor", False),
        ("order_seed", 1, False),
    ],
)
def test_cells_of_the_same_batches_are_trained_together(
    place: str, value: Any, together: bool
) -> None:
    trainings = split_into_trainings([CELL, changed(CELL, place, value)])
    assert len(trainings) == (1 if together else 2)


def test_plans_need_no_torch() -> None:
    code = "import sys, probe_eval.probing.cells; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
