"""Guidance on class, text and past frames, and videos beyond one clip."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from walt_core import Conditions, Walt, WaltConfig, continue_video, sample
from walt_core.sampling import ddim_step, guidance_passes

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


def streams(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def content() -> Conditions:
    return Conditions(
        classes=torch.tensor([0, 2]),
        text=random(2, 5, 8, seed=8),
        text_valid=torch.tensor([[True] * 5, [True] * 3 + [False] * 2]),
    )


def with_past(conditions: Conditions) -> Conditions:
    past = random(*SHAPE, seed=9)
    return dataclasses.replace(conditions, past=past, past_frames=torch.tensor([2, 1]))


Answer = Callable[[Tensor, float, float, Conditions], Tensor]


class Knowing(Walt):
    """Predicts the v of the clean latents that `answer(x_t, alpha, sigma, conditions)` gives."""

    def __init__(self, config: WaltConfig, answer: Answer) -> None:
        super().__init__(config)
        self.answer = answer
        self.estimates: list[Tensor | None] = []

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
        return (alpha * latents - clean) / sigma


def counting(x_t: Tensor, alpha: float, sigma: float, conditions: Conditions) -> Tensor:
    """A video whose latent frames go up by one, from those that are known, or from 0."""
    start = torch.zeros_like(x_t[:, :, :1])
    if conditions.past is not None:
        start = start + conditions.past[:, :, :1]
    return start + torch.arange(x_t.shape[2], dtype=x_t.dtype)[:, None, None]


# --- Guidance --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("guidance", "past_guidance", "content", "past", "expected"),
    [
        (1.0, 1.0, True, True, {(True, True): 1}),
        (1.0, 1.0, False, False, {(False, False): 1}),
        (0.0, 1.0, True, True, {(False, True): 1}),
        (0.0, 0.0, True, True, {(False, False): 1}),
        (3.0, 1.0, True, False, {(True, False): 3, (False, False): -2}),
        (3.0, 1.0, True, True, {(True, True): 3, (False, True): -2}),
        (3.0, 3.0, True, True, {(True, True): 3, (False, False): -2}),
        (1.0, 2.0, False, True, {(False, True): 2, (False, False): -1}),
        (1.0, 2.0, True, True, {(True, True): 1, (False, True): 1, (False, False): -1}),
        (3.0, 2.0, True, True, {(True, True): 3, (False, True): -1, (False, False): -1}),
    ],
)
def test_passes_are_those_that_count(
    guidance: float,
    past_guidance: float,
    content: bool,
    past: bool,
    expected: dict[tuple[bool, bool], float],
) -> None:
    passes = guidance_passes(guidance, past_guidance, content=content, past=past)
    assert passes == expected
    assert sum(passes.values()) == 1


def test_passes_of_a_step_are_one_batch() -> None:
    sizes = []

    def answer(x_t: Tensor, alpha: float, sigma: float, conditions: Conditions) -> Tensor:
        sizes.append(len(x_t))
        return x_t

    model, conditions = Knowing(FULL, answer), with_past(content())
    for guidance, past_guidance in ((1.0, 1.0), (3.0, 1.0), (3.0, 2.0)):
        sample(
            model,
            random(*SHAPE),
            steps=1,
            conditions=conditions,
            guidance=guidance,
            past_guidance=past_guidance,
        )
    assert sizes == [2, 4, 6]


def test_guidance_is_composed_of_separate_predictions(build: Callable[..., Walt]) -> None:
    model, conditions = build(FULL), with_past(content())
    noisy, estimate = random(*SHAPE), None
    timesteps = [999, 749, 499, 249]
    with torch.no_grad():
        for number, timestep in enumerate(timesteps):
            level = torch.full((2,), timestep)
            both = model(noisy, level, conditions, estimate)
            past = model(noisy, level, conditions.without_content(), estimate)
            none = model(noisy, level, None, estimate)
            v = none + 1.5 * (past - none) + 2.5 * (both - past)
            following = timesteps[number + 1] if number < 3 else None
            noisy, estimate = ddim_step(model.schedule, noisy, v, timestep, following)
    found = sample(
        model, random(*SHAPE), steps=4, conditions=conditions, guidance=2.5, past_guidance=1.5
    )
    # Other batches, other sums: some roundings, which guidance and the network enlarge.
    torch.testing.assert_close(found, noisy, rtol=1e-3, atol=1e-3)


def test_guidance_at_its_ends(build: Callable[..., Walt]) -> None:
    model, noise, conditions = build(FULL), random(*SHAPE), with_past(content())

    def run(conditions: Conditions | None, **scales: float) -> Tensor:
        return sample(model, noise, steps=3, conditions=conditions, **scales)

    plain, null = run(conditions), run(None)
    assert torch.equal(run(conditions, guidance=1.0, past_guidance=1.0), plain)
    past, text = run(conditions.without_content()), run(content())
    # The null text stands alone or before tokens that do not count: other sums, same numbers.
    tolerance = {"rtol": 1e-3, "atol": 1e-3}
    torch.testing.assert_close(run(conditions, guidance=0.0), past, **tolerance)
    torch.testing.assert_close(run(content(), guidance=0.0), null, **tolerance)
    torch.testing.assert_close(
        run(conditions.without_content(), past_guidance=0.0), null, **tolerance
    )
    for other in (past, text, null):
        assert (plain - other).abs().max() > 0.05


@pytest.mark.parametrize("name", ["guidance", "past_guidance"])
def test_guidance_needs_something_to_follow(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} 2.0 is for a model with"):
        sample(Walt(PLAIN), random(*SHAPE), **{name: 2.0})
    with pytest.raises(ValueError, match=f"{name} 2.0 has no .* to follow"):
        sample(Walt(FULL), random(*SHAPE), **{name: 2.0})


def test_every_pass_reads_the_guided_estimate() -> None:
    def answer(x_t: Tensor, alpha: float, sigma: float, conditions: Conditions) -> Tensor:
        assert conditions.classes is not None
        return torch.zeros_like(x_t) + conditions.classes[:, None, None, None, None] * 1.0

    model = Knowing(FULL, answer)
    classes = Conditions(classes=torch.tensor([0, 2]))
    found = sample(model, random(*SHAPE), steps=3, conditions=classes, guidance=3.0)
    # -1 is the null class: 3 * class - 2 * -1.
    expected = torch.tensor([2.0, 8.0])[:, None, None, None, None].expand(SHAPE)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    for estimate in model.estimates[1:]:
        assert estimate is not None
        torch.testing.assert_close(estimate, expected.repeat(2, 1, 1, 1, 1), rtol=0, atol=1e-4)


def test_autocast_leaves_guidance_exact() -> None:
    """What the network gives may be rounded, what is made of it is not."""
    conditions = with_past(content())
    model = Knowing(FULL, counting)

    def run() -> Tensor:
        return sample(
            model, random(*SHAPE), steps=3, conditions=conditions, guidance=7.0, past_guidance=2.0
        )

    expected = run()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(run(), expected)


# --- Longer videos ---------------------------------------------------------------------------


@pytest.mark.parametrize("past_frames", [1, 2])
def test_continuations_go_on_where_the_last_clip_ends(past_frames: int) -> None:
    model = Knowing(FULL, counting)
    first = sample(model, random(*SHAPE), steps=2)
    clips = continue_video(
        model,
        first,
        lambda clip: clip[:, :, -past_frames:],
        3,
        generators=streams(0, 1),
        past_frames=past_frames,
        steps=2,
    )
    assert len(clips) == 3
    joined = torch.cat([first, *[clip[:, :, past_frames:] for clip in clips]], dim=2)
    numbers = torch.arange(joined.shape[2], dtype=torch.float32)
    torch.testing.assert_close(
        joined, numbers[:, None, None].expand(joined.shape), rtol=0, atol=1e-4
    )


def test_the_condition_is_what_reencode_returned(build: Callable[..., Walt]) -> None:
    model, first = build(FULL), random(*SHAPE, seed=3)
    seen, answers = [], [random(2, 4, 2, 4, 4, seed=seed) for seed in (4, 5)]

    def reencode(clip: Tensor) -> Tensor:
        seen.append(clip)
        return answers[len(seen) - 1]

    told = []
    clips = continue_video(
        model,
        first,
        reencode,
        2,
        generators=streams(7, 8),
        steps=2,
        conditions=content(),
        guidance=2.0,
        past_guidance=1.5,
        progress=lambda *numbers: told.append(numbers),
    )
    assert torch.equal(seen[0], first)
    assert torch.equal(seen[1], clips[0])
    assert len(seen) == 2
    generators = streams(7, 8)
    for known, clip in zip(answers, clips, strict=True):
        # Whatever lies beyond the known frames must not matter.
        past = torch.cat([known, random(2, 4, 3, 4, 4, seed=6)], dim=2)
        conditions = dataclasses.replace(content(), past=past, past_frames=torch.tensor([2, 2]))
        noise = torch.stack([torch.randn(4, 5, 4, 4, generator=g) for g in generators])
        expected = sample(
            model, noise, steps=2, conditions=conditions, guidance=2.0, past_guidance=1.5
        )
        assert torch.equal(clip, expected)
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_longer_video_begins_as_the_shorter_one(build: Callable[..., Walt]) -> None:
    model, first = build(FULL), random(*SHAPE)
    short, long = (
        continue_video(
            model, first, lambda x: x[:, :, -2:], number, generators=streams(1, 2), steps=1
        )
        for number in (1, 2)
    )
    assert torch.equal(short[0], long[0])
    none = continue_video(model, first, lambda x: x, 0, generators=streams(1, 2))
    assert none == []


@pytest.mark.usefixtures("_unchecked")
def test_continuation_refuses_what_does_not_fit() -> None:
    model, latents, ends = Walt(FULL), random(*SHAPE), random(2, 4, 2, 4, 4)

    def run(match: str, known: Tensor = ends, model: Walt = model, **changes: object) -> None:
        options = {"num_clips": 1, "generators": streams(0, 1), "steps": 1, **changes}
        with pytest.raises(ValueError, match=match):
            continue_video(model, latents, lambda clip: known, **options)

    run("a model without frame_conditioning cannot continue", model=Walt(PLAIN))
    run("num_clips -1 must be 0 or more", num_clips=-1)
    run("1 generators for 2 samples", generators=streams(0))
    run("past_frames 0 must be 1 to 4", past_frames=0)
    run("past_frames 5 must be 1 to 4", past_frames=5)
    run(r"reencode returned \(2, 4, 1, 4, 4\), expected", known=ends[:, :, :1])
    run("expected finite latents", known=ends / 0)
    run("conditions bring a past", conditions=with_past(Conditions()))
    run("steps 0 must be 1 to 1000", steps=0)
    run("guidance 2.0 has no class or text to follow", guidance=2.0)
