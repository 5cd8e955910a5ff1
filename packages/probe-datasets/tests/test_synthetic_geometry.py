"""The synthetic world's labels agree with each other, by other means than the renderer's.

A solid is defined here a second time, as the places where an inequality holds. Rays are followed in
double precision by looking at many places on them, never by solving for where they meet anything.
`SYNTHETIC_SCENES=500` looks at more scenes than the usual few.
"""

import os
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from probe_datasets.clips import ClipConfig
from probe_datasets.synthetic import SyntheticWorld, WorldConfig, instance_masks
from probe_datasets.synthetic.render import Frames, render
from probe_datasets.synthetic.scene import Instances, Scene

NUM_SCENES = int(os.environ.get("SYNTHETIC_SCENES", "18"))
SIZE, NUM_FRAMES, NUM_STEPS = 32, 5, 200


def depth_inside(shape: str, places: np.ndarray) -> np.ndarray:
    """How far places are inside of a solid, in its coordinates; negative outside."""
    x, y, z = np.moveaxis(places, -1, 0)
    across = np.hypot(x, z)
    if shape == "sphere":
        return 1 - np.hypot(across, y)
    if shape == "box":
        return 1 - np.abs(places).max(-1)
    if shape == "octahedron":
        return (1 - np.abs(places).sum(-1)) / 3**0.5
    if shape == "cylinder":
        return np.minimum(1 - across, 1 - np.abs(y))
    if shape == "cone":
        return np.minimum((0.5 * (1 - y) - across) / 1.25**0.5, y + 1)
    assert shape == "capsule"
    return 0.5 - np.hypot(across, y - np.clip(y, -0.5, 0.5))


def depth_in_any(frames: Frames, places: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """How far places `n s 3` are inside of what there is in their frame, in metres about."""
    result = np.full(places.shape[:2], -np.inf)
    for solids in (frames.moving, frames.standing):
        for i in range(len(solids.member)):
            result = np.maximum(result, depth_in(solids, i, places, frame))
    # The glass cuts everything off.
    return np.minimum(result, places[..., 2])


def depth_in(solids: Instances, i: int, places: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """How far places `n s 3` are inside of one instance."""
    local = places - solids.centres[i, frame][:, None]
    local = np.einsum("nij,nsj->nsi", np.linalg.inv(solids.axes[i, frame]), local)
    size = np.linalg.norm(solids.axes[i, frame], axis=1).min(-1)
    return depth_inside(solids.kind.shape, local) * size[:, None]


@dataclass
class Case:
    index: int
    scene: Scene
    frames: Frames
    example: dict

    def numbers(self, name: str) -> np.ndarray:
        return self.example[name].double().numpy()


@pytest.fixture(scope="module")
def world() -> SyntheticWorld:
    config = WorldConfig(late_points=0.5, num_points=32, num_occluders=2)
    clip = ClipConfig(num_frames=NUM_FRAMES, stride=3, size=SIZE)
    return SyntheticWorld("test", clip=clip, config=config)


@pytest.fixture(scope="module")
def cases(world: SyntheticWorld) -> list[Case]:
    found = []
    for k in range(NUM_SCENES):
        index = k * 19 % len(world)  # every action with every shape, by and by
        scene, _ = world.scene(index)
        frames = render(scene, world.times, height=SIZE, width=SIZE)
        found.append(Case(index, scene, frames, dict(world[index])))
    return found


def project(world: np.ndarray, poses: np.ndarray, camera: np.ndarray) -> np.ndarray:
    """Image positions in pixels of places `n 3`, under one pose each."""
    seen = np.einsum("nij,nj->ni", poses[:, :, :3], world) + poses[:, :, 3]
    return (seen[:, :2] / seen[:, 2:] * camera[:2] + camera[2:]) * SIZE


def rays(case: Case, frame: np.ndarray, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Start and direction of rays through places xy of the image; the direction's depth is 1."""
    camera, poses = case.numbers("intrinsics")[0], case.frames.view.poses[frame]
    in_camera = np.concatenate([(xy - camera[2:]) / camera[:2], np.ones((len(xy), 1))], axis=1)
    start = -np.einsum("nji,nj->ni", poses[:, :, :3], poses[:, :, 3])
    return start, np.einsum("nji,nj->ni", poses[:, :, :3], in_camera)


def test_poses_are_rigid_and_the_camera_moves(cases: list[Case]) -> None:
    for case in cases:
        poses = case.numbers("poses")
        turns = poses[:, :, :3]
        assert np.allclose(turns @ turns.transpose(0, 2, 1), np.eye(3), atol=1e-6)
        assert np.linalg.det(turns).min() > 0
        assert np.abs(poses[0] - poses[-1]).max() > 1e-3


def test_depth_is_where_rays_first_meet_something(cases: list[Case]) -> None:
    """Each pixel's depth is on a surface, to 1e-3 px seen from other frames; nothing is before."""
    for case in cases:
        rng = np.random.default_rng(case.index)
        num = 60
        frame, row, column = rng.integers([[NUM_FRAMES], [SIZE], [SIZE]], size=(3, num))
        hits = case.frames.hits.pixel
        if len(hits) >= num:
            chosen = rng.choice(hits, num // 2)
            frame[::2], rest = np.divmod(chosen, SIZE * SIZE)
            row[::2], column[::2] = np.divmod(rest, SIZE)
        xy = (np.stack([column, row], axis=1) + 0.5) / SIZE
        start, way = rays(case, frame, xy)
        depth = case.numbers("depth")[frame, row, column]
        steps = np.linspace(0, 1 - 2e-3, NUM_STEPS)
        before = start[:, None] + (depth[:, None] * steps)[..., None] * way[:, None]
        assert depth_in_any(case.frames, before, frame).max() < 1e-3
        low, high = case.scene.low, case.scene.high
        assert (before >= low).all()
        assert (before <= high).all()

        def outside(t: np.ndarray, start=start, way=way, frame=frame, case=case) -> np.ndarray:
            place = start + t[:, None] * way
            solid = depth_in_any(case.frames, place[:, None], frame)[:, 0]
            walls = np.minimum(place - case.scene.low, case.scene.high - place).min(-1)
            return np.maximum(solid, -walls)

        first, last = depth - 4e-3, depth + 4e-3
        # Rays that graze an edge are inside for less than that: the depth itself must be on it.
        grazes = outside(last) < 0
        assert np.abs(outside(depth))[grazes].max(initial=0) < 1e-4
        assert grazes.mean() < 0.1
        for _ in range(40):
            middle = (first + last) / 2
            met = outside(middle) > 0
            first, last = np.where(met, first, middle), np.where(met, middle, last)
        other = case.numbers("poses")[rng.integers(NUM_FRAMES, size=num)]
        camera = case.numbers("intrinsics")[0]
        seen = project(start + depth[:, None] * way, other, camera)
        exact = project(start + last[:, None] * way, other, camera)
        near = ~grazes & (np.abs(exact - SIZE / 2) < SIZE).all(-1)
        assert np.abs(seen - exact)[near].max() < 1e-3


def test_tracks_are_projections_of_points_that_the_depth_holds(cases: list[Case]) -> None:
    for case in cases:
        world, points = case.numbers("points_world"), case.numbers("points") * SIZE
        visible, poses = case.example["points_visible"].numpy(), case.numbers("poses")
        depth, camera = case.numbers("depth"), case.numbers("intrinsics")[0]
        point, frame = np.nonzero(visible)
        seen = project(world[point, frame], poses[frame], camera)
        assert np.abs(seen - points[point, frame]).max() < 1e-3
        # Points are drawn at pixel centres: there, the depth map leads to the same place.
        offset = points[point, frame] - np.floor(points[point, frame]) - 0.5
        drawn = np.flatnonzero(np.abs(offset).max(-1) < 1e-4)
        assert set(point[drawn]) == set(range(len(points)))
        at, when = points[point[drawn], frame[drawn]], frame[drawn]
        column, row = at.astype(int).T
        start, way = rays(case, when, at / SIZE)
        place = start + depth[when, row, column, None] * way
        there = np.linalg.norm(place - world[point[drawn], when], axis=1)
        assert np.median(there) < 1e-5
        for other in range(NUM_FRAMES):
            pose = poses[other][None].repeat(len(place), axis=0)
            moved = world[point[drawn], other] - world[point[drawn], when]
            back = project(place + moved, pose, camera)
            ok = visible[point[drawn], other] & (there < 1e-3)
            error = np.abs(back - points[point[drawn], other])[ok]
            assert error.max(initial=0) < 1e-3


def test_points_stay_where_they_are_on_what_they_are_on(cases: list[Case]) -> None:
    """Walls stand still; on an object, distances change by its growth alone."""
    for case in cases:
        world = case.numbers("points_world")
        owner = np.full(len(world), -1)
        for i in range(len(case.frames.moving.member)):
            places = world.transpose(1, 0, 2)
            inside = depth_in(case.frames.moving, i, places, np.arange(NUM_FRAMES))
            owner[(np.abs(inside) < 1e-4).all(0)] = i
        still = world[owner < 0]
        assert np.abs(still - still[:, :1]).max(initial=0) < 1e-6
        assert (owner < 0).any()
        for i in np.unique(owner[owner >= 0]):
            group = world[owner == i]
            grown = np.linalg.norm(case.frames.moving.axes[i, :, :, 0], axis=1)
            apart = np.linalg.norm(group[:, None] - group[None], axis=-1) / grown
            assert np.abs(apart - apart[..., :1]).max() < 1e-4


def test_visibility_agrees_with_looking_along_the_way(cases: list[Case]) -> None:
    hidden_points = 0
    for case in cases:
        world, points = case.numbers("points_world"), case.numbers("points")
        visible = case.example["points_visible"].numpy()
        in_image = ((points >= 0) & (points < 1)).all(-1)
        assert not visible[~in_image].any()
        low, high = np.array([*case.scene.low[:2], -np.inf]), case.scene.high
        in_room = ((world >= low - 1e-4) & (world <= high + 1e-4)).all(-1)
        assert not visible[~in_room].any()
        point, frame = np.nonzero(in_image & in_room)
        start = case.frames.view.centres[frame]
        way = world[point, frame] - start
        steps = np.linspace(0, 1, 2 * NUM_STEPS)[None, :, None]
        inside = depth_in_any(case.frames, start[:, None] + steps * way[:, None], frame)
        early = inside[:, : int(2 * NUM_STEPS * 0.998)].max(-1)
        seen = visible[point, frame]
        # Seen: nothing on the way by more than a hair. Hidden: something, or within a step of it.
        assert early[seen].max() < 2e-3
        ahead = np.einsum("ni,ni->n", case.frames.view.poses[frame, 2, :3], way) > 0
        behind_glass = world[point, frame, 2] > 1e-4
        should_hide = ~seen & ahead & behind_glass
        step = np.linalg.norm(way, axis=1) / (2 * NUM_STEPS - 1)
        assert (inside.max(-1) > -step)[should_hide].all()
        hidden_points += should_hide.sum()
        query = case.example["query_frames"].numpy()
        assert (visible.argmax(1) == query).all()
        assert visible.any(1).all()
    assert hidden_points > 3 * len(cases)


def test_some_points_start_late(cases: list[Case]) -> None:
    late = torch.cat([case.example["query_frames"] for case in cases]) > 0
    assert 0.05 < float(late.double().mean()) < 0.5


def test_boxes_are_round_the_masks(cases: list[Case]) -> None:
    for case in cases:
        segments, boxes = case.example["segments"], case.example["boxes"]
        valid = case.example["boxes_valid"]
        masks = instance_masks(segments, len(boxes))
        assert torch.equal(masks.any(0), (segments > 0) & (segments <= len(boxes)))
        assert torch.equal(masks.any(-1).any(-1), valid)
        counts = masks.sum((1, 2, 3))
        assert (counts.diff() <= 0).all()
        for k, t in valid.nonzero().tolist():
            rows, columns = masks[k, t].nonzero().T
            edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert torch.allclose(boxes[k, t] * SIZE, torch.tensor(edges).float(), atol=1e-4)
        assert (boxes[~valid] == 0).all()


def test_masks_hold_the_pixels_of_their_instance(cases: list[Case]) -> None:
    """Every pixel of a mask lies on one and the same solid, in every frame."""
    for case in cases:
        segments, depth = case.example["segments"].numpy(), case.numbers("depth")
        for k in range(1, int(segments.max()) + 1):
            frame, row, column = np.nonzero(segments == k)
            some = np.linspace(0, len(frame) - 1, min(len(frame), 20)).astype(int)
            frame, row, column = frame[some], row[some], column[some]
            start, way = rays(case, frame, (np.stack([column, row], axis=1) + 0.5) / SIZE)
            place = start + depth[frame, row, column, None] * way
            owners = [
                i
                for i in range(len(case.frames.moving.member))
                if (depth_in(case.frames.moving, i, place[:, None], frame) > -1e-4).all()
            ]
            assert len(owners) >= 1


def test_shadows_are_where_something_hides_the_lamp() -> None:
    config = WorldConfig(shadows=True, num_points=0, ambient=0.3)
    clip = ClipConfig(num_frames=2, size=SIZE)
    with_shadows = SyntheticWorld("test", clip=clip, config=config)
    without = SyntheticWorld("test", clip=clip, config=replace(config, shadows=False))
    shares = []
    for index in range(0, 60, 6):
        scene, _ = with_shadows.scene(index)
        frames = render(scene, with_shadows.times, height=SIZE, width=SIZE)
        bright, dim = without[index], with_shadows[index]
        assert torch.equal(bright["depth"], dim["depth"])
        darker = (dim["video"] < bright["video"] - 0.02).any(0).numpy()
        assert (dim["video"] <= bright["video"] + 1e-6).all()
        case = Case(index, scene, frames, dict(dim))
        for name, pixels in (("dark", darker), ("light", ~darker)):
            frame, row, column = np.nonzero(pixels & (dim["segments"].numpy() == 0))
            some = np.linspace(0, len(frame) - 1, min(len(frame), 80)).astype(int)
            frame, row, column = frame[some], row[some], column[some]
            start, way = rays(case, frame, (np.stack([column, row], axis=1) + 0.5) / SIZE)
            place = start + dim["depth"].double().numpy()[frame, row, column, None] * way
            steps = np.linspace(0.005, 1, NUM_STEPS)[None, :, None]
            path = place[:, None] + steps * (scene.lamp - place)[:, None]
            inside = depth_in_any(frames, path, frame).max(-1)
            if name == "dark":
                assert inside.min(initial=1) > -0.02
            else:
                # Where the lamp shines along a wall, its shadow changes nothing.
                assert (inside > 0.02).mean() < 0.05
        shares.append(darker.mean())
    assert 0.02 < np.mean(shares) < 0.5
