"""Pickles written here from the format's description, converted, and read as a dataset."""

import importlib
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from probe_datasets.clips import ClipConfig
from probe_datasets.formats.files import DataError
from probe_datasets.formats.tapvid import convert_pickle, read_point_video
from probe_datasets.tapvid import SPEC, TapVid

HEIGHT, WIDTH, LENGTH = 16, 32, 12
SMALL = ClipConfig(num_frames=4, stride=2, size=16)


def entry(seed: int = 0, length: int = LENGTH) -> dict[str, Any]:
    """A black video with a white dot of 2 x 2 that goes right, the second of three tracks."""
    video = np.zeros((length, HEIGHT, WIDTH, 3), np.uint8)
    points = np.random.default_rng(seed).random((3, length, 2)).astype(np.float32)
    occluded = np.zeros((3, length), bool)
    for i in range(length):
        video[i, 6:8, 2 * i + 2 : 2 * i + 4] = 255
        points[1, i] = ((2 * i + 3) / WIDTH, 7 / HEIGHT)
    occluded[0] = True  # never visible
    occluded[1, :3] = True
    return {"video": video, "points": points, "occluded": occluded}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "tapvid_davis.pkl").write_bytes(pickle.dumps({"goat": entry(), "car": entry(1)}))
    convert_pickle(tmp_path / "tapvid_davis.pkl", tmp_path / "archives")
    return tmp_path / "archives"


def open_videos(root: Path, **options: Any) -> TapVid:
    return TapVid(root, **{"clip": SMALL, "num_points": 4, "workers": 1, **options})


def test_points_are_on_the_dot(root: Path):
    dataset = open_videos(root)
    assert [dataset.sample_id(i) for i in range(len(dataset))] == ["car", "goat"]
    example = dataset[1]
    assert example["video"].shape == (3, 4, 16, 16)
    assert example["points_valid"].tolist() == [True, True, False, False]
    # Frames 0, 2, 4, 6; the dot's track is visible from frame 3 on.
    assert example["points_visible"][0].tolist() == [False, False, True, True]
    assert example["query_frames"].tolist() == [2, 0, 0, 0]
    for k in (2, 3):
        # The whole frame is halved in width: the dot has 2 rows and 1 column around its centre.
        x, y = (example["points"][0, k] * 16).tolist()
        bright = (example["video"][0, k] > 0).nonzero().float().mean(dim=0) + 0.5
        torch.testing.assert_close(bright, torch.tensor([y, x]), atol=0.51, rtol=0)
        assert y == 7
    assert not example["points"][0, :2].any()
    truth = entry()["points"][2, [0, 2, 4, 6]]
    np.testing.assert_array_equal(example["points"][1], truth)


def test_only_the_frames_of_the_clip_are_read(root: Path, monkeypatch: pytest.MonkeyPatch):
    dataset = open_videos(root)
    expected = dataset[0]["video"]
    path = root / "car.npz"
    status, content = path.stat(), bytearray(path.read_bytes())
    start = dataset.row(0)["offset"]
    size = HEIGHT * WIDTH * 3
    content[start + size : start + 2 * size] = os.urandom(size)  # frame 1 is not of the clip
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert torch.equal(dataset[0]["video"], expected)
    with pytest.raises(DataError, match="Bad CRC"):
        read_point_video(path)


def test_evaluation_has_no_chance_in_it(root: Path):
    dataset = open_videos(root)
    assert torch.equal(dataset.clip(0, 0)["video"], dataset.clip(0, 3)["video"])
    random = open_videos(root, augment=True)
    draws = [random.clip(0, draw)["video"] for draw in range(8)]
    assert any(not torch.equal(draw, draws[0]) for draw in draws)
    assert torch.equal(open_videos(root, augment=True).clip(0, 7)["video"], draws[7])
    assert SPEC.clip == ClipConfig(num_frames=17, stride=1, size=256)


def test_damaged_and_short_archives_are_counted(root: Path, tmp_path: Path):
    content = bytearray((root / "car.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (root / "car.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"car\.npz: cannot be read"):
        open_videos(root)
    dataset = open_videos(root, on_error="skip")
    assert (dataset.coverage.expected, dataset.coverage.failed) == (2, 1)
    (tmp_path / "b.pkl").write_bytes(pickle.dumps({"short": entry(0, 6)}))
    convert_pickle(tmp_path / "b.pkl", root)
    coverage = open_videos(root, on_error="skip").coverage
    assert (coverage.expected, coverage.found, coverage.failed) == (3, 1, 2)
    assert "short: has 6 frames, a clip spans 7" in dict(coverage.reasons)["short"]
    assert len(open_videos(root, on_error="skip", clip=ClipConfig(num_frames=4, size=16))) == 2


def test_folders_without_archives(tmp_path: Path):
    with pytest.raises(DataError, match=r"holds no \.npz; expected archives"):
        open_videos(tmp_path)
    (tmp_path / "tapvid_davis.pkl").write_bytes(b"x")
    with pytest.raises(DataError, match=r"1 pickles.*python -m probe_datasets\.tapvid PICKLE"):
        open_videos(tmp_path)
    with pytest.raises(ValueError, match="num_points 0"):
        open_videos(tmp_path, num_points=0)
    with pytest.raises(ValueError, match="must be one of test"):
        open_videos(tmp_path, split="train")


class Runs:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("ran",)


def test_the_converter(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: Any):
    monkeypatch.chdir(tmp_path)
    main = importlib.import_module("probe_datasets.tapvid.__main__").main
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([entry(), entry(1)]))
    assert main(["a.pkl", "out"]) == 0
    said = capsys.readouterr()
    assert said.out == "archives written to out: 2\n"
    assert said.err == "\r1/2 videos\r2/2 videos\n"
    assert len(open_videos(tmp_path / "out")) == 2
    for content in (pickle.dumps([entry(), Runs()]), b"", b"\x80\x04."):
        (tmp_path / "a.pkl").write_bytes(content)
        assert main(["a.pkl", "other", "--quiet"]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: a.pkl: ")
        assert said.count("\n") == 1
    assert not (tmp_path / "ran").exists()
    assert main(["none.pkl", "other"]) == 2


def test_the_converter_as_a_program(tmp_path: Path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([entry()]))
    command = [sys.executable, "-W", "error", "-m", "probe_datasets.tapvid", "a.pkl", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "archives written to out: 1\n"), done.stderr
    assert (tmp_path / "out" / "video_00000.npz").is_file()


def test_frames_stored_in_another_order_are_turned(tmp_path: Path):
    content = entry()
    content["video"] = np.asfortranarray(content["video"])
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([content, entry()]))
    convert_pickle(tmp_path / "a.pkl", tmp_path)
    dataset = open_videos(tmp_path)
    assert torch.equal(dataset[0]["video"], dataset[1]["video"])
    arrays = {name: np.asfortranarray(array) for name, array in content.items()}
    np.savez(tmp_path / "video_00000.npz", **arrays)
    with pytest.raises(DataError, match=r"in another order.*convert it again"):
        open_videos(tmp_path)
