"""Camera poses: 3x4 matrices [R|t] that take world points to camera points.

OpenCV axes: x to the right, y down, z forward; metres. Numbers are float64 in the files that are
read and float32 in what is returned, with the arithmetic done in float64.
"""

import numpy as np
from einops import einsum
from jaxtyping import Float

__all__ = ["invert_pose", "is_rigid", "relative_pose"]


def is_rigid(pose: Float[np.ndarray, "*b 3 4"], *, tolerance: float = 1e-3) -> bool:
    """Whether all poses are finite with a rotation on the left.

    Args:
        pose: the matrices.
        tolerance: largest entry of R^T R - 1 that counts as rounding.
    """
    if not np.isfinite(pose).all():
        return False
    rotation = pose[..., :3].astype(np.float64)
    if np.abs(rotation).max(initial=0.0) > 2.0:  # also keeps the product finite
        return False
    product = einsum(rotation, rotation, "... k i, ... k j -> ... i j")
    return bool(
        np.abs(product - np.eye(3)).max(initial=0.0) <= tolerance
        and (np.linalg.det(rotation) > 0).all()
    )


def invert_pose(pose: Float[np.ndarray, "*b 3 4"]) -> Float[np.ndarray, "*b 3 4"]:
    """The inverse of rigid motions: camera-to-world for world-to-camera, and the other way round.

    Args:
        pose: rigid matrices [R|t].

    Returns:
        [R^-1 | -R^-1 t] in float64. R^T would differ by what the files round away.
    """
    matrix = pose.astype(np.float64)
    rotation, translation = matrix[..., :3], matrix[..., 3]
    inverse = np.linalg.inv(rotation)
    moved = -einsum(inverse, translation, "... i j, ... j -> ... i")
    return np.concatenate([inverse, moved[..., None]], axis=-1)


def relative_pose(
    first: Float[np.ndarray, "*b 3 4"], last: Float[np.ndarray, "*b 3 4"]
) -> Float[np.ndarray, "*b 3 4"]:
    """The motion from one camera to another: takes points of the first camera to the last.

    Args:
        first: world-to-camera pose of the first camera.
        last: world-to-camera pose of the last camera.

    Returns:
        last * first^-1 in float64.
    """
    back, matrix = invert_pose(first), last.astype(np.float64)
    rotation = einsum(matrix[..., :3], back[..., :3], "... i j, ... j k -> ... i k")
    moved = einsum(matrix[..., :3], back[..., 3], "... i j, ... j -> ... i") + matrix[..., 3]
    return np.concatenate([rotation, moved[..., None]], axis=-1)
