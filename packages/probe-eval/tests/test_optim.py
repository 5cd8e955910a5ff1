"""The schedule against its definition; AdamW as the study has it, Adafactor as its paper."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from probe_eval.config import OptimConfig
from probe_eval.optim import create_optimizer, learning_rate

CONFIG = OptimConfig(steps=110, batch_size=1, peak_lr=3e-4, end_lr=1e-6, warmup_steps=10)


def test_rate_starts_at_zero_and_peaks_when_the_warmup_ends() -> None:
    assert learning_rate(CONFIG, 0) == 0
    assert learning_rate(CONFIG, 5) == pytest.approx(1.5e-4)
    assert learning_rate(CONFIG, 10) == CONFIG.peak_lr
    rates = [learning_rate(CONFIG, step) for step in range(CONFIG.steps)]
    assert max(rates) == CONFIG.peak_lr
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_rate_ends_at_end_lr() -> None:
    assert learning_rate(CONFIG, CONFIG.steps) == pytest.approx(CONFIG.end_lr)
    # The last step that is taken is one before the limit of the cosine.
    last = 0.5 * (1 + math.cos(math.pi * 99 / 100))
    expected = CONFIG.end_lr + (CONFIG.peak_lr - CONFIG.end_lr) * last
    assert learning_rate(CONFIG, CONFIG.steps - 1) == pytest.approx(expected)


def test_half_way_down_is_the_mean_of_peak_and_end() -> None:
    middle = (CONFIG.peak_lr + CONFIG.end_lr) / 2
    assert learning_rate(CONFIG, 60) == pytest.approx(middle)


@pytest.mark.parametrize("warmup", [0, 1, 5])
def test_edge_warmups_give_finite_rates(warmup: int) -> None:
    config = OptimConfig(steps=5, batch_size=1, warmup_steps=warmup)
    rates = [learning_rate(config, step) for step in range(6)]
    assert all(0 <= rate <= config.peak_lr for rate in rates)
    assert rates[warmup] == config.peak_lr


def test_optimizer_follows_the_config() -> None:
    config = OptimConfig(
        steps=1, batch_size=1, warmup_steps=0, weight_decay=0.1, beta1=0.5, beta2=0.95, peak_lr=0.5
    )
    group = create_optimizer([([torch.nn.Parameter(torch.zeros(1))], config)]).param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.5, (0.5, 0.95), 0.1)
    assert group["eps"] == 1e-8


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_groups_are_trained_as_they_would_be_alone(name: Any) -> None:
    configs = [
        OptimConfig(
            steps=9, batch_size=1, warmup_steps=0, name=name, peak_lr=rate, weight_decay=decay
        )
        for rate, decay in ((0.1, 0.5), (0.02, 0.0))
    ]

    def trained(numbers: Sequence[int]) -> list[torch.Tensor]:
        weights = [torch.nn.Parameter(torch.arange(1.0, 7).reshape(2, 3)) for _ in numbers]
        optimizer = create_optimizer(
            [([weight], configs[number]) for weight, number in zip(weights, numbers, strict=True)]
        )
        for _ in range(3):
            optimizer.zero_grad()
            sum(weight.square().sum() for weight in weights).backward()
            optimizer.step()
        return [weight.detach() for weight in weights]

    together = trained([0, 1])
    assert torch.equal(together[0], trained([0])[0])
    assert torch.equal(together[1], trained([1])[0])
    assert not torch.equal(*together)


def test_one_optimiser_is_not_two() -> None:
    configs = [
        OptimConfig(steps=1, batch_size=1, warmup_steps=0, name=name)
        for name in ("adamw", "adafactor")
    ]
    with pytest.raises(ValueError, match="cannot be both adafactor and adamw; train separately"):
        create_optimizer([([torch.nn.Parameter(torch.zeros(1))], config) for config in configs])


def test_the_first_moment_decays_by_nine_tenths_unless_told() -> None:
    config = OptimConfig(steps=1, batch_size=1, warmup_steps=0)
    group = create_optimizer([([torch.nn.Parameter(torch.zeros(1))], config)]).param_groups[0]
    assert group["betas"] == (0.9, 0.999)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"steps": 0}, "steps"),
        ({"batch_size": 0}, "batch_size"),
        ({"accumulate": 0}, "accumulate"),
        ({"warmup_steps": 11}, "warmup_steps 11"),
        ({"warmup_steps": -1}, "warmup_steps -1"),
        ({"end_lr": 1.0}, "end_lr 1.0"),
        ({"beta1": 1.0}, "beta1 1.0"),
        ({"beta2": -0.1}, "beta2 -0.1"),
    ],
)
def test_wrong_settings_are_named(change: dict, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        OptimConfig(**{"steps": 10, "batch_size": 1, "warmup_steps": 1} | change)


def test_adafactor_takes_a_first_step_of_the_rate_times_the_size_of_the_weight() -> None:
    """Its second moments are then the squares of the gradient themselves (beta2 = 1 - 1^-0.8)."""
    config = OptimConfig(
        steps=9, batch_size=1, warmup_steps=0, name="adafactor", peak_lr=1e-2, weight_decay=0.0
    )
    weights = [torch.nn.Parameter(torch.full((2, 3), 0.5)), torch.nn.Parameter(torch.zeros(3))]
    optimizer = create_optimizer([(weights, config)])
    sum(weight.sum() for weight in weights).backward()
    optimizer.step()
    # The size of a weight of zeros counts as 1e-3.
    torch.testing.assert_close(weights[0].detach(), torch.full((2, 3), 0.5 - 1e-2 * 0.5))
    torch.testing.assert_close(weights[1].detach(), torch.full((3,), -1e-2 * 1e-3))
    state = optimizer.state[weights[0]]
    assert state["row_var"].shape == (2, 1)
    assert state["col_var"].shape == (1, 3)


def test_an_unknown_optimiser_is_refused() -> None:
    config = OptimConfig(steps=9, batch_size=1, warmup_steps=0)
    object.__setattr__(config, "name", "sgd")  # Past the check of types, which is for tests only.
    with pytest.raises(ValueError, match="optimiser 'sgd' must be one of adamw, adafactor"):
        config.__post_init__()
