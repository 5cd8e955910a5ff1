"""Recordings written here from the format's description, and the real one where it is present."""

import json
import random
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from probe_datasets.formats.files import DataError
from probe_datasets.formats.sens import index_sens, read_sens_frame

HEIGHT, WIDTH = 24, 32
LOST = np.full((4, 4), -np.inf)


def pose(angle: float, shift: tuple[float, float, float]) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    matrix = np.eye(4)
    matrix[:3, :3] = [[c, 0, s], [0, 1, 0], [-s, 0, c]]
    matrix[:3, 3] = shift
    return matrix


def depth_picture(i: int) -> np.ndarray:
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.where((x + y + i) % 7 == 0, 0, 500 + 40 * i + 3 * x + 11 * y).astype("<u2")


def color_picture(i: int) -> np.ndarray:
    y, x = np.mgrid[0 : 2 * HEIGHT, 0 : 2 * WIDTH]
    return np.stack([x * 3 + i, y * 4, x + y], axis=-1).astype(np.uint8)


def write_sens(
    path: Path,
    poses: list[np.ndarray],
    color_kind: int = 2,
    depth_kind: int = 1,
    num_imu: int = 2,
    shift: float = 1000.0,
) -> Path:
    def camera(scale: int) -> bytes:
        k = np.eye(4)
        k[0, 0], k[1, 1] = 30 * scale, 28 * scale
        k[0, 2], k[1, 2] = WIDTH * scale / 2, HEIGHT * scale / 2 - 1
        return struct.pack("<16f", *k.ravel()) + struct.pack("<16f", *np.eye(4).ravel())

    def encoded(i: int) -> bytes:
        if color_kind == 0:
            return color_picture(i).tobytes()
        sink = BytesIO()
        Image.fromarray(color_picture(i)).save(
            sink, {1: "PNG", 2: "JPEG", -1: "JPEG"}[color_kind], **({"quality": 95})
        )
        return sink.getvalue()

    out = struct.pack("<IQ", 4, 4) + b"test" + camera(2) + camera(1)
    out += struct.pack("<ii", color_kind, depth_kind)
    out += struct.pack("<4I", 2 * WIDTH, 2 * HEIGHT, WIDTH, HEIGHT)
    out += struct.pack("<fQ", shift, len(poses))
    for i, matrix in enumerate(poses):
        depth = depth_picture(i).tobytes()
        depth = zlib.compress(depth) if depth_kind == 1 else depth
        color = encoded(i)
        out += struct.pack("<16f", *matrix.ravel())
        out += struct.pack("<4Q", 33 * i, 33 * i + 1, len(color), len(depth)) + color + depth
    out += struct.pack("<Q", num_imu) + bytes(128 * num_imu)
    path.write_bytes(out)
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    poses = [pose(0.3, (1, 2, 3)), LOST, pose(-0.2, (0, 0.5, -1))]
    return write_sens(tmp_path / "small.sens", poses)


@pytest.mark.parametrize("depth_kind", [0, 1])
@pytest.mark.parametrize("color_kind", [0, 1, 2, -1])
def test_what_was_written_is_read(tmp_path: Path, color_kind: int, depth_kind: int):
    poses = [pose(0.3, (1, 2, 3)), LOST, pose(-0.2, (0, 0.5, -1))]
    path = write_sens(tmp_path / "a.sens", poses, color_kind, depth_kind, shift=4000.0)
    index = index_sens(path)
    assert (index.num_frames, index.sensor_name, index.num_imu) == (3, "test", 2)
    assert index.pose_valid.tolist() == [True, False, True]
    assert index.intrinsics_color == pytest.approx((30 / 32, 28 / 24, 0.5, 23 / 48))
    assert index.intrinsics_depth == pytest.approx((30 / 32, 28 / 24, 0.5, 11 / 24))
    for i in (2, 0, 1):  # in any order
        frame = read_sens_frame(index, i)
        units = depth_picture(i)
        np.testing.assert_array_equal(frame.depth, units.astype(np.float32) / 4000)
        np.testing.assert_array_equal(frame.depth_valid, units > 0)
        worst = np.abs(frame.color.astype(int) - color_picture(i)).max()
        assert worst <= (0 if color_kind in (0, 1) else 30)  # JPEG loses colour at edges
        assert (frame.timestamp_color, frame.timestamp_depth) == (33 * i, 33 * i + 1)
        assert frame.pose_valid == (i != 1)
        if frame.pose_valid:  # the camera's own place is the origin of its coordinates
            home = frame.world_to_camera @ np.append(poses[i][:3, 3], 1)
            np.testing.assert_allclose(home, 0, atol=1e-6)  # float32
            np.testing.assert_allclose(
                frame.world_to_camera[:, :3] @ poses[i][:3, :3], np.eye(3), atol=1e-6
            )
        else:
            assert np.isnan(frame.world_to_camera).all()
    only_depth = read_sens_frame(index, 0, color=False)
    assert only_depth.color is None
    assert only_depth.depth is not None
    with pytest.raises(IndexError, match="3 frames"):
        read_sens_frame(index, 3)


def test_every_cut_is_refused(small: Path, tmp_path: Path):
    whole = small.read_bytes()
    cut = tmp_path / "cut.sens"
    for length in random.Random(0).sample(range(len(whole)), 200):
        cut.write_bytes(whole[:length])
        with pytest.raises(DataError) as caught:
            index_sens(cut)
        assert str(caught.value).startswith(str(cut))


@pytest.mark.slow
def test_a_flipped_byte_is_refused_or_harmless(small: Path, tmp_path: Path):
    """Depth is guarded by a checksum; only its unit and a lossy picture can change unseen."""
    whole = small.read_bytes()
    index = index_sens(small)
    header = int(index.offsets[0])
    truth = [depth_picture(i) for i in range(3)]
    chance, flipped, refused = random.Random(1), tmp_path / "flipped.sens", 0
    for k in range(1000):
        # Half of them in the headers, where the lengths are.
        place = chance.randrange(header + 96) if k % 2 else chance.randrange(len(whole))
        content = bytearray(whole)
        content[place] ^= 1 << chance.randrange(8)
        flipped.write_bytes(content)
        try:
            found = index_sens(flipped)
            frames = [read_sens_frame(found, i) for i in range(found.num_frames)]
        except DataError:
            refused += 1
            continue
        assert len(frames) == 3
        for frame, units in zip(frames, truth, strict=True):
            metres = units.astype(np.float32) / np.float32(found.depth_shift)
            np.testing.assert_array_equal(frame.depth, metres)
    assert refused > 300


def damaged(small: Path, tmp_path: Path, edit: Callable[[bytearray], None]) -> Path:
    content = bytearray(small.read_bytes())
    edit(content)
    path = tmp_path / "damaged.sens"
    path.write_bytes(content)
    return path


HEADER = 12 + 4 + 4 * 64  # up to the kinds of compression


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, struct.pack("<I", 3), "version 3"),
        (4, struct.pack("<Q", 1 << 62), "sensor name"),
        (HEADER, struct.pack("<i", 7), "colour compression 7"),
        (HEADER + 4, struct.pack("<i", 2), "occi"),
        (HEADER + 8, struct.pack("<I", 0), "pictures of 48 x 0"),
        (HEADER + 16, struct.pack("<I", 1 << 31), "depth pictures"),
        (HEADER + 24, struct.pack("<f", float("nan")), "depth units"),
        (HEADER + 28, struct.pack("<Q", 1 << 60), "claims 1152921504606846976 frames"),
        (HEADER + 28, struct.pack("<Q", 0), "has no frames"),
        (HEADER + 36 + 80, struct.pack("<Q", 1 << 63), "frame 0 ends at byte"),
        (HEADER + 36 + 88, struct.pack("<Q", 1), "frame 1 ends at byte"),
        (HEADER + 8, struct.pack("<4I", 64, 48, 8000, 8000), "bytes of depth in frame 0"),
        (HEADER + 36, struct.pack("<f", 9.0), "no rigid motion"),
    ],
)
def test_what_is_wrong_is_said(
    small: Path, tmp_path: Path, offset: int, value: bytes, message: str
):
    def edit(content: bytearray) -> None:
        content[offset : offset + len(value)] = value

    path = damaged(small, tmp_path, edit)
    with pytest.raises(DataError, match=message):
        index_sens(path)


def test_depth_that_unpacks_to_more_is_refused(small: Path, tmp_path: Path):
    """A zlib bomb of a gigabyte in the place of the first frame's depth costs no gigabyte."""
    packer = zlib.compressobj(9)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(64)) + packer.flush()
    index = index_sens(small)
    begin = int(index.offsets[0]) + 96 + int(index.color_bytes[0])

    def edit(content: bytearray) -> None:
        content[begin : begin + int(index.depth_bytes[0])] = bomb
        length = int(index.offsets[0]) + 88
        content[length : length + 8] = struct.pack("<Q", len(bomb))

    found = index_sens(damaged(small, tmp_path, edit))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"depth in frame 0 .* does not unpack to 1536 bytes"):
            read_sens_frame(found, 0)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_file_that_changed_is_noticed(small: Path):
    index = index_sens(small)
    write_sens(small, [LOST] * 3, depth_kind=0)
    with pytest.raises(DataError, match="changed since"):
        read_sens_frame(index, 1)
    small.write_bytes(b"")
    with pytest.raises(DataError, match="empty"):
        read_sens_frame(index, 1)


def test_the_real_recording(shared: Path):
    expected = json.loads((shared / "expected" / "scene0000_00.json").read_text())
    path = shared / "scannet_sens" / "scene0000_00" / "scene0000_00.sens"
    index = index_sens(path)
    assert list(index.color_size[::-1]) == expected["color_size"]
    assert list(index.depth_size[::-1]) == expected["depth_size"]
    assert index.depth_shift == expected["depth_shift"]
    assert index.num_frames == len(expected["frames"])
    for truth in expected["frames"]:
        i = truth["index"]
        assert bool(index.pose_valid[i]) == truth["pose_valid"]
        frame = read_sens_frame(index, i, color=i in (0, 5, 23))
        units = np.round(frame.depth * 1000).astype("<u2")
        assert zlib.crc32(units.tobytes()) == truth["depth_crc32"]
        assert int(frame.depth_valid.sum()) == truth["depth_valid"]
        assert int(units[120, 160]) == truth["depth_120_160_mm"]
        assert frame.timestamp_color == truth["timestamp_color"]
        assert frame.timestamp_depth == truth["timestamp_depth"]
        if frame.color is not None:  # the very JPEG that the recording was made from
            with Image.open(shared / "rgbd_7scenes" / f"frame-{i:06d}.color.jpg") as picture:
                np.testing.assert_array_equal(frame.color, np.asarray(picture))
        assert frame.pose_valid == truth["pose_valid"]
        if truth["pose_valid"]:
            motion = np.vstack([frame.world_to_camera, [0, 0, 0, 1]])
            product = motion @ np.array(truth["camera_to_world"])
            np.testing.assert_allclose(product, np.eye(4), atol=1e-5)  # float32 in the file


def test_cuts_of_the_real_recording(shared: Path, copy_of: Callable[..., Path]):
    path = shared / "scannet_sens" / "scene0000_00" / "scene0000_00.sens"
    size = path.stat().st_size
    for length in (11, 300, size // 2, size - 128, size - 1):
        with pytest.raises(DataError, match="cut short"):
            index_sens(copy_of(path, "cut.sens", length))
