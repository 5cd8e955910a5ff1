"""Every recipe is a valid run, and says the command that starts it."""

import re
import shlex

import pytest

from probe_datasets import DATASETS
from probe_eval.backbone import BACKBONES
from probe_eval.cli import parse
from probe_eval.config import ProbeConfig
from probe_eval.recipes import RECIPES
from probe_eval.tasks import TASKS

each_recipe = pytest.mark.parametrize("name", RECIPES)


@each_recipe
def test_a_recipe_names_what_there_is(name: str) -> None:
    config = RECIPES[name]()
    assert isinstance(config, ProbeConfig)
    assert config == RECIPES[name]()
    assert config.task in TASKS
    assert config.features.backbone in BACKBONES
    dataset = DATASETS[config.data.dataset]
    assert TASKS[config.task].label in dataset.labels
    assert config.optim.batch_size % config.optim.accumulate == 0
    assert 0 < config.checkpoint_every <= config.optim.steps


@each_recipe
def test_the_docstring_says_what_and_how(name: str) -> None:
    text = RECIPES[name].__doc__ or ""
    assert re.fullmatch(r"[A-Z].+[.:]", text.splitlines()[0])
    commands = re.findall(r"`(probe-eval run [^`]+)`", text)
    assert commands, "no command in the docstring"
    for command in commands:
        words = shlex.split(command)
        assert words[:3] == ["probe-eval", "run", name]
        config = parse(ProbeConfig, words[3:], f"run {name}", RECIPES[name]())
        assert isinstance(config, ProbeConfig)
        assert config.task == RECIPES[name]().task


@each_recipe
def test_flags_override_a_recipe(name: str) -> None:
    words = ["--seed", "7", "--data.limit", "36", "--optim.steps", "500", "--shuffle-labels"]
    config = parse(ProbeConfig, words, f"run {name}", RECIPES[name]())
    assert (config.seed, config.data.limit, config.optim.steps) == (7, 36, 500)
    assert config.shuffle_labels
    assert config.optim.peak_lr == RECIPES[name]().optim.peak_lr
