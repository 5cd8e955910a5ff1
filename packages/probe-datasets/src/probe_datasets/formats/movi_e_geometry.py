"""Kubric's cameras, depths and rotations in this project's conventions.

Kubric stores what Blender uses: a camera that looks along -z with y up, depth as the distance from
the camera's centre, quaternions (w, x, y, z). Here poses are world-to-camera in OpenCV axes (x
right, y down, z forward), depth is z, and intrinsics are normalised by width and height.

Axes: `T` frames, `H` rows, `W` columns.
"""

import numpy as np
from jaxtyping import Float, Float32, Float64, UInt16

from probe_datasets.formats.movi_e import MoviCamera
from probe_datasets.formats.poses import invert_pose

__all__ = ["camera_intrinsics", "camera_poses", "distance_metres", "rotation_matrix", "z_depth"]


def rotation_matrix(quaternion: Float[np.ndarray, "*b 4"]) -> Float[np.ndarray, "*b 3 3"]:
    """The rotation of unit quaternions (w, x, y, z), in their precision.

    Args:
        quaternion: as stored; not normalised again.
    """
    w, x, y, z = np.moveaxis(quaternion, -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def camera_intrinsics(camera: MoviCamera, height: int, width: int) -> Float32[np.ndarray, "4"]:
    """(fx, fy, cx, cy), normalised by width and height; one for all frames.

    Args:
        camera: the camera of a video.
        height: rows of its frames.
        width: columns of its frames.
    """
    fx = camera.focal_length / camera.sensor_width
    return np.array([fx, fx * width / height, 0.5, 0.5], np.float32)


def camera_poses(camera: MoviCamera) -> Float64[np.ndarray, "T 3 4"]:
    """World-to-camera poses in OpenCV axes, metres.

    Args:
        camera: the camera of a video.
    """
    rotation = rotation_matrix(camera.quaternions.astype(np.float64)) * np.array([1.0, -1.0, -1.0])
    position = camera.positions.astype(np.float64)
    return invert_pose(np.concatenate([rotation, position[..., None]], axis=-1))


def distance_metres(
    depth: UInt16[np.ndarray, "*b H W"], depth_range: tuple[float, float]
) -> Float32[np.ndarray, "*b H W"]:
    """Distance from the centre of the camera in metres.

    Args:
        depth: values as stored.
        depth_range: metres at the values 0 and 65535.
    """
    low, high = np.float32(depth_range[0]), np.float32(depth_range[1])
    return low + depth.astype(np.float32) * (high - low) / np.float32(65535)


def z_depth(
    distance: Float32[np.ndarray, "*b H W"], intrinsics: Float32[np.ndarray, "4"]
) -> Float32[np.ndarray, "*b H W"]:
    """Depth along the optical axis, from the distance to the centre of the camera.

    Args:
        distance: in metres.
        intrinsics: (fx, fy, cx, cy), normalised by width and height.
    """
    height, width = distance.shape[-2:]
    fx, fy, cx, cy = intrinsics.astype(np.float64)
    x = ((np.arange(width) + 0.5) / width - cx) / fx
    y = ((np.arange(height) + 0.5) / height - cy) / fy
    length = np.sqrt(x[None, :] ** 2 + y[:, None] ** 2 + 1)
    return (distance / length).astype(np.float32)
