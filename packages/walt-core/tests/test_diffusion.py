"""Noise schedule, v target and noise."""

import itertools
import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from walt_core import NoiseSchedule, sample_noise

TIMESTEPS = torch.tensor([0, 50, 200, 999])


@pytest.fixture
def schedule() -> NoiseSchedule:
    return NoiseSchedule()


def random(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, 8, 5, 4, 4, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    # Decimals as published.
    ("timestep", "gamma", "decimals"),
    [
        (50, 0.9698, 4),
        (100, 0.8945, 4),
        (200, 0.6544, 4),
        (300, 0.391, 3),
        (400, 0.190, 3),
        (500, 0.0752, 4),
    ],
)
def test_published_levels(
    schedule: NoiseSchedule, timestep: int, gamma: float, decimals: int
) -> None:
    level = schedule.level(timestep)
    assert round(level["alpha"] ** 2, decimals) == gamma
    assert level["sigma"] ** 2 == pytest.approx(1 - level["alpha"] ** 2)
    assert level["log_snr"] == pytest.approx(math.log(level["alpha"] ** 2 / level["sigma"] ** 2))


def test_last_level_is_pure_noise(schedule: NoiseSchedule) -> None:
    assert schedule.num_timesteps == 1000
    assert schedule.level(999) == {"alpha": 0.0, "sigma": 1.0, "log_snr": -math.inf}


def test_first_level_is_that_of_the_betas(schedule: NoiseSchedule) -> None:
    assert schedule.level(0)["alpha"] ** 2 == pytest.approx(1 - 1e-4, abs=1e-12)


def test_levels_fall(schedule: NoiseSchedule) -> None:
    alphas = [schedule.level(t)["alpha"] for t in range(1000)]
    assert all(a > b for a, b in itertools.pairwise(alphas))


def test_schedule_on_the_meta_device_has_its_values() -> None:
    with torch.device("meta"):
        assert NoiseSchedule().level(200) == NoiseSchedule().level(200)
        assert NoiseSchedule().level(200)["alpha"] ** 2 == pytest.approx(0.6544, abs=5e-5)


@pytest.mark.parametrize("timestep", [-1, 1000])
def test_levels_out_of_range(schedule: NoiseSchedule, timestep: int) -> None:
    with pytest.raises(ValueError, match=f"timestep {timestep} must be 0 .* to 999"):
        schedule.level(timestep)
    steps = torch.tensor([5, timestep, 7, 8])
    with pytest.raises(ValueError, match=f"timestep {timestep} must be 0 .* to 999"):
        schedule.add_noise(random(0), random(1), steps)
    with pytest.raises(ValueError, match=f"timestep {timestep} must be 0 .* to 999"):
        schedule.denoised(random(0), random(1), steps)


def test_noise_is_added_in_the_variance_preserving_way(schedule: NoiseSchedule) -> None:
    noisy = schedule.add_noise(random(0), random(1), TIMESTEPS)
    for i, timestep in enumerate(TIMESTEPS.tolist()):
        level = schedule.level(timestep)
        expected = level["alpha"] * random(0)[i] + level["sigma"] * random(1)[i]
        torch.testing.assert_close(noisy[i], expected)


def test_levels_are_those_of_numpy(schedule: NoiseSchedule) -> None:
    """Lin et al., Algorithm 1: shift the root of gamma so that it ends at 0, keep its start."""
    root = np.sqrt(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
    first, last = root[0], root[-1]
    expected = (root - last) * first / (first - last)
    found = [schedule.level(t)["alpha"] for t in range(1000)]
    # Two orders of the same few fp64 operations.
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


def test_schedule_and_v_are_those_of_diffusers(schedule: NoiseSchedule) -> None:
    reference = DDIMScheduler(
        beta_start=1e-4, beta_end=0.02, beta_schedule="linear", rescale_betas_zero_snr=True
    )
    # Its products of up to a thousand factors are in fp32: some tens of roundings of 6e-8.
    torch.testing.assert_close(
        torch.tensor(schedule.gammas), reference.alphas_cumprod, rtol=5e-6, atol=0
    )
    latents, noise = random(0).float(), random(1).float()
    # The root of 1 - gamma, which is small at the start, is 3e-6 off; values go up to 5.
    tolerance = {"rtol": 0, "atol": 2e-5}
    torch.testing.assert_close(
        schedule.add_noise(latents, noise, TIMESTEPS),
        reference.add_noise(latents, noise, TIMESTEPS),
        **tolerance,
    )
    torch.testing.assert_close(
        schedule.v_target(latents, noise, TIMESTEPS),
        reference.get_velocity(latents, noise, TIMESTEPS),
        **tolerance,
    )


def test_v_gives_back_latents_and_noise(schedule: NoiseSchedule) -> None:
    latents, noise = random(0), random(1)
    noisy = schedule.add_noise(latents, noise, TIMESTEPS)
    v = schedule.v_target(latents, noise, TIMESTEPS)
    torch.testing.assert_close(schedule.denoised(noisy, v, TIMESTEPS), latents)
    torch.testing.assert_close(schedule.noise_of(noisy, v, TIMESTEPS), noise)


def test_v_at_the_ends(schedule: NoiseSchedule) -> None:
    """The last step asks for the clean latents, which the exchanged formula would not hold."""
    latents, noise = random(0), random(1)
    last = schedule.v_target(latents, noise, torch.full((4,), 999))
    assert torch.equal(last, -latents)
    first = schedule.v_target(latents, noise, torch.zeros(4).long())
    # Timestep 0 keeps sqrt(1e-4) of noise.
    torch.testing.assert_close(first, noise, atol=0.05, rtol=1e-3)


def test_noise_is_the_same_in_any_batch_and_order() -> None:
    ids = ["a", "b", "clip/0001.mp4", "c"]
    noise = sample_noise((8, 5, 4, 4), ids, seed=1, timestep=200)
    assert noise.shape == (4, 8, 5, 4, 4)
    assert noise.dtype == torch.float32
    order = [2, 0, 3, 1]
    other = sample_noise((8, 5, 4, 4), [ids[i] for i in order], seed=1, timestep=200)
    assert torch.equal(other, noise[order])
    assert torch.equal(sample_noise((8, 5, 4, 4), ["c"], seed=1, timestep=200), noise[3:])


def test_noise_differs_between_seeds_samples_and_timesteps() -> None:
    keys = itertools.product(["1", "11", "a"], [0, 1, 11], [0, 1, 11])
    draws = [
        tuple(sample_noise((4, 1, 1, 1), [name], seed=seed, timestep=t).flatten().tolist())
        for name, seed, t in keys
    ]
    assert len(set(draws)) == len(draws) == 27


def test_noise_is_a_unit_normal() -> None:
    noise = sample_noise((8, 5, 16, 16), [str(i) for i in range(8)], seed=0, timestep=0)
    assert abs(noise.mean().item()) < 0.02
    assert noise.std().item() == pytest.approx(1, abs=0.02)


def test_noise_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = sample_noise((2, 1, 1, 1), ["a"], seed=0, timestep=0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(123)
    assert torch.equal(sample_noise((2, 1, 1, 1), ["a"], seed=0, timestep=0), first)
