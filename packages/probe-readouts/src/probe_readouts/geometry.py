"""Points, boxes, rotations and rigid poses, and the conventions of every readout for them.

* Points are `xy` in [0, 1], x from the left edge of the image to its right edge and y from top to
  bottom: the centre of the pixel in row i and column j is ((j + 0.5) / W, (i + 0.5) / H).
* Boxes are `xyxy` in [0, 1]: top left corner, then bottom right, x1 <= x2 and y1 <= y2.
* Poses are 3x4 matrices [R | t] from world to camera, R x + t, in metres. Cameras have OpenCV
  axes: x right, y down, z forward.
* Depth is in metres along the camera's z axis; a depth of 0, below 0, NaN or infinity is unknown.
* In `valid` masks true means that an entry counts; None counts all.

Tests of values make a GPU wait for the result. They are left out of compiled graphs and on the
meta device.

Axes: `*b` any leading axes, 3x3 and 3x4 rows by columns.
"""

from typing import cast

import roma
import torch
from jaxtyping import Bool, Float
from torch import Tensor


def procrustes_so3(matrix: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 3 3"]:
    """Compute the rotation that is nearest to a matrix in the Frobenius norm.

    The map has a derivative wherever the nearest rotation is unique: also at repeated singular
    values, and at reflections whose two smallest singular values differ. Zero, and reflections
    whose two smallest singular values are equal, have many nearest rotations: one of them is
    returned. The derivative divides by sums of two singular values (the smallest one negative for
    a reflection); these are damped by 1e-5, so that a gradient is finite everywhere.

    Reference:
        Umeyama, Least-Squares Estimation of Transformation Parameters (1991), Lemma; Bregier, Deep
        Regression on Manifolds (3DV 2021), for the derivative; Velez et al., From Image to Video
        (2025), App. D.4.

    Args:
        matrix: finite; its scale does not matter.

    Returns:
        Orthonormal matrices with determinant +1, in the dtype of the input, and computed in
        float32 at least.

    Raises:
        ValueError: the last axes are not 3x3, or a value is NaN or infinite.
    """
    _check_last_axes(matrix, "matrix", 3, 3)
    _check_finite(matrix, "matrix")
    dtype = torch.promote_types(matrix.dtype, torch.float32)
    rotation = cast(Tensor, roma.special_procrustes(matrix.to(dtype)))
    return rotation.to(matrix.dtype)


def nearest_rigid(pose: Float[Tensor, "*b 3 4"]) -> Float[Tensor, "*b 3 4"]:
    """Replace the 3x3 part of a predicted pose by the nearest rotation; the translation stays.

    Reference:
        Velez et al., From Image to Video (2025), App. D.4.

    Raises:
        ValueError: the last axes are not 3x4, or a value is NaN or infinite.
    """
    _check_last_axes(pose, "pose", 3, 4)
    _check_finite(pose, "pose")
    return torch.cat([procrustes_so3(pose[..., :3]), pose[..., 3:]], dim=-1)


def relative_pose(
    first: Float[Tensor, "*b 3 4"], last: Float[Tensor, "*b 3 4"]
) -> Float[Tensor, "*b 3 4"]:
    """Compute the pose from the first camera to the last one, last * inverse(first).

    The inverse is the true one, not the transpose, because rotations that are read from files are
    rounded.

    Args:
        first: world to first camera.
        last: world to last camera.

    Returns:
        What takes points in the axes of the first camera to those of the last, computed in float32
        at least.

    Raises:
        ValueError: the last axes are not 3x4, the shapes differ, a value is NaN or infinite, or a
            first pose has no inverse.
    """
    for name, pose in {"first": first, "last": last}.items():
        _check_last_axes(pose, name, 3, 4)
        _check_finite(pose, name)
    if first.shape != last.shape:
        raise ValueError(
            f"first of shape {tuple(first.shape)} and last of shape {tuple(last.shape)} must agree"
        )
    out_dtype = torch.promote_types(first.dtype, last.dtype)
    dtype = torch.promote_types(out_dtype, torch.float32)
    first, last = first.to(dtype), last.to(dtype)
    rotation, singular = torch.linalg.solve_ex(first[..., :3], last[..., :3], left=False)
    problem = "has no inverse; its first three columns must be a rotation"
    _refuse_first(singular != 0, first, "first", problem)
    # Written out, because autocast and TF32 would round a matrix product.
    moved = (rotation * first[..., None, :, 3]).sum(dim=-1)
    translation = last[..., 3] - moved
    return torch.cat([rotation, translation[..., None]], dim=-1).to(out_dtype)


def check_points(
    points: Float[Tensor, "*b 2"], valid: Bool[Tensor, "*b"] | None = None, *, name: str = "points"
) -> None:
    """Refuse valid points that are not in the image.

    Args:
        points: xy.
        valid: which points are looked at.
        name: what the error calls them.

    Raises:
        ValueError: a point is NaN, infinite or outside [0, 1], or the shapes do not fit.
    """
    _check_last_axes(points, name, 2)
    _check_inside(points, valid, name)


def check_boxes(
    boxes: Float[Tensor, "*b 4"],
    valid: Bool[Tensor, "*b"] | None = None,
    *,
    name: str = "boxes",
    allow_zero_area: bool = False,
) -> None:
    """Refuse valid boxes that are not in the image or have no area.

    Args:
        boxes: xyxy.
        valid: which boxes are looked at.
        name: what the error calls them.
        allow_zero_area: let x1 = x2 and y1 = y2 pass, as for the targets of a loss or a metric. A
            query has something to track, so it needs an area.

    Raises:
        ValueError: a box has a coordinate that is NaN, infinite or outside [0, 1], a negative area
            or, unless allowed, no area, or the shapes do not fit.
    """
    _check_last_axes(boxes, name, 4)
    _check_inside(boxes, valid, name)
    size = boxes[..., 2:] - boxes[..., :2]
    negative = (size < 0).any(dim=-1)
    order = "corners are x1, y1, x2, y2 with x1 <= x2 and y1 <= y2"
    _refuse_first(_among(negative, valid), boxes, name, f"has negative area; {order}")
    if not allow_zero_area:
        flat = (size == 0).any(dim=-1)
        _refuse_first(_among(flat, valid), boxes, name, "has no area; leave it out or mask it")


def _check_last_axes(values: Tensor, name: str, *axes: int) -> None:
    """Raise unless the last axes have these sizes."""
    if values.shape[-len(axes) :] != axes:
        raise ValueError(
            f"{name} of shape {tuple(values.shape)} must end in {' x '.join(map(str, axes))}"
        )


def _check_finite(values: Tensor, name: str) -> None:
    """Raise if a value is NaN or infinite."""
    _refuse_first(~values.isfinite(), values, name, "is not finite")


def _check_inside(values: Tensor, valid: Tensor | None, name: str) -> None:
    """Raise if a valid coordinate is not in [0, 1]."""
    if valid is not None and valid.shape != values.shape[:-1]:
        raise ValueError(
            f"valid of shape {tuple(valid.shape)} must have shape {tuple(values.shape[:-1])}, one "
            f"value for each of the {name}"
        )
    outside = ~((values >= 0) & (values <= 1)).all(dim=-1)
    problem = (
        "is not in [0, 1]; divide pixels by the image's width and height, and mask what is not in "
        "the image"
    )
    _refuse_first(_among(outside, valid), values, name, problem)


def _among(bad: Tensor, valid: Tensor | None) -> Tensor:
    """Keep what is bad among the valid."""
    return bad if valid is None else bad & valid


def _refuse_first(bad: Tensor, values: Tensor, name: str, problem: str) -> None:
    """Raise with index and value of the first bad entry; `bad` has leading axes of `values`."""
    if torch.compiler.is_compiling() or bad.is_meta or not bool(bad.any()):
        return
    index = bad.nonzero()[0].tolist()
    value = ", ".join(f"{x:.8g}" for x in values[tuple(index)].flatten().tolist())
    raise ValueError(f"{name}{index or ''} = ({value}) {problem}")
