"""The display time of every frame of a file, and where decoding towards it can begin.

Each file is indexed once: all of its packets are read, and nothing is decoded but its first frame
and its second keyframe. Frames are then found by their exact time, so that a decoder that returns
another frame than the one asked for is caught instead of believed.
"""

import os
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

from probe_datasets.containers import CONVERT, FETCH_AGAIN, PASS_VIDEO, container_of, video_error
from probe_datasets.frame_times import FrameIndex, VideoInfo, mean_rate, shortest

__all__ = [
    "INSTALL",
    "FrameIndex",
    "VideoInfo",
    "ffmpeg_error",
    "frame_index",
    "opened",
    "rgb_converter",
]

INSTALL = "pip install 'probe-datasets[video]'"
_DEMUXERS = {"mp4": "mp4", "mov": "mov", "webm": "matroska", "mkv": "matroska"}
# Pixel formats whose conversion to RGB was compared frame by frame and is the same to the bit in
# torchcodec 0.13 (with FFmpeg 5.1 and 8) and PyAV 18. That of 10-bit 4:2:0, for one, is not.
_SAME_RGB = {"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "gbrp"}
_CUT_INSIDE = "is cut short or damaged within its frames"


def frame_index(path: str | os.PathLike[str]) -> FrameIndex:
    """Index of a file; from memory while the file's size and time of change stay the same.

    Args:
        path: the file.

    Raises:
        VideoError: no video, incomplete, or its frames cannot be told apart.
        ImportError: PyAV is not installed.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        container_of(path)  # raises, and says why
        raise
    # Absolute, because FFmpeg takes a relative name that holds a colon for a URL.
    return _build(os.path.abspath(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1024)  # some 2 kB a file, and 8 bytes a frame where they are uneven
def _build(path: str, size: int, _changed: int) -> FrameIndex:
    container = container_of(path)
    times: list[int] = []
    entries: list[tuple[int, int]] = []
    first = second_key = None
    with opened(path, container) as (source, stream):
        decoder = stream.codec_context
        for packet in source.demux(stream):
            if packet.pts is None and packet.size == 0:  # PyAV's mark of the end
                first = first or next(iter(packet.decode()), None)
                break
            if packet.is_corrupt:
                raise video_error(path, _CUT_INSIDE, "the whole file", FETCH_AGAIN)
            if packet.pts is None:
                problem = "has a frame without a display time"
                raise video_error(path, problem, "a time for each frame", CONVERT)
            if packet.is_keyframe:
                second_key = second_key or (packet if entries else None)
                seek_to = packet.pts if packet.dts is None else min(packet.pts, packet.dts)
                entries.append((packet.pts, seek_to))
            if first is None and len(entries) == 1:
                first = next(iter(_alone(decoder, packet)), None)  # not behind those to come
            if first is None:
                first = next(iter(packet.decode()), None)
            if not packet.is_discard:
                times.append(packet.pts)
        indexed = stream.index_entries if container in ("mp4", "mov") else ()
        if any(entry.pos + entry.size > size for entry in indexed):
            raise video_error(path, _CUT_INSIDE, "the whole file", FETCH_AGAIN)
        if first is None or not times:
            raise video_error(path, "has no frame that decodes", "at least one frame", FETCH_AGAIN)
        if len(set(times)) != len(times):
            raise video_error(path, "shows two frames at once", "a time for each frame", CONVERT)
        # With periodic intra refresh the "keyframes" are none: decoding from one gives a smear.
        if second_key is not None:
            alone = _alone(decoder, second_key)
            clean = bool(alone) and alone[0].pict_type == 1  # an I picture
        else:
            clean = True
        codec, stream_index, time_base = (
            decoder.codec.canonical_name,
            stream.index,
            stream.time_base,
        )
    times.sort()
    turns = _quarter_turns(path, first)
    pyav_only = "" if clean else "has keyframes at which decoding cannot begin (intra refresh)"
    if first.format.name not in _SAME_RGB:
        pyav_only = f"has pixel format {first.format.name}, which torchcodec converts otherwise"
    return FrameIndex(
        info=VideoInfo(
            path=Path(path),
            container=container,
            codec=codec,
            num_frames=len(times),
            fps=mean_rate(times, time_base),
            height=first.width if turns % 2 else first.height,
            width=first.height if turns % 2 else first.width,
        ),
        num_bytes=size,
        stream=stream_index,
        time_base=time_base,
        times=shortest(times),
        entries=tuple(sorted(entries)) if clean else (),
        quarter_turns=turns,
        pyav_only=pyav_only,
    )


def _alone(decoder: Any, packet: Any) -> list[Any]:
    """The frames that a packet gives by itself."""
    decoder.flush_buffers()
    frames = [*decoder.decode(packet), *decoder.decode(None)]
    decoder.flush_buffers()
    return frames


def _quarter_turns(path: str, frame: Any) -> int:
    """Counter-clockwise quarter turns that the display matrix of a frame asks for."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return 0
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix))
    turns = {(1, 0, 0, 1): 0, (0, -1, 1, 0): 1, (-1, 0, 0, -1): 2, (0, 1, -1, 0): 3}
    signs = tuple((x > 0) - (x < 0) for x in (a, b, c, d))
    if signs not in turns:
        problem = "is to be shown mirrored or at an odd angle (display matrix)"
        raise video_error(path, problem, "a rotation of 0, 90, 180 or 270 degrees", CONVERT)
    return turns[signs]


# -------------------------------------------------------------------------------------- PyAV


@contextmanager
def opened(
    path: str, container: str, stream: int | None = None, *, strict: bool = False
) -> Iterator[tuple[Any, Any]]:
    """A file opened with PyAV, with its video stream, silently and on one thread.

    Args:
        path: absolute path of the file.
        container: what `container_of` returned, so that no other format is tried.
        stream: number of the stream; by default the one that FFmpeg thinks best.
        strict: make the HEVC decoder fail on damage, which it hides otherwise; others mark it.

    Raises:
        VideoError: it cannot be opened or decoding fails within the block.
    """
    av = _pyav()
    with _silent(av):
        try:
            with av.open(path, format=_DEMUXERS[container], metadata_errors="replace") as source:
                video = _video_stream(path, source) if stream is None else source.streams[stream]
                video.codec_context.thread_count = 1
                video.codec_context.thread_type = "NONE"
                if strict and video.codec_context.name == "hevc":
                    video.codec_context.options = {"err_detect": "explode"}
                yield source, video
        except av.error.FFmpegError as error:
            problem = f"cannot be decoded ({error.strerror or error})"
            raise video_error(path, problem, "an undamaged file", FETCH_AGAIN) from error


def _video_stream(path: str, source: Any) -> Any:
    best = source.streams.best("video")
    cover = _pyav().stream.Disposition.attached_pic  # the picture that comes with a song
    moving = [s for s in source.streams.video if not s.disposition & cover]
    if best not in moving:
        best = moving[0] if moving else None
    if best is None:
        what = "audio" if source.streams.audio else "other data"
        problem = f"holds {what} but no video"
        raise video_error(path, problem, "a video stream", PASS_VIDEO)
    if best.codec_context is None:
        raise video_error(path, "has a codec that FFmpeg does not know", "a known codec", CONVERT)
    return best


def rgb_converter() -> Callable[[Any], Any]:
    """Function that converts a frame to packed RGB; one for all frames of a read.

    It keeps what FFmpeg prepares for a conversion, which takes as long as several frames, and
    converts on this thread: starting others takes longer still.
    """
    _pyav()
    from av.video.reformatter import VideoReformatter

    return partial(VideoReformatter().reformat, format="rgb24", threads=1)


def ffmpeg_error() -> type[Exception]:
    """What PyAV raises when FFmpeg fails."""
    return _pyav().error.FFmpegError


def _pyav() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise ImportError(f"reading videos needs PyAV; install it: {INSTALL}") from error
    return av


_silence = threading.Lock()
_silent_blocks = 0
_level_before: int | None = None


@contextmanager
def _silent(av: ModuleType) -> Iterator[None]:
    """Keep FFmpeg's own messages off stderr, in all threads, until the last such block ends."""
    global _silent_blocks, _level_before
    with _silence:
        if _silent_blocks == 0:
            _level_before = av.logging.get_level()
            av.logging.set_level(None)
        _silent_blocks += 1
    try:
        yield
    finally:
        with _silence:
            _silent_blocks -= 1
            if _silent_blocks == 0:
                av.logging.set_level(_level_before)
