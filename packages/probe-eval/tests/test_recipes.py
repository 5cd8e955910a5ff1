"""Recipes: what they name exists, their flags work and their docstrings say how to run them."""

import dataclasses
import re
import shlex
import subprocess
import sys
from typing import get_args

import pytest

from probe_datasets import DATASETS
from probe_eval.backbone import BACKBONES
from probe_eval.cli.parsing import parse
from probe_eval.config import DataConfig, OptimConfig, ProbeConfig, ReadoutConfig
from probe_eval.data import config_of_test
from probe_eval.recipes import RECIPES, SHORT, DemoConfig, Preset, recipe
from probe_eval.tasks import TASKS
from probe_eval.tasks.base import GIVEN
from probe_eval.tasks.classification import Classification

PRESETS = get_args(Preset)
STUDY = {
    "imagenet": (200_182, 64),
    "places365": (10_000, 512),
    "inat2018": (10_000, 512),
    "ssv2": (40_000, 32),
    "kinetics400": (40_000, 32),
    "kinetics700": (40_000, 32),
    "scannet-depth": (40_000, 32),
    "realestate10k-pose": (40_000, 32),
    "point-tracks": (40_000, 32),
    "waymo-boxes": (40_000, 32),
}
"""Table 7: steps and batch."""
RENDERED = [name for name in RECIPES if name not in STUDY]
each_recipe = pytest.mark.parametrize("name", RECIPES)
each_preset = pytest.mark.parametrize("preset", PRESETS)
each_of_the_study = pytest.mark.parametrize("name", STUDY)


@each_recipe
@each_preset
def test_a_recipe_names_what_there_is(name: str, preset: Preset) -> None:
    config = recipe(name, preset)
    assert isinstance(config, ProbeConfig)
    assert config == recipe(name, preset)
    assert config == dataclasses.replace(RECIPES[name](preset), recipe=name)
    assert config.features.backbone in BACKBONES
    assert config.optim.batch_size % config.optim.accumulate == 0
    assert 0 < config.checkpoint_every <= config.optim.steps
    task = TASKS[config.task]
    for data, split in (
        (config.data, config.data.train_split),
        (config_of_test(config.data), config.data.test_split),
    ):
        spec = DATASETS[data.dataset]
        assert split in spec.splits
        if isinstance(task, Classification):
            assert task.label(dict.fromkeys(spec.labels))
        elif spec.task != "all":
            field = {"pose": "poses"}.get(config.task, config.task)
            assert field in GIVEN[spec.task]


def test_every_task_has_a_recipe_of_rendered_clips() -> None:
    tasks = {recipe(name, "smoke").task for name in RENDERED}
    assert tasks == set(TASKS) - {"image-class"}


@each_of_the_study
def test_the_papers_size_is_the_study(name: str) -> None:
    config = recipe(name, "paper")
    steps, batch_size = STUDY[name]
    assert config.optim == OptimConfig(
        steps=steps,
        batch_size=batch_size,
        peak_lr=3e-4,
        end_lr=1e-7,
        warmup_steps=1000,
        weight_decay=1e-4,
    )
    assert (config.readout.width, config.readout.num_heads) == (0, 0)
    assert (config.data.draws, config.data.limit, config.held_out) == (0, 0, 0)
    assert config.features.average_time == (name in ("imagenet", "places365", "inat2018"))
    assert config.features.timestep == 200
    for data in (config.data, config_of_test(config.data)):
        clip = DATASETS[data.dataset].clip
        assert (data.num_frames, data.size) == (clip.num_frames, clip.size)
        if data.dataset not in ("imagenet", "places365", "inat2018"):
            assert data.stride == clip.stride


def test_point_tracks_are_measured_on_other_videos_than_trained_on() -> None:
    data = recipe("point-tracks", "paper").data
    assert (data.dataset, data.train_split, data.stride) == ("movi_e", "train", 1)
    test = config_of_test(data)
    assert (test.dataset, test.test_split, test.stride) == ("perception_test", "validation", 4)


@each_recipe
def test_sizes_ascend(name: str) -> None:
    smoke, short, paper = (recipe(name, preset) for preset in ("smoke", "short", "paper"))
    assert smoke.optim.steps < short.optim.steps < paper.optim.steps
    assert 0 < smoke.data.limit < 100
    assert smoke.data.size <= short.data.size <= paper.data.size
    assert smoke.task == short.task == paper.task
    assert smoke.data.dataset == short.data.dataset == paper.data.dataset
    assert smoke.data.draws == short.data.draws == 1


@each_recipe
def test_the_docstring_says_what_and_how(name: str) -> None:
    text = " ".join((RECIPES[name].__doc__ or "").split())
    assert re.match(r"[A-Z].+?[.:]", (RECIPES[name].__doc__ or "").splitlines()[0])
    assert re.search(r"Cost: [\d.,]+( million)? forwards", text)
    assert ("(Table 3" in text or "(Table 4" in text) == (name in STUDY)
    (command,) = re.findall(r"`(probe-eval run [^`]+)`", text)
    *words, preset = shlex.split(command)[:5]
    assert words == ["probe-eval", "run", name, "--preset"]
    default = recipe(name, preset)
    rest = shlex.split(command)[5:]
    config = parse(ProbeConfig, rest, f"run {name}", default)
    assert isinstance(config, ProbeConfig)
    assert config != default or "backbone v-walt" in command
    assert bool(config.data.root) == DATASETS[config.data.dataset].needs_root


@pytest.mark.parametrize("name", ["moving-shapes-action", "point-tracks"])
def test_flags_override_a_recipe(name: str) -> None:
    words = ["--seed", "7", "--data.limit", "36", "--optim.steps", "500", "--shuffle-labels"]
    default = recipe(name, "short")
    config = parse(ProbeConfig, words, f"run {name}", default)
    assert isinstance(config, ProbeConfig)
    assert (config.seed, config.data.limit, config.optim.steps) == (7, 36, 500)
    assert config.shuffle_labels
    assert config.optim.peak_lr == default.optim.peak_lr


@pytest.mark.parametrize(
    ("name", "preset", "message"),
    [
        ("imagnet", "paper", "unknown recipe 'imagnet'; known: imagenet, .*mean 'imagenet'"),
        ("ssv2", "papers", "unknown preset 'papers'; known: smoke, short, paper; did you mean"),
        ("ssv2", "x", "unknown preset 'x'; known: smoke, short, paper$"),
    ],
)
def test_unknown_names_list_the_known_ones(name: str, preset: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe(name, preset)


def test_the_demo_trains_readouts_as_the_short_recipe_does() -> None:
    assert DemoConfig().optim == SHORT == recipe("moving-shapes-shape", "short").optim
    assert recipe("moving-shapes-shape", "short").data == DataConfig()
    assert recipe("moving-shapes-shape", "short").readout == ReadoutConfig()
    with pytest.raises(ValueError, match="seeds is empty"):
        dataclasses.replace(DemoConfig(), seeds=())


def test_recipes_are_read_without_torch() -> None:
    code = "import sys, probe_eval.recipes; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
