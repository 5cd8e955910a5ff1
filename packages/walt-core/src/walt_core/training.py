"""The training loss of the denoiser, and what it draws for each sample.

Axes: b batch, c latent channels, t h w latent grid.
"""

import dataclasses
from collections.abc import Sequence

import torch
import torch.distributed as dist
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from walt_core.conditions import Conditions
from walt_core.config import WaltConfig
from walt_core.diffusion import NUM_TIMESTEPS
from walt_core.model import Walt

MAX_PAST_FRAMES = 2
"""Latent frames that frame conditioning knows at most: WALT re-encodes 5 frames, 2 latents."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """How often a sample is trained with each condition; a probability each.

    Reference: WALT, Sec. 3.3 (0.9 for self-conditioning) and 3.4; the other two rates are not
        published.

    Raises:
        ValueError: if a rate is not in [0, 1].
    """

    estimate: float = 0.9
    """Self-conditioning: the model reads its own estimate of the clean latents."""
    past: float = 0.25
    """Frame conditioning: the model reads the first latent frame or two without noise."""
    drop: float = 0.1
    """Class and text, together, become null, as guidance needs."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not 0 <= value <= 1:
                raise ValueError(f"rate {field.name} {value} must be a probability, 0 to 1")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Draws:
    """What chance decides about each sample of a batch."""

    timestep: Int[Tensor, " b"]
    """Noise level."""
    noise: Float[Tensor, "b c t h w"]
    """Unit Gaussian noise."""
    estimate: Bool[Tensor, " b"]
    """Which samples get the model's own estimate."""
    past_frames: Int[Tensor, " b"]
    """How many latent frames each sample may know; 0 for none."""
    dropped: Bool[Tensor, " b"]
    """Which samples lose class and text."""


def draw(
    latents: Float[Tensor, "b c t h w"],
    generators: Sequence[torch.Generator],
    config: WaltConfig,
    rates: Rates | None = None,
) -> Draws:
    """Draws for one training step, each sample's from its own generator alone.

    So they are the same in any batch, order and number of processes. A model draws nothing for
    what it has no part for, and an image (t = 1) no past; the other draws do not change by that.

    Args:
        latents: clean latents; their shape, type and device are those of the noise.
        generators: one source of randomness per sample, on the CPU.
        config: which conditions the model takes.
        rates: how often it gets them; None: those of `Rates()`.

    Raises:
        ValueError: if there is not one generator per sample.
    """
    rates = rates or Rates()
    if len(generators) != len(latents):
        raise ValueError(
            f"{len(generators)} generators for {len(latents)} samples; pass one per sample"
        )
    steps = [torch.randint(NUM_TIMESTEPS, (), generator=g) for g in generators]
    noise = [torch.randn(latents.shape[1:], generator=g) for g in generators]
    chances = torch.stack([torch.rand(4, generator=g, dtype=torch.float64) for g in generators])
    estimate, past, number, drop = chances.unbind(dim=1)
    most = min(MAX_PAST_FRAMES, latents.shape[2] - 1) * config.frame_conditioning
    has_past = (past < rates.past) & (most > 0)
    content = bool(config.num_classes or config.text_width)
    device = latents.device
    return Draws(
        timestep=torch.stack(steps).to(device),
        noise=torch.stack(noise).to(latents),
        estimate=((estimate < rates.estimate) & config.self_conditioning).to(device),
        past_frames=(has_past * (1 + (number * most).long())).to(device),
        dropped=((drop < rates.drop) & content).to(device),
    )


def denoising_loss(
    model: nn.Module,
    latents: Float[Tensor, "b c t h w"],
    draws: Draws,
    conditions: Conditions | None = None,
) -> Float[Tensor, ""]:
    """Mean squared error of the predicted v, in fp32.

    Samples with self-conditioning read the estimate of the clean latents from a first pass, which
    has no gradient; the others read zeros. For a joint step of images and videos, add the losses
    of two calls, weighted by their numbers of samples.

    Reference: WALT, Sec. 3.1 (v), 3.3 (self-conditioning) and 3.4 (past frames).

    Args:
        model: a `Walt`, also inside a wrapper such as DistributedDataParallel.
        latents: clean normalised latents.
        draws: what `draw` gave for them.
        conditions: classes and text of the samples; past frames are taken from `latents`.

    Raises:
        ValueError: for latents that are not finite, draws of another batch, a timestep out of
            range, or conditions that the model does not take or that bring a past of their own.
    """
    walt = unwrap(model)
    check(latents, draws, conditions)
    schedule, timestep = walt.schedule, draws.timestep
    noisy = schedule.add_noise(latents, draws.noise, timestep)
    conditions = (conditions or Conditions()).drop(draws.dropped)
    if walt.config.frame_conditioning or bool(draws.past_frames.any()):
        conditions = dataclasses.replace(conditions, past=latents, past_frames=draws.past_frames)
    estimate = None
    if bool(draws.estimate.any()) or (walt.config.self_conditioning and among_others()):
        with torch.no_grad():
            first = schedule.denoised(noisy, model(noisy, timestep, conditions), timestep)
        wanted = rearrange(draws.estimate, "b -> b 1 1 1 1")
        estimate = torch.where(wanted, first, 0).to(noisy)
    pred = model(noisy, timestep, conditions, estimate)
    target = schedule.v_target(latents.float(), draws.noise.float(), timestep)
    return (pred.float() - target).square().mean()


def check(latents: Float[Tensor, "b c t h w"], draws: Draws, conditions: Conditions | None) -> None:
    """Checks what `denoising_loss` is given.

    Raises:
        ValueError: naming what is wrong.
    """
    if draws.noise.shape != latents.shape:
        raise ValueError(
            f"the draws are for latents {tuple(draws.noise.shape)}, not {tuple(latents.shape)}; "
            "draw for this batch"
        )
    if conditions is not None and conditions.past is not None:
        raise ValueError(
            "conditions bring a past, but training takes it from the latents, as often as "
            "Rates.past says; leave past and past_frames None"
        )
    if not bool(torch.isfinite(latents).all()):
        raise ValueError("latents hold NaN or infinite values; check the clip and tokenizer")


def unwrap(model: nn.Module) -> Walt:
    """The denoiser inside the wrappers of distributed training and torch.compile.

    Raises:
        ValueError: if there is none.
    """
    inner = getattr(model, "module", model)
    inner = getattr(inner, "_orig_mod", inner)
    if not isinstance(inner, Walt):
        raise ValueError(f"model is a {type(inner).__name__}, expected a Walt or a wrapper of one")
    return inner


def among_others() -> bool:
    """Whether other processes train the same model.

    Their passes must match in number: under FSDP they gather each other's weights in each.
    """
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
