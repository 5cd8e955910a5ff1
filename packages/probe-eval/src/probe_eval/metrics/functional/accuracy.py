"""Classification accuracy.

Axes: b samples, k classes.
"""

from collections.abc import Sequence

import torch
from einops import rearrange, reduce
from jaxtyping import Float, Int
from torch import Tensor

from probe_eval.metrics.functional.sums import Measured, check_shapes, masked_sums, refuse

VARIANT = "ties to the lower class"
RANKS = (1, 5)
"""How many of the highest logits may hold the class; more than there are classes are left out."""


def accuracy_metrics(
    pred: Float[Tensor, "b k"],
    target: Int[Tensor, " b"],
    *,
    sample_ids: Sequence[str] | None = None,
) -> Measured:
    """Share of samples whose class has the highest logit, or one of the five highest.

    Of equal logits, that of the lower class counts as the higher.

    Reference: From Image to Video, Sec. 3.4 (top-1 classification accuracy).

    Args:
        pred: logits.
        target: class indices in [0, k).
        sample_ids: names for errors; None names samples by their positions.

    Returns:
        Sums `top1` and, where there are at least five classes, `top5`; higher is better.

    Raises:
        ValueError: if shapes differ, there are NaN logits, or a class is out of range.
    """
    samples, classes = pred.shape
    check_shapes((samples,), target=target)
    refuse(
        pred.isnan(), "logits are not a number; the readout or its features are broken", sample_ids
    )
    refuse(
        (target < 0) | (target >= classes),
        f"class is outside [0, {classes}), the range of the logits",
        sample_ids,
    )
    label = rearrange(target.to(pred.device).long(), "b -> b 1")
    own = pred.gather(1, label)
    before = torch.arange(classes, device=pred.device) < label
    rank = reduce(((pred > own) | ((pred == own) & before)).long(), "b k -> b", "sum")
    found = {f"top{most}": rank < most for most in RANKS if most <= classes}
    counts = rank >= 0
    return Measured(VARIANT, {name: masked_sums(right, counts) for name, right in found.items()})
