"""What every dataset of videos shares, on the smallest one."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest
import torch

from probe_datasets import video_files
from probe_datasets.clips import ClipConfig
from probe_datasets.formats.files import DataError
from probe_datasets.index import Listing
from probe_datasets.spec import DatasetSpec
from probe_datasets.transforms import crop_resize, to_float
from probe_datasets.video_files import VideoFiles, scan_file, scan_file_fully
from probe_datasets.video_io import read_frames
from probe_datasets.windows import central_window

SMALL = ClipConfig(num_frames=5, stride=2, size=32)
NAMES = ("a.mp4", "b.webm", "c.mp4")


class Videos(VideoFiles):
    """Three videos, which need not be there."""

    spec: ClassVar[DatasetSpec] = DatasetSpec(
        name="videos",
        summary="three videos",
        builder="tests:Videos",
        task="videos",
        splits=("train", "validation"),
    )
    evaluation_start = "centre"

    def list_samples(self) -> Listing:
        present = {path.name for path in self.root.iterdir()}
        rows = [{"sample_id": n[0], "path": n if n in present else None} for n in NAMES]
        return Listing(layout="flat", rows=rows, classes={})


class Labelled(Videos):
    """The same with classes."""

    listed = pa.schema([("label", pa.int32())])

    def list_samples(self) -> Listing:
        rows = [{**row, "label": i % 2} for i, row in enumerate(super().list_samples().rows)]
        return Listing(layout="flat", rows=rows, classes={"kind": ("even", "odd")})


@pytest.fixture
def root(tmp_path: Path, mp4: Path, webm: Path) -> Path:
    for name, source in zip(NAMES, (mp4, webm, mp4), strict=True):
        shutil.copyfile(source, tmp_path / name)
    return tmp_path


def open_videos(
    root: Path, split: str = "train", kind: type[Videos] = Videos, **options: Any
) -> Videos:
    return kind(root, split, **{"clip": SMALL, "workers": 1, **options})


def test_a_clip_is_the_central_square_of_some_frames(root: Path):
    every = to_float(read_frames(root / "b.webm", range(40)))[..., 16:48].transpose(0, 1)
    example = open_videos(root, "validation")[1]
    assert example.keys() == {"video", "sample_id"}
    assert torch.equal(example["video"], every[:, 15:24:2])
    small = open_videos(root, "validation", clip=ClipConfig(num_frames=1, size=12))[1]["video"]
    frames = read_frames(root / "b.webm", [19])
    assert torch.equal(small, crop_resize(frames, central_window(32, 64), 12))


@pytest.mark.parametrize(("height", "width"), [(64, 32), (47, 91)])
def test_tall_and_odd_videos(root: Path, write_video: Callable[..., Path], height: int, width: int):
    write_video(root / "a.mp4", height=height, width=width, pix_fmt="yuv444p")
    side = min(height, width)
    video = open_videos(root, "validation", clip=ClipConfig(num_frames=2, size=side))[0]["video"]
    top, left = (height - side) // 2, (width - side) // 2
    frames = to_float(read_frames(root / "a.mp4", [19, 20]))
    expected = frames[..., top : top + side, left : left + side].transpose(0, 1)
    assert torch.equal(video, expected)


def test_starts(root: Path):
    every = to_float(read_frames(root / "a.mp4", range(40)))[..., 16:48].transpose(0, 1)

    def start(dataset: Videos, draw: int) -> int:
        video = dataset.clip(0, draw)["video"]
        first = next(s for s in range(40) if torch.equal(every[:, s], video[:, 0]))
        assert torch.equal(video, every[:, first : first + 9 : 2])
        return first

    draws = [start(open_videos(root), draw) for draw in range(12)]
    assert len(set(draws)) > 6
    assert min(draws) >= 0
    assert max(draws) <= 31
    assert [start(open_videos(root), draw) for draw in reversed(range(12))] == draws[::-1]
    assert {start(open_videos(root, augment=False), draw) for draw in range(3)} == {15}
    assert len({start(open_videos(root, "validation", augment=True), d) for d in range(8)}) > 3
    first = ClipConfig(num_frames=5, stride=2, size=32, start="first")
    assert {start(open_videos(root, clip=first), draw) for draw in range(3)} == {0}
    other = open_videos(root, seed=1)
    assert [start(other, draw) for draw in range(12)] != draws


def test_labels(root: Path):
    dataset = open_videos(root, kind=Labelled)
    assert [dataset[i]["labels"] for i in range(3)] == [{"kind": 0}, {"kind": 1}, {"kind": 0}]


def test_only_the_frames_of_the_clip_are_asked_for(root: Path, monkeypatch: pytest.MonkeyPatch):
    """And of one file, which is not walked through again: its frame index is in the row."""
    asked = []

    def counted(path: Path, indices: list[int], **options: Any) -> torch.Tensor:
        asked.append((path.name, list(indices), options["index"].info.num_frames))
        return read_frames(path, indices, **options)

    dataset = open_videos(root, "validation")
    monkeypatch.setattr(video_files, "read_frames", counted)
    monkeypatch.setattr(video_files, "frame_index", lambda *_: pytest.fail("walked again"))
    for name in ("b.webm", "c.mp4"):
        (root / name).write_bytes(b"x")
    assert dataset[0]["video"].shape == (3, 5, 32, 32)
    assert asked == [("a.mp4", [15, 17, 19, 21, 23], 40)]


def test_a_copy_in_another_process_gives_the_same(root: Path):
    dataset = open_videos(root)
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again.clip(2, 7)["video"], dataset.clip(2, 7)["video"])
    assert again.fingerprint == dataset.fingerprint


def test_short_videos(root: Path, write_video: Callable[..., Path]):
    write_video(root / "c.mp4", num_frames=7)
    with pytest.raises(DataError, match=r"c: has 7 frames, a clip spans 9; use fewer frames"):
        open_videos(root)
    coverage = open_videos(root, on_error="skip").coverage
    assert (coverage.expected, coverage.found, coverage.missing, coverage.failed) == (3, 2, 0, 1)
    frames = to_float(read_frames(root / "c.mp4", range(7)))[..., 16:48].transpose(0, 1)
    for short, expected in (("clamp", [0, 2, 4, 6, 6]), ("loop", [0, 2, 4, 6, 1])):
        clip = ClipConfig(num_frames=5, stride=2, size=32, short=short)
        assert torch.equal(open_videos(root, clip=clip)[2]["video"], frames[:, expected])


def test_missing_and_damaged_videos(root: Path, mp4: Path):
    (root / "a.mp4").write_bytes(mp4.read_bytes()[:-200])
    (root / "b.webm").unlink()
    with pytest.raises(DataError, match=r"a\.mp4: is cut short.*on_error='skip'"):
        open_videos(root)
    dataset = open_videos(root, on_error="skip")
    assert [dataset.sample_id(i) for i in range(len(dataset))] == ["c"]
    coverage = dataset.coverage
    assert (coverage.expected, coverage.found, coverage.missing, coverage.failed) == (3, 1, 1, 1)
    assert coverage.reasons[0] == ("b", "there is no file of this sample")
    (root / "c.mp4").write_bytes(b"")
    with pytest.raises(DataError, match="gives no sample"):
        open_videos(root, on_error="skip")


def test_a_file_that_changes_is_noticed(root: Path, mp4: Path):
    dataset, patient = open_videos(root), open_videos(root, on_error="skip")
    before = dataset.fingerprint
    (root / "a.mp4").write_bytes(mp4.read_bytes() + bytes(8))
    with pytest.raises(DataError, match=r"a\.mp4: changed since it was indexed"):
        dataset[0]
    failed = patient[0]
    assert failed.keys() == {"sample_id", "problem"}
    assert "changed since it was indexed" in failed["problem"]
    os.unlink(root / "a.mp4")
    with pytest.raises(DataError, match="cannot be read any more"):
        dataset[0]
    shutil.copyfile(mp4, root / "a.mp4")
    assert open_videos(root).fingerprint == before  # of content as far as it is known, not of time


def test_scans(mp4: Path, webm: Path, tmp_path: Path):
    (row,) = scan_file(mp4, {})
    assert row["num_frames"] == 40
    assert len(row["frames"]) < 200
    assert scan_file_fully(webm, {})[0]["num_frames"] == 40
    (tmp_path / "a.mp4").write_bytes(b"text")
    with pytest.raises(DataError, match=r"a\.mp4"):
        scan_file(tmp_path / "a.mp4", {})
