"""Settings given as words."""

import pytest

from probe_eval.config import DataConfig, OptimConfig, ProbeConfig
from probe_eval.sweeps.overrides import override

BASE = ProbeConfig(task="action", optim=OptimConfig(steps=100, batch_size=4, warmup_steps=50))
FIXED = {"seed": "--seeds"}


def test_every_setting_named_is_replaced_and_nothing_else() -> None:
    words = [
        "optim.steps=20",
        "optim.warmup_steps = 3",
        "data.on_error=skip",
        "data.options=sparse=True, split_file=mine.txt",
        "features.disk_gb=1.5",
        "features.average_time=true",
        "trackers=",
    ]
    found = override(BASE, words, FIXED)
    assert found.optim.steps == 20
    assert found.optim.warmup_steps == 3
    assert found.data.on_error == "skip"
    assert found.data.options == ("sparse=True", "split_file=mine.txt")
    assert found.features.disk_gb == 1.5
    assert found.features.average_time is True
    assert found.trackers == ()
    assert found.data.size == BASE.data.size
    assert found.optim.peak_lr == BASE.optim.peak_lr
    assert override(BASE, [], FIXED) == BASE


def test_settings_that_need_each_other_are_set_at_once() -> None:
    """Neither order of the two words passes through a configuration that is refused."""
    for words in (
        ["optim.steps=9", "optim.warmup_steps=9"],
        ["optim.warmup_steps=9", "optim.steps=9"],
    ):
        assert override(BASE, words, FIXED).optim.steps == 9


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("optim.stps=3", "unknown setting 'optim.stps'.*did you mean 'optim.steps'"),
        ("optim=3", "unknown setting 'optim'"),
        ("optim.steps=many", "optim.steps is 'many', expected a whole number"),
        ("optim.steps=2.5", "optim.steps is '2.5', expected a whole number"),
        ("optim.peak_lr=fast", "optim.peak_lr is 'fast', expected a number"),
        ("features.average_time=maybe", "expected True or False"),
        ("data.on_error=ignore", "'ignore', expected one of raise, skip"),
        ("seed=3", "'seed' cannot be set here: --seeds decides it"),
        ("optim.steps", "--set takes NAME=VALUE, not 'optim.steps'"),
        ("=3", "--set takes NAME=VALUE"),
        ("optim.steps=20", "warmup_steps 50 must be 0 to steps 20"),
        ("data.workers=-1", "workers -1 must not be negative"),
    ],
)
def test_a_mistake_is_named(word: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        override(BASE, [word], FIXED)


def test_a_setting_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'data.size' is set twice"):
        override(BASE, ["data.size=32", "data.size=64"], FIXED)


def test_the_settings_are_those_of_the_configuration() -> None:
    """A setting that is added to a configuration can be set without a word here."""
    with pytest.raises(ValueError, match="known: task, ") as refusal:
        override(BASE, ["nothing=1"], {})
    for name in DataConfig.__dataclass_fields__:
        assert f"data.{name}" in str(refusal.value)
