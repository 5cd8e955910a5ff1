"""What is known of a video's frames once its packets were read, and its form in a few bytes.

A dataset keeps those bytes for each of its videos, so that the files are walked once and not again
in every process that reads them.
"""

import os
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

from probe_datasets.containers import VIDEO_CONTAINERS, VideoError, video_error

__all__ = ["FrameIndex", "VideoInfo", "mean_rate", "shortest"]

# version, CRC-32 of what follows (4 bytes), 0 or 1 = deflated, numbers and texts
_VERSION = 1
_HEAD_BYTES = 6
_MAX_BYTES = 1 << 26  # beyond any video: two bytes for each frame of six days
_MAX_VARINT = 10  # bytes that spell 64 bits


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoInfo:
    """What a video file holds."""

    path: Path
    """The file, absolute."""
    container: str
    """mp4, mov, webm or mkv, judged by content."""
    codec: str
    """Name of the codec as FFmpeg spells it, such as h264 or vp9."""
    num_frames: int
    """Frames that the file presents, counted."""
    fps: float
    """Mean frames per second between the first and the last frame; 0 when there is only one."""
    height: int
    """Rows of a frame in pixels, upright."""
    width: int
    """Columns of a frame in pixels, upright."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameIndex:
    """What it takes to find a frame of one file."""

    info: VideoInfo
    num_bytes: int
    """Size of the file that was indexed."""
    stream: int
    """Number of the video stream in the file."""
    time_base: Fraction
    """Seconds in a unit of time."""
    times: Sequence[int]
    """Display time of each frame, ascending: a range where they are evenly spaced."""
    entries: tuple[tuple[int, int], ...]
    """(display time, a time to seek to that is never too late) of the frames where decoding can
    begin, ascending."""
    quarter_turns: int
    """Counter-clockwise quarter turns that make a decoded frame upright."""
    pyav_only: str
    """Why torchcodec gives other pixels than PyAV, as a verb phrase; empty when it does not."""

    def pack(self) -> bytes:
        """All of it but the path, in some 60 bytes where the frames are evenly spaced."""
        info, body = self.info, bytearray()
        for text in (info.codec, self.pyav_only):
            _put_text(body, text)
        for number in (
            VIDEO_CONTAINERS.index(info.container),
            *(info.height, info.width, self.num_bytes, self.stream, self.quarter_turns),
            *self.time_base.as_integer_ratio(),
            *(len(self.times), len(self.entries)),
        ):
            _put(body, number)
        step = self.times.step if isinstance(self.times, range) else 0
        _put(body, step)
        _put_signed(body, self.times[0])
        if not step:
            for one, other in pairwise(self.times):
                _put(body, other - one)
        last = 0
        for time, seek_time in self.entries:
            _put_signed(body, time - last)
            _put_signed(body, time - seek_time)
            last = time
        small = zlib.compress(body, 9)
        checked = b"\1" + small if len(small) < len(body) else b"\0" + bytes(body)
        return bytes([_VERSION]) + zlib.crc32(checked).to_bytes(4) + checked

    @staticmethod
    def unpack(path: str | os.PathLike[str], data: bytes) -> "FrameIndex":
        """The index that `pack` wrote, for the file at a path.

        Nothing is read from the file; `read_frames` refuses the index if the size has changed.

        Args:
            path: where the file lies now.
            data: what `pack` returned.

        Raises:
            VideoError: the bytes are damaged or of another version.
        """
        try:
            return _unpacked(Path(os.path.abspath(path)), data)
        except _Damaged as error:
            raise _bad(path, f"has a frame index that {error}") from error
        except (IndexError, ValueError, ZeroDivisionError, OverflowError) as error:
            raise _bad(path, "has a frame index that is damaged") from error


class _Damaged(Exception):
    """What is wrong with packed bytes, as a verb phrase."""


def _bad(path: str | os.PathLike[str], problem: str) -> VideoError:
    return video_error(
        path, problem, f"an index of version {_VERSION}", "build the dataset's index again"
    )


def _unpacked(path: Path, data: bytes) -> FrameIndex:
    if len(data) <= _HEAD_BYTES:
        raise _Damaged("is too short")
    if data[0] != _VERSION:
        raise _Damaged(f"is of version {data[0]}")
    checked = data[1 + 4 :]
    if zlib.crc32(checked) != int.from_bytes(data[1:5]):
        raise _Damaged("is damaged (its checksum differs)")
    fields = _Fields(_inflated(checked[1:]) if checked[0] else checked[1:])
    codec, pyav_only = fields.text(), fields.text()
    container, height, width, num_bytes, stream, turns = (fields.number() for _ in range(6))
    time_base = Fraction(fields.number(), fields.number())
    num_frames, num_entries, step = (fields.number() for _ in range(3))
    # Every frame and entry has bytes in the file; so a claim cannot make us allocate more.
    if not 1 <= num_frames <= num_bytes or num_entries > num_bytes or turns > 3:
        raise _Damaged("is damaged")
    first = fields.signed()
    if step:
        times: Sequence[int] = range(first, first + num_frames * step, step)
    else:
        times = array("q", [first])
        for _ in range(num_frames - 1):
            times.append(times[-1] + fields.number())
    entries: list[tuple[int, int]] = []
    time = 0
    for _ in range(num_entries):
        time += fields.signed()
        entries.append((time, time - fields.signed()))
    if fields.left():
        raise _Damaged("is damaged (bytes are left over)")
    return FrameIndex(
        info=VideoInfo(
            path=path,
            container=VIDEO_CONTAINERS[container],
            codec=codec,
            num_frames=num_frames,
            fps=mean_rate(times, time_base),
            height=height,
            width=width,
        ),
        num_bytes=num_bytes,
        stream=stream,
        time_base=time_base,
        times=times,
        entries=tuple(entries),
        quarter_turns=turns,
        pyav_only=pyav_only,
    )


def mean_rate(times: Sequence[int], time_base: Fraction) -> float:
    """Mean frames per second between the first frame and the last; 0 when there is only one.

    Args:
        times: display times, ascending.
        time_base: seconds in a unit of time.
    """
    seconds = (times[-1] - times[0]) * time_base
    return float((len(times) - 1) / seconds) if seconds else 0.0


def shortest(times: Sequence[int]) -> Sequence[int]:
    """The same ascending times as a range, where they are evenly spaced, and else as an array.

    Args:
        times: at least one time.
    """
    step = times[1] - times[0] if len(times) > 1 else 1
    even = range(times[0], times[0] + step * len(times), step)
    same = even[-1] == times[-1] and all(a == b for a, b in zip(even, times, strict=True))
    return even if same else array("q", times)


def _put(body: bytearray, number: int) -> None:
    """Append a number from 0 to 2**64 - 1: seven bits a byte, low ones first, high bit: more."""
    assert 0 <= number < 1 << 64
    while number > 127:
        body.append(number & 127 | 128)
        number >>= 7
    body.append(number)


def _put_signed(body: bytearray, number: int) -> None:
    """Append a number of either sign: the sign is the lowest bit."""
    _put(body, 2 * number if number >= 0 else -2 * number - 1)


def _put_text(body: bytearray, text: str) -> None:
    spelled = text.encode()
    _put(body, len(spelled))
    body += spelled


class _Fields:
    """The numbers and texts of packed bytes, in order; IndexError where they end too early."""

    def __init__(self, body: bytes) -> None:
        self.body, self.at = body, 0

    def number(self) -> int:
        value = 0
        for place in range(_MAX_VARINT):
            byte = self.body[self.at]
            self.at += 1
            value |= (byte & 127) << 7 * place
            if byte < 128:
                return value
        raise _Damaged("is damaged (a number does not end)")

    def signed(self) -> int:
        number = self.number()
        return -(number + 1) // 2 if number & 1 else number // 2

    def text(self) -> str:
        length = self.number()
        if length > self.left():
            raise _Damaged("is damaged (a text does not end)")
        self.at += length
        return self.body[self.at - length : self.at].decode()

    def left(self) -> int:
        return len(self.body) - self.at


def _inflated(small: bytes) -> bytes:
    inflater = zlib.decompressobj()
    try:
        body = inflater.decompress(small, _MAX_BYTES)
    except zlib.error as error:
        raise _Damaged("is damaged (it does not inflate)") from error
    if not inflater.eof:
        raise _Damaged("is damaged (it does not inflate)")
    return body
