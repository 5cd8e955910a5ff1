"""Data sets of a configuration: cut to a limit, parted, repeated."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from probe_datasets import ClipConfig, ClipDataset
from probe_datasets.moving_shapes import NUM_CLIPS, MovingShapes
from probe_datasets.synthetic import SyntheticWorld
from probe_eval.config import DataConfig
from probe_eval.data import (
    OWN_SETTINGS,
    Splits,
    check_classes,
    clip_config,
    config_of_test,
    open_split,
    open_splits,
    parse_options,
    part,
)
from probe_eval.views import Draws, FirstClips, ManyClips, Part, label_indices, sample_ids, source

SHAPES = DataConfig(size=16, num_frames=1, limit=60)


def ids(dataset: ClipDataset) -> list[str]:
    return [dataset.sample_id(index) for index in range(len(dataset))]


@pytest.fixture
def shapes() -> MovingShapes:
    return MovingShapes(split="train", clip=ClipConfig(num_frames=1, size=16), num_clips=7)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., DataConfig]:
    """Function that makes the configuration of ImageNet with three classes of ten pictures."""
    root = tmp_path_factory.mktemp("imagenet")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for wnid in ("n01440764", "n01443537", "n01484850"):
            folder = root / split / wnid
            folder.mkdir(parents=True)
            for number in range(10):
                picture = Image.fromarray(rng.integers(0, 255, (20, 24, 3), np.uint8))
                picture.save(folder / f"{wnid}_{split}_{number}.JPEG")
    base = DataConfig(dataset="imagenet", root=str(root), size=16, num_frames=1)
    return lambda **fields: dataclasses.replace(base, **fields)


# --- Views ---------------------------------------------------------------------------------------


def test_the_first_clips_are_those_of_the_data_set(shapes: MovingShapes) -> None:
    first = FirstClips(shapes, 3)
    assert isinstance(first, ClipDataset)
    assert len(first) == 3
    assert first.classes == shapes.classes
    for index in range(3):
        assert first.sample_id(index) == shapes.sample_id(index)
        assert torch.equal(first[index]["video"], shapes[index]["video"])


@pytest.mark.parametrize("index", [-1, 3, 6])
def test_nothing_lies_beyond_the_limit(shapes: MovingShapes, index: int) -> None:
    with pytest.raises(IndexError, match=rf"clip {index} is outside the 3 clips"):
        FirstClips(shapes, 3)[index]


def test_a_limit_beyond_the_end_is_the_end(shapes: MovingShapes) -> None:
    first = FirstClips(shapes, 100)
    assert len(first) == 7
    assert len([first[i] for i in range(len(first))]) == 7


def test_what_was_not_asked_for_is_not_missing(shapes: MovingShapes) -> None:
    coverage = FirstClips(shapes, 3).coverage
    assert (coverage.expected, coverage.found, coverage.missing, coverage.failed) == (3, 3, 0, 0)


def test_fingerprints_tell_views_and_data_apart(shapes: MovingShapes) -> None:
    other = MovingShapes(split="train", clip=ClipConfig(num_frames=1, size=16), num_clips=7, seed=1)
    views = [
        FirstClips(shapes, 3),
        FirstClips(shapes, 4),
        FirstClips(other, 3),
        Part(shapes, [0, 1, 2], "some", whole=False),
        Draws(shapes, 3),
        ManyClips(shapes, 3),
    ]
    assert len({shapes.fingerprint, *(view.fingerprint for view in views)}) == len(views) + 1
    assert FirstClips(shapes, 3).fingerprint == FirstClips(shapes, 3).fingerprint
    for view in views:
        assert source(Draws(view, 2)) is view.dataset
        assert view.places().tolist() == [view.place(i, 0)[0] for i in range(len(view))]
        assert list(sample_ids(view)) == ids(view)


def test_a_part_keeps_the_order_and_knows_its_labels(shapes: MovingShapes) -> None:
    some = Part(shapes, [1, 4, 6], "some", whole=False)
    assert ids(some) == list(sample_ids(some)) == [shapes.sample_id(i) for i in (1, 4, 6)]
    assert some[2]["labels"] == shapes.labels(6)
    actions = [shapes.labels(i)["action"] for i in (1, 4, 6)]
    found = label_indices(some, "action")
    assert found is not None
    assert found.tolist() == actions
    with pytest.raises(IndexError):
        some[3]


def test_draws_are_clips_of_their_own() -> None:
    asked = []

    class Chance(MovingShapes):
        def clip(self, index: int, draw: int = 0) -> Any:
            asked.append((index, draw))
            return super().clip(index, draw)

    clips = Chance(split="train", clip=ClipConfig(num_frames=1, size=16), num_clips=2)
    draws = Draws(clips, 3)
    assert len(draws) == 6
    assert ids(draws) == list(sample_ids(draws))
    assert ids(draws)[:4] == [*(f"{clips.sample_id(0)}#{k}" for k in range(3)), ids(draws)[3]]
    assert [draws[index]["sample_id"] for index in range(6)] == ids(draws)
    assert asked == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    draws.clip(4, draw=2)
    assert asked[-1] == (1, 7)
    found = label_indices(draws, "action")
    assert found is not None
    assert found.tolist() == [0, 0, 0, 1, 1, 1]
    assert draws.coverage.expected == 6


# --- Splits --------------------------------------------------------------------------------------


def test_open_split_follows_the_config() -> None:
    config = DataConfig(size=16, num_frames=5, seed=3, limit=4)
    dataset = open_split(config, "validation")
    assert len(dataset) == 4
    assert dataset[0]["video"].shape == (3, 5, 16, 16)
    assert dataset.sample_id(2) == "moving_shapes/3/validation/2"
    whole = open_split(dataclasses.replace(config, limit=0), "validation")
    assert len(whole) == NUM_CLIPS["validation"]


def test_without_a_held_out_part_there_are_two_splits() -> None:
    splits = open_splits(SHAPES, 0.0)
    assert splits.held_out is None
    assert (len(splits.train), len(splits.test)) == (60, 60)
    assert splits.train.sample_id(0) == "moving_shapes/0/train/0"
    assert splits.test.sample_id(0) == "moving_shapes/0/validation/0"


def parts(splits: Splits) -> tuple[set[str], set[str]]:
    assert splits.held_out is not None
    return set(ids(splits.train)), set(ids(splits.held_out))


def test_the_held_out_part_is_kept_from_training() -> None:
    splits = open_splits(SHAPES, 0.25)
    train, held_out = parts(splits)
    assert train.isdisjoint(held_out)
    assert train | held_out == {f"moving_shapes/0/train/{index}" for index in range(60)}
    assert 5 <= len(held_out) <= 25
    prints = {data.fingerprint for data in (splits.train, splits.held_out, splits.test) if data}
    assert len(prints) == 3
    assert open_splits(SHAPES, 0.25).train.fingerprint == splits.train.fingerprint


def test_a_clip_is_held_out_whatever_the_others() -> None:
    few = parts(open_splits(dataclasses.replace(SHAPES, limit=30), 0.25))
    many = parts(open_splits(SHAPES, 0.25))
    assert few[0] < many[0]
    assert few[1] < many[1]
    more = parts(open_splits(SHAPES, 0.5))
    assert many[1] < more[1]


@pytest.mark.parametrize(
    ("limit", "share", "message"),
    [(3, 0.0001, "none is held out; use a larger share"), (2, 0.999, "none is left to train on")],
)
def test_an_empty_part_is_an_error(limit: int, share: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_splits(dataclasses.replace(SHAPES, limit=limit), share)


def test_scans_of_one_room_stay_together(shapes: MovingShapes) -> None:
    class Scans(MovingShapes):
        def sample_id(self, index: int) -> str:
            return f"scene{index // 4:04}_{index % 4:02}"

    scans = Scans(split="train", clip=ClipConfig(num_frames=1, size=16), num_clips=80)
    held_out = part(DataConfig(dataset="scannet"), scans, 0.3, held_out=True)
    rooms = [name[:9] for name in ids(held_out)]
    assert 0 < len(rooms) < 80
    assert all(rooms.count(room) == 4 for room in rooms)
    alone = part(DataConfig(dataset="other"), scans, 0.3, held_out=True)
    assert any([name[:9] for name in ids(alone)].count(room) < 4 for room in rooms)


def test_clips_of_one_video_stay_together(shapes: MovingShapes) -> None:
    config = DataConfig(dataset="folder")
    many = part(config, ManyClips(shapes, 3), 0.4, held_out=True)
    once = part(config, ManyClips(shapes, 1), 0.4, held_out=True)
    videos = {name.partition("#")[0] for name in ids(once)}
    assert 0 < len(videos) < len(shapes)
    assert ids(many) == [f"{video.partition('#')[0]}#{k}" for video in ids(once) for k in range(3)]


def test_only_training_has_chance(pictures: Callable[..., DataConfig]) -> None:
    splits = open_splits(pictures(draws=2), 0.3)
    assert splits.held_out is not None
    assert isinstance(splits.train, Draws)
    assert len(splits.train) == 2 * (30 - len(splits.held_out))
    assert not torch.equal(splits.train[0]["video"], splits.train[1]["video"])
    for data in (splits.held_out, splits.test):
        clips = [data.clip(0, draw)["video"] for draw in (0, 1)]
        assert torch.equal(*clips)
    train = {name.split("#")[0] for name in ids(splits.train)}
    assert train.isdisjoint(ids(splits.held_out))
    assert len(train) + len(splits.held_out) == 30
    once = open_splits(pictures(), 0.3)
    assert set(ids(once.train)) == train
    every_time = open_splits(pictures(draws=0), 0.3)
    assert set(ids(every_time.train)) == train
    first, second = (every_time.train.clip(0, draw)["video"] for draw in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("draws", [0, 2])
def test_draws_of_what_is_always_the_same_are_refused(draws: int) -> None:
    with pytest.raises(ValueError, match=rf"draws {draws}: clips of 'moving_shapes' are the same"):
        open_splits(dataclasses.replace(SHAPES, draws=draws), 0.0)


def test_a_limit_takes_pictures_of_all_classes(pictures: Callable[..., DataConfig]) -> None:
    limited = open_split(pictures(limit=9), "train")
    whole = open_split(pictures(), "train")
    assert len(limited) == 9
    assert {name.split("/")[0] for name in ids(limited)} > {"n01440764"}
    assert ids(limited) == [name for name in ids(whole) if name in ids(limited)]
    assert set(ids(open_split(pictures(limit=5), "train"))) < set(ids(limited))
    assert list(sample_ids(whole)) == ids(whole)
    assert limited.coverage.missing == 0 < whole.coverage.missing
    labels = label_indices(limited, "class")
    assert labels is not None
    assert labels.tolist() == [limited[index]["labels"]["class"] for index in range(9)]


def test_what_the_data_set_lacks_is_missing_from_training(
    pictures: Callable[..., DataConfig],
) -> None:
    splits = open_splits(pictures(), 0.3)
    assert splits.held_out is not None
    train, held_out = splits.train.coverage, splits.held_out.coverage
    assert train.missing == 1_281_167 - 30
    assert train.found == len(splits.train)
    assert (held_out.expected, held_out.missing) == (len(splits.held_out), 0)


def test_options_reach_the_data_set(pictures: Callable[..., DataConfig]) -> None:
    config = DataConfig(size=16, num_frames=1, options=("num_clips=5", "num_objects=1"))
    splits = open_splits(config, 0.0)
    assert (len(splits.train), len(splits.test)) == (5, 5)
    calm = open_split(pictures(options=("augment=False",)), "train")
    assert torch.equal(calm.clip(0, 0)["video"], calm.clip(0, 1)["video"])


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ("moving_shapes", "", 1, ("a=1",))),
        ({"test_stride": 4}, ("moving_shapes", "", 4, ("a=1",))),
        ({"test_options": ("b=2",)}, ("moving_shapes", "", 1, ("a=1", "b=2"))),
        ({"test_dataset": "synthetic"}, ("synthetic", "", 1, ())),
        (
            {"root": "x", "test_dataset": "ssv2", "test_root": "y", "test_options": ("b=2",)},
            ("ssv2", "y", 1, ("b=2",)),
        ),
        ({"root": "x"}, ("moving_shapes", "x", 1, ("a=1",))),
        ({"root": "x", "test_root": "y"}, ("moving_shapes", "y", 1, ("a=1",))),
    ],
)
def test_the_test_split_may_be_of_another_data_set(fields: dict, expected: tuple) -> None:
    test = config_of_test(DataConfig(options=("a=1",), **fields))
    assert (test.dataset, test.root, test.stride, test.options) == expected


def test_classes_must_be_the_same(shapes: MovingShapes) -> None:
    world = SyntheticWorld("test", clip=ClipConfig(num_frames=1, size=16), num_clips=3)
    check_classes({"train": shapes, "test": FirstClips(shapes, 2)})
    with pytest.raises(ValueError, match=r"'action' differ between train \(5\) and test \(18\)"):
        check_classes({"train": shapes, "test": world})
    config = dataclasses.replace(SHAPES, test_dataset="synthetic", test_split="test")
    with pytest.raises(ValueError, match="classes of 'action' differ"):
        open_splits(config, 0.0)


def test_short_videos_are_treated_as_their_data_set_does() -> None:
    assert clip_config(DataConfig(dataset="ssv2", stride=2)).short == "clamp"
    assert clip_config(DataConfig(dataset="kinetics400")).short == "error"
    assert clip_config(DataConfig(dataset="unknown")).short == "error"


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ((), {}),
        (("sparse=True", "num_points=3"), {"sparse": True, "num_points": 3}),
        (("split_file=/a b/c=d.txt",), {"split_file": "/a b/c=d.txt"}),
        (("camera=FRONT", "camera=SIDE_LEFT"), {"camera": "SIDE_LEFT"}),
        (("config=None", "name2='x'"), {"config": None, "name2": "x"}),
    ],
)
def test_options_are_literals_or_text(words: Sequence[str], options: dict) -> None:
    assert parse_options(words, OWN_SETTINGS) == options


@pytest.mark.parametrize("word", ["sparse", "=1", "a b=1", "seed=1", "on_error=skip", "root=/x"])
def test_words_that_are_no_options_are_refused(word: str) -> None:
    with pytest.raises(ValueError, match="must be NAME=VALUE of a data set's own"):
        parse_options([word], OWN_SETTINGS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "moving_shape"}, "moving_shapes"),
        ({"dataset": "folder"}, "root"),
        ({"dataset": "folder", "root": "no/such/folder"}, "no/such/folder"),
        ({"root": "somewhere"}, "root"),
        ({"num_frames": 0}, "num_frames 0"),
        ({"stride": 0}, "stride 0"),
        ({"size": 8}, "size 8"),
        ({"clips_per_video": 2}, "clips_per_video is for folders"),
        ({"options": ("depth=1",)}, "no option 'depth'"),
        ({"train_split": "test"}, "split 'test' of 'moving_shapes'"),
    ],
)
def test_wrong_settings_are_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_splits(DataConfig(**change), 0.0)


def test_a_limit_is_a_number_of_clips(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="limit -1"):
        DataConfig(root=str(tmp_path), limit=-1)
