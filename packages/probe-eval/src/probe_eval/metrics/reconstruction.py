"""How close reconstructed clips are to the originals: PSNR, SSIM, and LPIPS by a given network.

Pixels are in [-1, 1], a data range of 2; reconstructions are clamped to it before anything is
measured, originals must be in it. Every function takes `b 3 T H W`.

Axes: b clips, T frames, H W pixels, n frames of all clips.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from probe_eval.metrics.state import PooledSums

DATA_RANGE = 2.0
PSNR_LIMIT = 100.0
"""Decibels; what equal clips score, whose PSNR is infinite. At 100 dB the error is 400 times
smaller than the rounding of pixels to bytes, so that nothing real is cut off."""
SSIM_WINDOW = 11
_SSIM_PIXELS = 1 << 20  # pixels at a time; bounds memory, which is some 200 bytes a pixel
_ROUNDING = 1e-4  # by which resized originals may leave the range

FrameDistance = Callable[[Float[Tensor, "n 3 H W"], Float[Tensor, "n 3 H W"]], Any]
"""A network that compares frames in [-1, 1]: one distance per frame, or their mean."""


class PsnrState(PooledSums):
    """Squared errors of clips."""

    @classmethod
    def measure(
        cls,
        sample_ids: Sequence[str],
        pred: Float[Tensor, "b 3 T H W"],
        target: Float[Tensor, "b 3 T H W"],
    ) -> "PsnrState":
        """The state of a batch; see `psnr`."""
        pred, target = prepared(pred, target)
        errors = reduce((pred.double() - target.double()).square(), "b c T H W -> b", "sum")
        return cls.of(sample_ids, errors.tolist(), target[0].numel())

    def compute(self) -> float:
        """Decibels from the mean squared error over all pixels of all clips, at most 100.

        Raises:
            ValueError: if there are no samples.
        """
        error = super().compute()
        if error == 0:
            return PSNR_LIMIT
        return min(PSNR_LIMIT, 10 * math.log10(DATA_RANGE**2 / error))


class SsimState(PooledSums):
    """Structural similarities of frames; computes their mean, at most 1."""

    @classmethod
    def measure(
        cls,
        sample_ids: Sequence[str],
        pred: Float[Tensor, "b 3 T H W"],
        target: Float[Tensor, "b 3 T H W"],
    ) -> "SsimState":
        """The state of a batch; see `ssim`."""
        values = ssim(pred, target).double()
        return cls.of(sample_ids, reduce(values, "b T -> b", "sum").tolist(), values.shape[1])


class LpipsState(PooledSums):
    """Distances of frames by a network that the user brings; computes their mean."""

    @classmethod
    def measure(
        cls,
        sample_ids: Sequence[str],
        pred: Float[Tensor, "b 3 T H W"],
        target: Float[Tensor, "b 3 T H W"],
        *,
        network: FrameDistance,
    ) -> "LpipsState":
        """The state of a batch; see `lpips`."""
        values = lpips(pred, target, network=network).double()
        return cls.of(sample_ids, reduce(values, "b T -> b", "sum").tolist(), values.shape[1])


def psnr(pred: Float[Tensor, "b 3 T H W"], target: Float[Tensor, "b 3 T H W"]) -> float:
    """Peak signal-to-noise ratio from the mean squared error over all pixels of all clips.

    The errors are pooled before the logarithm: the mean of the clips' own ratios is higher, and
    depends on how a video was cut into clips.

    Args:
        pred: reconstructions; clamped to [-1, 1].
        target: originals.

    Returns:
        Decibels, at most `PSNR_LIMIT`, which is what equal clips get.

    Raises:
        ValueError: see `prepared`.
    """
    return PsnrState.measure([str(i) for i in range(len(target))], pred, target).compute()


@torch.no_grad()
def ssim(
    pred: Float[Tensor, "b 3 T H W"], target: Float[Tensor, "b 3 T H W"]
) -> Float[Tensor, "b T"]:
    """Structural similarity of every frame, in colour: the mean over pixels and channels.

    Reference: Wang et al., Image Quality Assessment: From Error Visibility to Structural
        Similarity (IEEE TIP 2004), with its Gaussian window of 11 x 11 and deviation 1.5; frames
        are reflected at their borders. The index depends on where black is: pixels are shifted to
        begin at 0, as in the paper.

    Args:
        pred: reconstructions; clamped to [-1, 1].
        target: originals.

    Returns:
        Similarities, 1 for equal frames.

    Raises:
        ValueError: see `prepared`; or if a frame is smaller than the window.
        ImportError: torchmetrics is not installed.
    """
    pred, target = prepared(pred, target)
    height, width = target.shape[-2:]
    check_ssim_size(height, width)
    from torchmetrics.functional.image import structural_similarity_index_measure

    frames = rearrange(torch.stack([pred, target]), "two b c T H W -> two (b T) c H W") + 1
    values = [
        structural_similarity_index_measure(
            *part,
            gaussian_kernel=True,
            sigma=1.5,
            kernel_size=SSIM_WINDOW,
            data_range=DATA_RANGE,
            reduction="none",
        )
        for part in frames.split(max(1, _SSIM_PIXELS // (height * width)), dim=1)
    ]
    flat = torch.cat([torch.atleast_1d(value) for value in values])
    return rearrange(flat, "(b T) -> b T", b=len(target))


def check_ssim_size(height: int, width: int) -> None:
    """Checks that the window of SSIM fits into a frame.

    Raises:
        ValueError: if it does not.
    """
    if min(height, width) < SSIM_WINDOW:
        raise ValueError(
            f"frames of {height} x {width} pixels are smaller than the window of SSIM, "
            f"{SSIM_WINDOW} x {SSIM_WINDOW}; use larger frames"
        )


@torch.no_grad()
def lpips(
    pred: Float[Tensor, "b 3 T H W"],
    target: Float[Tensor, "b 3 T H W"],
    *,
    network: FrameDistance,
) -> Float[Tensor, "b T"]:
    """Distance of every frame by a perceptual network.

    Reference: Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual
        Metric (CVPR 2018).

    Args:
        pred: reconstructions; clamped to [-1, 1].
        target: originals.
        network: maps reconstructed and original frames, `n 3 H W` in [-1, 1], to one distance per
            frame, of shape `n` or `n 1 1 1`, or to their mean.

    Returns:
        Distances; where the network gives only a mean, that mean for every frame.

    Raises:
        ValueError: see `prepared`; or if the network returns anything else.
    """
    pred, target = prepared(pred, target)
    count = target.shape[0] * target.shape[2]
    values = network(*(rearrange(clips, "b c T H W -> (b T) c H W") for clips in (pred, target)))
    if not isinstance(values, Tensor) or values.numel() not in (1, count):
        found = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values)
        raise ValueError(
            f"the network returned {found} for {count} frames; expected a tensor of {count} "
            "distances or of their mean"
        )
    if not bool(torch.isfinite(values).all()):
        raise ValueError("the network returned distances that are not finite")
    flat = values.float().flatten().expand(count)
    return rearrange(flat, "(b T) -> b T", b=len(target))


def prepared(
    pred: Float[Tensor, "b 3 T H W"], target: Float[Tensor, "b 3 T H W"]
) -> tuple[Float[Tensor, "b 3 T H W"], Float[Tensor, "b 3 T H W"]]:
    """Both as float32, the reconstructions clamped to [-1, 1].

    Raises:
        ValueError: if the shapes differ, there are no pixels, pixels are not finite, or originals
            are out of range.
    """
    if pred.shape != target.shape or not target.numel():
        raise ValueError(
            f"reconstructions of shape {tuple(pred.shape)} cannot be compared with originals of "
            f"shape {tuple(target.shape)}; expected equal shapes with no empty axis"
        )
    for name, pixels in (("reconstruction", pred), ("original", target)):
        if not bool(torch.isfinite(pixels).all()):
            raise ValueError(f"{name} has pixels that are not finite; expected [-1, 1]")
    target = target.detach().float()
    if float(target.abs().amax()) > 1 + _ROUNDING:
        raise ValueError(
            f"original has pixels in [{float(target.amin()):g}, {float(target.amax()):g}]; "
            "expected [-1, 1]"
        )
    return pred.detach().float().clamp(-1, 1), target.clamp(-1, 1)
