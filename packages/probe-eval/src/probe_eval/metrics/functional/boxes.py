"""Box tracks by their overlap with the true boxes.

Axes: b videos, t frames, q queries, one for each box, *b any leading axes.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probe_eval.metrics.functional.sums import Measured, check_shapes, masked_sums, refuse
from probe_eval.metrics.functional.tracks import QUERY_MODES, scored_frames

VARIANT = f"{QUERY_MODES['first']}, pooled over boxes"


def box_metrics(
    pred: Float[Tensor, "b t q 4"],
    target: Float[Tensor, "b t q 4"],
    query_frames: Int[Tensor, "b q"] | None = None,
    valid: Bool[Tensor, "b t q"] | None = None,
    *,
    sample_ids: Sequence[str] | None = None,
) -> Measured:
    """Mean intersection over union of all boxes in the frames after their query's.

    Reference: From Image to Video, Sec. 3.4 (average IoU without the first frame).

    Args:
        pred: boxes xyxy in [0, 1] of the image.
        target: true boxes; one without area counts as 0.
        query_frames: index of each query's frame; None is frame 0.
        valid: which boxes count; false where an object is not labelled, and for all frames of a
            padded query. None counts all.
        sample_ids: names for errors; None names videos by their positions.

    Returns:
        Sums `mean_iou` over the boxes that count; higher is better.

    Raises:
        ValueError: if shapes differ, a query is before the first frame or after the last, or a
            box that counts is not finite.
    """
    check_shapes(target.shape, pred=pred)
    like = torch.ones_like(target[..., 0], dtype=torch.bool)
    counts = scored_frames(like, query_frames, valid, "first", sample_ids)
    for name, boxes in (("predicted", pred), ("true", target)):
        refuse(counts & ~boxes.isfinite().all(dim=-1), f"{name} box is not finite", sample_ids)
    return Measured(VARIANT, {"mean_iou": masked_sums(box_iou(pred, target), counts)})


def box_iou(pred: Float[Tensor, "*b 4"], target: Float[Tensor, "*b 4"]) -> Float[Tensor, "*b"]:
    """Intersection over union in [0, 1] of pairs of boxes, in float64.

    Boxes are xyxy in any unit. One without area (x2 <= x1 or y2 <= y1) overlaps nothing, not even
    itself.
    """
    pred, target = pred.double(), target.double()
    overlap = area(
        torch.maximum(pred[..., :2], target[..., :2]), torch.minimum(pred[..., 2:], target[..., 2:])
    )
    union = area(pred[..., :2], pred[..., 2:]) + area(target[..., :2], target[..., 2:]) - overlap
    return torch.where(overlap > 0, overlap / union, 0.0)


def area(low: Float[Tensor, "*b 2"], high: Float[Tensor, "*b 2"]) -> Float[Tensor, "*b"]:
    """Area between two corners, 0 where they are in the wrong order."""
    return (high - low).clamp(min=0).prod(dim=-1)
