"""ScanNet scenes written here in all their forms: what is drawn in them is where the labels say."""

import os
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from probe_datasets import scannet
from probe_datasets.clips import ClipConfig
from probe_datasets.formats.files import DataError
from probe_datasets.formats.poses import invert_pose
from probe_datasets.formats.sens import index_sens
from probe_datasets.formats.sens_index import SensIndex
from probe_datasets.scannet import ScanNet

HEIGHT, WIDTH = 72, 96  # of colour; depth has half of it, with other intrinsics
SIZE = 36
COLOR = np.array([[80.0, 0, 50], [0, 82.0, 35], [0, 0, 1]])
DEPTH = np.diag([0.5, 0.5, 1.0]) @ COLOR
LOST = np.full((4, 4), -np.inf)
MARKER = np.array([0.3, -0.2, 2.5])
"""A bright thing in the world, in metres."""
CLIP = ClipConfig(num_frames=4, size=SIZE)
NUM_FRAMES = 9


def camera_to_world(i: int) -> np.ndarray:
    """The camera turns about the vertical and goes to the right."""
    c, s = np.cos(0.03 * i), np.sin(0.03 * i)
    matrix = np.eye(4)
    matrix[:3, :3] = [[c, 0, s], [0, 1, 0], [-s, 0, c]]
    matrix[:3, 3] = [0.02 * i, 0.01 * i, -0.05 * i]
    return matrix


def seen(i: int) -> np.ndarray:
    """The marker in the axes of camera i."""
    return np.linalg.inv(camera_to_world(i))[:3] @ np.append(MARKER, 1)


def draw(i: int) -> tuple[np.ndarray, np.ndarray]:
    """Colour, whose blue is the frame's number, with a red marker; and depth in millimetres."""
    color = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    color[..., 2] = 20 * i
    depth = np.full((HEIGHT // 2, WIDTH // 2), 3000 + i, np.uint16)
    depth[:, :12] = 0  # no return at the left
    x, y = (COLOR @ seen(i))[:2] / seen(i)[2]
    row, column = int(y) // 2, int(x) // 2
    color[2 * row - 4 : 2 * row + 6, 2 * column - 4 : 2 * column + 6, 0] = 255
    depth[row - 2 : row + 3, column - 2 : column + 3] = round(1000 * seen(i)[2])
    return color, depth


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    sink = BytesIO()
    Image.fromarray(pixels).save(sink, kind)
    return sink.getvalue()


def matrix_text(matrix: np.ndarray) -> str:
    full = np.eye(4)
    full[: len(matrix), : len(matrix)] = matrix
    return "\n".join(" ".join(f"{v:.9g}" for v in row) for row in full) + "\n"


def poses(lost: tuple[int, ...], count: int) -> list[np.ndarray]:
    return [LOST if i in lost else camera_to_world(i) for i in range(count)]


def write_sens(
    root: Path, scene: str, lost: tuple[int, ...] = (), count: int = NUM_FRAMES, bad_from: int = 999
) -> Path:
    """A recording, version 4; pictures from `bad_from` on are no pictures."""
    path = root / scene / f"{scene}.sens"
    path.parent.mkdir(parents=True, exist_ok=True)
    out = struct.pack("<IQ", 4, 5) + b"maker"
    for camera in (COLOR, DEPTH):
        full = np.eye(4)
        full[:3, :3] = camera
        out += struct.pack("<16f", *full.ravel()) + struct.pack("<16f", *np.eye(4).ravel())
    out += struct.pack("<2i4I", 1, 1, WIDTH, HEIGHT, WIDTH // 2, HEIGHT // 2)
    out += struct.pack("<fQ", 1000.0, count)
    for i, pose in enumerate(poses(lost, count)):
        pixels, units = draw(i)
        color, depth = encoded(pixels), zlib.compress(units.astype("<u2").tobytes())
        if i >= bad_from:
            color, depth = b"no picture", bytes(len(depth))
        out += struct.pack("<16f4Q", *pose.ravel(), i, i, len(color), len(depth)) + color + depth
    path.write_bytes(out + struct.pack("<Q", 0))
    return path


def export(
    root: Path, scene: str, layout: str, lost: tuple[int, ...] = (), step: int = 1
) -> dict[str, Path]:
    """Frames as SensReader in C++ ("cpp") or Python writes them, or as the subset of 25k frames."""
    folder = {"cpp": root / "scans" / scene, "25k": root / "scannet_frames_25k" / scene}.get(
        layout, root / scene
    )
    names = {
        "cpp": ("frame-{:06d}.color.png", "frame-{:06d}.depth.pgm", "frame-{:06d}.pose.txt"),
        "25k": ("color/{:06d}.png", "depth/{:06d}.png", "pose/{:06d}.txt"),
    }.get(layout, ("color/{}.png", "depth/{}.png", "pose/{}.txt"))
    files: dict[str, bytes] = {}
    for i, pose in enumerate(poses(lost, NUM_FRAMES)):
        color, depth = draw(i)
        pgm = f"P5\n{WIDTH // 2} {HEIGHT // 2}\n65535\n".encode() + depth.astype(">u2").tobytes()
        content = (
            encoded(color),
            pgm if layout == "cpp" else encoded(depth),
            matrix_text(pose).encode(),
        )
        files |= {n.format(i * step): data for n, data in zip(names, content, strict=True)}
    if layout == "cpp":
        flat = [" ".join(matrix_text(camera).split()) for camera in (COLOR, DEPTH)]
        files["_info.txt"] = (
            "m_versionNumber = 4\nm_depthShift = 1000\n"
            f"m_calibrationColorIntrinsic = {flat[0]}\nm_calibrationDepthIntrinsic = {flat[1]}\n"
        ).encode()
    else:
        pattern = "intrinsics_{}.txt" if layout == "25k" else "intrinsic/intrinsic_{}.txt"
        for what, camera in (("color", COLOR), ("depth", DEPTH)):
            files[pattern.format(what)] = matrix_text(camera).encode()
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return {name: folder / name for name in files}


def write_list(root: Path, split: str, *scenes: str, below: str = "") -> Path:
    path = root / below / f"scannetv2_{split}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{scene}\n" for scene in scenes))
    return path


def numbers(example: dict) -> list[int]:
    """Which frames these are, by their blue."""
    return [round(float(v)) for v in (example["video"][2, :, -1, -1] + 1) * 127.5 / 20]


@pytest.mark.parametrize("layout", ["sens", "cpp", "python", "25k"])
def test_labels_are_where_things_are_drawn(tmp_path: Path, layout: str):
    """The marker, moved by pose and intrinsics, is at its colour and at its depth."""
    root, scene = tmp_path / "data", "scene0001_00"
    if layout == "sens":
        write_sens(root / "scans", scene, lost=(2,))
    else:
        export(root, scene, layout, lost=(2,), step=100 if layout == "25k" else 1)
    write_list(root, "val", scene)
    data = ScanNet(root, "validation", clip=CLIP, sparse=layout == "25k")
    assert len(data) == 1
    example = data[0]
    assert example["sample_id"] == scene
    assert numbers(example) == [0, 1, 2, 3]
    assert example["poses_valid"].tolist() == [True, True, False, True]
    assert not example["poses"][2].any()
    assert example["depth_valid"][2].any()  # lost tracking takes nothing from the depth
    for i in (0, 1, 3):
        x, y, z = example["poses"][i].double().numpy() @ np.append(MARKER, 1)
        np.testing.assert_allclose([x, y, z], seen(i), atol=1e-5)  # float32 in the files
        fx, fy, cx, cy = example["intrinsics"][i].tolist()
        column, row = int((fx * x / z + cx) * SIZE), int((fy * y / z + cy) * SIZE)
        red = example["video"][0, i]
        assert red[row, column] > 0.95
        assert red[row, (column + 8) % SIZE] < -0.95
        assert example["depth"][i, row, column] == pytest.approx(z, abs=1e-3)  # millimetres
        assert example["depth_valid"][i, row, column]
    # The window is 72 of 96 columns from 12 on: the first 12 of 48 columns without depth end at 24.
    valid = example["depth_valid"]
    assert not valid[:, :, :6].any()
    assert valid[:, :, 6:].all()
    assert not example["depth"][~valid].any()
    assert example["depth"][valid].min() > 1


def test_every_form_gives_the_same_example(tmp_path: Path):
    scene, examples = "scene0001_00", []
    for layout in ("sens", "cpp", "python", "25k"):
        root = tmp_path / layout
        if layout == "sens":
            write_sens(root, scene, lost=(1,))
        else:
            export(root, scene, layout, lost=(1,), step=100 if layout == "25k" else 1)
        write_list(root, "train", scene, below="Tasks/Benchmark")
        examples.append(ScanNet(root, "train", clip=CLIP, sparse=layout == "25k").clip(0, draw=3))
    for example in examples[1:]:
        for key, value in examples[0].items():
            if isinstance(value, torch.Tensor):  # text and float32 round matrices differently
                torch.testing.assert_close(example[key], value, rtol=0, atol=1e-6)


def test_training_starts_anywhere_and_evaluation_at_the_first_frame(tmp_path: Path):
    write_sens(tmp_path, "scene0001_00")
    for split in ("train", "val", "test"):
        write_list(tmp_path, split, "scene0001_00")
    train = ScanNet(tmp_path, "train", clip=CLIP)
    starts = {numbers(train.clip(0, draw))[0] for draw in range(40)}
    assert starts == set(range(NUM_FRAMES - 3))
    for draw in range(3):
        found = numbers(train.clip(0, draw))
        assert found == list(range(found[0], found[0] + 4))
        torch.testing.assert_close(train.clip(0, draw)["video"], train.clip(0, draw)["video"])
    for split in ("validation", "test"):
        data = ScanNet(tmp_path, split, clip=CLIP)
        assert {numbers(data.clip(0, draw))[0] for draw in range(5)} == {0}
    assert train.config.num_frames == 4
    assert scannet.SPEC.expected == {"train": 1201, "validation": 312, "test": 100}
    strided = ScanNet(tmp_path, "test", clip=ClipConfig(num_frames=4, stride=2, size=SIZE))
    assert numbers(strided[0]) == [0, 2, 4, 6]


def test_only_the_clip_is_read_and_nothing_is_walked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_sens(tmp_path, "scene0001_00", bad_from=4)
    write_list(tmp_path, "val", "scene0001_00")
    ScanNet(tmp_path, "validation", clip=CLIP)

    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(scannet, "index_sens", refuse)
    data = ScanNet(tmp_path, "validation", clip=CLIP)  # from the index that is there
    assert numbers(data[0]) == [0, 1, 2, 3]
    later = ScanNet(tmp_path, "validation", clip=ClipConfig(num_frames=5, size=SIZE))
    with pytest.raises(DataError, match="frame 4"):
        later[0]
    skip = ScanNet(
        tmp_path, "validation", clip=ClipConfig(num_frames=5, size=SIZE), on_error="skip"
    )
    assert "frame 4" in skip[0]["problem"]


def test_what_is_missing_and_what_is_bad(tmp_path: Path):
    write_sens(tmp_path, "scene0001_00")
    write_sens(tmp_path, "scene0001_01", count=3)
    cut = write_sens(tmp_path, "scene0002_00")
    cut.write_bytes(cut.read_bytes()[:-50])
    export(tmp_path, "scene0003_00", "25k", step=100)
    files = export(tmp_path, "scene0004_00", "python")
    files["intrinsic/intrinsic_color.txt"].unlink()
    scenes = [f"scene000{name}" for name in ("1_00", "1_01", "2_00", "3_00", "4_00", "5_00")]
    write_list(tmp_path, "train", *scenes)
    data = ScanNet(tmp_path, "train", clip=CLIP, on_error="skip")
    assert [data.sample_id(i) for i in range(len(data))] == ["scene0001_00"]
    coverage = data.coverage
    assert (coverage.expected, coverage.found, coverage.missing, coverage.failed) == (6, 1, 1, 4)
    reasons = dict(coverage.reasons)
    assert set(reasons) == set(scenes[1:])
    assert "has 3 frames" in reasons["scene0001_01"]
    assert "cut short" in reasons["scene0002_00"]
    assert "frame 100 after frame 0" in reasons["scene0003_00"]
    assert "sparse=True" in reasons["scene0003_00"]
    assert "intrinsic_color.txt" in reasons["scene0004_00"]
    with pytest.raises(DataError, match="4 of 6 samples"):
        ScanNet(tmp_path, "train", clip=CLIP)
    with pytest.raises(DataError, match=r"scannetv2_val\.txt; .* Tasks/Benchmark"):
        ScanNet(tmp_path, "validation", clip=CLIP)
    write_list(tmp_path, "val", "scene0009_00")
    with pytest.raises(DataError, match="none of the 1 scenes"):
        ScanNet(tmp_path, "validation", clip=CLIP)


def test_a_scene_behind_a_link_is_refused_alone(tmp_path: Path):
    root = tmp_path / "root"
    write_sens(tmp_path / "elsewhere", "scene0001_00")
    write_sens(root, "scene0002_00")
    os.symlink(tmp_path / "elsewhere" / "scene0001_00", root / "scene0001_00")
    write_list(root, "train", "scene0001_00", "scene0002_00")
    data = ScanNet(root, "train", clip=CLIP, on_error="skip")
    assert (len(data), data.coverage.failed) == (1, 1)
    assert "leaves" in dict(data.coverage.reasons)["scene0001_00"]


def test_the_index_follows_the_files(tmp_path: Path):
    files = export(tmp_path, "scene0001_00", "python")
    write_sens(tmp_path, "scene0002_00")
    write_list(tmp_path, "train", "scene0001_00")
    first = ScanNet(tmp_path, "train", clip=CLIP)
    assert first.row(0)["num_frames"] == NUM_FRAMES
    again = ScanNet(tmp_path, "train", clip=CLIP)
    assert again.fingerprint == first.fingerprint
    files["depth/8.png"].unlink()  # while the file that stands for the scene stays as it is
    second = ScanNet(tmp_path, "train", clip=CLIP)
    assert second.row(0)["num_frames"] == NUM_FRAMES - 1
    assert second.fingerprint != first.fingerprint
    other = tmp_path / "mine" / "list.txt"
    other.parent.mkdir()
    other.write_text("scene0002_00\n")
    mine = ScanNet(tmp_path, "train", clip=CLIP, split_file=other)
    assert mine.sample_id(0) == "scene0002_00"
    other.write_text("scene0001_00\n")
    assert ScanNet(tmp_path, "train", clip=CLIP, split_file=other).sample_id(0) == "scene0001_00"
    files["pose/5.txt"].unlink()
    with pytest.raises(DataError, match="frame 6 after frame 4"):
        ScanNet(tmp_path, "train", clip=CLIP)
    assert ScanNet(tmp_path, "train", clip=CLIP, sparse=True).row(0)["num_frames"] == NUM_FRAMES - 2


def test_exports_that_do_not_hold_together_are_refused(tmp_path: Path):
    files = export(tmp_path, "scene0001_00", "cpp")
    write_list(tmp_path, "val", "scene0001_00")
    info, pixels = files["_info.txt"], files["frame-000002.color.png"]
    whole = info.read_text()
    info.write_text(whole.replace("m_depthShift = 1000", "m_depthShift = 500"))
    data = ScanNet(tmp_path, "validation", clip=CLIP)
    assert data[0]["depth"].max() == pytest.approx(6.006, abs=1e-4)
    info.write_text(whole.replace("m_depthShift = 1000", "m_depthShift = x"))
    with pytest.raises(DataError, match="m_depthShift"):
        data[0]
    info.write_text(whole)
    pixels.write_bytes(encoded(np.zeros((HEIGHT, WIDTH - 2, 3), np.uint8)))
    with pytest.raises(DataError, match=r"frame-000002\.color\.png.* 72 x 94 pixels"):
        data[0]
    pixels.rename(pixels.with_name("frame-2.color.png"))
    with pytest.raises(DataError, match="in two ways"):
        ScanNet(tmp_path, "validation", clip=CLIP)


def test_numbers_are_spelled_in_short():
    for found, text in (
        ([0, 1, 2, 3], "0-3/1"),
        ([0, 100, 200], "0-200/100"),
        ([7], "7-7/1"),
        ([0, 1, 2, 5, 9, 10, 11], "0-2/1,5-9/4,10-11/1"),
    ):
        assert scannet._spelled(found) == text
        assert scannet._numbers(text) == found


def test_an_index_of_frames_is_small(tmp_path: Path):
    index = index_sens(write_sens(tmp_path, "scene0001_00", lost=(0, 4)))
    packed = index.pack()
    back = SensIndex.unpack(index.path, packed)
    for name in SensIndex.__slots__:
        np.testing.assert_array_equal(getattr(back, name), getattr(index, name), err_msg=name)
    assert len(packed) < 200
    for damaged in (
        packed[:-1],
        packed[:50],
        b"",
        packed[:60] + b"x" + packed[61:],
        b"\2" + packed,
    ):
        with pytest.raises(DataError, match="index of frames"):
            SensIndex.unpack(index.path, damaged)


def test_a_long_recording_takes_eight_bytes_a_frame(tmp_path: Path):
    index = index_sens(write_sens(tmp_path, "scene0001_00"))
    many = np.arange(5000)
    fields = {name: getattr(index, name) for name in SensIndex.__slots__}
    lengths = {"color_bytes": np.full(5000, 150), "depth_bytes": np.full(5000, 50)}
    fields |= {"offsets": 100 + many * 296, "pose_valid": many % 7 > 0, **lengths}
    long = SensIndex(**fields)
    packed = long.pack()
    assert len(packed) < 42_000
    np.testing.assert_array_equal(SensIndex.unpack(long.path, packed).offsets, long.offsets)


# ---------------------------------------------------------------------------------- real frames


@pytest.fixture
def real(shared: Path) -> ScanNet:
    """Frames of 7-Scenes in a recording of ScanNet's own writer; the pose of frame 5 is lost."""
    return ScanNet(shared / "scannet_sens", "train", augment=False, on_error="skip")


def test_a_real_recording(real: ScanNet, shared: Path):
    coverage = real.coverage
    assert (coverage.expected, coverage.found, coverage.missing) == (1201, 1, 1200)
    example = real[0]
    assert example["video"].shape == (3, 17, 256, 256)
    assert example["depth"].shape == (17, 256, 256)
    assert (~example["poses_valid"]).nonzero().flatten().tolist() == [5]
    with Image.open(shared / "rgbd_7scenes" / "frame-000016.color.jpg") as picture:
        square = np.asarray(picture)[:, 80:560].astype(np.float64)
    mean = square.mean((0, 1)) / 127.5 - 1
    np.testing.assert_allclose(example["video"][:, 16].mean((1, 2)), mean, atol=0.5 / 127.5)


@pytest.mark.parametrize("last", [1, 10, 16])
def test_real_depth_reprojects_within_a_centimetre(real: ScanNet, last: int):
    """Pixels of frame 0 of the clip, moved by its poses, have the depth that was measured there."""
    example = real[0]
    size = example["depth"].shape[-1]
    fx, fy, cx, cy = example["intrinsics"][0].double().numpy()
    depth, valid, poses = (example[key].numpy() for key in ("depth", "depth_valid", "poses"))
    y, x = (np.mgrid[0:size, 0:size] + 0.5) / size
    points = np.stack([(x - cx) / fx * depth[0], (y - cy) / fy * depth[0], depth[0]])

    def error(first: np.ndarray, second: np.ndarray) -> float:
        back = invert_pose(first)
        world = np.einsum("ij,jhw->ihw", back[:, :3], points) + back[:, 3, None, None]
        moved = np.einsum("ij,jhw->ihw", second[:, :3], world) + second[:, 3, None, None]
        z = np.where(valid[0], moved[2], 1.0)
        column = np.floor((moved[0] / z * fx + cx) * size).astype(int)
        row = np.floor((moved[1] / z * fy + cy) * size).astype(int)
        inside = valid[0] & (row >= 0) & (row < size) & (column >= 0) & (column < size)
        row, column, z = row[inside], column[inside], z[inside]
        both = valid[last][row, column]
        assert both.mean() > 0.8
        return float(np.median(np.abs(depth[last][row, column] - z)[both]))

    assert error(poses[0], poses[last]) < 0.01


def test_the_same_real_frames_as_an_export(
    real: ScanNet, shared: Path, tmp_path: Path, copy_of: Callable[..., Path]
):
    """Among them depth of 65535, which means "no depth" in 7-Scenes and is 0 in the recording."""
    for number in range(17):
        for kind in ("color.jpg", "depth.png", "pose.txt"):
            name = f"frame-{number:06d}.{kind}"
            copy_of(shared / "rgbd_7scenes" / name, f"scene0000_00/{name}")
    text = (shared / "rgbd_7scenes" / "camera-intrinsics.txt").read_text()
    camera = np.array([float(v) for v in text.split()]).reshape(3, 3)
    flat = " ".join(matrix_text(camera).split())
    info = tmp_path / "scene0000_00" / "_info.txt"
    info.write_text(f"m_calibrationColorIntrinsic = {flat}\n")
    write_list(tmp_path, "val", "scene0000_00")
    exported, recorded = ScanNet(tmp_path, "validation")[0], real[0]
    for key in ("video", "depth", "depth_valid", "intrinsics"):
        torch.testing.assert_close(exported[key], recorded[key], rtol=0, atol=1e-6)
    tracked = recorded["poses_valid"]
    torch.testing.assert_close(
        exported["poses"][tracked], recorded["poses"][tracked], rtol=0, atol=1e-5
    )
