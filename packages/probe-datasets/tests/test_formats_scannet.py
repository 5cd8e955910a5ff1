"""Exported RGB-D recordings: written here from the formats' descriptions, and real ones."""

import os
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from probe_datasets.formats.files import DataError
from probe_datasets.formats.poses import invert_pose, relative_pose
from probe_datasets.formats.rgbd import read_depth, read_intrinsics, read_matrix, read_pose
from probe_datasets.formats.scannet import (
    SPLIT_SIZES,
    exported_intrinsics,
    find_exported,
    find_sens,
    read_scene_file,
    read_split,
)
from probe_datasets.formats.still_images import read_rgb

SCENE = "scene0123_01"
CAMERA_TO_WORLD = "0 -1 0 1\n1 0 0 2\n0 0 1 3\n0 0 0 1\n"
LOST = "-inf -inf -inf -inf\n" * 4


def depth_png(value: int, height: int = 6, width: int = 8) -> bytes:
    units = np.full((height, width), value, np.uint16)
    units[0, 0] = 0
    sink = BytesIO()
    Image.fromarray(units).save(sink, "PNG")
    return sink.getvalue()


def depth_pgm(value: int, height: int = 6, width: int = 8) -> bytes:
    units = np.full((height, width), value, ">u2")
    units[0, 0] = 0
    return f"P5\n{width} {height}\n65535\n".encode() + units.tobytes()


def color_jpg(level: int) -> bytes:
    sink = BytesIO()
    Image.new("RGB", (16, 12), (level, level, level)).save(sink, "JPEG", quality=95)
    return sink.getvalue()


def write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def export(root: Path, layout: str, numbers: list[int]) -> None:
    for n in numbers:
        pose = LOST if n == numbers[1] else CAMERA_TO_WORLD
        if layout == "cpp":
            base = root / "scans" / SCENE
            names = [f"frame-{n:06d}.{kind}" for kind in ("color.jpg", "depth.pgm", "pose.txt")]
            depth = depth_pgm(1000 + n)
        elif layout == "python":
            base = root / SCENE
            names, depth = (
                [f"color/{n}.jpg", f"depth/{n}.png", f"pose/{n}.txt"],
                depth_png(1000 + n),
            )
        else:
            base = root / "scannet_frames_25k" / SCENE
            names = [f"color/{n:06d}.jpg", f"depth/{n:06d}.png", f"pose/{n:06d}.txt"]
            depth = depth_png(1000 + n)
        for name, content in zip(names, (color_jpg(n), depth, pose), strict=True):
            write(base / name, content)
    write(base / "color" / "notes.txt", "not a frame")
    matrix = "5 0 4 0\n0 6 3 0\n0 0 1 0\n0 0 0 1\n"
    if layout == "cpp":
        flat = " ".join(matrix.split())
        write(base / "_info.txt", f"m_versionNumber = 4\nm_calibrationDepthIntrinsic = {flat}\n")
    elif layout == "python":
        write(base / "intrinsic" / "intrinsic_depth.txt", matrix)
    else:
        write(base / "intrinsics_depth.txt", matrix)


@pytest.mark.parametrize("layout", ["python", "cpp", "frames_25k"])
def test_every_export_is_read_in_the_order_of_numbers(tmp_path: Path, layout: str):
    export(tmp_path, layout, [9, 100, 2, 10])  # as text, 10 and 100 come before 2
    scene = find_exported(tmp_path, SCENE)
    assert scene is not None
    assert [frame.number for frame in scene.frames] == [2, 9, 10, 100]
    assert scene.incomplete == ()
    files = scene.frames[1]
    color, (depth, valid) = (
        read_rgb(scene.folder / files.color),
        read_depth(scene.folder / files.depth),
    )
    pose, tracked = read_pose(scene.folder / files.pose)
    assert color.shape == (12, 16, 3)
    assert abs(int(color[5, 5, 0]) - 9) <= 1
    assert depth[1, 1] == pytest.approx(1.009)
    assert (depth[0, 0], valid.sum()) == (0, 47)
    assert tracked
    np.testing.assert_allclose(pose @ [1, 2, 3, 1], 0, atol=1e-6)
    np.testing.assert_allclose(pose[:, :3] @ [0, 1, 0], [1, 0, 0], atol=1e-6)
    pose, tracked = read_pose(scene.folder / scene.frames[3].pose)
    assert not tracked
    assert np.isnan(pose).all()
    assert exported_intrinsics(scene, (6, 8)) == pytest.approx((5 / 8, 1.0, 0.5, 0.5))


def test_frames_that_lack_a_file_are_named(tmp_path: Path):
    export(tmp_path, "python", [1, 2, 3])
    (tmp_path / SCENE / "depth" / "2.png").unlink()
    scene = find_exported(tmp_path, SCENE)
    assert scene is not None
    assert [frame.number for frame in scene.frames] == [1, 3]
    assert scene.incomplete == (2,)
    write(tmp_path / SCENE / "color" / "0001.jpg", color_jpg(1))
    with pytest.raises(DataError, match=r"both .* for frame 1"):
        find_exported(tmp_path, SCENE)


def test_scenes_stay_below_the_root(tmp_path: Path):
    write(tmp_path / "elsewhere" / f"{SCENE}.sens", b"x")
    root = tmp_path / "root"
    (root / "scans").mkdir(parents=True)
    assert find_sens(root, SCENE) is None
    assert find_exported(root, SCENE) is None
    os.symlink(tmp_path / "elsewhere", root / "scans" / SCENE)
    with pytest.raises(DataError, match="leaves"):
        find_sens(root, SCENE)
    with pytest.raises(DataError, match="leaves"):
        find_exported(root, SCENE)
    with pytest.raises(DataError, match="a name such as"):
        find_sens(root, "../elsewhere")


def test_lists_and_scene_files(tmp_path: Path):
    write(tmp_path / "list.txt", "scene0001_00\nscene0000_01\n")
    assert read_split(tmp_path / "list.txt") == ("scene0001_00", "scene0000_01")
    for content, what in (("../scene0000_00", "in line 1"), ("scene0001_00\n" * 2, "again in")):
        write(tmp_path / "list.txt", content)
        with pytest.raises(DataError, match=what):
            read_split(tmp_path / "list.txt")
    write(tmp_path / "scene.txt", "axisAlignment = 1 0 0 0\nsceneType = Living room / Lounge\n")
    values = read_scene_file(tmp_path / "scene.txt")
    assert values == {"axisAlignment": "1 0 0 0", "sceneType": "Living room / Lounge"}
    write(tmp_path / "scene.txt", "nothing")
    with pytest.raises(DataError, match="key = value"):
        read_scene_file(tmp_path / "scene.txt")


@pytest.mark.parametrize(
    "content",
    [
        "1 0 0\n0 1 0\n",
        "1 0 0 0\n" * 5,
        "a b c d\n" * 4,
        "1 0 0\n0 1\n0 0 1\n",
        "",
        "1 2 3 4 5\n" * 4,
    ],
)
def test_what_is_no_matrix_is_refused(tmp_path: Path, content: str):
    write(tmp_path / "m.txt", content)
    with pytest.raises(DataError, match=r"m\.txt"):
        read_matrix(tmp_path / "m.txt")


def test_matrices_that_no_camera_has_are_refused(tmp_path: Path):
    write(tmp_path / "m.txt", "2 0 0 1\n0 2 0 1\n0 0 2 1\n0 0 0 1\n")
    with pytest.raises(DataError, match="no rigid motion"):
        read_pose(tmp_path / "m.txt")
    with pytest.raises(DataError, match="no camera of 8 x 6 pixels"):
        read_intrinsics(tmp_path / "m.txt", (6, 8))
    write(tmp_path / "m.txt", "1 0 0\n0 1 0\n0 0 1\n")
    with pytest.raises(DataError, match="4x4"):
        read_pose(tmp_path / "m.txt")


def test_depth_of_another_kind_is_refused(tmp_path: Path):
    Image.new("L", (8, 6)).save(tmp_path / "grey.png")
    with pytest.raises(DataError, match="one channel of 16 bits"):
        read_depth(tmp_path / "grey.png")
    write(tmp_path / "cut.png", depth_png(5, 200, 200)[:-30])
    with pytest.raises(DataError, match=r"cut\.png"):
        read_depth(tmp_path / "cut.png")
    write(tmp_path / "good.png", depth_png(5))
    with pytest.raises(DataError, match="6 x 8 pixels; expected 8 x 6"):
        read_depth(tmp_path / "good.png", size=(8, 6))


def test_the_official_lists(shared: Path):
    lists = {
        split: read_split(shared / "scannet_sens" / f"scannetv2_{split}.txt")
        for split in SPLIT_SIZES
        if (shared / "scannet_sens" / f"scannetv2_{split}.txt").is_file()
    }
    assert {split: len(scenes) for split, scenes in lists.items()} == SPLIT_SIZES
    assert len(set().union(*lists.values())) == sum(SPLIT_SIZES.values())


@pytest.mark.parametrize("last", [1, 10, 29])
def test_real_depth_reprojects_within_a_centimetre(shared: Path, last: int):
    """Points of frame 0, moved by the poses, have the depth that the other frame measured."""
    folder = shared / "rgbd_7scenes"
    (depth, valid), (seen, seen_valid) = (
        read_depth(folder / f"frame-{n:06d}.depth.png", invalid=(0, 65535)) for n in (0, last)
    )
    poses = [read_pose(folder / f"frame-{n:06d}.pose.txt")[0] for n in (0, last)]
    height, width = depth.shape
    fx, fy, cx, cy = read_intrinsics(folder / "camera-intrinsics.txt", (height, width))
    y, x = np.mgrid[0:height, 0:width] + 0.5
    points = np.stack([(x / width - cx) / fx * depth, (y / height - cy) / fy * depth, depth])

    def error(motion: np.ndarray) -> float:
        moved = np.einsum("ij,jhw->ihw", motion[:, :3], points) + motion[:, 3, None, None]
        z = np.where(valid, moved[2], 1.0)
        column = np.floor((moved[0] / z * fx + cx) * width).astype(int)
        row = np.floor((moved[1] / z * fy + cy) * height).astype(int)
        inside = valid & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        row, column, z = row[inside], column[inside], z[inside]
        both = seen_valid[row, column]
        assert both.mean() > 0.8
        return float(np.median(np.abs(seen[row, column] - z)[both]))

    assert error(relative_pose(*poses)) < 0.01
    if last == 29:  # the files' own direction, camera to world, does not fit
        assert error(relative_pose(*(invert_pose(pose) for pose in poses))) > 0.01


def test_real_frames_are_an_export(shared: Path, tmp_path: Path):
    os.symlink(shared / "rgbd_7scenes", tmp_path / SCENE)
    with pytest.raises(DataError, match="leaves"):
        find_exported(tmp_path, SCENE)
    (tmp_path / SCENE).unlink()
    (tmp_path / SCENE).mkdir()
    for file in (shared / "rgbd_7scenes").glob("frame-00000[0-3]*"):
        write(tmp_path / SCENE / file.name, file.read_bytes())
    scene = find_exported(tmp_path, SCENE)
    assert scene is not None
    assert (scene.layout, len(scene.frames)) == ("frame-files", 4)
    files = scene.frames[3]
    color, (depth, _) = read_rgb(scene.folder / files.color), read_depth(scene.folder / files.depth)
    assert color.shape[:2] == depth.shape == (480, 640)
