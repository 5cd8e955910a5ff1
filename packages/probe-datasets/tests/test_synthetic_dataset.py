"""The synthetic world as a data set: one function of (seed, split, index)."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from probe_datasets.clips import ClipConfig
from probe_datasets.schema import ClipDataset
from probe_datasets.synthetic import ACTIONS, SHAPES, TEXTURES, SyntheticWorld, WorldConfig
from probe_datasets.synthetic.dataset import WorldExample
from probe_datasets.synthetic.render import render


def world(
    split: str = "train",
    *,
    num_frames: int = 4,
    stride: int = 1,
    size: int = 24,
    start: str = "auto",
    **settings: object,
) -> SyntheticWorld:
    clip = ClipConfig(num_frames=num_frames, stride=stride, size=size, start=start)
    return SyntheticWorld(split, clip=clip, **settings)


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        for name, value in one.items()
    )


def test_a_clip_is_a_function_of_seed_split_and_index() -> None:
    dataset = world()
    first = dataset[7]
    dataset[3], dataset[11]
    assert same(first, dataset[7])
    assert same(first, world(num_clips=8)[7])
    for other in (world(seed=1)[7], world(split="validation")[7], dataset[8]):
        assert not torch.equal(first["video"], other["video"])
        assert first["sample_id"] != other["sample_id"]


def test_splits_share_no_clip() -> None:
    splits = {split: world(split=split) for split in ("train", "validation", "test")}
    names = [d.sample_id(i) for d in splits.values() for i in range(len(d))]
    assert len(set(names)) == len(names)
    colours = [float(splits[split].scene(i)[0].lit[0, 0, 0, 0]) for split in splits for i in (0, 1)]
    assert len(set(colours)) == len(colours)
    assert len({d.fingerprint for d in splits.values()}) == 3


def test_the_length_of_a_clip_changes_no_frame() -> None:
    """Nor does the stride: frame 2 at stride 3 is frame 6."""
    config = WorldConfig(shadows=True)
    long = world(num_frames=13, config=config)[5]
    short = world(num_frames=5, stride=3, config=config)[5]
    for name in ("video", "depth", "poses"):
        axis = 1 if name == "video" else 0
        every = long[name].index_select(axis, torch.arange(0, 13, 3))
        assert torch.allclose(every, short[name], atol=1e-6)


@pytest.mark.parametrize(("size", "num_frames"), [(9, 3), (16, 1), (96, 2)])
def test_examples_fit_the_schema_at_any_size(size: int, num_frames: int) -> None:
    dataset = world(size=size, num_frames=num_frames, config=WorldConfig(num_points=10))
    for index in (0, 9, 100):
        example = dataset[index]
        assert example.keys() == WorldExample.__annotations__.keys()
        pixels = (num_frames, size, size)
        assert example["video"].shape == (3, *pixels)
        assert example["video"].dtype == example["depth"].dtype == torch.float32
        assert example["video"].abs().max() <= 1
        assert example["depth"].shape == example["depth_valid"].shape == pixels
        assert example["depth"].min() > 0.5
        assert example["depth"].max() < 20
        assert example["segments"].shape == pixels
        assert example["segments"].dtype == torch.uint8
        assert example["poses"].shape == (num_frames, 3, 4)
        assert example["poses_valid"].shape == (num_frames,)
        assert example["intrinsics"].shape == (num_frames, 4)
        assert example["boxes"].shape == (16, num_frames, 4)
        assert example["boxes_valid"].shape == (16, num_frames)
        assert example["points"].shape == (10, num_frames, 2)
        assert example["points_visible"].shape == (10, num_frames)
        assert example["points_valid"].shape == example["query_frames"].shape == (10,)
        for name in ("depth", "poses", "points"):
            assert example[f"{name}_valid"].all()


@pytest.mark.parametrize(("height", "width"), [(16, 40), (40, 16)])
def test_pictures_need_not_be_square(height: int, width: int) -> None:
    dataset = world(num_frames=2)
    for index in (0, 7):
        scene, _ = dataset.scene(index)
        frames = render(scene, dataset.times, height=height, width=width)
        assert frames.depth.shape == (2, height, width)
        focal = frames.view.camera[:2] * [width, height]
        assert focal[0] == pytest.approx(focal[1])


def test_a_camera_may_look_straight_along_the_room() -> None:
    """Then the rays of the middle row and column meet two or four of the walls nowhere."""
    dataset = world(config=WorldConfig(num_occluders=0))
    scene, _ = dataset.scene(1)
    camera = replace(scene.camera, angles=np.zeros(3), turn=np.zeros(3))
    frames = render(replace(scene, camera=camera), dataset.times[:1], height=9, width=9)
    assert np.isfinite(frames.video).all()
    far = scene.high[2] - frames.view.centres[0, 2]
    assert frames.depth.max() == pytest.approx(far, rel=5e-3)


def test_a_long_clip_never_runs_dry() -> None:
    dataset = world(num_frames=40, stride=25, config=WorldConfig(max_instances=4))
    for index in range(0, 18, 3):
        example = dataset[index]
        assert (example["segments"] > 0).any()
        assert example["boxes"].shape == (4, 40, 4)
        assert example["depth"].min() > 0.5


def test_more_instances_than_a_byte_holds_are_refused() -> None:
    config = WorldConfig(num_objects=64, object_speed=10.0, num_points=0)
    with pytest.raises(ValueError, match="but segments hold 254; use a shorter"):
        world(num_frames=60, stride=4, size=16, config=config)[0]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_labels_are_balanced_over_every_combination(split: str) -> None:
    dataset = world(split=split)
    counts = Counter(tuple(dataset.labels(i).values()) for i in range(len(dataset)))
    assert len(counts) == len(ACTIONS) * len(SHAPES) * len(TEXTURES)
    assert len(set(counts.values())) == 1


def test_the_contract_of_data_sets_is_kept() -> None:
    dataset = world(num_clips=6)
    assert isinstance(dataset, ClipDataset)
    assert dataset.coverage.found == len(dataset) == 6
    assert {name: len(names) for name, names in dataset.classes.items()} == {
        "action": len(ACTIONS),
        "shape": len(SHAPES),
        "texture": len(TEXTURES),
    }
    assert same(dict(dataset.clip(2, draw=5)), dict(dataset[2]))
    for index in (-1, 6):
        with pytest.raises(IndexError, match="outside the split of 6"):
            dataset[index]


def test_workers_give_the_same_batches() -> None:
    dataset = world(num_clips=4, size=16)
    alone, shared = (list(DataLoader(dataset, 2, num_workers=n)) for n in (0, 1))
    for one, other in zip(alone, shared, strict=True):
        assert torch.equal(one["video"], other["video"])
        assert torch.equal(one["points"], other["points"])


def test_the_fingerprint_follows_everything_that_decides_pixels() -> None:
    changed = [
        {},
        {"seed": 1},
        {"size": 32},
        {"num_frames": 5},
        {"stride": 2},
        {"num_clips": 61},
        {"config": WorldConfig(shadows=True)},
        {"config": WorldConfig(texture_contrast=0.5)},
    ]
    assert len({world(**settings).fingerprint for settings in changed}) == len(changed)
    assert world().fingerprint == world(config=WorldConfig()).fingerprint


def test_difficulty_does_what_it_says() -> None:
    def clip(index: int = 4, **settings: object) -> dict:
        return world(size=32, num_frames=3, stride=4, config=WorldConfig(**settings))[index]

    still = clip(camera_speed=0.0)["poses"]
    assert torch.equal(still[0], still[-1])
    flat, busy = clip(texture_contrast=0.0)["video"], clip(texture_contrast=1.0)["video"]
    assert flat.diff(dim=-1).abs().mean() < 0.5 * busy.diff(dim=-1).abs().mean()
    few, many = (
        sum(int((clip(i, num_objects=n)["segments"] > 0).sum()) for i in range(10)) for n in (1, 12)
    )
    assert many > 3 * few
    idle = clip(object_speed=0.0, camera_speed=0.0)["video"]
    assert torch.equal(idle[:, 0], idle[:, -1])
    hidden = clip(num_occluders=12)["depth"].mean()
    assert hidden < 0.9 * clip(num_occluders=0)["depth"].mean()
    shaded = clip(shadows=True)["video"].mean()
    assert shaded < clip(shadows=False)["video"].mean()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"split": "all"}, "split 'all' must be one of train, validation, test"),
        ({"size": 7}, "size 7 must be at least 8"),
        ({"start": "random"}, "start 'random' must be auto or first; a generated clip"),
        ({"num_clips": 0}, "num_clips 0 must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        world(**settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_objects": 0}, "num_objects 0 must be from 1 to 64"),
        ({"ambient": 1.5}, "ambient 1.5 must be from 0 to 1"),
        ({"object_speed": float("nan")}, "object_speed nan must be"),
        ({"camera_speed": -1.0}, "camera_speed -1.0 must be from 0 to 2"),
        ({"max_instances": 255}, "max_instances 255 must be from 1 to 254"),
    ],
)
def test_difficulties_out_of_range_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        WorldConfig(**settings)
