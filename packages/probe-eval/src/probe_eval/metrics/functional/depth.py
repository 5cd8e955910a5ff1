"""Monocular depth against measured depth.

Axes: b samples, *n frames and pixels, or queries.
"""

from collections.abc import Sequence

from jaxtyping import Bool, Float
from torch import Tensor

from probe_eval.metrics.functional.sums import Measured, check_shapes, masked_sums, refuse

DELTA = 1.25
VARIANT = "pooled over pixels"


def depth_metrics(
    pred: Float[Tensor, "b *n"],
    target: Float[Tensor, "b *n"],
    valid: Bool[Tensor, "b *n"] | None = None,
    *,
    sample_ids: Sequence[str] | None = None,
) -> Measured:
    """Absolute relative error and the share of pixels within a factor of 1.25.

    `abs_rel` is the mean of |pred - target| / target and `delta_1.25` the share of pixels with
    max(pred / target, target / pred) < 1.25, both over all pixels of the set: the mean of images'
    means would weigh a pixel by how few others its image has.

    Reference: Eigen et al., Depth Map Prediction from a Single Image using a Multi-Scale Deep
        Network (NeurIPS 2014); From Image to Video, Sec. 3.4 (AbsRelErr).

    Args:
        pred: depth in metres, of any sign.
        target: measured depth in metres; 0, below 0, NaN or infinity is unknown and never counts.
        valid: which pixels count, where they are known; None counts all.
        sample_ids: names for errors; None names samples by their positions.

    Returns:
        Sums over the pixels that count; lower is better for `abs_rel`, higher for `delta_1.25`.

    Raises:
        ValueError: if shapes differ, or a prediction is not finite where it counts.
    """
    check_shapes(target.shape, pred=pred, valid=valid)
    counts = target.isfinite() & (target > 0)
    if valid is not None:
        counts &= valid
    refuse(counts & ~pred.isfinite(), "predicted depth is not finite", sample_ids)
    pred, target = pred.double(), target.double()
    # Not by division, which would call two negative numbers close.
    close = (pred < DELTA * target) & (target < DELTA * pred)
    return Measured(
        VARIANT,
        {
            "abs_rel": masked_sums((pred - target).abs() / target, counts),
            f"delta_{DELTA}": masked_sums(close, counts),
        },
    )
