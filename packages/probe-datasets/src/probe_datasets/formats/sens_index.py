"""Where the frames of a ScanNet recording are in its file, and that in a few bytes a frame.

A dataset keeps those bytes for each recording, so that the file is walked once and not again in
every process that reads from it. Axes: `N` frames.
"""

import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64
from numpy import ndarray

from probe_datasets.formats.files import data_error

__all__ = ["FRAME_HEADER_BYTES", "SensIndex"]

FRAME_HEADER_BYTES = 96
"""Bytes between the start of a frame and its colour picture."""

_VERSION = 1
# version, CRC-32 of what follows, frames, motion records, first byte of frame 0, compression of
# colour and depth, their sizes, depth units in a metre, intrinsics of colour and depth, bytes of
# the recorder's name; then the name, the pictures' lengths and the poses' validity
_HEAD = struct.Struct("<BIQQQ2b4If8dH")
_CHECKED = 5


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SensIndex:
    """What it takes to find a frame of one recording."""

    path: Path
    """The file."""
    sensor_name: str
    """What the recorder was called."""
    color_compression: int
    """0 raw, 1 PNG, 2 JPEG; -1 where the recorder did not say."""
    depth_compression: int
    """0 raw, 1 zlib."""
    color_size: tuple[int, int]
    """(height, width) of a colour picture."""
    depth_size: tuple[int, int]
    """(height, width) of a depth picture."""
    depth_shift: float
    """Depth units in a metre."""
    intrinsics_color: tuple[float, float, float, float]
    """(fx, fy, cx, cy) of colour, in widths and heights of its picture."""
    intrinsics_depth: tuple[float, float, float, float]
    """(fx, fy, cx, cy) of depth, in widths and heights of its picture."""
    num_imu: int
    """Records of the motion sensor at the end of the file, which are not read."""
    offsets: Int64[ndarray, " N"]
    """Byte at which each frame begins."""
    color_bytes: Int64[ndarray, " N"]
    """Length of each colour picture."""
    depth_bytes: Int64[ndarray, " N"]
    """Length of each depth picture."""
    pose_valid: Bool[ndarray, " N"]
    """False where tracking was lost."""

    @property
    def num_frames(self) -> int:
        """Frames in the recording."""
        return len(self.offsets)

    def pack(self) -> bytes:
        """All of it but the path, in eight bytes and a bit for each frame.

        Frames follow each other without gaps, so that their lengths say where they begin.
        """
        name = self.sensor_name.encode()
        body = _HEAD.pack(
            *(_VERSION, 0, self.num_frames, self.num_imu, int(self.offsets[0])),
            *(self.color_compression, self.depth_compression),
            *(*self.color_size, *self.depth_size, self.depth_shift),
            *(*self.intrinsics_color, *self.intrinsics_depth, len(name)),
        )
        lengths = np.stack([self.color_bytes, self.depth_bytes]).astype("<u4").tobytes()
        body += name + lengths + np.packbits(self.pose_valid).tobytes()
        return body[:1] + zlib.crc32(body[_CHECKED:]).to_bytes(4, "little") + body[_CHECKED:]

    @staticmethod
    def unpack(path: str | os.PathLike[str], data: bytes) -> "SensIndex":
        """The index that `pack` wrote, for the recording at a path, which is not read.

        Args:
            path: where the recording lies now.
            data: what `pack` returned.

        Raises:
            DataError: the bytes are damaged or of another version.
        """
        if not (
            len(data) >= _HEAD.size
            and data[0] == _VERSION
            and zlib.crc32(data[_CHECKED:]) == int.from_bytes(data[1:_CHECKED], "little")
        ):
            problem = "has an index of frames that is damaged or of another version"
            raise data_error(path, problem, f"version {_VERSION}", "delete the cached index")
        _, _, count, num_imu, first, color, depth, *rest = _HEAD.unpack_from(data)
        name_end = _HEAD.size + rest[-1]
        lengths_end = name_end + 8 * count
        packed = np.frombuffer(data[name_end:lengths_end], "<u4").astype(np.int64)
        color_bytes, depth_bytes = packed[:count], packed[count:]
        ends = first + np.cumsum(FRAME_HEADER_BYTES + color_bytes + depth_bytes)
        bits = np.unpackbits(np.frombuffer(data[lengths_end:], np.uint8), count=count)
        return SensIndex(
            path=Path(path),
            sensor_name=data[_HEAD.size : name_end].decode(),
            color_compression=color,
            depth_compression=depth,
            color_size=(rest[0], rest[1]),
            depth_size=(rest[2], rest[3]),
            depth_shift=rest[4],
            intrinsics_color=(rest[5], rest[6], rest[7], rest[8]),
            intrinsics_depth=(rest[9], rest[10], rest[11], rest[12]),
            num_imu=num_imu,
            offsets=np.concatenate([[first], ends[:-1]]),
            color_bytes=color_bytes,
            depth_bytes=depth_bytes,
            pose_valid=bits.astype(bool),
        )
