"""Losses of the readouts, one pure function per task.

Points, boxes, poses, depth and masks follow `probe_readouts.geometry`. A mean is over the entries
that count. Entries that do not count change neither a loss nor a gradient, whatever they hold, NaN
included. Targets that count are checked; predictions are not, and a NaN among those that count
gives a NaN loss. Sums are in float32 at least.

Axes: `b` batch (`*b` any axes), `k` classes, `t` frames, `q` queries.
"""

import math
from typing import NamedTuple

import torch
from einops import repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from probe_readouts.geometry import check_boxes, check_points


def classification_loss(
    logits: Float[Tensor, "b k"],
    labels: Int[Tensor, " b"],
    valid: Bool[Tensor, " b"] | None = None,
) -> Float[Tensor, ""]:
    """Softmax cross-entropy in nats, averaged over the valid samples.

    Reference:
        Velez et al., From Image to Video (2025), App. D.1.

    Args:
        logits: unnormalised class scores.
        labels: class index of every sample, in [0, k).
        valid: which samples count.

    Returns:
        The mean loss.

    Raises:
        ValueError: shapes differ, no sample is valid, or a valid label is not a class.
    """
    num_samples, num_classes = logits.shape
    if valid is None:
        valid = torch.ones_like(labels, dtype=torch.bool)
    if labels.shape != (num_samples,) or valid.shape != (num_samples,):
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} need labels and valid of shape "
            f"({num_samples},); labels have {tuple(labels.shape)}, valid {tuple(valid.shape)}"
        )
    _require_any(valid, "samples is valid")
    wrong = valid & ((labels < 0) | (labels >= num_classes))
    if bool(wrong.any()):
        values = labels[wrong].unique().tolist()
        raise ValueError(
            f"labels {values} must be in [0, {num_classes}), the number of logits; check "
            "num_outputs of the readout against the dataset's classes"
        )
    logits = torch.where(valid[:, None], _at_least_float32(logits), 0.0)
    losses = F.cross_entropy(logits, torch.where(valid, labels, 0).long(), reduction="none")
    return _mean(losses, valid)


def pose_loss(
    pred: Float[Tensor, "b 3 4"],
    target: Float[Tensor, "b 3 4"],
    valid: Bool[Tensor, " b"] | None = None,
) -> Float[Tensor, ""]:
    """Mean squared difference over the 12 entries of a pose and over the valid samples.

    The 3x3 part of a prediction is any matrix; it becomes a rotation only before the metric.

    Reference:
        Velez et al., From Image to Video (2025), App. D.4.

    Args:
        pred: predicted pose of the last camera relative to the first.
        target: true pose.
        valid: which samples count.

    Returns:
        The mean loss.

    Raises:
        ValueError: shapes differ, no sample is valid, or a valid target is not finite.
    """
    _check_shapes(pred.shape, target=target)
    valid = _mask(valid, pred[:, 0, 0], "samples")
    wrong = valid & ~target.isfinite().flatten(1).all(dim=1)
    if bool(wrong.any()):
        samples = wrong.nonzero().flatten().tolist()
        raise ValueError(
            f"target poses of samples {samples} are not finite; correct them or mask them as not "
            "valid"
        )
    return _mean_square(pred, target, repeat(valid, "b -> b i j", i=3, j=4))


def depth_loss(
    pred: Float[Tensor, "*b"],
    target: Float[Tensor, "*b"],
    valid: Bool[Tensor, "*b"] | None = None,
) -> Float[Tensor, ""]:
    """Mean squared difference in square metres over the valid pixels of known depth.

    Reference:
        Velez et al., From Image to Video (2025), Sec. 3.4 and App. D.3.

    Args:
        pred: depth in metres.
        target: depth in metres. A pixel of unknown depth never counts, whatever `valid` says.
        valid: which of the pixels of known depth count.

    Returns:
        The mean loss.

    Raises:
        ValueError: shapes differ, or no valid pixel has a known depth.
    """
    _check_shapes(pred.shape, target=target)
    counts = _mask(valid, pred, "pixels") & (target > 0) & target.isfinite()
    _require_any(counts, "pixels is valid and of known depth")
    return _mean_square(pred, target, counts)


class PointTrackLoss(NamedTuple):
    """Loss of point tracks: the weighted sum, and its terms without their weights."""

    total: Float[Tensor, ""]
    position: Float[Tensor, ""]
    """Huber loss in square pixels."""
    visibility: Float[Tensor, ""]
    """Binary cross-entropy in nats."""
    certainty: Float[Tensor, ""]
    """Binary cross-entropy in nats."""


def point_track_loss(
    values: Float[Tensor, "b t q 2"],
    logits: Float[Tensor, "b t q 2"],
    target: Float[Tensor, "b t q 2"],
    visible: Bool[Tensor, "b t q"],
    valid: Bool[Tensor, "b t q"] | None = None,
    *,
    size: float = 256.0,
    delta: float = 4.0,
    threshold: float = 6.0,
    position_weight: float = 0.05,
    visibility_weight: float = 1.0,
    certainty_weight: float = 1.0,
) -> PointTrackLoss:
    """Huber loss of positions and cross-entropies of visibility and certainty.

    * position: of the distance d in pixels, d^2 / 2 up to `delta`, then delta (d - delta / 2).
    * visibility: against `visible`.
    * certainty: against "the predicted position is less than `threshold` pixels off"; no gradient
      flows through that comparison.

    Every valid point has a visibility. Only those still in the scene (target in [0, 1], hidden
    ones included) have a position and a certainty; where there are none, both terms are 0.

    Reference:
        Velez et al., From Image to Video (2025), App. D.5; Doersch et al., TAPIR (ICCV 2023),
        whose constants these are, as the study prints none.

    Args:
        values: predicted xy.
        logits: predicted visibility and certainty, before the sigmoid.
        target: true xy; outside [0, 1] or NaN once the point has left the scene.
        visible: whether the point is seen, neither hidden nor outside the image.
        valid: which points count.
        size: pixels along either side of the square in which distances are measured.
        delta: where the Huber loss turns from quadratic to linear, in pixels.
        threshold: error in pixels from which a position counts as uncertain.
        position_weight: weight of the first term in the total.
        visibility_weight: weight of the second term.
        certainty_weight: weight of the third term.

    Returns:
        The total and its terms, each the mean over the points that have it.

    Raises:
        ValueError: shapes differ, no point is valid, a visible point is outside the image, or a
            constant is not positive, or a weight negative.
    """
    for name, constant in {"size": size, "delta": delta, "threshold": threshold}.items():
        if not 0 < constant < math.inf:
            raise ValueError(f"{name} {constant} must be a number of pixels above 0")
    weights = (position_weight, visibility_weight, certainty_weight)
    if not all(0 <= weight < math.inf for weight in weights):
        raise ValueError(
            f"weights {weights} of position, visibility and certainty must be finite and at least 0"
        )
    _check_shapes(values.shape, logits=logits, target=target)
    _check_shapes(values.shape[:-1], visible=visible)
    valid = _mask(valid, values[..., 0], "points")
    check_points(target, valid & visible, name="visible target")

    in_scene = valid & ((target >= 0) & (target <= 1)).all(dim=-1)
    error = torch.where(in_scene[..., None], _at_least_float32(values) - target, 0.0)
    distance = torch.linalg.vector_norm(size * error, dim=-1)
    huber = F.huber_loss(distance, torch.zeros_like(distance), reduction="none", delta=delta)
    position = _mean(huber, in_scene)

    logits = _at_least_float32(logits)
    visibility = _mean_cross_entropy(logits[..., 0], visible, valid)
    near = distance.detach() < threshold
    certainty = _mean_cross_entropy(logits[..., 1], near, in_scene)
    total = (
        position_weight * position + visibility_weight * visibility + certainty_weight * certainty
    )
    return PointTrackLoss(total, position, visibility, certainty)


def box_track_loss(
    values: Float[Tensor, "b t q 4"],
    target: Float[Tensor, "b t q 4"],
    valid: Bool[Tensor, "b t q"] | None = None,
) -> Float[Tensor, ""]:
    """Mean squared difference over the 4 normalised coordinates and over the valid boxes.

    Reference:
        Velez et al., From Image to Video (2025), App. D.6.

    Args:
        values: predicted xyxy, corners in any order.
        target: true xyxy, with or without an area.
        valid: which boxes count.

    Returns:
        The mean loss.

    Raises:
        ValueError: shapes differ, no box is valid, or a valid target has a negative area or is
            not in [0, 1].
    """
    _check_shapes(values.shape, target=target)
    valid = _mask(valid, values[..., 0], "boxes")
    check_boxes(target, valid, name="target", allow_zero_area=True)
    return _mean_square(values, target, repeat(valid, "b t q -> b t q v", v=4))


def _check_shapes(shape: torch.Size, **tensors: Tensor) -> None:
    """Raise unless the tensors have this shape; broadcasting would give a wrong mean."""
    for name, tensor in tensors.items():
        if tensor.shape != shape:
            raise ValueError(
                f"{name} of shape {tuple(tensor.shape)} must have shape {tuple(shape)}, as the "
                "predictions have"
            )


def _mask(valid: Tensor | None, like: Tensor, entries: str) -> Tensor:
    """Check the mask, or make one that counts all; `like` has one value for each entry."""
    if valid is None:
        valid = torch.ones_like(like, dtype=torch.bool)
    _check_shapes(like.shape, valid=valid)
    _require_any(valid, f"{entries} is valid")
    return valid


def _require_any(counts: Tensor, what: str) -> None:
    """Raise if a mean would be over nothing."""
    if not bool(counts.any()):
        raise ValueError(
            f"none of the {counts.numel()} {what}, so the mean loss has no value; skip this batch"
        )


def _at_least_float32(x: Tensor) -> Tensor:
    """Convert float16 and bfloat16 to float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _mean(losses: Tensor, counts: Tensor) -> Tensor:
    """Average what counts; 0 if nothing does."""
    return torch.where(counts, losses, 0.0).sum() / counts.sum().clamp(min=1)


def _mean_square(pred: Tensor, target: Tensor, counts: Tensor) -> Tensor:
    """Average the squared differences that count.

    The mask comes before the square: after it, the gradient of a masked NaN would be NaN.
    """
    error = torch.where(counts, _at_least_float32(pred) - target, 0.0)
    return _mean(error.square(), counts)


def _mean_cross_entropy(logits: Tensor, target: Tensor, counts: Tensor) -> Tensor:
    """Average the binary cross-entropies that count."""
    logits = torch.where(counts, logits, 0.0)
    target = target.to(logits.dtype)
    losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return _mean(losses, counts)
