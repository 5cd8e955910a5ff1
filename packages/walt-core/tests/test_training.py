"""What is drawn for each sample, and the loss of the draws."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from walt_core import (
    WALT_SIZES,
    Conditions,
    Draws,
    Rates,
    Walt,
    WaltConfig,
    denoising_loss,
    draw,
    training,
)

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
ALWAYS = Rates(estimate=1.0, past=1.0, drop=1.0)
NEVER = Rates(estimate=0.0, past=0.0, drop=0.0)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def streams(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def clips(batch: int = 4, frames: int = 5, seed: int = 7) -> Tensor:
    return random(batch, 4, frames, 4, 4, seed=seed)


def rows(draws: Draws, index: list[int]) -> Draws:
    fields = {f.name: getattr(draws, f.name)[index] for f in dataclasses.fields(draws)}
    return Draws(**fields)


def assert_equal(draws: Draws, other: Draws) -> None:
    for field in dataclasses.fields(draws):
        assert torch.equal(getattr(draws, field.name), getattr(other, field.name)), field.name


def texts(batch: int = 4) -> Conditions:
    return Conditions(
        classes=torch.arange(batch) % 3,
        text=random(batch, 5, 8, seed=8),
        text_valid=torch.arange(5)[None] < 2 + torch.arange(batch)[:, None],
    )


class Recorder(Walt):
    """Answers with what it is told to, and keeps what it was asked."""

    def __init__(self, config: WaltConfig, answers: list[Tensor]) -> None:
        super().__init__(config)
        self.answers = answers
        self.asked: list[tuple[Tensor, Tensor, Conditions | None, Tensor | None, bool]] = []

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        conditions: Conditions | None = None,
        estimate: Tensor | None = None,
    ) -> Tensor:
        self.asked.append((latents, timestep, conditions, estimate, torch.is_grad_enabled()))
        return self.answers[len(self.asked) - 1]


# --- Draws -----------------------------------------------------------------------------------


def test_draws_are_those_of_each_sample_in_any_batch() -> None:
    latents = clips(6)
    whole = draw(latents, streams(*range(6)), FULL)
    order = [3, 0, 5, 1, 4, 2]
    assert_equal(draw(latents[order], streams(*order), FULL), rows(whole, order))
    for part in ([0, 1], [2, 3, 4, 5]):
        assert_equal(draw(latents[part], streams(*part), FULL), rows(whole, part))


def test_timestep_comes_first_and_noise_second() -> None:
    """So that models trained before there were conditions can be trained again."""
    draws = draw(clips(2), streams(5, 6), FULL)
    for row, generator in enumerate(streams(5, 6)):
        assert draws.timestep[row] == torch.randint(1000, (), generator=generator)
        assert torch.equal(draws.noise[row], torch.randn(4, 5, 4, 4, generator=generator))


def test_draws_of_one_condition_do_not_depend_on_the_others() -> None:
    full = draw(clips(), streams(*range(4)), FULL, Rates(estimate=0.5, past=0.5, drop=0.5))
    for name, field in (
        ("self_conditioning", "estimate"),
        ("frame_conditioning", "past_frames"),
        ("num_classes", "dropped"),
        ("text_width", "dropped"),
    ):
        config = dataclasses.replace(PLAIN, **{name: getattr(FULL, name)})
        rates = Rates(**{"estimate": 0.5, "past": 0.5, "drop": 0.5})
        draws = draw(clips(), streams(*range(4)), config, rates)
        for other in ("estimate", "past_frames", "dropped"):
            value = getattr(draws, other)
            assert torch.equal(value, getattr(full, other)) if other == field else not value.any()
        assert torch.equal(draws.noise, full.noise)


def test_rates_are_kept() -> None:
    count = 4000
    latents = torch.zeros(count, 1, 3, 1, 1)
    draws = draw(latents, streams(*range(count)), dataclasses.replace(FULL, latent_channels=1))
    past = draws.past_frames.numpy()
    for found, expected in (
        (draws.estimate.double().mean().item(), 0.9),
        ((past > 0).mean(), 0.25),
        (draws.dropped.double().mean().item(), 0.1),
        ((past[past > 0] == 2).mean(), 0.5),
        ((draws.timestep < 500).double().mean().item(), 0.5),
    ):
        # Four standard deviations; the past is of a quarter of the samples.
        spread = np.sqrt(expected * (1 - expected) / (count / 4 if expected == 0.5 else count))
        assert abs(found - expected) < 4 * spread
    assert set(past.tolist()) == {0, 1, 2}
    assert draws.timestep.min() >= 0
    assert draws.timestep.max() <= 999
    pairs = torch.stack([draws.estimate, draws.past_frames > 0, draws.dropped]).double()
    # Independent of each other: correlations of 4000 pairs are within 4 / sqrt(4000).
    off_diagonal = torch.corrcoef(pairs) - torch.eye(3)
    assert off_diagonal.abs().max() < 0.064


def test_rates_at_the_ends() -> None:
    always = draw(clips(), streams(*range(4)), FULL, ALWAYS)
    assert always.estimate.all()
    assert always.past_frames.min() >= 1
    assert always.dropped.all()
    never = draw(clips(), streams(*range(4)), FULL, NEVER)
    assert not never.estimate.any() | never.past_frames.any() | never.dropped.any()


def test_an_unknown_frame_is_always_left() -> None:
    seeds = range(40)
    image = draw(clips(40, 1), streams(*seeds), FULL, ALWAYS)
    assert not image.past_frames.any()
    assert image.estimate.all()
    pair = draw(clips(40, 2), streams(*seeds), FULL, ALWAYS)
    assert set(pair.past_frames.tolist()) == {1}


def test_draws_follow_the_type_of_the_latents() -> None:
    assert draw(clips().bfloat16(), streams(*range(4)), FULL).noise.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["estimate", "past", "drop"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_rates_are_probabilities(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"rate {name} {value} must be a probability"):
        Rates(**{name: value})


def test_draw_wants_one_generator_per_sample() -> None:
    with pytest.raises(ValueError, match="3 generators for 4 samples"):
        draw(clips(), streams(1, 2, 3), FULL)


# --- Loss ------------------------------------------------------------------------------------


def test_loss_is_the_mean_squared_error_of_v() -> None:
    latents = clips()
    draws = draw(latents, streams(*range(4)), PLAIN)
    model = Recorder(PLAIN, [])
    model.answers = [model.schedule.v_target(latents, draws.noise, draws.timestep) + 0.5]
    loss = denoising_loss(model, latents, draws)
    torch.testing.assert_close(loss, torch.tensor(0.25))
    ((noisy, timestep, _, estimate, grad),) = model.asked
    assert torch.equal(noisy, model.schedule.add_noise(latents, draws.noise, draws.timestep))
    assert torch.equal(timestep, draws.timestep)
    assert estimate is None
    assert grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_loss_is_float32(dtype: torch.dtype, build: Callable[..., Walt]) -> None:
    latents = clips().to(dtype)
    draws = draw(latents, streams(*range(4)), FULL)
    loss = denoising_loss(build(FULL).to(dtype), latents, draws, texts())
    assert loss.dtype == torch.float32
    assert loss.isfinite()


def test_estimate_is_that_of_a_first_pass_without_gradient() -> None:
    latents = clips()
    draws = draw(latents, streams(*range(4)), FULL, NEVER)
    drawn = torch.tensor([True, False, True, False])
    draws = dataclasses.replace(draws, estimate=drawn)
    model = Recorder(FULL, [random(*latents.shape, seed=1), random(*latents.shape, seed=2)])
    denoising_loss(model, latents, draws)
    (noisy, timestep, _, before, grad), (again, same, _, estimate, later) = model.asked
    assert (before, grad, later) == (None, False, True)
    assert torch.equal(noisy, again)
    assert torch.equal(timestep, same)
    assert estimate is not None
    assert not estimate[~drawn].any()
    expected = model.schedule.denoised(noisy, model.answers[0], timestep)
    assert torch.equal(estimate[drawn], expected[drawn])


def test_a_first_pass_that_is_exact_estimates_the_latents() -> None:
    latents = clips()
    draws = draw(latents, streams(*range(4)), FULL, ALWAYS)
    model = Recorder(FULL, [])
    v = model.schedule.v_target(latents, draws.noise, draws.timestep)
    model.answers = [v, v]
    assert denoising_loss(model, latents, draws) == 0
    torch.testing.assert_close(model.asked[1][3], latents)


def test_first_pass_is_left_out_where_no_sample_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    latents = clips()
    draws = draw(latents, streams(*range(4)), FULL, NEVER)
    model = Recorder(FULL, [latents, latents])
    alone = denoising_loss(model, latents, draws)
    assert len(model.asked) == 1
    # Other processes may have drawn one, and they communicate in every pass.
    monkeypatch.setattr(training, "among_others", lambda: True)
    model.asked.clear()
    assert denoising_loss(model, latents, draws) == alone
    assert len(model.asked) == 2
    estimate = model.asked[1][3]
    assert estimate is not None
    assert not estimate.any()


def test_autocast_leaves_every_gradient(build: Callable[..., Walt]) -> None:
    """Also of weights that the first pass, which has none, casts and autocast keeps."""
    model, latents = build(FULL), clips()
    draws = draw(latents, streams(*range(4)), FULL, dataclasses.replace(NEVER, estimate=1.0))
    gradients = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = denoising_loss(model, latents, draws, texts())
        loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    exact, rounded = gradients
    for name, gradient in exact.items():
        assert gradient is not None, name
        assert rounded[name] is not None, name
        # bf16 has 8 bits: some percent after two layers.
        assert (rounded[name] - gradient).norm() <= 0.2 * gradient.norm() + 1e-6, name


def test_past_is_that_of_the_clean_latents() -> None:
    latents = clips()
    draws = draw(latents, streams(*range(4)), FULL, ALWAYS)
    model = Recorder(FULL, [latents, latents])
    denoising_loss(model, latents, draws)
    for _, _, conditions, _, _ in model.asked:
        assert conditions is not None
        assert conditions.past is not None
        assert torch.equal(conditions.past, latents)
        assert conditions.past_frames is not None
        assert torch.equal(conditions.past_frames, draws.past_frames)


def test_class_and_text_are_dropped_together(build: Callable[..., Walt]) -> None:
    model, latents = build(FULL), clips()
    draws = draw(latents, streams(*range(4)), FULL, NEVER)
    whole = denoising_loss(model, latents, draws, texts())
    null = denoising_loss(model, latents, draws)
    assert whole != null
    gone = dataclasses.replace(draws, dropped=torch.ones(4, dtype=torch.bool))
    # The null text stands alone or before tokens that do not count: other sums, same numbers.
    torch.testing.assert_close(denoising_loss(model, latents, gone, texts()), null)
    half = dataclasses.replace(draws, dropped=torch.tensor([True, True, False, False]))
    first = denoising_loss(model, latents[:2], rows(draws, [0, 1]))
    texted = Conditions(classes=texts().classes[2:], text=texts().text[2:])
    texted = dataclasses.replace(texted, text_valid=texts().text_valid[2:])
    second = denoising_loss(model, latents[2:], rows(draws, [2, 3]), texted)
    torch.testing.assert_close(denoising_loss(model, latents, half, texts()), (first + second) / 2)


def test_loss_of_a_batch_is_the_mean_of_its_parts(build: Callable[..., Walt]) -> None:
    model, latents = build(FULL), clips(5)
    draws = draw(latents, streams(*range(5)), FULL)
    whole = denoising_loss(model, latents, draws)
    parts = [denoising_loss(model, latents[i], rows(draws, i)) for i in ([0, 1, 2], [3, 4])]
    torch.testing.assert_close(whole, (3 * parts[0] + 2 * parts[1]) / 5)


def test_joint_step_reaches_what_images_leave_out(build: Callable[..., Walt]) -> None:
    """So that distributed training finds a gradient of every parameter in every step."""
    model, videos, images = build(FULL), clips(2), clips(4, 1)
    of_videos, of_images = (
        denoising_loss(model, x, draw(x, streams(*range(len(x))), FULL)) for x in (videos, images)
    )
    of_images.backward(retain_graph=True)
    assert any(p.grad is None for p in model.parameters())
    ((2 * of_videos + 4 * of_images) / 6).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_wrapped_model_is_called_through_its_wrapper(build: Callable[..., Walt]) -> None:
    class Wrapper(nn.Module):
        def __init__(self, module: Walt) -> None:
            super().__init__()
            self.module, self.calls = module, 0

        def forward(self, *args: object) -> Tensor:
            self.calls += 1
            return self.module(*args)

    latents = clips()
    draws = draw(latents, streams(*range(4)), FULL, ALWAYS)
    wrapper = Wrapper(build(FULL))
    assert denoising_loss(wrapper, latents, draws) == denoising_loss(wrapper.module, latents, draws)
    assert wrapper.calls == 2
    assert training.unwrap(torch.compile(wrapper, backend="eager")) is wrapper.module
    with pytest.raises(ValueError, match="model is a Linear, expected a Walt"):
        denoising_loss(nn.Linear(1, 1), latents, draws)


def test_loss_refuses_what_does_not_fit() -> None:
    latents = clips()
    draws = draw(latents, streams(*range(4)), FULL, ALWAYS)
    model = Recorder(FULL, [])
    with pytest.raises(ValueError, match=r"draws are for latents \(4, .* not \(2, "):
        denoising_loss(model, latents[:2], draws)
    past = Conditions(past=latents, past_frames=torch.ones(4, dtype=torch.long))
    with pytest.raises(ValueError, match="conditions bring a past"):
        denoising_loss(model, latents, draws, past)
    for value in (float("nan"), float("inf")):
        broken = latents.clone()
        broken[1, 2, 3, 0, 0] = value
        with pytest.raises(ValueError, match="latents hold NaN or infinite"):
            denoising_loss(model, broken, draws)
    late = dataclasses.replace(draws, timestep=torch.tensor([0, 1, 2, 1000]))
    with pytest.raises(ValueError, match="timestep 1000 must be 0"):
        denoising_loss(model, latents, late)
    assert not model.asked


@pytest.mark.parametrize("option", ["estimate", "past_frames"])
def test_loss_refuses_draws_for_another_model(option: str, build: Callable[..., Walt]) -> None:
    draws = draw(clips(), streams(*range(4)), FULL, ALWAYS)
    kept = {option: getattr(draws, option)}
    draws = dataclasses.replace(draw(clips(), streams(*range(4)), PLAIN), **kept)
    with pytest.raises(ValueError, match="given to a model without"):
        denoising_loss(build(PLAIN), clips(), draws)


@pytest.mark.slow
def test_tiny_overfits_one_batch() -> None:
    """Latents, noise, noise levels and conditions stay; the loss goes below 5 % of its start."""
    torch.manual_seed(0)
    model = Walt(WALT_SIZES["tiny"])
    latents = random(2, 8, 5, 4, 4)
    draws = draw(latents, streams(0, 1), model.config)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(60):
        loss = denoising_loss(model, latents, draws)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]
