"""Folders written here from the format's description, and the real clip with its class."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from probe_datasets.clips import ClipConfig
from probe_datasets.formats.files import DataError
from probe_datasets.ssv2 import SPEC, SomethingSomethingV2
from probe_datasets.transforms import to_float
from probe_datasets.video_io import read_frames

CLASSES = {"Pushing something from left to right": "1", "Dropping something": "0"}
PUSH, DROP = "Pushing [something] from left to right", "Dropping [something]"
TRAIN = [{"id": "10", "template": PUSH}, {"id": "11", "template": DROP}]
VALIDATION = [{"id": "20", "template": DROP}, {"id": "21", "template": PUSH}]
SMALL = ClipConfig(num_frames=5, stride=2, size=32, short="clamp")


def write_lists(root: Path, pattern: str = "something-something-v2-{}.json") -> None:
    lists = {"train": TRAIN, "validation": VALIDATION, "labels": CLASSES}
    for kind, content in lists.items():
        path = root / pattern.format(kind)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))


@pytest.fixture
def root(tmp_path: Path, webm: Path) -> Path:
    write_lists(tmp_path)
    (tmp_path / "videos").mkdir()
    for entry in TRAIN + VALIDATION:
        shutil.copyfile(webm, tmp_path / "videos" / f"{entry['id']}.webm")
    return tmp_path


def open_clips(root: Path, split: str = "train", **options: Any) -> SomethingSomethingV2:
    return SomethingSomethingV2(root, split, **{"clip": SMALL, "workers": 1, **options})


def test_labels_come_from_the_templates(root: Path):
    train, validation = open_clips(root), open_clips(root, "validation")
    assert train.classes == {
        "action": ("Dropping something", "Pushing something from left to right")
    }
    assert [(e["sample_id"], e["labels"]) for e in (train[0], train[1])] == [
        ("10", {"action": 1}),
        ("11", {"action": 0}),
    ]
    assert [validation[i]["labels"]["action"] for i in range(2)] == [0, 1]
    assert train[0]["video"].shape == (3, 5, 32, 32)
    assert train.coverage.expected == train.coverage.found == len(train) == 2


@pytest.mark.parametrize(
    ("folder", "pattern"),
    [
        ("20bn-something-something-v2", "something-something-v2-{}.json"),
        ("videos", "labels/{}.json"),
        (".", "annotations/something-something-v2-{}.json"),
    ],
)
def test_every_layout(tmp_path: Path, webm: Path, folder: str, pattern: str):
    write_lists(tmp_path, pattern)
    (tmp_path / folder).mkdir(exist_ok=True)
    for entry in TRAIN:
        shutil.copyfile(webm, tmp_path / folder / f"{entry['id']}.webm")
    assert len(open_clips(tmp_path)) == 2
    with pytest.raises(DataError, match=r"none of the \d+ videos of .*validation\.json"):
        open_clips(tmp_path, "validation")


def test_clips_are_the_frames_they_say(root: Path):
    # Frames are 32 x 64: nothing is scaled, and the central 32 columns are kept.
    every = to_float(read_frames(root / "videos" / "20.webm", range(40)))[..., 16:48]
    centre = open_clips(root, "validation")
    # 40 - 9 frames are left over, the first 15 of them before the clip.
    expected = every[[15, 17, 19, 21, 23]].transpose(0, 1)
    for draw in range(2):
        assert torch.equal(centre.clip(0, draw)["video"], expected)
    train = open_clips(root)
    starts = []
    for draw in range(8):
        video = train.clip(0, draw)["video"]
        starts.append(next(s for s in range(32) if torch.equal(every[s], video[:, 0])))
        assert torch.equal(video[:, 4], every[starts[-1] + 8])  # stride 2, and never mirrored
    assert len(set(starts)) > 3
    again = open_clips(root)
    assert torch.equal(again.clip(0, 7)["video"], train.clip(0, 7)["video"])


def test_the_last_frame_of_short_videos_is_repeated(root: Path, write_video: Callable[..., Path]):
    short = root / "videos" / "10.webm"
    write_video(short, num_frames=6, codec="libvpx-vp9")
    dataset = open_clips(root, clip=ClipConfig(num_frames=5, stride=2, size=32, short="clamp"))
    video = dataset[0]["video"]
    assert torch.equal(video[:, 3], video[:, 4])
    assert not torch.equal(video[:, 1], video[:, 2])
    strict = ClipConfig(num_frames=5, stride=2, size=32, short="error")
    with pytest.raises(DataError, match="10: has 6 frames, a clip spans 9"):
        open_clips(root, clip=strict)
    assert SPEC.clip == ClipConfig(num_frames=17, stride=2, size=256, short="clamp")


def test_missing_and_damaged_videos_are_counted_once(root: Path, webm: Path):
    (root / "videos" / "10.webm").unlink()
    dataset = open_clips(root)  # missing ones never raise
    assert [dataset.sample_id(i) for i in range(len(dataset))] == ["11"]
    coverage = dataset.coverage
    assert (coverage.expected, coverage.found, coverage.missing, coverage.failed) == (2, 1, 1, 0)
    assert coverage.reasons == (("10", "there is no file of this sample"),)
    (root / "videos" / "11.webm").write_bytes(webm.read_bytes()[:-1000])
    with pytest.raises(DataError, match=r"11\.webm: is cut short"):
        open_clips(root)
    shutil.copyfile(webm, root / "videos" / "10.webm")
    dataset = open_clips(root, on_error="skip")
    assert [dataset.sample_id(i) for i in range(len(dataset))] == ["10"]
    coverage = dataset.coverage
    assert (coverage.expected, coverage.found, coverage.missing, coverage.failed) == (2, 1, 0, 1)


def test_annotations_that_do_not_serve(root: Path):
    path = root / "something-something-v2-train.json"
    path.write_text(json.dumps([*TRAIN, {"id": "../1", "template": DROP}]))
    with pytest.raises(DataError, match="entry 2"):
        open_clips(root)
    path.unlink()
    with pytest.raises(DataError, match=r"holds no annotations 'train'.* train\.json, there or in"):
        open_clips(root)
    with pytest.raises(ValueError, match="train, validation"):
        open_clips(root, "test")


def test_folders_are_listed_once(root: Path, monkeypatch: pytest.MonkeyPatch):
    """No look at the disk for each clip: on network disks each takes a millisecond."""
    dataset = open_clips(root)
    listed, scandir = [], os.scandir

    def counted(path: Any) -> Any:
        listed.append(str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counted)
    monkeypatch.setattr(os.path, "realpath", lambda *_: pytest.fail("a look at one file"))
    rows = list(dataset.list_samples().rows)
    assert [row["path"] for row in rows] == ["videos/10.webm", "videos/11.webm"]
    assert len(listed) == len(set(listed)) == 2


def test_the_real_clip(shared: Path, tmp_path: Path):
    names = tuple((shared / "ssv2" / "label_map_174.txt").read_text().splitlines())
    lists = {
        "labels": {name: str(i) for i, name in enumerate(names)},
        "validation": [
            {"id": "166766", "template": "Poking [something] so that it falls over"},
            {"id": "56620", "template": "Dropping [something] onto [something]"},
        ],
    }
    for kind, content in lists.items():
        (tmp_path / f"{kind}.json").write_text(json.dumps(content))
    shutil.copyfile(shared / "ssv2" / "166766.webm", tmp_path / "166766.webm")
    dataset = open_clips(tmp_path, "validation", clip=ClipConfig(stride=2, size=240))
    example = dataset[0]
    assert example["labels"] == {"action": 57}
    assert len(dataset.classes["action"]) == SPEC.num_classes["action"]
    assert (dataset.coverage.expected, dataset.coverage.missing) == (2, 1)
    # 427 columns: 93 to the left of the central square. Frames 8, 10, ... 40 of 49.
    frames = read_frames(tmp_path / "166766.webm", range(8, 41, 2))[..., 93 : 93 + 240]
    assert torch.equal(example["video"], to_float(frames).transpose(0, 1))
