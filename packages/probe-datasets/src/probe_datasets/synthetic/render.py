"""Frames of a scene: a ray caster in NumPy.

Axes: T frames, H W pixels.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

from probe_datasets.synthetic.camera import camera_centres, camera_poses, intrinsics
from probe_datasets.synthetic.casting import Hits, View, cast, cast_room
from probe_datasets.synthetic.scene import (
    Instances,
    Scene,
    moving_instances,
    standing_instances,
)
from probe_datasets.synthetic.shading import shade, shadowed


@dataclass(frozen=True, kw_only=True, slots=True)
class Frames:
    """Everything that casting one clip gives."""

    video: Float32[np.ndarray, "3 T H W"]
    """Pixels in [-1, 1]."""
    depth: Float32[np.ndarray, "T H W"]
    """z-depth in metres."""
    view: View
    """The camera."""
    moving: Instances
    """Ways of objects through the room."""
    standing: Instances
    """Pillars."""
    hits: Hits
    """Pixels of the moving instances."""


def render(scene: Scene, times: Float[np.ndarray, " T"], *, height: int, width: int) -> Frames:
    """Casts a scene at some times.

    Args:
        scene: what is seen.
        times: seconds, in any order.
        height: rows of each frame.
        width: columns of each frame.
    """
    poses = camera_poses(scene.camera, times)
    view = View(
        poses=poses,
        camera=intrinsics(scene.camera, height, width),
        centres=camera_centres(poses),
        height=height,
        width=width,
    )
    moving, standing = moving_instances(scene, times), standing_instances(scene, times)
    depth, tile = cast_room(scene, view)
    flat = depth.reshape(-1)
    pillars, objects = cast(standing, view, flat), cast(moving, view, flat)
    shaded = shadowed(scene, view, depth, (moving, standing)) if scene.shadows else None
    video = np.empty((3, *depth.shape), np.float32)
    for channel in range(3):
        scene.lit[channel].take(tile, out=video[channel], mode="clip")
        if shaded is not None:
            video[channel][shaded] = scene.dark[channel].take(tile[shaded])
    # Objects last: they cover pixels of pillars that are farther.
    planes = video.reshape(3, -1)
    for instances, hits in ((standing, pillars), (moving, objects)):
        lamp = None if shaded is None else ~shaded.reshape(-1).take(hits.pixel)
        for plane, colour in zip(planes, shade(scene, instances, hits, lamp), strict=True):
            plane[hits.pixel] = colour
    return Frames(
        video=video, depth=depth, view=view, moving=moving, standing=standing, hits=objects
    )
