"""Annotations written here from the format's description, and the real clip with its class."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from probe_datasets.formats.files import DataError
from probe_datasets.formats.ssv2 import (
    NUM_CLASSES,
    find_annotations,
    find_videos,
    read_classes,
    read_clips,
)
from probe_datasets.video_io import scan_video

LABELS = {"Holding something next to something": "1", "Dropping something": "0"}
CLIP = {
    "id": "78687",
    "label": "holding potato next to vicks vaporub bottle",
    "template": "Holding [something] next to [something]",
    "placeholders": ["potato", "vicks vaporub bottle"],
}


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def test_clips_are_joined_by_template(tmp_path: Path):
    classes = read_classes(write(tmp_path / "labels.json", LABELS))
    assert classes == ("Dropping something", "Holding something next to something")
    other = {"id": "12", "template": "Dropping [something]"}
    clips = read_clips(write(tmp_path / "train.json", [CLIP, other]), classes)
    assert (clips.ids, clips.labels.tolist()) == (("78687", "12"), [1, 0])
    test = read_clips(write(tmp_path / "test.json", [{"id": "3"}, {"id": "1"}]), classes)
    assert (test.ids, test.labels.tolist()) == (("3", "1"), [-1, -1])


@pytest.mark.parametrize(
    "clips",
    [
        {},
        [],
        [3],
        [CLIP, CLIP],
        [{**CLIP, "id": "../1"}],
        [{**CLIP, "id": "/etc/passwd"}],
        [{**CLIP, "template": "Eating [something]"}],
        [CLIP, {"id": "1"}],
        [{"id": "1"}, CLIP],
        [{**CLIP, "template": 3}],
    ],
)
def test_clips_that_do_not_fit_are_refused(tmp_path: Path, clips: Any):
    classes = read_classes(write(tmp_path / "labels.json", LABELS))
    with pytest.raises(DataError, match=r"clips\.json"):
        read_clips(write(tmp_path / "clips.json", clips), classes)


@pytest.mark.parametrize(
    "labels", [{}, [], {"a": "1"}, {"a": "0", "b": "0"}, {"a": 0.5}, {"a": "x"}]
)
def test_indices_must_count_up(tmp_path: Path, labels: Any):
    with pytest.raises(DataError, match=r"labels\.json"):
        read_classes(write(tmp_path / "labels.json", labels))


def test_files_are_found_under_their_published_names(tmp_path: Path):
    with pytest.raises(DataError, match=r"-v2-train\.json or train\.json, there or in"):
        find_annotations(tmp_path, "train")
    path = write(tmp_path / "labels" / "train.json", [])
    assert find_annotations(tmp_path, "train") == path
    path = write(tmp_path / "something-something-v2-train.json", [])
    assert find_annotations(tmp_path, "train") == path


def test_videos_are_found_by_one_listing_of_each_folder(tmp_path: Path):
    assert find_videos(tmp_path) == {}
    inside = tmp_path / "20bn-something-something-v2"
    for folder in (inside, tmp_path / "videos", tmp_path):
        folder.mkdir(exist_ok=True)
    for path in (inside / "5.webm", tmp_path / "videos" / "5.webm", tmp_path / "6.mp4"):
        path.write_bytes(b"")
    for name in ("6.webm", "notes.txt", "no id.webm", ".webm"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "7.webm").mkdir()
    assert find_videos(tmp_path) == {"5": "20bn-something-something-v2/5.webm", "6": "6.webm"}
    os.symlink(inside / "5.webm", inside / "8.webm")
    assert find_videos(tmp_path)["8"] == "20bn-something-something-v2/8.webm"
    os.symlink("/etc/hostname", inside / "9.webm")
    with pytest.raises(DataError, match="leaves"):
        find_videos(tmp_path)


def test_the_real_clip_has_its_class(shared: Path, tmp_path: Path):
    names = tuple((shared / "ssv2" / "label_map_174.txt").read_text().splitlines())
    assert len(names) == NUM_CLASSES
    labels = {name: str(i) for i, name in enumerate(names)}
    classes = read_classes(write(tmp_path / "labels.json", labels))
    # The origin names the true class of the clip: 57 (Poking something so that it falls over).
    entry = {"id": "166766", "template": "Poking [something] so that it falls over"}
    clips = read_clips(write(tmp_path / "validation.json", [entry]), classes)
    assert clips.labels.tolist() == [57]
    assert classes[12] == "Dropping something onto something"
    video = find_videos(shared / "ssv2")[clips.ids[0]]
    assert scan_video(shared / "ssv2" / video).num_frames == 49
