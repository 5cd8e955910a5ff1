"""Sampling: DDIM with guidance on class, text and past frames, and videos beyond one clip.

Axes: b batch, c latent channels, t h w latent grid, p known latent frames, n passes of the model.
"""

import dataclasses
from collections.abc import Callable, Sequence

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from walt_core.conditions import Conditions
from walt_core.config import WaltConfig
from walt_core.diffusion import NoiseSchedule
from walt_core.training import unwrap

Progress = Callable[[int, int], None]
"""Called after each step with the number of steps done and that of all steps."""
Passes = dict[tuple[bool, bool], float]
"""Factor of each prediction in the guided one, by whether it knows (class and text, past)."""


def trailing_timesteps(num_timesteps: int, steps: int) -> list[int]:
    """Timesteps to sample at, falling, from the last one, which is pure noise.

    Reference: Common Diffusion Noise Schedules (Lin et al., 2024), Table 2, trailing.

    Args:
        num_timesteps: number of noise levels of the schedule.
        steps: number of sampling steps, 1 to `num_timesteps`.

    Raises:
        ValueError: if `steps` is out of range.
    """
    if not 1 <= steps <= num_timesteps:
        raise ValueError(f"steps {steps} must be 1 to {num_timesteps}, one for each noise level")
    return [round(num_timesteps * left / steps) - 1 for left in range(steps, 0, -1)]


def ddim_step(
    schedule: NoiseSchedule,
    noisy: Float[Tensor, "b c t h w"],
    v: Float[Tensor, "b c t h w"],
    timestep: int,
    following: int | None,
) -> tuple[Float[Tensor, "b c t h w"], Float[Tensor, "b c t h w"]]:
    """One deterministic step towards the clean latents.

    Reference: DDIM (Song et al., 2021), Eq. 12 with sigma = 0.

    Args:
        schedule: the noise schedule.
        noisy: latents at `timestep`.
        v: the prediction for them.
        timestep: their noise level.
        following: the next, lower noise level; None for the clean latents (alpha 1).

    Returns:
        The latents at `following`, and the estimate of the clean ones.

    Raises:
        ValueError: if a timestep is out of range.
    """
    steps = torch.full((noisy.shape[0],), timestep, device=noisy.device)
    clean = schedule.denoised(noisy, v, steps)
    if following is None:
        return clean, clean
    level = schedule.level(following)
    eps = schedule.noise_of(noisy, v, steps)
    return level["alpha"] * clean + level["sigma"] * eps, clean


def guidance_passes(guidance: float, past_guidance: float, *, content: bool, past: bool) -> Passes:
    """Which predictions guidance needs, and the factor of each; they add up to 1.

    `v = v(0, 0) + s_p (v(0, p) - v(0, 0)) + s_c (v(c, p) - v(0, p))`, where c is class and text, p
    the past frames and 0 their absence. What has the factor 0 is left out, and so are predictions
    that cannot differ because nothing is given.

    Reference: Classifier-Free Diffusion Guidance (Ho and Salimans, 2022), Eq. 6, for one condition;
        InstructPix2Pix (Brooks et al., 2023), Eq. 3, for two.

    Args:
        guidance: s_c; 1 is the plain conditional prediction, 0 that without class and text.
        past_guidance: s_p, likewise for the past frames.
        content: whether there is class or text.
        past: whether there are past frames.
    """
    passes: Passes = {}
    for key, factor in (
        ((content, past), guidance),
        ((False, past), past_guidance - guidance),
        ((False, False), 1 - past_guidance),
    ):
        passes[key] = passes.get(key, 0.0) + factor
    return {key: factor for key, factor in passes.items() if factor}


@torch.no_grad()
def sample(
    model: nn.Module,
    noise: Float[Tensor, "b c t h w"],
    *,
    steps: int = 50,
    conditions: Conditions | None = None,
    guidance: float = 1.0,
    past_guidance: float = 1.0,
    progress: Progress | None = None,
) -> Float[Tensor, "b c t h w"]:
    """Latents that the model makes from noise; the same noise gives the same latents.

    DDIM without noise of its own, trailing timesteps; a model with self-conditioning reads its
    estimate of the step before. The predictions that guidance needs, at most three, are one batch.

    Reference: WALT, Sec. 3.4; DDIM (Song et al., 2021).

    Args:
        model: a `Walt`, also inside a wrapper such as FullyShardedDataParallel.
        noise: unit Gaussian noise; on its grid the latents are made.
        steps: number of steps, 1 to 1000.
        conditions: class, text and past frames; None for none.
        guidance: strength of class and text, 1 for none beyond what the model learned.
        past_guidance: strength of the past frames, likewise.
        progress: called after each step.

    Returns:
        Clean normalised latents: multiply by `model.latent_std` and add `model.latent_mean` of
        each channel for those of the tokenizer.

    Raises:
        ValueError: for steps out of range, noise that is not finite or has the wrong number of
            channels, conditions that the model does not take or that do not fit the noise, or
            guidance towards a condition that the model does not take or that is not given.
    """
    walt = unwrap(model)
    conditions = conditions or Conditions()
    timesteps = trailing_timesteps(walt.schedule.num_timesteps, steps)
    passes = plan(walt.config, noise, conditions, guidance, past_guidance)
    weights = next(walt.parameters())
    b, n = noise.shape[0], len(passes)
    known = for_passes(conditions, list(passes), b).to(weights)
    # The latents add up many small steps: they stay in fp32 where the weights are bf16.
    precision = torch.promote_types(noise.dtype, torch.float32)
    noisy = noise.to(weights.device, precision)
    # Multiplied and summed by hand: autocast would have einsum round to bf16.
    factors = torch.tensor(list(passes.values()), dtype=precision, device=weights.device)
    factors = rearrange(factors, "n -> n 1 1 1 1 1")
    estimate = None
    for number, timestep in enumerate(timesteps, start=1):
        level = torch.full((n * b,), timestep, device=weights.device)
        copies = repeat(noisy.to(weights), "b ... -> (n b) ...", n=n)
        v = model(copies, level, known, estimate).to(noisy)
        if n > 1:
            v = (factors * rearrange(v, "(n b) ... -> n b ...", n=n)).sum(dim=0)
        following = timesteps[number] if number < steps else None
        noisy, clean = ddim_step(walt.schedule, noisy, v, timestep, following)
        if walt.config.self_conditioning:
            estimate = repeat(clean.to(weights), "b ... -> (n b) ...", n=n)
        if progress is not None:
            progress(number, steps)
    return noisy.to(noise.dtype)


def continue_video(
    model: nn.Module,
    latents: Float[Tensor, "b c t h w"],
    reencode: Callable[[Tensor], Tensor],
    num_clips: int,
    *,
    generators: Sequence[torch.Generator],
    past_frames: int = 2,
    steps: int = 50,
    conditions: Conditions | None = None,
    guidance: float = 1.0,
    past_guidance: float = 1.0,
    progress: Progress | None = None,
) -> list[Float[Tensor, "b c t h w"]]:
    """The clips that follow one, each sampled with the last frames of the one before as its past.

    The first `past_frames` latent frames of every continuation show again what the clip before
    ended with. To join them, decode each clip by itself and leave out the frames of those latents:
    with a tokenizer of temporal stride 4, the first 1 + 4 * (`past_frames` - 1).

    Reference: WALT, Sec. 3.4 (autoregressive generation): of 17 frames, the last 5 are encoded
        anew as the 2 latent frames that the next clip knows.

    Args:
        model: a `Walt` with frame conditioning, as for `sample`.
        latents: clean normalised latents of the first clip, sampled or encoded.
        reencode: from the latents of a clip to clean normalised latents of its last frames,
            (b, c, past_frames, h, w). It decodes the clip and encodes its last 1 + 4 *
            (`past_frames` - 1) frames as a clip of its own, because the latents of the middle of
            a clip are not those of a beginning.
        num_clips: number of clips to add.
        generators: one source of noise per sample, on the CPU.
        past_frames: latent frames that each clip knows of the one before, fewer than it has.
        steps: as for `sample`.
        conditions: class and text, the same for every clip.
        guidance: as for `sample`.
        past_guidance: as for `sample`.
        progress: called after each step, with the numbers of all clips.

    Returns:
        The clips after the first, `num_clips` of them.

    Raises:
        ValueError: as `sample`, for a model without frame conditioning, latents or re-encoded
            ones that are not finite or of the wrong shape, or numbers out of range.
    """
    walt = unwrap(model)
    b, c, t, h, w = latents.shape
    if not walt.config.frame_conditioning:
        raise ValueError("a model without frame_conditioning cannot continue a video")
    if num_clips < 0:
        raise ValueError(f"num_clips {num_clips} must be 0 or more")
    if not 1 <= past_frames < t:
        raise ValueError(f"past_frames {past_frames} must be 1 to {t - 1}: the clips have {t}")
    if len(generators) != b:
        raise ValueError(f"{len(generators)} generators for {b} samples; pass one per sample")
    if conditions is not None and conditions.past is not None:
        raise ValueError(
            "conditions bring a past, but it comes from the clip before; leave it None"
        )
    clips = [latents]
    for index in range(num_clips):
        known = reencode(clips[-1])
        if known.shape != (b, c, past_frames, h, w) or not bool(torch.isfinite(known).all()):
            raise ValueError(
                f"reencode returned {tuple(known.shape)}, expected finite latents "
                f"{(b, c, past_frames, h, w)} of the last frames"
            )
        past = torch.zeros_like(latents)
        past[:, :, :past_frames] = known
        frames = torch.full((b,), past_frames, device=latents.device)
        noise = torch.stack([torch.randn(c, t, h, w, generator=g) for g in generators])
        clips.append(
            sample(
                model,
                noise.to(latents),
                steps=steps,
                conditions=dataclasses.replace(
                    conditions or Conditions(), past=past, past_frames=frames
                ),
                guidance=guidance,
                past_guidance=past_guidance,
                progress=shifted(progress, index, num_clips),
            )
        )
    return clips[1:]


def plan(
    config: WaltConfig,
    noise: Float[Tensor, "b c t h w"],
    conditions: Conditions,
    guidance: float,
    past_guidance: float,
) -> Passes:
    """The passes that sampling needs, after a check of everything it is given.

    Raises:
        ValueError: naming what is wrong.
    """
    if noise.shape[1] != config.latent_channels:
        raise ValueError(
            f"noise has {noise.shape[1]} channels, the model makes {config.latent_channels}"
        )
    if not bool(torch.isfinite(noise).all()):
        raise ValueError("noise holds NaN or infinite values; draw it with torch.randn")
    conditions.check(config, noise)
    content = conditions.classes is not None or conditions.text is not None
    past = conditions.past_frames is not None and bool(conditions.past_frames.any())
    for name, value, given, taken, what in (
        ("guidance", guidance, content, config.num_classes or config.text_width, "class or text"),
        ("past_guidance", past_guidance, past, config.frame_conditioning, "past frames"),
    ):
        if value == 1:
            continue
        if not taken:
            raise ValueError(
                f"{name} {value} is for a model with {what}; this one takes none: use 1"
            )
        if not given:
            raise ValueError(f"{name} {value} has no {what} to follow: give conditions, or use 1")
    return guidance_passes(guidance, past_guidance, content=content, past=past)


def for_passes(
    conditions: Conditions, passes: Sequence[tuple[bool, bool]], batch: int
) -> Conditions:
    """Conditions of all passes, one after the other along the batch."""
    content, past = (
        repeat(torch.tensor(kind), "n -> (n b)", b=batch) for kind in zip(*passes, strict=True)
    )
    repeated = conditions.repeat(outer=len(passes)).drop(~content)
    if repeated.past_frames is None:
        return repeated
    frames = repeated.past_frames.masked_fill(~past.to(repeated.past_frames.device), 0)
    return dataclasses.replace(repeated, past_frames=frames)


def shifted(progress: Progress | None, index: int, num_clips: int) -> Progress | None:
    """Progress of one clip, reported as part of that of all clips."""
    if progress is None:
        return None

    def report(done: int, steps: int) -> None:
        progress(index * steps + done, num_clips * steps)

    return report
