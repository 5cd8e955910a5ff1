"""Rays through pixel centres, and what they meet first.

The parameter of a ray is its z-depth, because its direction has z 1 in the camera's axes. Only
pixels of the screen box round an instance are tested against it. All pixels of all instances and
frames of a clip are one ragged list, so that nothing loops over frames, rows or pixels; the
numbers of a ray are linear in its column, so they are made from one start and one step a row.

Axes: T frames, H W pixels, i instances, s spans (rows of a screen box), n rays.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from probe_datasets.synthetic.scene import Instances, Scene
from probe_datasets.synthetic.shapes import ELLIPSOIDS, Vector, interval

LANES = 8
"""Columns that are tested together. Arrays hold lanes first, so that all inner loops are long."""
BLOCK = 1 << 14
"""Pixels of the room that are worked on at a time."""
EDGE = 0.01
"""How far inside of the outer tiles the walls are, in tiles."""


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """Rays of every pixel, in the world's axes."""

    poses: Float[np.ndarray, "T 3 4"]
    """World to camera."""
    camera: Float[np.ndarray, " 4"]
    """Normalised intrinsics."""
    centres: Float[np.ndarray, "T 3"]
    """Positions of the camera."""
    height: int
    """Rows."""
    width: int
    """Columns."""

    def directions(self) -> tuple[Float[np.ndarray, "T 3 1 W"], Float[np.ndarray, "T 3 H 1"]]:
        """Two parts whose sum is the direction of each pixel's ray: of the column, of the row."""
        fx, fy, cx, cy = self.camera
        x = ((np.arange(self.width) + 0.5) / self.width - cx) / fx
        y = ((np.arange(self.height) + 0.5) / self.height - cy) / fy
        right, down, ahead = (self.poses[:, row, :3, None, None] for row in range(3))
        return right * x, down * y[:, None] + ahead


@dataclass(frozen=True, kw_only=True, slots=True)
class Hits:
    """Pixels at which an instance is the nearest surface, in order of instance and frame."""

    pixel: Int[np.ndarray, " n"]
    """Index into `T H W`, flattened."""
    place: Int[np.ndarray, " n"]
    """Index into instances and frames, `i T`, flattened."""
    local: Vector
    """Place in the instance's own coordinates."""
    cut: Bool[np.ndarray, " n"]
    """Whether the place is where the glass cuts the instance, not on its surface."""


def cast_room(
    scene: Scene, view: View
) -> tuple[Float32[np.ndarray, "T H W"], Int[np.ndarray, "T H W"]]:
    """The room behind every pixel: z-depth of the walls, and index of the tile.

    Works in units of tiles, so that a place is a tile's index but for rounding down. The walls are
    drawn in by `EDGE` tiles, so that rounding never leaves the block.
    """
    num = np.array(scene.lit.shape[1:])
    scale = (num - 2 * EDGE) / (scene.high - scene.low)
    columns, rows = ((part * scale[:, None, None]).astype(np.float32) for part in view.directions())
    centres = ((view.centres - scene.low) * scale + EDGE).astype(np.float32)[..., None, None]
    far, near = (num - EDGE).astype(np.float32) - centres[..., 0, 0], np.float32(EDGE) - centres
    far = far[..., None, None]
    strides = (np.float32(num[1] * num[2]), np.float32(num[2]), np.float32(1))
    shape = (len(view.poses), view.height, view.width)
    depth, tile = np.empty(shape, np.float32), np.empty(shape, np.intp)
    # A few frames at a time stay in the cache.
    block = max(1, BLOCK // (view.height * view.width))
    for start in range(0, len(depth), block):
        part = slice(start, start + block)
        directions = [columns[part, axis] + rows[part, axis] for axis in range(3)]
        # Of the two walls across z the far one alone is ever in sight.
        nearest = np.reciprocal(directions[2], out=depth[part])
        nearest *= far[part, 2]
        for axis in (0, 1):
            with np.errstate(divide="ignore"):
                inverse = np.reciprocal(directions[axis])
            ahead = far[part, axis] * inverse
            inverse *= near[part, axis]
            np.maximum(ahead, inverse, out=ahead)
            np.minimum(nearest, ahead, out=nearest)
        for axis, stride in enumerate(strides):
            place = directions[axis]
            place *= nearest
            place += centres[part, axis]
            np.floor(place, out=place)
            place *= stride
        directions[0] += directions[1]
        directions[0] += directions[2]
        tile[part] = directions[0]
    return depth, tile


@dataclass(frozen=True, kw_only=True, slots=True)
class Spans:
    """Rows of screen boxes in pieces of `LANES` columns, each to be tested against one instance."""

    instance: Int[np.ndarray, " s"]
    """Index of the instance."""
    frame: Int[np.ndarray, " s"]
    """Index of the frame."""
    row: Int[np.ndarray, " s"]
    """Row of the image."""
    left: Int[np.ndarray, " s"]
    """First column."""
    right: Int[np.ndarray, " s"]
    """Column after the last of the box; a piece may reach beyond it."""


def screen_spans(instances: Instances, view: View) -> Spans:
    """What is in a box on the screen round what can be seen of each instance in each frame."""
    member, frame = np.nonzero(instances.present)
    low, high = screen_boxes(instances, view, member, frame)
    # Pixels whose centres are inside, with room for rounding.
    left, top = np.ceil(np.maximum(low - 0.51, 0)).astype(int)
    right, bottom = np.floor(np.minimum(high + 0.51, [[view.width], [view.height]])).astype(int)
    seen = np.flatnonzero((right > left) & (bottom > top))
    left, right, top = left[seen], right[seen], top[seen]
    pieces = (right - left + LANES - 1) // LANES
    num = (bottom[seen] - top) * pieces
    box = np.repeat(np.arange(len(seen)), num)
    order = np.arange(len(box)) - np.repeat(np.cumsum(num) - num, num)
    row, piece = np.divmod(order, pieces[box])
    return Spans(
        instance=member[seen][box],
        frame=frame[seen][box],
        row=row + top[box],
        left=left[box] + LANES * piece,
        right=right[box],
    )


def screen_boxes(
    instances: Instances,
    view: View,
    member: Int[np.ndarray, " s"],
    frame: Int[np.ndarray, " s"],
) -> tuple[Float[np.ndarray, "2 s"], Float[np.ndarray, "2 s"]]:
    """Bounds xy, in pixels, of what can be seen of instances: the lesser and the greater corner.

    They are the common part of two: the projection of the box round what is in the room, and that
    of an ellipsoid round the solid, by its dual conic. A box has none that is closer.

    Reference: R. Hartley and A. Zisserman, Multiple View Geometry, 2nd edition, section 8.3.

    Args:
        instances: the solids.
        view: the camera.
        member: which instances.
        frame: in which frames.
    """
    turn, move = view.poses[frame, :, :3], view.poses[frame, :, 3]
    # The pose is linear, so the eight corners are sums of one of two terms along each axis.
    near = turn * instances.low[member, frame, None]
    far = turn * instances.high[member, frame, None]
    x_parts, y_parts, z_parts = (np.stack([near[:, :, axis], far[:, :, axis]]) for axis in range(3))
    corners = (x_parts[:, None, None] + y_parts[:, None] + z_parts + move).reshape(8, -1, 3)
    # What is behind the glass is in front of the camera.
    places = corners[..., :2] / np.maximum(corners[..., 2:], 1e-3)
    low, high = places.min(0), places.max(0)
    if instances.kind.shape in ELLIPSOIDS:
        half, middle = ELLIPSOIDS[instances.kind.shape]
        axes = instances.axes[member, frame]
        centre = instances.centres[member, frame] + middle * axes[..., 1]
        centre = (turn @ centre[..., None])[..., 0] + move
        axes = turn @ axes * half
        dual = centre[:, :, None] * centre[:, None] - axes @ axes.transpose(0, 2, 1)
        cross, square, depth = dual[:, :2, 2], dual[:, (0, 1), (0, 1)], dual[:, 2, 2, None]
        # Where the ellipsoid comes round the camera, it bounds nothing.
        whole = depth > 1e-3
        depth = np.where(whole, depth, 1)
        root = np.sqrt(np.maximum(cross * cross - square * depth, 0))
        low = np.where(whole, np.maximum(low, (cross - root) / depth), low)
        high = np.where(whole, np.minimum(high, (cross + root) / depth), high)
    focal, middle = view.camera[:2], view.camera[2:]
    size = np.array([view.width, view.height])
    return ((low * focal + middle) * size).T, ((high * focal + middle) * size).T


def cast(instances: Instances, view: View, depth: Float32[np.ndarray, " n"]) -> Hits:
    """Where instances are nearer than what is there; writes their depth.

    Args:
        instances: solids of one shape.
        view: the camera.
        depth: z-depth of every pixel of the clip so far, flattened; changed in place.
    """
    spans = screen_spans(instances, view)
    frame, num_frames = spans.frame, len(view.poses)
    place = spans.instance * num_frames + frame
    # How a ray depends on x and y of its pixel, in the solid's coordinates, and its start there.
    turn = view.poses[..., :3].transpose(0, 2, 1)
    rays = np.concatenate(
        [
            instances.inverses @ turn,
            instances.inverses @ (view.centres - instances.centres)[..., None],
        ],
        axis=3,
    )
    rays = rays.astype(np.float32).reshape(-1, 12).T.take(place, axis=1)
    fx, fy, cx, cy = view.camera
    x = (((spans.left + 0.5) / view.width - cx) / fx).astype(np.float32)
    y = (((spans.row + 0.5) / view.height - cy) / fy).astype(np.float32)
    step = np.arange(LANES, dtype=np.float32)[:, None] * np.float32(1 / (fx * view.width))
    direction = tuple(
        step * right + (right * x + down * y + ahead)
        for right, down, ahead in (rays[0:3], rays[4:7], rays[8:11])
    )
    source = (rays[3], rays[7], rays[11])
    enter, leave = interval(instances.kind.shape, source, direction)
    at = enter
    if (instances.low[..., 2] <= 0).any():
        # What it takes to reach the glass, where something comes through it.
        right, down, ahead = turn[:, 2].astype(np.float32).T.take(frame, axis=1)
        towards = step * right + (right * x + down * y + ahead)
        at = np.maximum(enter, (-view.centres[:, 2]).astype(np.float32).take(frame) / towards)
    start = (frame * view.height + spans.row) * view.width + spans.left
    pixel = np.arange(LANES)[:, None] + start
    behind = depth.take(pixel, mode="clip")
    inside = np.arange(LANES)[:, None] < spans.right - spans.left
    hit = np.flatnonzero((at < leave) & (at < behind) & inside)
    nearest, places = at.take(hit), pixel.take(hit)
    np.minimum.at(depth, places, nearest)
    won = np.flatnonzero(nearest == depth.take(places))
    hit, nearest = hit.take(won), nearest.take(won)
    span = hit % max(len(place), 1)
    local = tuple(
        o.take(span) + nearest * d.take(hit) for o, d in zip(source, direction, strict=True)
    )
    return Hits(
        pixel=places.take(won), place=place.take(span), local=local, cut=enter.take(hit) < nearest
    )
