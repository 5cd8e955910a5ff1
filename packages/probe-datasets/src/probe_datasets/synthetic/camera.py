"""The camera: a path that never leaves its corner of the room, and projection.

Axes: T frames, p points. World and camera axes are OpenCV's: x right, y down, z forward.
"""

from dataclasses import dataclass

import numpy as np
from einops import einsum, rearrange
from jaxtyping import Float

from probe_datasets.synthetic.actions import about_axis

SWAY = 0.35
"""Amplitude of the camera's path in metres."""
TURN = 0.12
"""Amplitude of its rotation in radians, at a peak speed of 0.3 m/s and more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CameraPath:
    """Sinusoids about a mean pose, so that clips of any length stay in the room."""

    centre: Float[np.ndarray, " 3"]
    """Mean position in metres."""
    sway: Float[np.ndarray, " 3"]
    """Amplitude of the position in metres."""
    angles: Float[np.ndarray, " 3"]
    """Mean pitch, yaw and roll in radians."""
    turn: Float[np.ndarray, " 3"]
    """Amplitude of pitch, yaw and roll in radians."""
    rates: Float[np.ndarray, " 2"]
    """Radians per second of position and of rotation."""
    phases: Float[np.ndarray, " 4"]
    """Phase of the position, pitch, yaw and roll at time 0, in radians."""
    focal: float
    """Focal length over the width of the image."""


def camera_poses(path: CameraPath, times: Float[np.ndarray, " T"]) -> Float[np.ndarray, "T 3 4"]:
    """World-to-camera poses [R | t], in metres.

    Args:
        path: the camera's path.
        times: seconds.
    """
    angles = path.angles + path.turn * np.sin(path.phases[1:] + path.rates[1] * times[:, None])
    centre = path.centre + path.sway * np.sin(path.phases[0] + path.rates[0] * times[:, None])
    pitch, yaw, roll = (about_axis(axis, angles[:, axis]) for axis in range(3))
    world_to_camera = roll @ pitch @ yaw
    translation = -einsum(world_to_camera, centre, "T i j, T j -> T i")
    return np.concatenate([world_to_camera, translation[..., None]], axis=2)


def camera_centres(poses: Float[np.ndarray, "T 3 4"]) -> Float[np.ndarray, "T 3"]:
    """Positions of the camera in the world."""
    return -einsum(poses[..., :3], poses[..., 3], "T i j, T i -> T j")


def intrinsics(path: CameraPath, height: int, width: int) -> Float[np.ndarray, " 4"]:
    """fx, fy, cx, cy by width and height; pixels are square.

    Args:
        path: the camera's path, which holds the focal length.
        height: rows of the image.
        width: columns of the image.
    """
    return np.array([path.focal, path.focal * width / height, 0.5, 0.5])


def project(
    points: Float[np.ndarray, "p T 3"],
    poses: Float[np.ndarray, "T 3 4"],
    camera: Float[np.ndarray, " 4"],
) -> tuple[Float[np.ndarray, "p T 2"], Float[np.ndarray, "p T"]]:
    """Image positions xy in [0, 1] where inside the image, and z-depth in metres.

    Args:
        points: world coordinates in metres.
        poses: world to camera.
        camera: normalised intrinsics.
    """
    seen = rearrange(points, "p T j -> T p j") @ rearrange(poses[..., :3], "T i j -> T j i")
    seen = rearrange(seen, "T p i -> p T i") + poses[..., 3]
    depth = seen[..., 2]
    ahead = np.maximum(np.abs(depth), 1e-6)[..., None]
    return seen[..., :2] / ahead * camera[:2] + camera[2:], depth
