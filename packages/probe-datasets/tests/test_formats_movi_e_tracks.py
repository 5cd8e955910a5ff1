import dataclasses
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from probe_datasets.formats.files import DataError
from probe_datasets.formats.movi_e import MoviCamera, MoviExample, read_movi_e
from probe_datasets.formats.movi_e_files import find_movi_e, shard_index
from probe_datasets.formats.movi_e_geometry import (
    camera_intrinsics,
    camera_poses,
    distance_metres,
    rotation_matrix,
    z_depth,
)
from probe_datasets.formats.movi_e_tracks import (
    Scene,
    example_tracks,
    query_quota,
    sample_queries,
    smooth_normals,
    track_points,
)

WRITE = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "record_writers.py")))

FRAMES, HEIGHT, WIDTH = 4, 24, 32


@pytest.fixture(params=["64x64", "128x128"])
def example(shared: Path, request: pytest.FixtureRequest) -> MoviExample:
    (shard,) = find_movi_e(shared / "movi_e", "train", config=request.param).shards
    return read_movi_e(shard.path, *shard_index(shard)[0].tolist())


def turn(axis: list[float], angle: float) -> list[float]:
    """Quaternion (w, x, y, z) of a rotation."""
    unit = np.array(axis) / np.linalg.norm(axis)
    return [np.cos(angle / 2), *(np.sin(angle / 2) * unit)]


@pytest.fixture
def camera() -> MoviCamera:
    """A camera that moves and turns, five metres or so above the origin."""
    return MoviCamera(
        focal_length=35.0,
        sensor_width=32.0,
        field_of_view=0.8576,
        positions=np.array([[0.1 * t, -0.2 * t, 5 + 0.3 * t] for t in range(FRAMES)], np.float32),
        quaternions=np.array(
            [turn([1, 2, 3], 0.05 * t) for t in range(FRAMES)],
            np.float32,
        ),
    )


@pytest.fixture
def scene(camera: MoviCamera) -> Scene:
    """The floor z = 0 as that camera sees it; one object that is nowhere in the pictures."""
    intrinsics = camera_intrinsics(camera, HEIGHT, WIDTH).astype(np.float64)
    x = ((np.arange(WIDTH) + 0.5) / WIDTH - 0.5) / intrinsics[0]
    y = ((np.arange(HEIGHT) + 0.5) / HEIGHT - 0.5) / intrinsics[1]
    rays = np.stack([*np.meshgrid(x, y), np.ones((HEIGHT, WIDTH))], axis=-1)
    poses = camera_poses(camera)
    world = np.einsum("tji,hwj->thwi", poses[:, :, :3], rays)
    along = -camera.positions[:, None, None, 2] / world[..., 2]
    distance = along * np.linalg.norm(rays, axis=-1)
    cube = np.array(np.meshgrid(*[[-0.5, 0.5]] * 3, indexing="ij")).reshape(3, 8).T
    return Scene(
        distance=distance.astype(np.float32),
        segmentations=np.zeros((FRAMES, HEIGHT, WIDTH), np.uint8),
        bboxes_3d=np.tile(cube, (1, FRAMES, 1, 1)).astype(np.float32),
        object_quaternions=np.tile(np.float32([1, 0, 0, 0]), (1, FRAMES, 1)),
        camera_positions=camera.positions,
        camera_quaternions=camera.quaternions,
        focal_length=35 / 32,
    )


def project(camera: MoviCamera, world: np.ndarray) -> np.ndarray:
    """Points (p, T, 3) in the pictures, by pose and intrinsics, in float64."""
    fx, fy, cx, cy = camera_intrinsics(camera, HEIGHT, WIDTH).astype(np.float64)
    poses = camera_poses(camera)
    inside = np.einsum("tij,ptj->pti", poses[:, :, :3], world) + poses[:, :, 3]
    return inside[..., :2] / inside[..., 2:] * np.array([fx, fy]) + np.array([cx, cy])


def follow(scene: Scene, queries: list, **given: list) -> tuple[np.ndarray, np.ndarray]:
    points = np.array(queries, np.int64)
    zeros = np.zeros((len(queries), 3), np.float32)
    return track_points(
        points,
        np.array(given["places"], np.float32) if "places" in given else zeros,
        np.array(given["normals"], np.float32) if "normals" in given else zeros,
        np.array(given.get("believed", [False] * len(queries))),
        scene,
    )


# ------------------------------------------------------------------------------------- real data


def test_kubrics_own_tracks_come_out(example: MoviExample, shared: Path):
    """Within 1e-3 pixels, and every one of the 6,144 occlusions."""
    name = f"{example.width}x{example.height}_train_0_tracks.npz"
    expected = np.load(shared / "movi_e" / "reference" / name, allow_pickle=False)
    queries = np.floor(expected["query_points"]).astype(np.int64)
    points, visible = example_tracks(example, queries)
    pixels = points * np.array([example.width, example.height])
    assert np.abs(pixels - expected["target_points"]).max() < 1e-3
    assert np.array_equal(~visible, expected["occluded"])


def test_a_clip_of_some_frames_has_the_tracks_of_all(example: MoviExample):
    frames = list(range(3, 20, 2))
    segmentations = example.segmentations(frames)
    queries = sample_queries(segmentations, 20, generator=np.random.default_rng(0))
    assert (queries[:, 0] == 0).all()
    points, visible = example_tracks(example, queries, frames)
    whole = queries + np.array([3, 0, 0])
    all_points, all_visible = example_tracks(example, whole)
    assert np.array_equal(points, all_points[:, frames])
    assert np.array_equal(visible, all_visible[:, frames])
    assert visible[:, 0].all()
    centres = (queries[:, :0:-1] + 0.5) / np.array([example.width, example.height])
    # Two pixels in 65,536 is what 16 bits of an object's coordinates leave.
    assert np.abs(points[:, 0] - centres).max() < 1e-3


def test_depth_poses_and_intrinsics_agree_with_the_tracks(example: MoviExample):
    """z-depth of the background, by this project's conventions, gives the same points."""
    height, width = example.height, example.width
    intrinsics = camera_intrinsics(example.camera, height, width)
    poses = camera_poses(example.camera)
    depth = z_depth(distance_metres(example.depth([0]), example.depth_range), intrinsics)[0]
    rows, columns = np.nonzero(example.segmentations([0])[0] == 0)
    rows, columns = rows[::97], columns[::97]
    fx, fy, cx, cy = intrinsics.astype(np.float64)
    plane = np.stack(
        [((columns + 0.5) / width - cx) / fx, ((rows + 0.5) / height - cy) / fy, 0 * rows + 1.0],
        axis=-1,
    )
    points = plane * depth[rows, columns, None].astype(np.float64) - poses[0, :, 3]
    world = points @ poses[0, :, :3]
    inside = np.einsum("tij,pj->pti", poses[:, :, :3], world) + poses[:, :, 3]
    expected = inside[..., :2] / inside[..., 2:] * [fx, fy] + [cx, cy]
    queries = np.stack([0 * rows, rows, columns], axis=-1).astype(np.int64)
    found, _ = example_tracks(example, queries)
    assert np.abs(found - expected).max() * width < 1e-3


def test_an_object_that_is_not_listed_is_refused():
    written = WRITE.movi_features()
    written["features"]["segmentations"] = [WRITE.png(np.full((10, 12), 3, np.uint8))] * 3
    example = MoviExample(memoryview(WRITE.example(written["features"])), "here")
    with pytest.raises(DataError, match="here: shows object 3 of 2"):
        example_tracks(example, np.array([[0, 0, 0]]))


def test_only_pictures_that_are_needed_are_decoded():
    """Normals and places in frames without queries may be broken; no queries give no tracks."""
    written = WRITE.movi_features()
    for name in ("normal", "object_coordinates"):
        written["features"][name][1:] = [b"broken", b"broken"]
    example = MoviExample(memoryview(WRITE.example(written["features"])), "here")
    points, visible = example_tracks(example, np.array([[0, 3, 4], [0, 9, 11]]))
    assert points.shape == (2, 3, 2)
    assert visible.shape == (2, 3)
    none, _ = example_tracks(example, np.zeros((0, 3), np.int64))
    assert none.shape == (0, 3, 2)


# -------------------------------------------------------------------------------------- geometry


def test_the_floor_is_followed(scene: Scene, camera: MoviCamera):
    queries = [(0, 12, 16), (1, 5, 20), (3, 20, 3)]
    points, visible = follow(scene, queries)
    for (t, row, column), track in zip(queries, points, strict=True):
        assert np.abs(track[t] - [(column + 0.5) / WIDTH, (row + 0.5) / HEIGHT]).max() < 1e-5
    # Where the track says that the point is, the floor has the same place in the world.
    poses = camera_poses(camera)
    rays = np.concatenate(
        [
            points / camera_intrinsics(camera, HEIGHT, WIDTH)[:2]
            - 0.5 / camera_intrinsics(camera, HEIGHT, WIDTH)[:2],
            np.ones((3, FRAMES, 1)),
        ],
        axis=-1,
    )
    turned = np.einsum("tji,ptj->pti", poses[:, :, :3], rays)
    floor = camera.positions + turned * (-camera.positions[:, 2] / turned[..., 2])[..., None]
    assert np.abs(floor - floor[:, :1]).max() < 1e-4
    assert visible[0].all()


def test_an_object_carries_its_points(scene: Scene, camera: MoviCamera):
    """A box that is moved, turned and stretched by hand; its points by the same motion."""
    cube = scene.bboxes_3d[0, 0].astype(np.float64)
    quaternions = np.array([turn([0, 1, 1], 0.1 * t) for t in range(FRAMES)])
    rotations = rotation_matrix(quaternions)
    size, centres = np.array([1.0, 0.5, 2.0]), np.array([[0.1 * t, 0, 1.0] for t in range(FRAMES)])
    boxes = np.einsum("tij,cj->tci", rotations, cube * size) + centres[:, None]
    segmentations = scene.segmentations.copy()
    segmentations[:, 4:20, 4:28] = 1
    scene = dataclasses.replace(
        scene,
        bboxes_3d=boxes[None].astype(np.float32),
        object_quaternions=quaternions[None].astype(np.float32),
        segmentations=segmentations,
    )
    places = np.random.default_rng(0).uniform(-0.5, 0.5, (5, 3))
    points, _ = follow(scene, [(0, 12, 16)] * 5, places=places.tolist())
    world = np.einsum("tij,pj->pti", rotations, places * size) + centres
    assert np.abs(points - project(camera, world)).max() < 1e-5


def test_what_is_nearer_hides_and_what_is_farther_does_not(scene: Scene):
    query = [(0, 12, 16)]
    assert follow(scene, query)[1].all()
    for factor, seen in ((0.995, True), (0.98, False), (1.5, True)):
        distance = scene.distance.copy()
        distance[2] *= np.float32(factor)
        visible = follow(dataclasses.replace(scene, distance=distance), query)[1]
        assert visible[0].tolist() == [True, True, seen, True]


def test_another_object_in_all_four_pixels_hides(scene: Scene):
    points, _ = follow(scene, [(0, 12, 16)])
    x, y = np.floor(points[0, 2] * [WIDTH, HEIGHT] - 0.5).astype(int)
    segmentations = scene.segmentations.copy()
    segmentations[2, y : y + 2, x : x + 2] = 1
    covered = dataclasses.replace(scene, segmentations=segmentations)
    assert follow(covered, [(0, 12, 16)])[1][0].tolist() == [True, True, False, True]
    segmentations[2, y + 1, x + 1] = 0
    assert follow(covered, [(0, 12, 16)])[1].all()


def test_outside_and_behind_are_hidden_and_finite(scene: Scene):
    positions = scene.camera_positions.copy()
    positions[1] += [50, 0, 0]
    positions[2] = [0, 0, -1]  # under the floor, which is behind it
    positions[3, 2] = 0  # in the plane of the floor
    moved = dataclasses.replace(scene, camera_positions=positions)
    points, visible = follow(moved, [(0, 12, 16)])
    assert visible[0].tolist() == [True, False, False, False]
    assert np.isfinite(points).all()


def test_a_surface_that_turns_away_is_hidden_where_its_normal_is_believed(scene: Scene):
    quaternions = np.array([turn([1, 0, 0], angle) for angle in (0, 0.5, 2.5, 3.1)])
    scene = dataclasses.replace(
        scene,
        segmentations=np.ones_like(scene.segmentations),
        object_quaternions=quaternions[None].astype(np.float32),
        distance=scene.distance + np.float32(100),
        camera_quaternions=np.tile(np.float32([1, 0, 0, 0]), (FRAMES, 1)),
    )
    queries, up, down = [(0, 12, 16)] * 3, [0.0, 0, 1], [0.0, 0, -1]
    visible = follow(scene, queries, normals=[up, up, down], believed=[True, False, True])[1]
    assert visible.tolist() == [
        [True, True, False, False],
        [True] * 4,  # not believed
        [True] * 4,  # wrong, for it faces away where the point was seen
    ]


def test_normals_are_believed_where_they_are_smooth():
    normals = np.tile(np.float32([0, 0, 1]), (9, 9, 1))
    assert smooth_normals(normals)[1:-1, 1:-1].all()
    assert smooth_normals(normals)[0, 4]  # beyond an edge lie two neighbours
    assert not smooth_normals(normals)[0, 0]  # beyond a corner three
    normals[4, 4] = [0, 1, 0]
    believed = smooth_normals(normals)
    assert not believed[4, 4]
    assert believed[3, 3]
    assert believed[4, 5]


def test_rotations_are_those_of_their_quaternions():
    quarter = rotation_matrix(np.array(turn([0, 0, 1], np.pi / 2)))
    assert np.allclose(quarter @ [1, 0, 0], [0, 1, 0])
    some = rotation_matrix(np.array(turn([1, 2, 3], 1.0)))
    assert np.allclose(some @ some.T, np.eye(3))
    assert np.allclose(some @ [1, 2, 3], [1, 2, 3])
    assert np.isclose(np.trace(some), 1 + 2 * np.cos(1.0))


# --------------------------------------------------------------------------------------- queries


def test_the_quota_favours_small_objects():
    assert query_quota(np.array([1000, 1000, 1000]), 60).tolist() == [20, 20, 20]
    assert query_quota(np.array([10_000, 50, 200]), 60).tolist() == [35, 5, 20]
    assert query_quota(np.array([100, 0, 100]), 60).tolist() == [10, 0, 10]
    assert query_quota(np.zeros(0, np.int64), 60).tolist() == []
    with pytest.raises(ValueError, match="max_fraction 0"):
        query_quota(np.array([1]), 5, max_fraction=0.0)


def test_queries_lie_on_a_grid_in_the_window_and_differ():
    segmentations = np.zeros((8, 64, 64), np.uint8)
    segmentations[:, 16:48, 16:48] = 1
    window = (8, 12, 60, 64)
    starts = set()
    for seed in range(20):
        generator = np.random.default_rng(seed)
        queries = sample_queries(segmentations, 16, generator=generator, window=window)
        assert len({tuple(q) for q in queries.tolist()}) == 16
        assert (queries[:, 0] == 0).all()
        assert (queries[:, 1:] >= window[:2]).all()
        assert (queries[:, 1:] < window[2:]).all()
        (start,) = {tuple(q) for q in (queries[:, 1:] % 4).tolist()}
        starts.add(start)
        owner = segmentations[tuple(queries.T)]
        assert np.bincount(owner).tolist() in ([10, 6], [9, 7])  # a tenth of about 64 pixels
    assert len(starts) > 8
    again = [
        sample_queries(segmentations, 16, generator=np.random.default_rng(3)) for _ in range(2)
    ]
    assert np.array_equal(*again)


def test_queries_of_all_frames_come_from_every_fourth():
    segmentations = np.zeros((24, 32, 32), np.uint8)
    generator = np.random.default_rng(0)
    queries = sample_queries(segmentations, 30, generator=generator, first_frame_only=False)
    assert len(np.unique(queries[:, 0])) > 3
    assert len(np.unique(queries[:, 0] % 4)) == 1


@pytest.mark.parametrize("window", [(0, 0, 33, 32), (5, 5, 5, 9), (-1, 0, 4, 4)])
def test_windows_outside_the_frame_are_refused(window: tuple):
    with pytest.raises(ValueError, match="must lie in a frame of 32 x 32"):
        sample_queries(
            np.zeros((1, 32, 32), np.uint8), 4, generator=np.random.default_rng(0), window=window
        )


def test_queries_outside_the_clip_are_refused(example: MoviExample):
    with pytest.raises(ValueError, match=r"below \(2, "):
        example_tracks(example, np.array([[2, 0, 0]]), [0, 1])
