"""Timesteps, DDIM steps, and whole samples of denoisers whose truth is known."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from walt_core import Conditions, NoiseSchedule, Walt, WaltConfig, sample
from walt_core.sampling import ddim_step, trailing_timesteps

PLAIN = WaltConfig(
    width=16,
    depth=2,
    num_heads=2,
    latent_channels=4,
    latent_size=(5, 4, 4),
    spatial_window=(1, 4, 4),
    spatiotemporal_window=(5, 2, 2),
)
FULL = dataclasses.replace(
    PLAIN, num_classes=3, text_width=8, self_conditioning=True, frame_conditioning=True
)
SHAPE = (2, 4, 5, 4, 4)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def content() -> Conditions:
    return Conditions(
        classes=torch.tensor([0, 2]),
        text=random(2, 5, 8, seed=8),
        text_valid=torch.tensor([[True] * 5, [True] * 3 + [False] * 2]),
    )


def with_past(conditions: Conditions) -> Conditions:
    past = random(*SHAPE, seed=9)
    return dataclasses.replace(conditions, past=past, past_frames=torch.tensor([2, 1]))


def reference(steps: int) -> DDIMScheduler:
    scheduler = DDIMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        prediction_type="v_prediction",
        set_alpha_to_one=True,
        clip_sample=False,
    )
    scheduler.set_timesteps(steps)
    return scheduler


Answer = Callable[[Tensor, float, float, Conditions], Tensor]


class Knowing(Walt):
    """Predicts the v of the clean latents that `answer(x_t, alpha, sigma, conditions)` gives."""

    def __init__(self, config: WaltConfig, answer: Answer) -> None:
        super().__init__(config)
        self.answer = answer
        self.estimates: list[Tensor | None] = []
        self.given: list[Tensor] = []

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        conditions: Conditions | None = None,
        estimate: Tensor | None = None,
    ) -> Tensor:
        level = self.schedule.level(int(timestep[0]))
        alpha, sigma = level["alpha"], level["sigma"]
        clean = self.answer(latents, alpha, sigma, conditions or Conditions())
        self.estimates.append(estimate)
        self.given.append(clean)
        return (alpha * latents - clean) / sigma


# --- Timesteps and steps ---------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 20, 30, 50, 64, 100, 250, 999, 1000])
def test_timesteps_are_those_of_diffusers(steps: int) -> None:
    # Where 1000 * i / steps ends in a half, its rounding follows the error of a running sum;
    # ours is exact. None of these numbers of steps shows that.
    found = trailing_timesteps(1000, steps)
    assert found == reference(steps).timesteps.tolist()


def test_timesteps_start_at_pure_noise_and_fall() -> None:
    assert trailing_timesteps(1000, 4) == [999, 749, 499, 249]
    for steps in range(1, 1001):
        found = trailing_timesteps(1000, steps)
        assert found[0] == 999
        assert found[-1] >= 0
        assert len(set(found)) == steps
        assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_steps_out_of_range(steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps {steps} must be 1 to 1000"):
        trailing_timesteps(1000, steps)
    with pytest.raises(ValueError, match=f"steps {steps} must be 1 to 1000"):
        sample(Walt(PLAIN), random(*SHAPE), steps=steps)


@pytest.mark.parametrize("steps", [1, 10, 50])
def test_steps_are_those_of_diffusers(steps: int) -> None:
    scheduler, schedule = reference(steps), NoiseSchedule()
    timesteps = trailing_timesteps(1000, steps)
    for number, timestep in enumerate(timesteps):
        noisy, v = random(*SHAPE, seed=number), random(*SHAPE, seed=-1 - number)
        following = timesteps[number + 1] if number + 1 < steps else None
        expected = scheduler.step(v, timestep, noisy)
        moved, clean = ddim_step(schedule, noisy, v, timestep, following)
        # Its levels are in fp32, up to 3e-6 off; values go up to 5.
        torch.testing.assert_close(moved, expected.prev_sample, rtol=0, atol=2e-5)
        torch.testing.assert_close(clean, expected.pred_original_sample, rtol=0, atol=2e-5)


def test_last_step_gives_the_clean_latents() -> None:
    moved, clean = ddim_step(NoiseSchedule(), random(*SHAPE), random(*SHAPE, seed=1), 19, None)
    assert torch.equal(moved, clean)


def test_sample_is_that_of_diffusers(build: Callable[..., Walt]) -> None:
    model, scheduler = build(PLAIN), reference(10)
    expected = random(*SHAPE)
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            v = model(expected, timestep.expand(2))
            expected = scheduler.step(v, int(timestep), expected).prev_sample
    # As one step, ten times, through a network that may enlarge an error.
    torch.testing.assert_close(
        sample(model, random(*SHAPE), steps=10), expected, rtol=1e-3, atol=1e-3
    )


# --- Denoisers that know the truth -----------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 3, 50])
def test_a_single_point_is_found_from_any_noise(steps: int) -> None:
    point = random(1, *SHAPE[1:], seed=3).expand(SHAPE)
    model = Knowing(PLAIN, lambda x_t, alpha, sigma, conditions: point)
    # The last step divides by sigma (0.05 at timestep 19) and multiplies by it again.
    torch.testing.assert_close(sample(model, random(*SHAPE), steps=steps), point, rtol=0, atol=1e-5)


def test_a_gaussian_is_found_with_its_mean_and_variance() -> None:
    mean, std = 1.5, 0.4
    noise = random(64, *SHAPE[1:])

    def expectation(x_t: Tensor, alpha: float, sigma: float, conditions: Conditions) -> Tensor:
        return mean + alpha * std**2 / ((alpha * std) ** 2 + sigma**2) * (x_t - alpha * mean)

    model = Knowing(PLAIN, expectation)
    errors = {}
    for steps in (10, 50, 250):
        found = sample(model, noise, steps=steps)
        # The exact flow only shifts and scales the noise.
        errors[steps] = (found - (mean + std * noise)).abs().mean().item()
        assert found.mean().item() == pytest.approx(mean, abs=0.02)
    # A method of first order: five times the steps, a fifth of the error or so.
    assert errors[250] < errors[50] / 3 < errors[10] / 9
    # 20 thousand numbers: half a percent by chance; and 250 steps are not yet the flow.
    assert found.std().item() == pytest.approx(std, rel=0.02)


def test_a_gaussian_by_numpy() -> None:
    """The same recursion on numbers, in fp64, with levels computed anew."""
    mean, std, steps = -0.5, 2.0, 20
    root = np.sqrt(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
    alphas = (root - root[-1]) * root[0] / (root[0] - root[-1])
    x = expected = random(*SHAPE).double().numpy()
    for timestep in range(999, 0, -1000 // steps):
        alpha, sigma = alphas[timestep], np.sqrt(1 - alphas[timestep] ** 2)
        clean = mean + alpha * std**2 / ((alpha * std) ** 2 + sigma**2) * (x - alpha * mean)
        eps = (x - alpha * clean) / sigma
        after = alphas[timestep - 50] if timestep >= 50 else 1.0
        x = expected = after * clean + np.sqrt(1 - after**2) * eps

    def expectation(x_t: Tensor, alpha: float, sigma: float, conditions: Conditions) -> Tensor:
        return mean + alpha * std**2 / ((alpha * std) ** 2 + sigma**2) * (x_t - alpha * mean)

    model = Knowing(PLAIN, expectation).double()
    found = sample(model, random(*SHAPE).double(), steps=steps)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-9)


# --- Self-conditioning -----------------------------------------------------------------------


def test_each_step_reads_the_estimate_of_the_one_before() -> None:
    model = Knowing(FULL, lambda x_t, alpha, sigma, conditions: x_t.tanh() + alpha)
    sample(model, random(*SHAPE), steps=4)
    first, *others = model.estimates
    assert first is None
    for estimate, clean in zip(others, model.given[:-1], strict=True):
        # Through v and back: a division by sigma.
        torch.testing.assert_close(estimate, clean, rtol=0, atol=1e-5)


def test_models_without_self_conditioning_get_no_estimate() -> None:
    model = Knowing(PLAIN, lambda x_t, alpha, sigma, conditions: x_t)
    sample(model, random(*SHAPE), steps=3)
    assert model.estimates == [None, None, None]


# --- Samples ---------------------------------------------------------------------------------


def test_a_sample_depends_on_its_noise_alone(build: Callable[..., Walt]) -> None:
    model, noise, conditions = build(FULL), random(*SHAPE), content()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    whole = sample(model, noise, steps=3, conditions=conditions, guidance=2.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(sample(model, noise, steps=3, conditions=conditions, guidance=2.0), whole)
    values = {f.name: getattr(conditions, f.name) for f in dataclasses.fields(conditions)}
    second = Conditions(**{k: None if v is None else v[1:] for k, v in values.items()})
    alone = sample(model, noise[1:], steps=3, conditions=second, guidance=2.0)
    # A batch of one sums in another order.
    torch.testing.assert_close(alone, whole[1:], rtol=1e-3, atol=1e-3)
    assert not whole.requires_grad


@pytest.mark.parametrize("grid", [(1, 4, 4), (5, 8, 4)])
def test_images_and_other_grids(grid: tuple[int, int, int], build: Callable[..., Walt]) -> None:
    noise = random(2, 4, *grid)
    assert sample(build(FULL), noise, steps=2).shape == noise.shape


def test_low_precision_weights_keep_exact_latents() -> None:
    """Latents of many small steps are rounded once, at the end, if at all."""

    def answer(x_t: Tensor, alpha: float, sigma: float, conditions: Conditions) -> Tensor:
        assert x_t.dtype == torch.bfloat16
        return x_t

    model = Knowing(PLAIN, answer).bfloat16()
    found = sample(model, random(*SHAPE), steps=2)
    assert found.dtype == torch.float32
    assert not torch.equal(found, found.bfloat16().float())
    assert sample(model, random(*SHAPE).bfloat16(), steps=2).dtype == torch.bfloat16


def test_conditions_follow_the_type_of_the_weights(build: Callable[..., Walt]) -> None:
    model = build(FULL).bfloat16()
    found = sample(model, random(*SHAPE), steps=2, conditions=with_past(content()), guidance=2.0)
    assert found.isfinite().all()


def test_progress_is_told_after_each_step() -> None:
    told = []
    model = Knowing(PLAIN, lambda x_t, alpha, sigma, conditions: x_t)
    sample(model, random(*SHAPE), steps=3, progress=lambda *numbers: told.append(numbers))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_sample_refuses_what_does_not_fit() -> None:
    for value in (float("nan"), float("inf")):
        noise = random(*SHAPE)
        noise[1, 0, 0, 0, 0] = value
        with pytest.raises(ValueError, match="noise holds NaN or infinite"):
            sample(Walt(PLAIN), noise)
    with pytest.raises(ValueError, match="noise has 3 channels, the model makes 4"):
        sample(Walt(PLAIN), random(2, 3, 5, 4, 4))
    with pytest.raises(ValueError, match="past is given to a model without frame_conditioning"):
        sample(Walt(PLAIN), random(*SHAPE), conditions=with_past(Conditions()))
    with pytest.raises(ValueError, match="text is given to a model without"):
        sample(Walt(PLAIN), random(*SHAPE), conditions=Conditions(text=random(2, 1, 8)))
