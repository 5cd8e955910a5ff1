"""Relative camera pose against the true one.

Poses are [R | t] from the first camera to the last one, in metres, with OpenCV axes.

Axes: b samples, *b any leading axes, 3x4 rows by columns, p points.
"""

from collections.abc import Sequence
from itertools import product

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor

from probe_eval.metrics.functional.sums import Measured, check_shapes, masked_sums, refuse
from probe_readouts import nearest_rigid

CORNERS = tuple(product((-5.0, 5.0), (-5.0, 5.0), (0.0, 10.0)))
"""Corners (x, y, z) in metres of the cube in front of the first camera."""
VARIANT = "corners x, y in {-5, 5} and z in {0, 10} m, rotations by Procrustes"


def pose_metrics(
    pred: Float[Tensor, "b 3 4"],
    target: Float[Tensor, "b 3 4"],
    valid: Bool[Tensor, " b"] | None = None,
    *,
    sample_ids: Sequence[str] | None = None,
) -> Measured:
    """Errors of predicted poses, whose 3x3 parts are first replaced by the nearest rotations.

    Reference: From Image to Video, Sec. 3.4 (mean end-point error) and App. D.4 (Procrustes).

    Args:
        pred: what a pose readout gives, no rotation yet.
        target: true poses.
        valid: which samples count; None counts all.
        sample_ids: names for errors; None names samples by their positions.

    Returns:
        Sums over the samples that count, of `end_point_error` and `translation_error` in metres
        and `rotation_error` in degrees; lower is better.

    Raises:
        ValueError: if shapes differ, or a pose that counts is not finite.
    """
    check_shapes(target.shape, pred=pred)
    check_shapes(target.shape[:1], valid=valid)
    counts = torch.ones(len(target), dtype=torch.bool) if valid is None else valid.cpu()
    pred, target = pred.double().cpu(), target.double().cpu()
    for name, poses in (("predicted", pred), ("true", target)):
        broken = ~reduce(poses.isfinite(), "b i j -> b", "all")
        refuse(counts & broken, f"{name} pose is not finite", sample_ids)
    pred = torch.where(rearrange(counts, "b -> b 1 1"), pred, torch.eye(3, 4).double())
    # One by one, because a batch of them is rounded otherwise than its parts.
    pred = torch.cat([nearest_rigid(pose) for pose in pred.split(1)])
    errors = (end_point_error, rotation_error, translation_error)
    return Measured(
        VARIANT, {error.__name__: masked_sums(error(pred, target), counts) for error in errors}
    )


def end_point_error(
    pred: Float[Tensor, "*b 3 4"], target: Float[Tensor, "*b 3 4"]
) -> Float[Tensor, "*b"]:
    """Mean distance in metres between the corners of a cube as two poses move them.

    A shift by 1 m gives 1; a turn by 90 degrees about the y axis gives 11.44.

    Reference: From Image to Video, Sec. 3.4; the corners are `CORNERS`.
    """
    corners = torch.tensor([(*corner, 1.0) for corner in CORNERS]).to(target)
    moved = rearrange(pred - target, "... i j -> ... 1 i j") * rearrange(corners, "p j -> p 1 j")
    return moved.sum(dim=-1).norm(dim=-1).mean(dim=-1)


def rotation_error(
    pred: Float[Tensor, "*b 3 4"], target: Float[Tensor, "*b 3 4"]
) -> Float[Tensor, "*b"]:
    """Angle in degrees, in [0, 180], of the turn that takes one pose's rotation to the other's.

    From the chord |P - T| = 2 sqrt(2) sin(angle / 2) and the trace of P T^T, 1 + 2 cos(angle), so
    that small and large angles are equally exact; an arc cosine of the trace is good to 0.02
    degrees in float32.
    """
    first, second = pred[..., :3], target[..., :3]
    sine = (first - second).square().sum(dim=(-2, -1)).sqrt() / 2**0.5
    cosine = (1 + (first * second).sum(dim=(-2, -1))).clamp(min=0).sqrt()
    return torch.rad2deg(2 * torch.atan2(sine, cosine))


def translation_error(
    pred: Float[Tensor, "*b 3 4"], target: Float[Tensor, "*b 3 4"]
) -> Float[Tensor, "*b"]:
    """Distance in metres between the translations of two poses."""
    return (pred - target)[..., 3].norm(dim=-1)
