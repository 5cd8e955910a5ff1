"""Annotations written here from the format's description."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probe_datasets.formats.files import DataError
from probe_datasets.formats.perception_test import read_annotations


def entry(tracks: list[dict[str, Any]], **metadata: Any) -> dict[str, Any]:
    fields = {
        "split": "valid",
        "video_id": "video_1",
        "frame_rate": 29.97,
        "num_frames": 6,
        "resolution": [1080, 1920],
        "is_camera_moving": 1,
    }
    return {"metadata": {**fields, **metadata}, "object_tracking": [], "point_tracking": tracks}


def track(**changes: Any) -> dict[str, Any]:
    # As on disk: a list of y, then a list of x.
    points = [[0.1, 0.2, 0.3], [0.6, 0.7, 0.8]]
    fields = {"id": 5, "label": "point", "parent_objects": [1], "frame_ids": [0, 2, 5]}
    return {**fields, "points": points, **changes}


def read(tmp_path: Path, content: Any) -> Any:
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    return read_annotations(path)


@pytest.mark.parametrize("by_frame", [False, True])
def test_points_come_as_xy_with_visibility(tmp_path: Path, by_frame: bool):
    points = track()["points"]
    if by_frame:  # as in the format's description: a pair (y, x) a frame
        points = [list(pair) for pair in zip(*points, strict=True)]
    video = read(tmp_path, {"video_1": entry([track(points=points)])})["video_1"]
    assert video.visible.tolist() == [[True, False, True, False, False, True]]
    expected = [[0.6, 0.1], [0, 0], [0.7, 0.2], [0, 0], [0, 0], [0.8, 0.3]]
    np.testing.assert_allclose(video.points[0], expected, atol=1e-7)
    assert (video.num_frames, video.size, video.split) == (6, (1080, 1920), "valid")
    assert (video.track_ids.tolist(), video.moving_camera) == ([5], True)


def test_two_frames_are_read_as_the_files_have_them(tmp_path: Path):
    both = track(frame_ids=[1, 3], points=[[0.1, 0.2], [0.8, 0.9]])
    video = read(tmp_path, {"v": entry([both])})["v"]
    np.testing.assert_allclose(video.points[0, [1, 3]], [[0.8, 0.1], [0.9, 0.2]], atol=1e-7)


def test_videos_without_tracks_are_left_out(tmp_path: Path):
    content = {"a": entry([track()]), "b": entry([]), "c": {"metadata": {}}}
    assert list(read(tmp_path, content)) == ["a"]
    never = track(frame_ids=[], points=[[], []])
    assert not read(tmp_path, {"a": entry([never, track()])})["a"].visible[0].any()
    with pytest.raises(DataError, match="no point tracks in any of its 1"):
        read(tmp_path, {"b": entry([])})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "no JSON object"),
        ({"../a": entry([track()])}, "names a video"),
        ({"a\ud800": entry([track()])}, "names a video"),
        ({"/a": entry([track()])}, "names a video"),
        ({"a": {"point_tracking": [track()]}}, "no metadata"),
        ({"a": entry([track()], num_frames=1 << 60)}, "num_frames"),
        ({"a": entry([track()], num_frames="6")}, "num_frames"),
        ({"a": entry([track()], num_frames=5)}, "outside of 0 to 4"),
        ({"a": entry([track()], frame_rate=0)}, "frame_rate"),
        ({"a": entry([track()], resolution=[1080])}, "resolution"),
        ({"a": entry([{}] * 3000, num_frames=100_000)}, "fits in memory"),
        ({"a": entry([track(frame_ids=[0, 2, -1])])}, "outside of"),
        ({"a": entry([track(frame_ids=[0, 2, 2])])}, "twice"),
        ({"a": entry([track(frame_ids=[0, 2, 2.5])])}, "whole numbers"),
        ({"a": entry([track(frame_ids=[0, 2])])}, "does not fit 2"),
        ({"a": entry([track(points=[[0.1, 0.2, 0.3], [0.6, 0.7, 900]])])}, "outside of the pic"),
        ({"a": entry([track(points=[[0.1, 0.2, 0.3], [0.6, 0.7]])])}, "bad point track 0"),
        ({"a": entry([track(points=[[0.1, 0.2, 0.3], [0.6, 0.7, "x"]])])}, "bad point track 0"),
        ({"a": entry([track(points=[[0.1, 0.2, 0.3], [0.6, 0.7, float("nan")]])])}, "outside"),
        ({"a": entry([track(id=1 << 70)])}, "id is no"),
        ({"a": entry([7])}, "bad point track 0"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, content: Any, message: str):
    with pytest.raises(DataError, match=message):
        read(tmp_path, content)
