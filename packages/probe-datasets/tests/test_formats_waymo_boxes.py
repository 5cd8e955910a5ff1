import numpy as np
import pytest

from probe_datasets.formats.waymo_boxes import (
    WaymoBoxes,
    box_tracks,
    corners,
    select_boxes,
    subsample,
)


def labels(**boxes: list[float]) -> WaymoBoxes:
    return WaymoBoxes(
        boxes=np.array(list(boxes.values()), np.float64).reshape(-1, 4),
        types=np.array([1] * len(boxes), np.int64),
        ids=tuple(boxes),
    )


def test_corners_of_centre_and_size():
    found = corners(*(np.array([v]) for v in (100.0, 50.0, 40.0, 20.0)))
    assert found.tolist() == [[80, 40, 120, 60]]


def test_ten_frames_a_second_become_five():
    times = np.array([5, 1, 3, 2, 4, 0], np.int64)
    assert times[subsample(times)].tolist() == [0, 2, 4]
    assert len(subsample(np.arange(199, dtype=np.int64))) == 100
    assert subsample(times, 1).tolist() == [5, 1, 3, 2, 4, 0]
    with pytest.raises(ValueError, match="same timestamp"):
        subsample(np.array([1, 2, 1], np.int64))
    with pytest.raises(ValueError, match="step 0"):
        subsample(times, 0)


def test_tracks_follow_the_objects_of_the_first_frame():
    frames = [
        labels(a=[0, 0, 192, 128], b=[10, 10, 20, 20]),
        labels(c=[1, 1, 2, 2], a=[192, 128, 384, 256]),
        labels(b=[960, 640, 1920, 1280]),
    ]
    boxes, valid, types = box_tracks(frames, 1280, 1920)
    assert valid.tolist() == [[True, True, False], [True, False, True]]
    assert np.allclose(boxes[0], [[0, 0, 0.1, 0.1], [0.1, 0.1, 0.2, 0.2], [0, 0, 0, 0]])
    assert np.allclose(boxes[1, 2], [0.5, 0.5, 1, 1])
    assert types.tolist() == [1, 1]
    with pytest.raises(ValueError, match="frames is empty"):
        box_tracks([], 1280, 1920)
    empty, _, _ = box_tracks([labels(), labels(a=[0, 0, 1, 1])], 1280, 1920)
    assert empty.shape == (0, 2, 4)


def test_small_boxes_go_and_the_largest_stay():
    side = np.sqrt(np.array([0.004, 0.006, 0.5, 0.01, 0.02, 0.3]))
    boxes = np.stack([0 * side, 0 * side, side, side], axis=-1)
    valid = np.array([True, True, True, True, True, False])
    assert select_boxes(boxes, valid).tolist() == [1, 2, 3, 4]
    assert select_boxes(boxes, valid, max_boxes=2).tolist() == [2, 4]
    many = np.tile([0.0, 0, 0.1, 0.1], (40, 1))
    assert select_boxes(many, np.ones(40, bool)).tolist() == list(range(25))
