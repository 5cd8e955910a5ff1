"""Pose files, frames in their four layouts, and real clips whose geometry is checked."""

import json
import os
import pickle
import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from probe_datasets.formats.files import DataError
from probe_datasets.formats.poses import invert_pose, relative_pose
from probe_datasets.formats.realestate10k import ClipPoses, read_pose_file, read_scale_table, scaled
from probe_datasets.formats.realestate10k_chunks import read_chunk, read_chunk_index
from probe_datasets.formats.realestate10k_frames import (
    FrameFinder,
    find_pose_files,
    nearest_frames,
    row_pictures,
    video_frames,
)
from probe_datasets.video_io import read_frames

CLIP = "00123456789abcde"
VIDEO = "-a_B3456789"
URL = f"https://www.youtube.com/watch?v={VIDEO}"


def row(i: int) -> list[float]:
    c, s = np.cos(0.1 * i), np.sin(0.1 * i)
    return [0.5, 0.9, 0.5, 0.5, 0, 0, c, 0, s, 0.1 * i, 0, 1, 0, 0.2, -s, 0, c, 2.0]


def pose_text(count: int = 4) -> str:
    lines = [URL]
    for i in range(count):
        lines.append(f"{1_000_000 + 33_367 * i} " + " ".join(f"{v:.9f}" for v in row(i)))
    return "\n".join(lines) + "\n"


@pytest.fixture
def poses(tmp_path: Path) -> ClipPoses:
    (tmp_path / f"{CLIP}.txt").write_text(pose_text())
    return read_pose_file(tmp_path / f"{CLIP}.txt")


def picture(level: int) -> bytes:
    sink = BytesIO()
    Image.new("RGB", (16, 8), (level, level, level)).save(sink, "JPEG", quality=95)
    return sink.getvalue()


def test_a_pose_file(poses: ClipPoses):
    assert (poses.clip, poses.video, poses.url, len(poses)) == (CLIP, VIDEO, URL, 4)
    assert poses.timestamps.tolist() == [1_000_000, 1_033_367, 1_066_734, 1_100_101]
    np.testing.assert_array_equal(poses.intrinsics[2], np.float32([0.5, 0.9, 0.5, 0.5]))
    expected = np.array(row(3)[6:], np.float32).reshape(3, 4)
    np.testing.assert_allclose(poses.world_to_camera[3], expected, atol=1e-7)
    # From camera 0 straight to camera 3 is the same as to the world and on.
    point = np.array([0.3, -0.2, 4.0])
    world = invert_pose(poses.world_to_camera[0]) @ np.append(point, 1)
    there = poses.world_to_camera[3] @ np.append(world, 1)
    motion = relative_pose(poses.world_to_camera[0], poses.world_to_camera[3])
    np.testing.assert_allclose(motion @ np.append(point, 1), there, atol=1e-6)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (URL + "\n", "", "begins with"),
        (" 2.000000000\n", "\n", "18 columns in line 2"),
        ("1033367", "1033367.5", "a time in microseconds"),
        ("1033367", "999", "go back"),
        ("0.900000000", "540.0", "not normalised"),
        ("0.000000000 0.000000000 1.0", "0.1 0.0 1.0", "not normalised"),
        (" 1.000000000", " 1.200000000", "no rigid motion"),
        (" 2.000000000", " nan", "no rigid motion"),
        (" 2.000000000", " two", "line 2"),
    ],
)
def test_damaged_pose_files_are_refused(tmp_path: Path, old: str, new: str, message: str):
    assert old in pose_text()
    (tmp_path / "clip.txt").write_text(pose_text().replace(old, new, 4))
    with pytest.raises(DataError, match=message):
        read_pose_file(tmp_path / "clip.txt")


def test_a_cut_within_the_last_number_is_refused(tmp_path: Path):
    text, path = pose_text(), tmp_path / "clip.txt"
    path.write_text(text.rstrip("\n"))
    assert len(read_pose_file(path)) == 4
    for lost in range(2, 10):
        path.write_text(text[:-lost])
        with pytest.raises(DataError, match="cut short within its last number"):
            read_pose_file(path)


def test_a_chunk_is_compared_with_its_checksums(tmp_path: Path):
    """PyTorch's reader passes over them, and would give other poses."""
    path = tmp_path / "a.torch"
    torch.save([chunk_entry()], path)
    content = bytearray(path.read_bytes())
    start = content.index(np.float32(row(1)[6:]).tobytes())
    content[start + 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="does not match its checksum"):
        read_chunk(path)


def test_a_pose_file_without_frames(tmp_path: Path):
    (tmp_path / "clip.txt").write_text(URL + "\n")
    with pytest.raises(DataError, match="holds no frames"):
        read_pose_file(tmp_path / "clip.txt")


@pytest.mark.parametrize("name", ["scale.csv", "scale.json"])
def test_a_scale_table_makes_metres(tmp_path: Path, poses: ClipPoses, name: str):
    path = tmp_path / name
    path.write_text(json.dumps({CLIP: 2.5}) if "json" in name else f"clip,scale\n{CLIP},2.5\n")
    table = read_scale_table(path)
    assert table == {CLIP: 2.5}
    metric = scaled(poses, table[CLIP])
    np.testing.assert_allclose(metric.world_to_camera[..., 3], poses.world_to_camera[..., 3] * 2.5)
    np.testing.assert_array_equal(metric.world_to_camera[..., :3], poses.world_to_camera[..., :3])
    for bad in ("0", "-1", '"x"', "1e9", "nan", "true"):
        path.write_text(f'{{"{CLIP}": {bad}}}' if "json" in name else f"{CLIP},{bad}\n")
        with pytest.raises(DataError, match=name):
            read_scale_table(path)
    with pytest.raises(ValueError, match="positive"):
        scaled(poses, 0.0)


def test_pose_files_are_found(tmp_path: Path):
    with pytest.raises(DataError, match="no pose files of split 'test'"):
        find_pose_files(tmp_path, "test")
    folder = tmp_path / "RealEstate10K" / "test"
    folder.mkdir(parents=True)
    for name in ("b.txt", "a.txt", "notes.md"):
        (folder / name).write_text("x")
    assert [path.name for path in find_pose_files(tmp_path, "test")] == ["a.txt", "b.txt"]
    with pytest.raises(DataError, match="clip or split"):
        find_pose_files(tmp_path, "../test")


@pytest.mark.parametrize(
    ("relative", "layout"),
    [
        (f"train/{CLIP}/1000000.png", "frames"),
        (f"frames/train/{CLIP}/1000000.png", "frames"),
        (f"video_clips/{VIDEO}/{CLIP}.mp4", "clips"),
        (f"clips/{CLIP}.mp4", "clips"),
        (f"train/{VIDEO}.webm", "videos"),
        (f"{VIDEO}.mp4", "videos"),
    ],
)
def test_layouts_are_recognised(tmp_path: Path, poses: ClipPoses, relative: str, layout: str):
    root = tmp_path / "root"
    root.mkdir()
    assert FrameFinder(root, "train").find(poses.clip, poses.video) is None
    (root / relative).parent.mkdir(parents=True, exist_ok=True)
    (root / relative).write_bytes(b"")
    source = FrameFinder(root, "train").find(poses.clip, poses.video)
    assert source is not None
    assert source.layout == layout
    assert source.path == (root / relative if layout != "frames" else (root / relative).parent)


def test_pictures_are_found_by_timestamp(tmp_path: Path, poses: ClipPoses):
    folder = tmp_path / "train" / CLIP
    folder.mkdir(parents=True)
    for name in ("1100101.jpg", "1033367.png", "5.png", "x.png", "1000000.txt"):
        (folder / name).write_bytes(picture(9))
    source = FrameFinder(tmp_path, "train").find(poses.clip, poses.video)
    assert source is not None
    found = row_pictures(source, poses)
    assert {k: path.name for k, path in found.items()} == {1: "1033367.png", 3: "1100101.jpg"}
    (folder / "1100101.jpg").unlink()
    os.symlink(tmp_path / f"{CLIP}.txt", folder / "1100101.jpg")
    with pytest.raises(DataError, match="leaves"):
        row_pictures(source, poses)
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"none of the 4 timestamps .* 1000000\.png"):
        row_pictures(source, poses)


def test_the_nearest_frame_by_time():
    times = 0.5 + np.arange(10) / 25  # a video whose first frame is not at zero
    stamps = np.array([0, 19_000, 21_000, 40_000, 360_000], np.int64)
    assert nearest_frames(times, stamps).tolist() == [0, 0, 1, 1, 9]
    with pytest.raises(ValueError, match="not the video"):
        nearest_frames(times, np.array([500_000], np.int64))
    with pytest.raises(ValueError, match="empty"):
        nearest_frames(times[:0], stamps)


def test_rows_find_their_frames_in_videos(tmp_path: Path, poses: ClipPoses, mp4: Path):
    """The video has 40 frames at 25 a second; the rows are at 1.000, 1.033, 1.067 and 1.100 s."""
    (tmp_path / "train").mkdir()
    whole = tmp_path / "train" / f"{VIDEO}.mp4"
    whole.write_bytes(mp4.read_bytes())
    source = FrameFinder(tmp_path, "train").find(poses.clip, poses.video)
    assert source is not None
    assert video_frames(source, poses).tolist() == [25, 26, 27, 28]  # 1.00 1.04 1.08 1.12
    late = poses_at(poses, 1_000_000)
    with pytest.raises(DataError, match="does not show clip"):
        video_frames(source, late)
    own = whole.rename(tmp_path / "train" / f"{CLIP}.mp4")
    source = FrameFinder(tmp_path, "train").find(poses.clip, poses.video)
    assert source is not None
    assert (source.layout, source.path) == ("clips", own)
    with pytest.raises(DataError, match="40 frames for 4 rows"):
        video_frames(source, poses)


def poses_at(poses: ClipPoses, later: int) -> ClipPoses:
    return replace(poses, timestamps=poses.timestamps + later)


# --------------------------------------------------------------------------------------- chunks


def chunk_entry(**changes: object) -> dict[str, object]:
    images = [torch.frombuffer(bytearray(picture(40 * i)), dtype=torch.uint8) for i in range(4)]
    stamps = torch.tensor([1_000_000 + 33_367 * i for i in range(4)])
    cameras = torch.tensor([row(i) for i in range(4)], dtype=torch.float32)
    entry = {"key": CLIP, "url": URL, "timestamps": stamps, "cameras": cameras, "images": images}
    return {**entry, **changes}


def test_a_chunk(tmp_path: Path, poses: ClipPoses):
    (tmp_path / "train").mkdir()
    path = tmp_path / "train" / "000000.torch"
    torch.save([chunk_entry()], path)
    (tmp_path / "train" / "index.json").write_text(json.dumps({CLIP: "000000.torch"}))
    assert read_chunk_index(tmp_path, "train") == {CLIP: path}
    (clip,) = read_chunk(path)
    assert (clip.poses.clip, clip.poses.video) == (CLIP, VIDEO)
    np.testing.assert_allclose(clip.poses.world_to_camera, poses.world_to_camera, atol=1e-6)
    assert [round(float(clip.picture(i).mean())) for i in range(4)] == [0, 40, 80, 120]
    for name in ("../000000.torch", "/000000.torch", "000000.pkl", 3):
        (tmp_path / "train" / "index.json").write_text(json.dumps({CLIP: name}))
        with pytest.raises(DataError, match=r"index\.json: names"):
            read_chunk_index(tmp_path, "train")


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("ran",)


def test_a_chunk_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.torch"
    torch.save([chunk_entry(url=Evil())], path)
    with pytest.raises(DataError, match="cannot be read safely"):
        read_chunk(path)
    path.write_bytes(pickle.dumps([Evil()]))  # the format before archives
    with pytest.raises(DataError, match="no zip archive"):
        read_chunk(path)
    assert not (tmp_path / "ran").exists()


def test_a_chunk_cannot_unfold(tmp_path: Path):
    path, packed = tmp_path / "a.torch", tmp_path / "packed.torch"
    torch.save([chunk_entry()], path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    with pytest.raises(DataError, match="compressed"):
        read_chunk(packed)
    torch.save([chunk_entry(cameras=torch.zeros(1).expand(4, 18))], path)
    with pytest.raises(DataError, match="no clip"):
        read_chunk(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"cameras": torch.zeros(4, 17)},
        {"timestamps": torch.zeros(4)},
        {"images": []},
        {"images": [torch.zeros(5)] * 4},
        {"key": 7},
    ],
)
def test_chunks_of_another_kind_are_refused(tmp_path: Path, changes: dict[str, object]):
    path = tmp_path / "a.torch"
    torch.save([chunk_entry(**changes)], path)
    with pytest.raises(DataError, match="no clip"):
        read_chunk(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cut short"):
        read_chunk(path)


# ------------------------------------------------------------------------------------ real clips


def corners(image: np.ndarray, count: int, border: int = 32) -> list[tuple[int, int]]:
    """Places (y, x) whose surroundings vary in both directions, the most first."""
    gy, gx = np.gradient(image)

    def mean(values: np.ndarray) -> np.ndarray:
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(values, 3), (7, 7))
        return windows.mean((2, 3))

    a, b, c = mean(gx * gx), mean(gx * gy), mean(gy * gy)
    smaller = (a + c) / 2 - np.sqrt(((a - c) / 2) ** 2 + b * b)
    strength = np.zeros_like(smaller)
    inner = (slice(border, -border), slice(border, -border))
    strength[inner] = smaller[inner]
    found = []
    for _ in range(count):
        y, x = divmod(int(strength.argmax()), strength.shape[1])
        found.append((y, x))
        strength[y - 8 : y + 9, x - 8 : x + 9] = 0
    return found


def match(
    a: np.ndarray, b: np.ndarray, y: int, x: int, reach: int = 24, half: int = 7
) -> tuple[float, float] | None:
    """Where the surroundings of a place in one picture are found in another, to subpixels."""
    height, width = b.shape
    if not (half <= y < height - half and half <= x < width - half):
        return None
    top, left = max(half, y - reach), max(half, x - reach)
    bottom, right = min(height - half - 1, y + reach), min(width - half - 1, x + reach)
    patch = a[y - half : y + half + 1, x - half : x + half + 1]
    patch = (patch - patch.mean()) / (patch.std() + 1e-9)
    area = b[top - half : bottom + half + 1, left - half : right + half + 1]
    windows = np.lib.stride_tricks.sliding_window_view(area, patch.shape)
    score = np.tensordot(windows, patch, ((2, 3), (0, 1))) / patch.size
    score = score / (windows.std((2, 3)) + 1e-9)
    j, i = divmod(int(score.argmax()), score.shape[1])
    inside = 0 < j < score.shape[0] - 1 and 0 < i < score.shape[1] - 1
    if not inside or score[j, i] < 0.9:
        return None
    here = score[j, i]
    down, up, on, back = score[j + 1, i], score[j - 1, i], score[j, i + 1], score[j, i - 1]
    dy = (down - up) / (2 * (2 * here - down - up) + 1e-12)
    dx = (on - back) / (2 * (2 * here - on - back) + 1e-12)
    return top + j + dy, left + i + dx


def sampson(
    first: np.ndarray, second: np.ndarray, camera: np.ndarray, motion: np.ndarray
) -> np.ndarray:
    """Distance in pixels of matches (x, y) from the epipolar geometry, to first order."""
    tx, ty, tz = motion[:, 3]
    cross = np.array([[0, -tz, ty], [tz, 0, -tx], [-ty, tx, 0]])
    inverse = np.linalg.inv(camera)
    fundamental = inverse.T @ cross @ motion[:, :3] @ inverse
    a, b = (np.column_stack([points, np.ones(len(points))]) for points in (first, second))
    fa, fb = a @ fundamental.T, b @ fundamental
    return np.abs((b * fa).sum(1)) / np.sqrt((fa[:, :2] ** 2 + fb[:, :2] ** 2).sum(1))


@pytest.mark.parametrize(
    "clip",
    [
        "0bf152ef84195293",
        "0c9b371cc6225682",
        "0f68374b76390082",
        "2f25826f0d0ef09a",
        "3f79dc32d575bcdc",
    ],
)
def test_real_poses_take_the_world_to_the_camera(shared: Path, clip: str):
    poses = read_pose_file(shared / "re10k" / "pose_files" / f"{clip}.txt")
    source = FrameFinder(shared / "re10k", "test").find(poses.clip, poses.video)
    assert source is not None
    assert source.layout == "clips"
    assert video_frames(source, poses).tolist() == list(range(16))
    frames = read_frames(source.path, range(4), backend="pyav").double().mean(1).numpy()
    height, width = frames.shape[1:]
    fx, fy, cx, cy = poses.intrinsics[0].astype(float) * [width, height, width, height]
    camera = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    right, wrong = [], []
    for i in (0, 2):
        matches = []
        for y, x in corners(frames[i], 40):
            there = match(frames[i], frames[i + 1], y, x)
            back = there and match(frames[i + 1], frames[i], round(there[0]), round(there[1]))
            if there and back and np.hypot(back[0] - y, back[1] - x) < 1.5:
                matches.append((x + 0.5, y + 0.5, there[1] + 0.5, there[0] + 0.5))
        points = np.array(matches)
        assert len(points) >= 10
        pair = poses.world_to_camera[i], poses.world_to_camera[i + 1]
        inverses = invert_pose(pair[0]), invert_pose(pair[1])
        right.extend(sampson(points[:, :2], points[:, 2:], camera, relative_pose(*pair)))
        wrong.extend(sampson(points[:, :2], points[:, 2:], camera, relative_pose(*inverses)))
    assert np.median(right) < 0.5
    assert np.median(wrong) > 2 * np.median(right)
