"""Data sets cut to a limit."""

import dataclasses

import pytest
import torch

from probe_datasets import ClipConfig, ClipDataset
from probe_datasets.moving_shapes import NUM_CLIPS, MovingShapes
from probe_eval.config import DataConfig
from probe_eval.data import FirstClips, open_split


@pytest.fixture
def shapes() -> MovingShapes:
    return MovingShapes(split="train", clip=ClipConfig(num_frames=1, size=16), num_clips=7)


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
    with pytest.raises(IndexError, match=rf"clip {index} is outside the first 3"):
        FirstClips(shapes, 3)[index]


def test_a_limit_beyond_the_end_is_the_end(shapes: MovingShapes) -> None:
    first = FirstClips(shapes, 100)
    assert len(first) == 7
    assert len(list(first[i] for i in range(len(first)))) == 7


def test_what_was_not_asked_for_is_not_missing(shapes: MovingShapes) -> None:
    coverage = FirstClips(shapes, 3).coverage
    assert (coverage.expected, coverage.found, coverage.missing, coverage.failed) == (3, 3, 0, 0)


def test_fingerprint_tells_the_limit_and_the_data(shapes: MovingShapes) -> None:
    other = MovingShapes(split="train", clip=ClipConfig(num_frames=1, size=16), num_clips=7, seed=1)
    prints = {
        shapes.fingerprint,
        FirstClips(shapes, 3).fingerprint,
        FirstClips(shapes, 4).fingerprint,
        FirstClips(other, 3).fingerprint,
    }
    assert len(prints) == 4
    assert FirstClips(shapes, 3).fingerprint == FirstClips(shapes, 3).fingerprint


def test_open_split_follows_the_config() -> None:
    config = DataConfig(size=16, num_frames=5, seed=3, limit=4)
    dataset = open_split(config, "validation")
    assert len(dataset) == 4
    assert dataset[0]["video"].shape == (3, 5, 16, 16)
    assert dataset.sample_id(2) == "moving_shapes/3/validation/2"
    whole = open_split(dataclasses.replace(config, limit=0), "validation")
    assert len(whole) == NUM_CLIPS["validation"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"limit": -1}, "limit -1"),
        ({"dataset": "moving_shape"}, "moving_shapes"),
        ({"dataset": "folder"}, "root"),
        ({"dataset": "folder", "root": "no/such/folder"}, "no/such/folder"),
        ({"root": "somewhere"}, "root"),
        ({"num_frames": 0}, "num_frames 0"),
        ({"stride": 0}, "stride 0"),
        ({"size": 8}, "size 8"),
    ],
)
def test_wrong_settings_are_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_split(DataConfig(**change), "train")
