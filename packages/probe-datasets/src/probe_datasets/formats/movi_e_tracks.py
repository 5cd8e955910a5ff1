"""Point tracks of MOVi-E, computed from depth, segmentation and the poses of the objects.

A pixel of the background stays where its depth puts it; a pixel of an object keeps its place in the
object's box. Both are projected into every frame, where the point counts as occluded if it is
outside the picture or behind the camera, if the picture shows something nearer, if none of the four
pixels around it shows its object, or if its surface faces away.

Axes: `p` points, `T` frames, `H` rows, `W` columns, `k` objects. Queries are (frame, row, column)
of a pixel. Points are xy in [0, 1], the centre of column i at (i + 0.5) / W.

Reference:
    Kubric's challenges/point_tracking/dataset.py; Doersch et al. 2022, "TAP-Vid", section 3.3.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from einops import einsum, rearrange
from jaxtyping import Bool, Float32, Int64, UInt8, UInt16

from probe_datasets.formats.movi_e import MoviExample
from probe_datasets.formats.movi_e_geometry import distance_metres, rotation_matrix

__all__ = ["Scene", "example_tracks", "query_quota", "sample_queries", "smooth_normals"]
__all__ += ["track_points"]

_NEARER = np.float32(0.99)  # what is nearer by one part in a hundred hides a point
_CLOSE = np.float32(1e-6)  # metres
_ROUGH = 0.05  # length of a difference between neighbouring normals
_MAX_SAMPLED = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """What a video shows in all of its frames."""

    distance: Float32[np.ndarray, "T H W"]
    """Metres from the centre of the camera."""
    segmentations: UInt8[np.ndarray, "T H W"]
    """Index of the object plus 1; 0 for the background."""
    bboxes_3d: Float32[np.ndarray, "k T 8 3"]
    """Corners in world coordinates, x slowest."""
    object_quaternions: Float32[np.ndarray, "k T 4"]
    """Rotation from object to world."""
    camera_positions: Float32[np.ndarray, "T 3"]
    """World coordinates in metres."""
    camera_quaternions: Float32[np.ndarray, "T 4"]
    """Rotation from camera (looking along -z, y up) to world."""
    focal_length: float
    """In widths of the sensor."""


def query_quota(
    counts: Int64[np.ndarray, " n"], num_tracks: int, *, max_fraction: float = _MAX_SAMPLED
) -> Int64[np.ndarray, " n"]:
    """How many queries to take from each object, so that small ones get an equal share.

    From the smallest to the largest, each gets an equal part of what is still wanted, but no more
    than a fraction of the pixels that it has.

    Args:
        counts: pixels that can be chosen, for each object, the background among them.
        num_tracks: queries wanted in all; fewer come out where the pixels do not suffice.
        max_fraction: of an object's pixels, the most that are taken.

    Raises:
        ValueError: `num_tracks` is below 0, or `max_fraction` is not in (0, 1].
    """
    if num_tracks < 0 or not 0 < max_fraction <= 1:
        raise ValueError(
            f"num_tracks {num_tracks} must be at least 0 and max_fraction {max_fraction} in (0, 1]"
        )
    quota, missing = np.zeros(len(counts), np.int64), num_tracks
    for rank, i in enumerate(np.argsort(counts, kind="stable")):
        share = round(missing / (len(counts) - rank))
        quota[i] = min(share, round(int(counts[i]) * max_fraction))
        missing -= int(quota[i])
    return quota


def sample_queries(
    segmentations: UInt8[np.ndarray, "T H W"],
    num_tracks: int,
    *,
    generator: np.random.Generator,
    first_frame_only: bool = True,
    stride: int = 4,
    window: tuple[int, int, int, int] | None = None,
    max_fraction: float = _MAX_SAMPLED,
) -> Int64[np.ndarray, "p 3"]:
    """Choose pixels to track, spread over the objects by `query_quota`; none is chosen twice.

    Args:
        segmentations: index of the object plus 1; 0 for the background.
        num_tracks: queries wanted; see `query_quota` for when there are fewer.
        generator: source of chance.
        first_frame_only: choose from frame 0; or else from every `stride`-th frame, from a random
            one on.
        stride: distance in pixels between those that can be chosen, from a random one on.
        window: (top, left, bottom, right) in pixels, the ends not included, that queries lie in;
            the whole frame by default.
        max_fraction: of an object's pixels on the grid, the most that are taken.

    Returns:
        (frame, row, column), ordered by object, the background first.

    Raises:
        ValueError: an argument is out of range.
    """
    num_frames, height, width = segmentations.shape
    top, left, bottom, right = window or (0, 0, height, width)
    if not (0 <= top < bottom <= height and 0 <= left < right <= width) or stride < 1:
        raise ValueError(
            f"window {window} must lie in a frame of {height} x {width}, and stride {stride} be at "
            "least 1"
        )
    starts = generator.integers(0, stride, 3)
    frames = np.arange(1 if first_frame_only else num_frames)
    if not first_frame_only:
        frames = frames[starts[0] % num_frames :: stride]
    rows = np.arange(top + starts[1] % (bottom - top), bottom, stride)
    columns = np.arange(left + starts[2] % (right - left), right, stride)
    grid = np.stack(np.meshgrid(frames, rows, columns, indexing="ij"), axis=-1)
    pixels = rearrange(grid, "t h w c -> (t h w) c").astype(np.int64)
    owner = segmentations[tuple(pixels.T)].astype(np.int64)
    quota = query_quota(np.bincount(owner), num_tracks, max_fraction=max_fraction)
    chosen = [
        generator.choice(np.flatnonzero(owner == i), size, replace=False)
        for i, size in enumerate(quota.tolist())
    ]
    return pixels[np.concatenate(chosen)]


def smooth_normals(normals: Float32[np.ndarray, "H W 3"]) -> Bool[np.ndarray, "H W"]:
    """Where normals come from a surface and not from a bump map, so that they can be believed.

    Args:
        normals: of one frame, components in [-1, 1].

    Returns:
        Whether at most two of the four diagonal neighbours differ; beyond the edge lies zero.
    """
    height, width, _ = normals.shape
    around = np.pad(normals, ((1, 1), (1, 1), (0, 0)))
    differing = np.zeros((height, width), np.int64)
    for y in (0, 2):
        for x in (0, 2):
            change = np.square(around[y : y + height, x : x + width] - normals).sum(axis=-1)
            differing += change > _ROUGH * _ROUGH
    return differing <= 2


def track_points(
    queries: Int64[np.ndarray, "p 3"],
    places: Float32[np.ndarray, "p 3"],
    normals: Float32[np.ndarray, "p 3"],
    believed: Bool[np.ndarray, " p"],
    scene: Scene,
) -> tuple[Float32[np.ndarray, "p T 2"], Bool[np.ndarray, "p T"]]:
    """Follow pixels through a video.

    Args:
        queries: (frame, row, column).
        places: position of each pixel in its object's box, in [-0.5, 0.5]; unused for background.
        normals: surface normal of each pixel in world axes; unused for background.
        believed: whether the normal may decide that the surface faces away.
        scene: the video.

    Returns:
        Points xy in [0, 1] where they are in the picture, and whether they can be seen.
    """
    num_frames, height, width = scene.distance.shape
    rotations = rotation_matrix(scene.camera_quaternions)
    owner = scene.segmentations[tuple(queries.T)].astype(np.int64)
    world = np.empty((len(queries), num_frames, 3), np.float32)
    away = np.zeros((len(queries), num_frames), bool)

    ground = owner == 0
    world[ground] = _unprojected(queries[ground], rotations, scene)[:, None]
    for i in np.unique(owner[~ground]):
        mine = np.flatnonzero(owner == i)
        world[mine] = _in_box(places[mine], scene.bboxes_3d[i - 1])
        away[mine] = believed[mine, None] & _faces_away(
            queries[mine, 0], normals[mine], world[mine], scene, int(i) - 1
        )

    offset = world - scene.camera_positions
    camera = einsum(rotations, offset, "T i j, p T i -> p T j")
    behind = camera[..., 2] > 0  # the camera looks along -z
    focal = np.float32(scene.focal_length)
    scale = np.array([focal, -focal * np.float32(width) / np.float32(height)], np.float32)
    # A point in the plane of the camera has no place in the picture; keep its numbers finite.
    depth = np.where(
        behind, np.minimum(-camera[..., 2], -_CLOSE), np.maximum(-camera[..., 2], _CLOSE)
    )
    points = camera[..., :2] / depth[..., None] * scale + np.float32(0.5)
    pixels = points * np.array([width, height], np.float32)
    distance = np.sqrt(np.square(offset).sum(axis=-1))
    outside = ((pixels < 0) | (pixels > np.array([width, height]))).any(axis=-1)
    hidden = behind | outside | away | _covered(pixels, distance, owner, scene)
    return points, ~hidden


def example_tracks(
    example: MoviExample, queries: Int64[np.ndarray, "p 3"], frames: Sequence[int] | None = None
) -> tuple[Float32[np.ndarray, "p T 2"], Bool[np.ndarray, "p T"]]:
    """Follow pixels of an example, of which only what that takes is decoded.

    Args:
        example: the video.
        queries: (frame, row, column), the frame being a rank in `frames`.
        frames: which frames make the clip, in order; all by default.

    Returns:
        Points xy in [0, 1] where they are in the picture, and whether they can be seen.

    Raises:
        DataError: the example is damaged.
        ValueError: a query lies outside the clip.
    """
    chosen = list(range(example.num_frames) if frames is None else frames)
    limits = np.array([len(chosen), example.height, example.width])
    if len(queries) and not ((queries >= 0) & (queries < limits)).all():
        raise ValueError(f"queries must be from (0, 0, 0) to below {tuple(limits.tolist())}")
    scene = example_scene(example, chosen)
    if int(scene.segmentations.max(initial=0)) > len(scene.bboxes_3d):
        problem = f"shows object {scene.segmentations.max()} of {len(scene.bboxes_3d)}"
        raise example.error(problem, "only objects that it lists")
    places, normals = (np.zeros((len(queries), 3), np.float32) for _ in range(2))
    believed = np.zeros(len(queries), bool)
    for t in np.unique(queries[:, 0]).tolist():
        mine = np.flatnonzero(queries[:, 0] == t)
        row, column = queries[mine, 1], queries[mine, 2]
        coordinates = example.object_coordinates([chosen[t]])[0]
        places[mine] = _unit(coordinates[row, column]) - np.float32(0.5)
        directions = _unit(example.normal([chosen[t]])[0]) * np.float32(2) - np.float32(1)
        normals[mine] = directions[row, column]
        believed[mine] = smooth_normals(directions)[row, column]
    return track_points(queries, places, normals, believed, scene)


def example_scene(example: MoviExample, frames: Sequence[int]) -> Scene:
    """What some frames of an example show.

    Args:
        example: the video.
        frames: which frames, in order.

    Raises:
        DataError: the example is damaged.
    """
    camera, instances, chosen = example.camera, example.instances, list(frames)
    return Scene(
        distance=distance_metres(example.depth(chosen), example.depth_range),
        segmentations=example.segmentations(chosen),
        bboxes_3d=instances.bboxes_3d[:, chosen],
        object_quaternions=instances.quaternions[:, chosen],
        camera_positions=camera.positions[chosen],
        camera_quaternions=camera.quaternions[chosen],
        focal_length=camera.focal_length / camera.sensor_width,
    )


def _unit(values: UInt16[np.ndarray, "*b"]) -> Float32[np.ndarray, "*b"]:
    return values.astype(np.float32) / np.float32(65535)


def _unprojected(
    queries: Int64[np.ndarray, "p 3"], rotations: Float32[np.ndarray, "T 3 3"], scene: Scene
) -> Float32[np.ndarray, "p 3"]:
    """World coordinates of pixels, by the distance in their own frame."""
    _, height, width = scene.distance.shape
    frame, row, column = queries.T
    focal = np.float32(scene.focal_length)
    x = ((column + np.float32(0.5)) / np.float32(width) - np.float32(0.5)) / focal
    y = ((row + np.float32(0.5)) / np.float32(height) - np.float32(0.5)) / focal
    y = y * np.float32(height) / np.float32(width)
    ray = np.stack([x, -y, -np.ones_like(x)], axis=-1).astype(np.float32)
    ray /= np.sqrt(np.square(ray).sum(axis=-1, keepdims=True))
    turned = einsum(rotations[frame], ray, "p i j, p j -> p i")
    return scene.camera_positions[frame] + turned * scene.distance[frame, row, column][:, None]


def _in_box(
    places: Float32[np.ndarray, "p 3"], corners: Float32[np.ndarray, "T 8 3"]
) -> Float32[np.ndarray, "p T 3"]:
    """World coordinates of places in a box, by least squares on its corners.

    The corners of a cube around zero are orthogonal, so that each edge is a mean of differences.
    """
    cube = rearrange(corners, "T (x y z) xyz -> T x y z xyz", x=2, y=2, z=2)
    edges = np.stack(
        [
            cube[:, 1].mean(axis=(1, 2)) - cube[:, 0].mean(axis=(1, 2)),
            cube[:, :, 1].mean(axis=(1, 2)) - cube[:, :, 0].mean(axis=(1, 2)),
            cube[:, :, :, 1].mean(axis=(1, 2)) - cube[:, :, :, 0].mean(axis=(1, 2)),
        ],
        axis=1,
    )
    return corners.mean(axis=1) + einsum(places, edges, "p edge, T edge xyz -> p T xyz")


def _faces_away(
    frame: Int64[np.ndarray, " p"],
    normals: Float32[np.ndarray, "p 3"],
    world: Float32[np.ndarray, "p T 3"],
    scene: Scene,
    index: int,
) -> Bool[np.ndarray, "p T"]:
    """Whether the surface of an object faces away from the camera, which it may not in its query.

    A normal that already faces away where the point was seen is wrong, and decides nothing.
    """
    rotations = rotation_matrix(scene.object_quaternions[index])
    own = einsum(rotations[frame], normals, "p i j, p i -> p j")
    turned = einsum(rotations, own, "T i j, p j -> p T i")
    away = (turned * (world - scene.camera_positions)).sum(axis=-1) > 0
    return away & ~np.take_along_axis(away, frame[:, None], axis=1)


def _covered(
    pixels: Float32[np.ndarray, "p T 2"],
    distance: Float32[np.ndarray, "p T"],
    owner: Int64[np.ndarray, " p"],
    scene: Scene,
) -> Bool[np.ndarray, "p T"]:
    """Whether the four pixels around a point are all nearer, or all of something else."""
    num_frames, height, width = scene.distance.shape
    limit = np.float32(max(height, width) + 2)
    corner = np.floor(np.clip(pixels - np.float32(0.5), -2, limit)).astype(np.int64)
    frames = np.arange(num_frames)
    farthest = np.zeros(distance.shape, np.float32)
    other = np.ones(distance.shape, bool)
    for dy in (0, 1):
        for dx in (0, 1):
            x = np.clip(corner[..., 0] + dx, 0, width - 1)
            y = np.clip(corner[..., 1] + dy, 0, height - 1)
            farthest = np.maximum(farthest, scene.distance[frames, y, x])
            other &= scene.segmentations[frames, y, x] != owner[:, None]
    return (farthest < distance * _NEARER) | other
