"""ScanNet's `.sens` recordings, version 4: an index of offsets, and any frame on its own.

Axes: `N` frames; `H W` pixels, which differ between colour and depth; `3` red, green, blue, bytes
0 to 255. Depth is along the camera's z axis in metres. Poses are 3x4, world to camera, OpenCV axes.

The index is built by one walk over the headers of the frames, which seeks past their pictures.
The length of every part is checked against the size of the file before anything is allocated.

Of a recording, only depth and colour in PNG have checksums, which are compared. Damage to a pose,
an intrinsic or a time is found where it makes an impossible one, damage to colour as in any JPEG.

Reference:
    ScanNet/ScanNet, SensReader/c++/sensorData.h (SensorData::loadFromFile).
"""

import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from einops import rearrange
from jaxtyping import Bool, Float32, Float64, Int64, UInt8, UInt16
from numpy import ndarray

from probe_datasets.formats.files import FETCH_AGAIN, DataError, data_error, file_size
from probe_datasets.formats.poses import invert_pose, is_rigid
from probe_datasets.formats.sens_index import FRAME_HEADER_BYTES, SensIndex
from probe_datasets.formats.still_images import decode_rgb

__all__ = ["SensFrame", "SensIndex", "index_sens", "read_sens_frame"]

_WHAT = "a .sens recording of version 4"
_RAW, _PNG, _JPEG = 0, 1, 2
_ZLIB = 1
_FRAME_HEADER = struct.Struct("<16f4Q")
assert _FRAME_HEADER.size == FRAME_HEADER_BYTES
_FIXED_HEADER = struct.Struct("<64f2i4IfQ")
_IMU_BYTES = 128
_MAX_SIDE = 8192
_MAX_NAME = 4096
_MAX_PICTURE = 1 << 28


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SensFrame:
    """One frame; what was not asked for is None."""

    color: UInt8[ndarray, "H W 3"] | None
    """Bytes 0 to 255."""
    depth: Float32[ndarray, "h w"] | None
    """Metres along z; 0 where invalid."""
    depth_valid: Bool[ndarray, "h w"] | None
    """False where the sensor had no return."""
    world_to_camera: Float32[ndarray, "3 4"]
    """NaN where tracking was lost."""
    pose_valid: bool
    """False where tracking was lost."""
    timestamp_color: int
    """Microseconds; 2^64 - 1 where the recorder had none."""
    timestamp_depth: int
    """Microseconds; 2^64 - 1 where the recorder had none."""


def index_sens(path: str | os.PathLike[str]) -> SensIndex:
    """Index a recording by its headers, without reading its pictures.

    Args:
        path: the file.

    Raises:
        DataError: not a complete recording of version 4, or of a kind that ScanNet does not use.
    """
    size = file_size(path, _WHAT)
    try:
        with open(path, "rb") as file:
            return _walk(file, size, Path(path))
    except OSError as error:
        problem = f"cannot be read ({error.strerror or error})"
        raise data_error(path, problem, _WHAT, "see to its permissions") from error


def read_sens_frame(
    index: SensIndex, frame: int, *, color: bool = True, depth: bool = True
) -> SensFrame:
    """One frame of a recording, read from its own bytes alone.

    Args:
        index: what `index_sens` returned.
        frame: which frame, from 0.
        color: decode colour.
        depth: decode depth.

    Raises:
        IndexError: there is no such frame.
        DataError: its pictures are damaged, or the file changed since it was indexed.
    """
    if not 0 <= frame < index.num_frames:
        raise IndexError(f"frame {frame} is outside the recording of {index.num_frames} frames")
    path, position = index.path, int(index.offsets[frame])
    color_bytes, depth_bytes = int(index.color_bytes[frame]), int(index.depth_bytes[frame])
    size = file_size(path, _WHAT)
    if position + _FRAME_HEADER.size + color_bytes + depth_bytes > size:
        raise _changed(path)
    try:
        with open(path, "rb") as file:
            file.seek(position)
            header = _FRAME_HEADER.unpack(_exactly(file, _FRAME_HEADER.size, path))
            if header[18:] != (color_bytes, depth_bytes):
                raise _changed(path)
            color_data = _exactly(file, color_bytes, path) if color else b""
            file.seek(position + _FRAME_HEADER.size + color_bytes)
            depth_data = _exactly(file, depth_bytes, path) if depth else b""
    except OSError as error:
        problem = f"cannot be read ({error.strerror or error})"
        raise data_error(path, problem, _WHAT, "see to its permissions") from error
    (world_to_camera,) = _world_to_camera(np.array([header[:16]], np.float64), path, frame)
    units = _depth(index, frame, depth_data) if depth else None
    return SensFrame(
        color=_color(index, frame, color_data) if color else None,
        depth=None if units is None else units.astype(np.float32) / np.float32(index.depth_shift),
        depth_valid=None if units is None else units > 0,
        world_to_camera=world_to_camera,
        pose_valid=bool(np.isfinite(world_to_camera).all()),
        timestamp_color=header[16],
        timestamp_depth=header[17],
    )


# -------------------------------------------------------------------------------------- headers


def _walk(file: BinaryIO, size: int, path: Path) -> SensIndex:
    version, name_bytes = struct.unpack("<IQ", _header(file, 12, size, path))
    if version != 4:
        fix = "pass the .sens file of a ScanNet scene"
        raise data_error(path, f"is no .sens file or has version {version}", _WHAT, fix)
    if name_bytes > _MAX_NAME:
        problem = f"claims a sensor name of {name_bytes} bytes"
        raise data_error(path, problem, f"at most {_MAX_NAME}", FETCH_AGAIN)
    name = _header(file, name_bytes, size, path).decode("utf-8", "replace")
    values = _FIXED_HEADER.unpack(_header(file, _FIXED_HEADER.size, size, path))
    matrices, (color_kind, depth_kind) = values[:64], values[64:66]
    color_size, depth_size = (values[67], values[66]), (values[69], values[68])
    depth_shift, num_frames = values[70:]
    _check_kinds(path, color_kind, depth_kind)
    for what, sides in (("colour", color_size), ("depth", depth_size)):
        if not all(1 <= side <= _MAX_SIDE for side in sides):
            problem = f"claims {what} pictures of {sides[0]} x {sides[1]} pixels"
            raise data_error(path, problem, f"sides of 1 to {_MAX_SIDE}", FETCH_AGAIN)
    if not 1 <= depth_shift <= 65535:
        problem = f"has {depth_shift} depth units in a metre"
        raise data_error(path, problem, "1 to 65535, 1000 in ScanNet", FETCH_AGAIN)
    if num_frames * _FRAME_HEADER.size > size - file.tell():
        problem = f"is cut short or damaged: it claims {num_frames} frames in {size} bytes"
        raise data_error(path, problem, "the whole file", FETCH_AGAIN)
    if num_frames == 0:
        raise data_error(path, "has no frames", "at least one frame", FETCH_AGAIN)

    offsets = np.empty(num_frames, np.int64)
    lengths = np.empty((2, num_frames), np.int64)
    poses = np.empty((num_frames, 16), np.float64)
    for frame in range(num_frames):
        position = file.tell()
        header = _FRAME_HEADER.unpack(_header(file, _FRAME_HEADER.size, size, path))
        end = position + _FRAME_HEADER.size + header[18] + header[19]
        if end > size:
            raise _cut(path, f"frame {frame}", end, size)
        offsets[frame], lengths[:, frame], poses[frame] = position, header[18:], header[:16]
        file.seek(end)
    (num_imu,) = struct.unpack("<Q", _header(file, 8, size, path))
    end = file.tell() + num_imu * _IMU_BYTES
    if end != size:
        if end > size:
            raise _cut(path, "the motion sensor's part", end, size)
        problem = f"goes on for {size - end} bytes behind its end"
        raise data_error(path, problem, "one recording", FETCH_AGAIN)
    if lengths.max() > _MAX_PICTURE:
        problem = f"has a picture of {int(lengths.max())} bytes"
        raise data_error(path, problem, f"at most {_MAX_PICTURE}", FETCH_AGAIN)
    if color_kind == _RAW:
        _check_lengths(path, "colour", lengths[0], 3 * color_size[0] * color_size[1], packed=False)
    raw_depth = 2 * depth_size[0] * depth_size[1]
    _check_lengths(path, "depth", lengths[1], raw_depth, packed=depth_kind == _ZLIB)
    return SensIndex(
        path=path,
        sensor_name=name,
        color_compression=color_kind,
        depth_compression=depth_kind,
        color_size=color_size,
        depth_size=depth_size,
        depth_shift=depth_shift,
        intrinsics_color=_intrinsics(path, "colour", matrices[:16], color_size),
        intrinsics_depth=_intrinsics(path, "depth", matrices[32:48], depth_size),
        num_imu=num_imu,
        offsets=offsets,
        color_bytes=lengths[0],
        depth_bytes=lengths[1],
        pose_valid=np.isfinite(_world_to_camera(poses, path)[:, 0, 0]),
    )


def _header(file: BinaryIO, length: int, size: int, path: Path) -> bytes:
    """The next bytes, if they lie within the file."""
    end = file.tell() + length
    if end > size:
        raise _cut(path, "a header", end, size)
    return _exactly(file, length, path)


def _check_kinds(path: Path, color_kind: int, depth_kind: int) -> None:
    convert = "write it again with ScanNet's SensReader"
    if color_kind not in (-1, _RAW, _PNG, _JPEG):
        problem = f"has colour compression {color_kind}"
        raise data_error(path, problem, "-1 unknown, 0 raw, 1 PNG or 2 JPEG", convert)
    if depth_kind not in (_RAW, _ZLIB):
        what = " (occi, which needs its own library)" if depth_kind == 2 else ""
        problem = f"has depth compression {depth_kind}{what}"
        raise data_error(path, problem, "0 raw or 1 zlib", convert)


def _check_lengths(
    path: Path, what: str, lengths: Int64[ndarray, " N"], raw: int, *, packed: bool
) -> None:
    """Refuse pictures whose length cannot be right for their number of pixels."""
    # Deflate makes nothing smaller than 1032 times, so less than that cannot fill the picture.
    wrong = lengths * 1040 < raw if packed else lengths != raw
    if wrong.any():
        frame = int(wrong.argmax())
        problem = f"has {int(lengths[frame])} bytes of {what} in frame {frame}"
        expected = f"{'about 1/3 of ' if packed else ''}the {raw} bytes of its pixels"
        raise data_error(path, problem, expected, FETCH_AGAIN)


def _intrinsics(
    path: Path, what: str, matrix: tuple[float, ...], size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """(fx, fy, cx, cy) in widths and heights, of a row-major 4x4 matrix in pixels."""
    (height, width), (fx, fy, cx, cy) = size, (matrix[i] for i in (0, 5, 2, 6))
    rest = [matrix[i] for i in (1, 3, 4, 7, 8, 9, 10, 11, 12, 13, 14, 15)]
    plain = rest == [0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]
    plausible = 0.1 * width < fx < 10 * width and 0.1 * height < fy < 10 * height
    if not (plain and plausible and 0 < cx < width and 0 < cy < height):
        problem = f"has {what} intrinsics that no camera of {width} x {height} pixels has"
        problem += f": fx {fx:g}, fy {fy:g}, cx {cx:g}, cy {cy:g}"
        raise data_error(path, problem, "a pinhole matrix in pixels", FETCH_AGAIN)
    return fx / width, fy / height, cx / width, cy / height


def _world_to_camera(
    values: Float64[ndarray, "N 16"], path: Path, first: int = 0
) -> Float32[ndarray, "N 3 4"]:
    """Inverses of row-major 4x4 camera-to-world matrices; NaN where one is not finite."""
    poses = rearrange(values, "N (i j) -> N i j", i=4)
    tracked = np.isfinite(values).sum(axis=1) == 16
    good = is_rigid(poses[tracked][:, :3], tolerance=0.01)
    if not good or (poses[tracked][:, 3] != [0, 0, 0, 1]).any():
        rigid = [is_rigid(pose[:3], tolerance=0.01) and pose[3, 3] == 1 for pose in poses]
        frame = next((i for i, fine in enumerate(rigid) if tracked[i] and not fine), 0)
        problem = f"has a pose in frame {first + frame} that is no rigid motion"
        raise data_error(path, problem, "a rotation and a translation", FETCH_AGAIN)
    result = np.full((len(values), 3, 4), np.nan, np.float32)
    result[tracked] = invert_pose(poses[tracked][:, :3])
    return result


# ------------------------------------------------------------------------------------- pictures


def _color(index: SensIndex, frame: int, data: bytes) -> UInt8[ndarray, "H W 3"]:
    height, width = index.color_size
    if index.color_compression == _RAW:
        pixels = np.frombuffer(bytearray(data), np.uint8)  # which may be written to
        return rearrange(pixels, "(H W c) -> H W c", H=height, W=width)
    formats = {_PNG: ("PNG",), _JPEG: ("JPEG",)}.get(index.color_compression, ("JPEG", "PNG"))
    try:
        return decode_rgb(data, index.path, size=index.color_size, formats=formats)
    except DataError as error:
        raise _in_frame(index, frame, "colour", str(error)) from error


def _depth(index: SensIndex, frame: int, data: bytes) -> UInt16[ndarray, "h w"]:
    height, width = index.depth_size
    expected = 2 * height * width
    if index.depth_compression == _ZLIB:
        stream = zlib.decompressobj()
        try:
            data = stream.decompress(data, expected + 1)
        except zlib.error as error:
            raise _in_frame(index, frame, "depth", str(error)) from error
        if len(data) != expected or not stream.eof:
            problem = f"it does not unpack to {expected} bytes"
            raise _in_frame(index, frame, "depth", problem)
    units = np.frombuffer(data, "<u2").astype(np.uint16, copy=False)
    return rearrange(units, "(H W) -> H W", H=height, W=width)


def _in_frame(index: SensIndex, frame: int, what: str, problem: str) -> DataError:
    problem = f"has {what} in frame {frame} that cannot be decoded ({problem})"
    return data_error(index.path, problem, "an undamaged file", FETCH_AGAIN)


def _exactly(file: BinaryIO, length: int, path: Path) -> bytes:
    data = file.read(length)
    if len(data) != length:
        raise _changed(path)
    return data


def _cut(path: Path, what: str, end: int, size: int) -> DataError:
    problem = f"is cut short or damaged: {what} ends at byte {end}, but the file has {size}"
    return data_error(path, problem, "the whole file", FETCH_AGAIN)


def _changed(path: Path) -> DataError:
    return data_error(path, "changed since it was indexed", "the same file", "index it again")
