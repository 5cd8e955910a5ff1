import json
import os
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from probe_datasets import movi_e
from probe_datasets.clips import ClipConfig
from probe_datasets.formats.files import DataError
from probe_datasets.movi_e import MoviE
from probe_datasets.schema import Coverage

WRITE = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "record_writers.py")))

SIDE, FRAMES, FOCAL = 64, 24, 35 / 32
CLIP = ClipConfig(size=SIDE)
COLOURS = np.array([[220, 30, 30], [30, 220, 30], [30, 30, 220]], np.uint8)
FLOOR, UPPER, LOWER = 0, 1, 2  # each is mostly one channel of the picture
FORWARD = (0.05, 0.2)  # metres a frame in x, of camera and upper plate
HEIGHTS = {FLOOR: 0.0, UPPER: 1.0, LOWER: 0.5}
EXTENTS = np.array([[2.4, 2.4, 0.01], [2.0, 2.0, 0.01]])


def plates(shift: float = 0.0) -> dict[str, list]:
    """Features of a video: a camera above a floor, and a plate that moves over another.

    Every pixel has the colour of what it shows. The first plate begins at x = -3 metres + shift.
    """
    x = ((np.arange(SIDE) + 0.5) / SIDE - 0.5) / FOCAL
    columns, rows = np.meshgrid(x, -x)
    pictures: dict[str, list[bytes]] = {
        name: [] for name in ("video", "segmentations", "depth", "normal", "object_coordinates")
    }
    centres = np.zeros((2, FRAMES, 3))
    for t in range(FRAMES):
        centres[0, t] = [-3 + shift + FORWARD[1] * t, 0.2, HEIGHTS[UPPER] - 0.005]
        centres[1, t] = [0, 0, HEIGHTS[LOWER] - 0.005]
        shown = np.zeros((SIDE, SIDE), np.uint8)
        away = np.full((SIDE, SIDE), 10.0)
        coordinates = np.zeros((SIDE, SIDE, 3))
        for owner in (LOWER, UPPER):
            depth = 10 - HEIGHTS[owner]
            place = np.stack(
                [columns * depth + FORWARD[0] * t, rows * depth, 0 * rows + HEIGHTS[owner]], axis=-1
            )
            inside = (place - centres[owner - 1, t]) / EXTENTS[owner - 1] + 0.5
            mine = ((inside >= 0) & (inside <= 1 + 1e-9)).all(axis=-1)
            shown[mine], away[mine] = owner, depth
            coordinates[mine] = inside[mine]
        distance = away * np.sqrt(columns**2 + rows**2 + 1)
        pictures["video"].append(WRITE.png(COLOURS[shown]))
        pictures["segmentations"].append(WRITE.png(shown))
        pictures["depth"].append(WRITE.png(np.round((distance - 5) * 6553.5).astype(np.uint16)))
        pictures["normal"].append(
            WRITE.png(np.full((SIDE, SIDE, 3), [32768, 32768, 65535], np.uint16))
        )
        pictures["object_coordinates"].append(
            WRITE.png(np.round(coordinates.clip(0, 1) * 65535).astype(np.uint16))
        )
    cube = np.array(np.meshgrid(*[[-0.5, 0.5]] * 3, indexing="ij")).reshape(3, 8).T
    corners = centres[:, :, None] + cube * EXTENTS[:, None, None]
    return pictures | {
        "metadata/video_name": [b"plates"],
        "metadata/depth_range": [5.0, 15.0],
        "camera/focal_length": [35.0],
        "camera/sensor_width": [32.0],
        "camera/field_of_view": [0.8576],
        "camera/positions": [v for t in range(FRAMES) for v in (FORWARD[0] * t, 0.0, 10.0)],
        "camera/quaternions": [1.0, 0.0, 0.0, 0.0] * FRAMES,
        "instances/positions": centres.ravel().tolist(),
        "instances/quaternions": [1.0, 0.0, 0.0, 0.0] * FRAMES * 2,
        "instances/bboxes_3d": corners.ravel().tolist(),
        "instances/visibility": [100] * FRAMES * 2,
        "instances/category": [3, 13],
        "instances/is_dynamic": [1, 0],
        "instances/asset_id": [b"upper", b"lower"],
        "instances/bboxes/ragged_flat_values": [0.0, 0.0, 1.0, 1.0],
        "instances/bboxes/ragged_row_lengths_0": [1, 0],
        "instances/bbox_frames/ragged_flat_values": [0],
        "instances/bbox_frames/ragged_row_lengths_0": [1, 0],
    }


@pytest.fixture(scope="session")
def scenes() -> list[dict[str, list]]:
    return [plates(), plates(shift=0.7)]


@pytest.fixture
def folder(tmp_path: Path, scenes: list[dict[str, list]]) -> Path:
    """A TFDS data folder: files of 2 and 1 examples for training, one of 1 for each other split."""
    version = tmp_path / "data" / "movi_e" / "64x64" / "1.0.0"
    records = [WRITE.example(scene) for scene in scenes]
    content = {"train": [records, records[:1]], "validation": [records[:1]], "test": [records[1:]]}
    for split, shards in content.items():
        for i, shard in enumerate(shards):
            name = f"movi_e-{split}.tfrecord-{i:05}-of-{len(shards):05}"
            WRITE.write_tfrecord(version / name, shard)
    splits = [
        {"name": split, "shardLengths": [str(len(shard)) for shard in shards]}
        for split, shards in content.items()
    ]
    (version / "dataset_info.json").write_text(json.dumps({"name": "movi_e", "splits": splits}))
    return version


def owners(example: dict) -> torch.Tensor:
    """What each valid point belongs to, by the pixel under its query."""
    points = example["points"][example["points_valid"], 0]
    column, row = (points * SIDE).long().clamp(max=SIDE - 1).unbind(-1)
    return example["video"][:, 0, row, column].argmax(dim=0)


def nearby(example: dict, radius: int) -> torch.Tensor:
    """Which of floor and plates is near each valid point in each frame, (p, T, 3)."""
    points = example["points"][example["points_valid"]]
    shown = torch.nn.functional.one_hot(example["video"].argmax(dim=0), 3).movedim(-1, 1).float()
    around = torch.nn.functional.max_pool2d(shown, 2 * radius + 1, stride=1, padding=radius)
    column, row = (points * SIDE).long().clamp(0, SIDE - 1).unbind(-1)
    return around[torch.arange(points.shape[1]), :, row, column] > 0


# ----------------------------------------------------------------------------------- what is there


@pytest.mark.parametrize("levels", [0, 1, 2, 3])
def test_every_split_is_found_from_any_folder_above_it(folder: Path, levels: int):
    root = [folder, *folder.parents][levels]
    names = []
    for split, count in {"train": 3, "validation": 1, "test": 1}.items():
        dataset = MoviE(root, split, clip=CLIP)
        assert len(dataset) == count
        assert dataset.coverage == Coverage(expected=count, found=count)
        names += [dataset.sample_id(i) for i in range(count)]
    assert names == [
        "train-00000-of-00002/0000",
        "train-00000-of-00002/0001",
        "train-00001-of-00002/0000",
        "validation-00000-of-00001/0000",
        "test-00000-of-00001/0000",
    ]
    assert dataset.index.layout.startswith("TFDS, ")


def test_a_file_that_is_missing_counts_its_examples(folder: Path):
    (folder / "movi_e-train.tfrecord-00000-of-00002").unlink()
    dataset = MoviE(folder, "train", clip=CLIP)
    assert [dataset.sample_id(i) for i in range(len(dataset))] == ["train-00001-of-00002/0000"]
    assert dataset.coverage == Coverage(
        expected=3,
        found=1,
        missing=2,
        reasons=tuple(
            (f"train-00000-of-00002/000{k}", "there is no file of this sample") for k in range(2)
        ),
    )
    (folder / "dataset_info.json").unlink()
    assert MoviE(folder, "train", clip=CLIP).coverage.expected == 9750


@pytest.mark.parametrize("left", [0, 20, 5000])
def test_a_file_that_is_cut_counts_its_examples(folder: Path, left: int):
    path = folder / "movi_e-train.tfrecord-00000-of-00002"
    os.truncate(path, left)
    with pytest.raises(DataError, match=r"2 of 3 samples of split 'train' cannot be used"):
        MoviE(folder, "train", clip=CLIP)
    dataset = MoviE(folder, "train", clip=CLIP, on_error="skip")
    coverage = dataset.coverage
    assert (coverage.expected, coverage.found, coverage.failed) == (3, 1, 2)
    assert all(path.name in why for _, why in coverage.reasons)
    assert dataset[0]["points_valid"].any()
    (folder / "dataset_info.json").unlink()
    coverage = MoviE(folder, "train", clip=CLIP, on_error="skip").coverage
    assert (coverage.expected, coverage.found, coverage.failed) == (9750, 1, 1)


def test_a_damaged_record_is_never_an_example(folder: Path):
    path = folder / "movi_e-train.tfrecord-00000-of-00002"
    content = bytearray(path.read_bytes())
    content[len(content) // 4] ^= 4
    path.write_bytes(content)
    dataset = MoviE(folder, "train", clip=CLIP, on_error="skip")
    assert "does not match its checksum" in dataset[0]["problem"]
    assert "video" in dataset[1]
    with pytest.raises(DataError, match="does not match its checksum"):
        MoviE(folder, "train", clip=CLIP)[0]


def test_configurations_are_chosen(folder: Path):
    config, root = folder.parent, folder.parents[2]
    shutil.copytree(config, config.with_name("32x32"))
    with pytest.raises(DataError, match=r"holds the configurations 32x32, 64x64.*config="):
        MoviE(root, "train")
    a, b = (MoviE(root, "train", config=name, clip=CLIP) for name in ("32x32", "64x64"))
    assert "32x32" in a.row(0)["path"]
    assert "64x64" in b.row(0)["path"]


def test_what_decides_an_example_is_in_the_fingerprint(folder: Path):
    def opened(**options: object) -> str:
        return MoviE(folder, "train", **{"clip": CLIP, **options}).fingerprint

    prints = [opened(), opened(num_points=8), opened(seed=1), opened(augment=False)]
    assert len(set(prints)) == 4
    assert opened() == prints[0]
    with pytest.raises(ValueError, match="num_points 0"):
        opened(num_points=0)


# ---------------------------------------------------------------------------------------- examples


def test_evaluation_shows_the_first_frames_and_always_the_same_points(folder: Path):
    dataset = MoviE(folder, "validation", clip=CLIP)
    example = dataset[0]
    assert example["video"].shape == (3, 17, SIDE, SIDE)
    seen = {tuple(c) for c in example["video"].permute(1, 2, 3, 0).reshape(-1, 3).tolist()}
    assert seen == {tuple((torch.tensor(c) / 127.5 - 1).tolist()) for c in COLOURS.astype("f4")}
    again = MoviE(folder, "validation", clip=CLIP, seed=5).clip(0, draw=3)
    for name, value in example.items():
        assert value == again[name] if isinstance(value, str) else torch.equal(value, again[name])
    num_points = int(example["points_valid"].sum())
    assert 15 <= num_points <= 26  # a tenth of the 256 pixels of the grid
    assert set(owners(example).tolist()) == {FLOOR, UPPER, LOWER}
    assert not example["query_frames"].any()
    assert example["points_visible"][:num_points, 0].all()
    assert example["points_valid"][:num_points].all()
    for name in ("points", "points_visible"):
        assert not example[name][num_points:].any()


def test_points_move_as_what_they_lie_on(folder: Path):
    """By a distance a frame that follows from the scene, and hidden by the plate above."""
    example = MoviE(folder, "validation", clip=CLIP)[0]
    points = example["points"][example["points_valid"]]
    owner = owners(example)
    centres = (points[:, 0] * SIDE - 0.5) % 1
    assert torch.minimum(centres, 1 - centres).max() < 0.02  # two of 65,536 parts of a plate
    for i, speed in ((FLOOR, -FORWARD[0]), (UPPER, FORWARD[1] - FORWARD[0]), (LOWER, -FORWARD[0])):
        step = points[owner == i].diff(dim=1)
        expected = torch.tensor([speed * FOCAL / (10 - HEIGHTS[i]), 0])
        assert (step - expected).abs().max() * SIDE < 1e-3
    assert not example["points_visible"][: len(points)][owner == LOWER].all()


@pytest.mark.parametrize("split", ["train", "validation"])
def test_points_are_seen_where_their_colour_is(folder: Path, split: str):
    """After every crop, for all points and frames; where they are hidden another colour is near."""
    dataset = MoviE(folder, split, clip=CLIP)
    hidden_inside = 0
    for draw in range(8 if split == "train" else 1):
        example = dataset.clip(0, draw)
        valid = example["points_valid"]
        points, visible = example["points"][valid], example["points_visible"][valid]
        assert len(points) > 5
        inside = ((points >= 0) & (points <= 1)).all(dim=-1)
        assert not (visible & ~inside).any()
        assert visible[:, 0].all()
        owner = owners(example)
        near = nearby(example, radius=3)  # a pixel of the frame is up to 2.6 of a crop
        mine = near[torch.arange(len(owner)), :, owner]
        assert mine[visible].all()
        margin = ((points > 0.1) & (points < 0.9)).all(dim=-1)
        hidden = ~visible & margin
        assert (near.sum(dim=-1)[hidden] > 1).logical_or(~mine[hidden]).all()
        hidden_inside += int(hidden.sum())
    assert hidden_inside > (10 if split == "train" else 0)


def test_training_crops_and_starts_by_chance(folder: Path):
    """Steps of plate and floor tell the window's size, and where the plate is tells the start."""
    dataset = MoviE(folder, "train", clip=CLIP)
    widths, starts = set(), set()
    for draw in range(20):
        example = dataset.clip(0, draw)
        points = example["points"][example["points_valid"]]
        step = points.diff(dim=1)
        owner = owners(example)
        (scale,) = {
            round(v, 3)
            for v in (step[owner == FLOOR, :, 0] / (-FORWARD[0] * FOCAL / 10)).flatten().tolist()
        } or {0.0}
        assert 1 <= scale <= 1 / (0.3 * 0.5) ** 0.5 + 0.1
        widths.add(scale)
        if (owner == UPPER).any() and (owner == FLOOR).any():
            plate = step[owner == UPPER, :, 0] / ((FORWARD[1] - FORWARD[0]) * FOCAL / 9)
            assert (plate - scale).abs().max() < 0.01
        again = dataset.clip(0, draw)
        assert torch.equal(example["points"], again["points"])
        assert torch.equal(example["video"], again["video"])
        starts.add(float(example["video"][1].gt(0).float().mean()))
    assert len(widths) > 12
    assert len(starts) > 12


def test_clips_begin_at_every_frame_in_training(folder: Path, monkeypatch: pytest.MonkeyPatch):
    chosen: list[list[int]] = []
    tracked = movi_e.example_tracks

    def follow(example: object, queries: np.ndarray, frames: list[int]) -> object:
        chosen.append(frames)
        return tracked(example, queries, frames)

    monkeypatch.setattr(movi_e, "example_tracks", follow)
    dataset = MoviE(folder, "train", clip=CLIP)
    for draw in range(40):
        dataset.clip(0, draw)
    assert {frames[0] for frames in chosen} == set(range(8))
    assert all(frames == list(range(frames[0], frames[0] + 17)) for frames in chosen)


def test_only_the_pictures_of_the_clip_are_decoded(folder: Path, scenes: list[dict[str, list]]):
    """Those of later frames, and all but the first of what only queries need, may be broken."""
    damaged = {name: list(values) for name, values in scenes[0].items()}
    for name, first in (("video", 17), ("segmentations", 17), ("depth", 17)):
        damaged[name][first:] = [b"broken"] * (FRAMES - first)
    for name in ("normal", "object_coordinates"):
        damaged[name][1:] = [b"broken"] * (FRAMES - 1)
    whole = MoviE(folder, "validation", clip=CLIP)[0]
    path = folder / "movi_e-validation.tfrecord-00000-of-00001"
    WRITE.write_tfrecord(path, [WRITE.example(damaged)])
    example = MoviE(folder, "validation", clip=CLIP)[0]
    assert torch.equal(example["video"], whole["video"])
    assert torch.equal(example["points"], whole["points"])
    with pytest.raises(DataError, match="no PNG"):
        MoviE(folder, "validation", clip=ClipConfig(size=SIDE, num_frames=18))[0]


def test_short_videos(folder: Path):
    clip = ClipConfig(size=SIDE, num_frames=25)
    with pytest.raises(DataError, match="has 24 frames; expected 25"):
        MoviE(folder, "test", clip=clip)[0]
    clip = ClipConfig(size=SIDE, num_frames=25, short="clamp")
    example = MoviE(folder, "test", clip=clip)[0]
    assert torch.equal(example["video"][:, 23], example["video"][:, 24])
    assert torch.equal(example["points"][:, 23], example["points"][:, 24])


def test_fewer_points_and_other_sizes(folder: Path):
    example = MoviE(folder, "test", num_points=6, clip=ClipConfig(size=24, num_frames=3))[0]
    assert example["video"].shape == (3, 3, 24, 24)
    assert example["points"].shape == (6, 3, 2)
    assert example["points_valid"].all()


# --------------------------------------------------------------------------------------- real data


@pytest.fixture(params=[64, 128])
def reference(shared: Path, request: pytest.FixtureRequest) -> Callable[[str], dict]:
    def load(kind: str) -> dict:
        name = f"{request.param}x{request.param}_train_0_{kind}.npz"
        return dict(np.load(shared / "movi_e" / "reference" / name, allow_pickle=False))

    load.side = request.param
    return load


def open_real(shared: Path, side: int, **options: object) -> MoviE:
    clip = ClipConfig(size=side)
    return MoviE(shared / "movi_e", "train", config=f"{side}x{side}", clip=clip, **options)


@pytest.mark.parametrize("first", [1, 5])
def test_real_tracks_are_kubrics(
    shared: Path,
    reference: Callable[[str], dict],
    first: int,
    monkeypatch: pytest.MonkeyPatch,
):
    """Of queries that Kubric's own code chose in a frame: within 1e-3 pixels, every occlusion."""
    expected, side = reference("tracks"), reference.side
    chosen = expected["query_points"][:, 0] == first
    queries = np.floor(expected["query_points"][chosen]).astype(np.int64)
    queries[:, 0] = 0
    assert len(queries) >= 8
    monkeypatch.setattr(movi_e, "sample_queries", lambda *args, **options: queries)
    frames = list(range(first, first + 17))
    monkeypatch.setattr(MoviE, "clip_frames", lambda *args: frames)
    example = open_real(shared, side, augment=False)[0]
    valid = example["points_valid"]
    seen = ~expected["occluded"][chosen][:, frames]
    assert seen[:, 0].all()
    pixels = example["points"][valid].numpy() * side
    assert np.abs(pixels - expected["target_points"][chosen][:, frames]).max() < 1e-3
    assert np.array_equal(example["points_visible"][valid].numpy(), seen)


def test_real_pixels_are_those_of_tfds(shared: Path, reference: Callable[[str], dict]):
    decoded, side = reference("decoded"), reference.side
    example = open_real(shared, side, augment=False)[0]
    first = torch.from_numpy(decoded["video_f0"].astype(np.float32)).permute(2, 0, 1)
    assert torch.equal(example["video"][:, 0], first / 127.5 - 1)
    means = torch.from_numpy(reference("tracks")["video_mean"][:17])
    assert (example["video"].mean(dim=(2, 3)).T - means).abs().max() < 1e-5  # sums in float32
    segments = decoded["segmentations"].reshape(-1, side, side)
    points = example["points"][example["points_valid"]].numpy()
    visible = example["points_visible"][example["points_valid"]].numpy()
    column, row = (points[:, 0] * side).astype(int).T
    owner = segments[0, row, column]
    assert len(np.unique(owner)) > 2
    for point, seen, mine in zip(points, visible, owner, strict=True):
        for t in np.flatnonzero(seen):
            x, y = np.floor(point[t] * side - 0.5).astype(int).clip(0)
            assert mine in segments[t, y : y + 2, x : x + 2]
