"""Clips from a denoiser and its tokenizer: a request of samples, each its own in any batch.

Axes: b batch, c channels, t h w latent grid, p known latent frames, T H W pixels.
"""

import contextlib
import dataclasses
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

import walt_core
import walt_tokenizer
from probe_eval.distributed import gather_ordered, share
from probe_eval.harness import stream
from probe_eval.progress import Tracker
from probe_eval.text import TextStates

CONTINUED_LATENTS = 2
"""Latent frames that a clip knows of the one before it; WALT: 2, the last 5 frames."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """Which samples, and how they are made; sample `i` depends on the seed and `i` alone."""

    number: int
    """How many samples there are."""
    seed: int
    """Seed of their noise."""
    grid: tuple[int, int, int]
    """Latent grid (t, h, w) of a clip."""
    steps: int = 50
    """Sampling steps."""
    guidance: float = 1.0
    """Strength of class and text."""
    past_guidance: float = 1.0
    """Strength of past frames."""
    classes: tuple[int, ...] = ()
    """Classes, given to the samples in turn."""
    text: TextStates | None = None
    """Prompts, given to the samples in turn."""
    past: Float[Tensor, "c _t h w"] | None = None
    """Clean latents of the first frames of every sample."""
    num_clips: int = 1
    """Clips in a row."""
    batch_size: int = 8
    """Samples at once."""

    def conditions(self, places: Sequence[int], like: Tensor) -> walt_core.Conditions:
        """What the samples at some places are told, beside noise on the grid of `like`."""
        values: dict[str, Tensor] = {}
        if self.classes:
            picked = [self.classes[place % len(self.classes)] for place in places]
            values["classes"] = torch.tensor(picked, device=like.device)
        if self.text is not None:
            rows = [place % len(self.text.prompts) for place in places]
            values["text"] = self.text.states[rows].to(like)
            values["text_valid"] = self.text.valid[rows].to(like.device)
        if self.past is not None:
            known = self.past.shape[1]
            values["past"] = torch.zeros_like(like)
            values["past"][:, :, :known] = self.past.to(like)
            values["past_frames"] = torch.full((len(places),), known, device=like.device)
        return walt_core.Conditions(**values)


def generate_together(
    model: walt_core.Walt,
    tokenizer: walt_tokenizer.VideoTokenizer,
    request: Request,
    accelerator: Accelerator,
    title: str = "",
) -> Float[Tensor, "b 3 T H W"]:
    """All samples of a request, on every process, each of which makes a share of them.

    Args:
        model: as for `generate_clips`.
        tokenizer: likewise.
        request: all samples.
        accelerator: device, precision and processes.
        title: shown beside a progress bar; empty for none.
    """
    mine = share(accelerator, range(request.number))
    with contextlib.ExitStack() as stack:
        tracker = None
        if title:
            total = len(mine) * request.steps * request.num_clips
            tracker = stack.enter_context(Tracker(title, total))
        clips = generate_clips(model, tokenizer, request, mine, accelerator, tracker)
    return torch.stack(gather_ordered(accelerator, list(zip(mine, clips, strict=True))))


@torch.no_grad()
def generate_clips(
    model: walt_core.Walt,
    tokenizer: walt_tokenizer.VideoTokenizer,
    request: Request,
    places: Sequence[int],
    accelerator: Accelerator,
    tracker: Tracker | None = None,
) -> list[Float[Tensor, "3 T H W"]]:
    """Some of the samples of a request, pixels in [-1, 1] on the CPU.

    Args:
        model: on the device of the accelerator, in evaluation mode.
        tokenizer: likewise.
        request: all samples.
        places: numbers of those that are made.
        accelerator: device and precision.
        tracker: counts sampling steps, one for each sample and clip.
    """
    shape = (model.config.latent_channels, *request.grid)
    clips: list[Tensor] = []
    for start in range(0, len(places), request.batch_size):
        batch = places[start : start + request.batch_size]
        generators = [stream(request.seed, "generate", place) for place in batch]
        noise = torch.stack([torch.randn(shape, generator=g) for g in generators])
        noise = noise.to(accelerator.device)
        conditions = request.conditions(batch, noise)

        def report(done: int, steps: int, number: int = len(batch)) -> None:
            if tracker is not None:
                tracker.advance(number)

        with accelerator.autocast():
            latents = walt_core.sample(
                model,
                noise,
                steps=request.steps,
                conditions=conditions,
                guidance=request.guidance,
                past_guidance=request.past_guidance if request.past is not None else 1.0,
                progress=report,
            )
        parts = [decode(tokenizer, latents)]
        if request.num_clips > 1:
            with accelerator.autocast():
                following = walt_core.continue_video(
                    model,
                    latents,
                    lambda last: reencode(tokenizer, last),
                    request.num_clips - 1,
                    generators=generators,
                    past_frames=CONTINUED_LATENTS,
                    steps=request.steps,
                    conditions=conditions.without_past(),
                    guidance=request.guidance,
                    past_guidance=request.past_guidance,
                    progress=report,
                )
            seen = continued_frames(tokenizer)
            parts += [decode(tokenizer, clip)[:, :, seen:] for clip in following]
        clips += list(torch.cat(parts, dim=2).cpu())
    return clips


def decode(
    tokenizer: walt_tokenizer.VideoTokenizer, latents: Float[Tensor, "b c t h w"]
) -> Float[Tensor, "b 3 T H W"]:
    """Pixels of normalised latents, clamped to [-1, 1], one clip at a time."""
    kind = tokenizer.latent_mean.dtype
    clips = [tokenizer.decode(one.to(kind), denormalize=True) for one in latents.split(1)]
    return torch.cat(clips).float().clamp(-1, 1)


def continued_frames(tokenizer: walt_tokenizer.VideoTokenizer) -> int:
    """Video frames of the latent frames that a clip knows of the one before it."""
    return 1 + (CONTINUED_LATENTS - 1) * tokenizer.config.temporal_stride


def reencode(
    tokenizer: walt_tokenizer.VideoTokenizer, latents: Float[Tensor, "b c t h w"]
) -> Float[Tensor, "b c p h w"]:
    """Normalised latents of the last frames of clips, as of a video that begins there.

    Reference: WALT, Sec. 3.4 (autoregressive generation).
    """
    frames = decode(tokenizer, latents)[:, :, -continued_frames(tokenizer) :]
    return tokenizer.encode(frames.to(tokenizer.latent_mean), normalize=True).to(latents)
