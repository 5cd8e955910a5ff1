"""What is true of a cast clip: instance masks, boxes and point tracks.

Axes: T frames, H W pixels, m instances that have boxes, i instances, p points.
"""

from dataclasses import dataclass

import numpy as np
from einops import rearrange
from jaxtyping import Bool, Float, Float32, Int, UInt8

from probe_datasets.synthetic.camera import project
from probe_datasets.synthetic.config import WorldConfig
from probe_datasets.synthetic.render import Frames
from probe_datasets.synthetic.scene import Scene
from probe_datasets.synthetic.shapes import interval

TRIES = 8
"""Pixels that are looked at for each point."""
ON_OBJECTS = 0.75
"""Share of the points that are on objects, as far as enough pixels are."""
MOST = 254
"""Instances that a byte tells apart, beside the background and what is not known."""
ROUNDING = 1e-5
"""Metres by which a place may seem to be on the wrong side of a wall or the glass."""
BIAS = 1e-3
"""What lies on the last thousandth of the way to a point does not hide it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tracks:
    """Points of surfaces, followed."""

    world: Float[np.ndarray, "p T 3"]
    """Positions in the world in metres."""
    image: Float[np.ndarray, "p T 2"]
    """Positions xy in the image, in [0, 1] where inside it."""
    visible: Bool[np.ndarray, "p T"]
    """Whether the point is in the image, in the room, and nothing is before it."""
    query_frames: Int[np.ndarray, " p"]
    """First frame in which each point is visible."""


def masks_and_boxes(
    frames: Frames, num_boxes: int
) -> tuple[UInt8[np.ndarray, "T H W"], Float32[np.ndarray, "m T 4"], Bool[np.ndarray, "m T"]]:
    """Instance of every pixel, and the smallest box round the visible pixels of each.

    Args:
        frames: a cast clip.
        num_boxes: instances that get a box.

    Returns:
        Segments: 0 for room and pillars, k for the instance with the k-th most visible pixels of
        the clip. Boxes xyxy in [0, 1], from the outer edges of their pixels, of instance k at
        k - 1; zeros where nothing of it is visible, and whether something is.

    Raises:
        ValueError: if more than 254 instances are visible.
    """
    num_frames, height, width = frames.depth.shape
    hits, num = frames.hits, len(frames.moving.member)
    counts = np.bincount(hits.place // num_frames, minlength=num)
    rank = np.empty(num, np.intp)
    rank[np.argsort(-counts, kind="stable")] = np.arange(num)
    seen = int((counts > 0).sum())
    if seen > MOST:
        raise ValueError(
            f"{seen} instances are visible in one clip, but segments hold {MOST}; use a shorter "
            "clip or fewer objects"
        )
    place = rank.take(hits.place // num_frames)
    segments = np.zeros(frames.depth.size, np.uint8)
    segments[hits.pixel] = place + 1
    within = np.flatnonzero(place < num_boxes)
    pixel = hits.pixel.take(within)
    line, x = np.divmod(pixel, width)
    t, y = np.divmod(line, height)
    place = place.take(within) * num_frames + t
    edges = np.zeros((4, num_boxes * num_frames), np.intp)
    edges[:2] = max(height, width)
    np.minimum.at(edges[0], place, x)
    np.minimum.at(edges[1], place, y)
    np.maximum.at(edges[2], place, x + 1)
    np.maximum.at(edges[3], place, y + 1)
    valid = edges[2] > 0
    boxes = (edges * valid).T / np.array([width, height, width, height])
    shape = (num_boxes, num_frames)
    return (
        segments.reshape(frames.depth.shape),
        boxes.reshape(*shape, 4).astype(np.float32),
        valid.reshape(shape),
    )


def tracks(scene: Scene, frames: Frames, rng: np.random.Generator, config: WorldConfig) -> Tracks:
    """Points drawn from the pixels of a clip, and where they are in all its frames.

    Args:
        scene: what was cast.
        frames: the cast clip.
        rng: source of chance.
        config: number of points, and how many are drawn from any frame.
    """
    num_frames, height, width = frames.depth.shape
    num = config.num_points
    u = rng.random((4, TRIES * num))
    frame = np.where(u[0] < config.late_points, u[1] * num_frames, 0).astype(int)
    row, column = (u[2] * height).astype(int), (u[3] * width).astype(int)
    pixel = (frame * height + row) * width + column
    found = np.full(frames.depth.size, -1, np.int32)
    found[frames.hits.pixel] = np.arange(len(frames.hits.pixel))
    found = found[pixel]
    kind = np.where(found < 0, 1, 0)
    if len(frames.hits.pixel):
        # Where the glass cuts an object, a place inside of it is seen for a moment: last choice.
        kind[(found >= 0) & frames.hits.cut[found]] = 2
    order = np.argsort(kind, kind="stable")
    on_objects = (kind == 0).sum()
    from_objects = min(on_objects, int(ON_OBJECTS * num))
    chosen = np.concatenate([order[:from_objects], order[on_objects:]])[:num]
    if len(chosen) < num:
        chosen = order[:num]
    frame, row, column, found = (v[chosen] for v in (frame, row, column, found))
    columns, rows = frames.view.directions()
    ray = columns[frame, :, 0, column] + rows[frame, :, row, 0]
    depth = frames.depth[frame, row, column, None]
    start = frames.view.centres[frame] + depth * ray
    world = np.repeat(start[:, None], num_frames, axis=1)
    moving = frames.moving
    held = np.flatnonzero(found >= 0)
    if len(held):
        owner = frames.hits.place[found[held]] // num_frames
        when = frame[held]
        place = (
            moving.inverses[owner, when] @ ((start[held] - moving.centres[owner, when])[..., None])
        )
        world[held] = (moving.axes[owner] @ place[:, None])[..., 0] + moving.centres[owner]
    image, _ = project(world, frames.view.poses, frames.view.camera)
    visible = in_sight(scene, frames, world)
    visible &= ((image >= 0) & (image < 1)).all(-1)
    # A point that moves exists only in the room, and behind the glass.
    low, high = np.array([*scene.low[:2], 0.0]) - ROUNDING, scene.high + ROUNDING
    visible[held] &= ((world[held] >= low) & (world[held] <= high)).all(-1)
    # A point was seen where it was drawn: rounding does not undo that.
    visible[np.arange(num), frame] = True
    return Tracks(world=world, image=image, visible=visible, query_frames=visible.argmax(1))


def in_sight(
    scene: Scene, frames: Frames, world: Float[np.ndarray, "p T 3"]
) -> Bool[np.ndarray, "p T"]:
    """Whether points are ahead of the camera with no solid before them, by casting rays to them.

    Args:
        scene: what was cast.
        frames: the cast clip; its pixels are not used.
        world: positions in metres, of which those on a solid's far side are hidden by it.
    """
    centres, poses = frames.view.centres, frames.view.poses
    ray = np.ascontiguousarray(rearrange(world - centres, "p T c -> T c p"))
    ahead = (poses[:, 2:, :3] @ ray)[:, 0] > 0
    hidden = np.zeros(ahead.shape, bool)
    short = ray.astype(np.float32)
    # Rays reach the point at 1. What is before the glass hides nothing.
    glass = -centres[:, 2:] / np.where(np.abs(ray[:, 2]) < 1e-9, 1e-9, ray[:, 2])
    glass[ray[:, 2] <= 0] = np.inf
    glass = glass.astype(np.float32)
    for solids in (frames.moving, frames.standing):
        if len(solids.member):
            origin = (solids.inverses @ (centres - solids.centres)[..., None]).astype(np.float32)
            way = solids.inverses.astype(np.float32) @ short
            enter, leave = interval(
                solids.kind.shape,
                (origin[:, :, 0], origin[:, :, 1], origin[:, :, 2]),
                (way[:, :, 0], way[:, :, 1], way[:, :, 2]),
            )
            enter = np.maximum(enter, glass)
            hidden |= ((enter < leave) & (enter < 1 - BIAS)).any(0)
    return (ahead & ~hidden).T
