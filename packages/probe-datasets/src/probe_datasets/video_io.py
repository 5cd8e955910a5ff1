"""Counting, checking and reading the frames of a video file.

Axes: `T` frames in the order asked for; `3` red, green, blue; `H W` pixels, turned upright when the
file says that the camera was rotated. Bytes 0 to 255. Pixels are taken as stored: neither
deinterlaced nor stretched where they are not square.

A frame's index is its rank in display order among the frames that the file presents.
"""

import logging
import operator
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import UInt8
from torch import Tensor

from probe_datasets.containers import CONVERT, FETCH_AGAIN, VideoError, video_error
from probe_datasets.frame_index import (
    INSTALL,
    FrameIndex,
    VideoInfo,
    ffmpeg_error,
    frame_index,
    opened,
)

__all__ = ["BACKENDS", "VideoError", "VideoInfo", "read_frames", "scan_video"]

BACKENDS = ("auto", "torchcodec", "pyav")
_WORTH_SEEKING = 16  # frames; decoding fewer than these costs no more than a seek

_log = logging.getLogger(__name__)


def scan_video(path: str | os.PathLike[str], *, verify: bool = True) -> VideoInfo:
    """Count the frames of a video, and refuse a file from which they cannot all be read.

    Args:
        path: an mp4, mov, webm or mkv file.
        verify: also decode every frame once, on one thread, which finds damage inside the frames
            as far as the codec shows it: H.264 and HEVC mostly do; VP9 and AV1 carry no checks and
            often decode to a wrong picture. Without it the container is walked and the packets are
            counted, which is far quicker and blind to damage that leaves all sizes right.

    Returns:
        What the file holds; `read_frames` takes indices from 0 to `num_frames - 1`.

    Raises:
        VideoError: the file is no video, is incomplete or has corrupt frames.
        ImportError: PyAV is not installed.
    """
    index = frame_index(path)
    if verify:
        _verify(index)
    return index.info


def read_frames(
    path: str | os.PathLike[str], indices: Sequence[int], *, backend: str = "auto"
) -> UInt8[Tensor, "T 3 H W"]:
    """Decode some frames of a video: the same bytes from every backend.

    Args:
        path: an mp4, mov, webm or mkv file.
        indices: which frames, from 0, in any order; repeats are allowed.
        backend: "torchcodec" or "pyav", each of which raises where it cannot do it; or "auto",
            which is torchcodec where that can be imported and else PyAV, decided and logged once.
            Under "auto" PyAV also reads the few files that torchcodec would get wrong.

    Returns:
        The frames in the order of `indices`, bytes 0 to 255.

    Raises:
        VideoError: the file is no video or incomplete, an index is out of range, the frames cannot
            be decoded, or the backend named would get the file wrong. Damage inside frames is for
            `scan_video` to find: PyAV refuses a frame that it knows is corrupt, torchcodec cannot.
        ValueError: unknown backend, or no indices.
        ImportError: the backend is not installed.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} must be one of {', '.join(BACKENDS)}")
    wanted = [operator.index(i) for i in indices]
    if not wanted:
        raise ValueError("indices is empty; ask for at least one frame")
    index = frame_index(path)
    count = index.info.num_frames
    for i in wanted:
        if not 0 <= i < count:
            problem = f"frame index {i} is out of range for a video of {count} frames"
            fix = "choose indices with clip_indices(num_available, ...)"
            raise video_error(path, problem, f"indices from 0 to {count - 1}", fix)
    if (_auto_backend() if backend == "auto" else backend) == "pyav":
        return _read_pyav(index, wanted)
    try:
        return _read_torchcodec(index, wanted)
    except _WrongFrames as error:
        if backend == "torchcodec":
            expected = "a file on which both backends agree"
            raise video_error(path, str(error), expected, "use backend='auto'") from error
        _log.debug("%s: reading with PyAV, since it %s", path, error)
        return _read_pyav(index, wanted)


@cache
def _auto_backend() -> str:
    """The backend that "auto" stands for in this process."""
    try:
        _torchcodec_decoder()
    except ImportError as error:
        _log.info("video backend: pyav (%s)", error)
        return "pyav"
    _log.info("video backend: torchcodec")
    return "torchcodec"


# --------------------------------------------------------------------------------- torchcodec


class _WrongFrames(Exception):
    """torchcodec does not give the frames that were asked for; says why as a verb phrase."""


def _torchcodec_decoder() -> Any:
    try:
        from torchcodec.decoders import VideoDecoder
    except ImportError as error:
        raise ImportError(f"torchcodec is not installed: {INSTALL}") from error
    except (RuntimeError, OSError) as error:  # what its import raises without FFmpeg's libraries
        raise ImportError(
            "torchcodec finds no FFmpeg 4 to 8 libraries or was built for another torch; install "
            "them (apt-get install ffmpeg) or use backend='pyav'"
        ) from error
    return VideoDecoder


def _read_torchcodec(index: FrameIndex, wanted: list[int]) -> UInt8[Tensor, "T 3 H W"]:
    decoder_class = _torchcodec_decoder()
    if index.pyav_only:
        raise _WrongFrames(index.pyav_only)
    try:
        decoder = decoder_class(
            str(index.info.path),
            stream_index=index.stream,
            dimension_order="NCHW",
            num_ffmpeg_threads=1,
            device="cpu",
            seek_mode="exact",
        )
        batch = decoder.get_frames_at(wanted)
    except (RuntimeError, IndexError, KeyError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise _WrongFrames(f"makes torchcodec fail ({reason})") from error
    # On open groups of pictures behind an edit list torchcodec 0.13 answers with later frames.
    times = [round(s / index.time_base) for s in batch.pts_seconds.tolist()]
    if times != [index.times[i] for i in wanted]:
        raise _WrongFrames("makes torchcodec return other frames than those asked for")
    if batch.data.shape[-2:] != (index.info.height, index.info.width):
        raise _WrongFrames("makes torchcodec return frames of another size")
    return batch.data.contiguous()


# --------------------------------------------------------------------------------------- PyAV


def _read_pyav(index: FrameIndex, wanted: list[int]) -> UInt8[Tensor, "T 3 H W"]:
    ranks = sorted(set(wanted))
    try:
        found = _decode(index, ranks, seek=True)
    except VideoError:
        found = _decode(index, ranks, seek=False)  # a keyframe that is none; or says what is wrong
    pixels = torch.from_numpy(np.stack([found[i] for i in wanted]))
    return rearrange(pixels, "T H W c -> T c H W").contiguous()


def _decode(index: FrameIndex, ranks: list[int], *, seek: bool) -> dict[int, np.ndarray]:
    """RGB of some frames by rank; `ranks` ascend."""
    found = {}
    path = index.info.path
    with opened(str(path), index.info.container, index.stream) as (source, stream):
        frames, position = _frames(source, stream), 0
        for rank in ranks:
            time = index.times[rank]
            entry = bisect_right(index.entries, time, key=operator.itemgetter(0)) - 1
            if seek and entry >= 0:
                entry_time, seek_time = index.entries[entry]
                if bisect_left(index.times, entry_time) - position > _WORTH_SEEKING:
                    source.seek(seek_time, stream=stream)
                    frames = _frames(source, stream, entry_time)
            frame = next((f for f in frames if f.pts is not None and f.pts >= time), None)
            if frame is None or frame.pts != time:
                problem = f"frame {rank} of {index.info.num_frames} cannot be decoded"
                raise video_error(path, problem, "an undamaged file", FETCH_AGAIN)
            if frame.is_corrupt:
                problem = f"frame {rank} of {index.info.num_frames} is corrupt"
                raise video_error(path, problem, "an undamaged file", FETCH_AGAIN)
            found[rank] = _rgb(index, frame)
            position = rank + 1
    return found


def _frames(source: Any, stream: Any, entry_time: int | None = None) -> Iterator[Any]:
    """Decoded frames from here on; none when a seek went past the keyframe it was to reach."""
    for packet in source.demux(stream):
        if entry_time is not None:
            if not packet.is_keyframe or packet.pts is None or packet.pts > entry_time:
                return
            entry_time = None
        yield from packet.decode()


def _rgb(index: FrameIndex, frame: Any) -> np.ndarray:
    """Upright RGB of a frame, (H, W, 3) bytes."""
    if _upright_size(index, frame) != (index.info.height, index.info.width):
        raise _size_changes(index)
    if frame.interlaced_frame and not index.pyav_only:
        # PyAV would interpolate the colours of each field by itself, which torchcodec does not.
        progressive = type(frame).from_ndarray(frame.to_ndarray(), format=frame.format.name)
        progressive.colorspace, progressive.color_range = frame.colorspace, frame.color_range
        frame = progressive
    return np.rot90(frame.to_ndarray(format="rgb24"), index.quarter_turns)


def _upright_size(index: FrameIndex, frame: Any) -> tuple[int, int]:
    size = (frame.height, frame.width)
    return size[::-1] if index.quarter_turns % 2 else size


def _size_changes(index: FrameIndex) -> VideoError:
    problem = f"changes its frame size from {index.info.height} x {index.info.width} on the way"
    return video_error(index.info.path, problem, "frames of one size", CONVERT)


def _verify(index: FrameIndex) -> None:
    """Decode every frame once; raise unless they are those of the index and are sound."""
    path, count = index.info.path, index.info.num_frames
    corrupt: list[int] = []
    rank = 0
    opening = opened(str(path), index.info.container, index.stream, strict=True)
    with opening as (source, stream):
        for packet in source.demux(stream):
            try:
                frames = packet.decode()
            except ffmpeg_error() as error:
                if packet.is_discard:  # only there to decode later ones, and may lack a reference
                    continue
                problem = f"decodes only up to frame {rank} of {count}"
                raise video_error(path, problem, "an undamaged file", FETCH_AGAIN) from error
            for frame in frames:
                if rank == count or frame.pts != index.times[rank]:
                    problem = f"decodes to other frames than its {count} packets, from {rank} on"
                    raise video_error(path, problem, "one frame per packet", CONVERT)
                if _upright_size(index, frame) != (index.info.height, index.info.width):
                    raise _size_changes(index)
                if frame.is_corrupt:
                    corrupt.append(rank)
                rank += 1
    if rank < count:
        problem = f"gives only {rank} of its {count} frames"
        raise video_error(path, problem, "an undamaged file", FETCH_AGAIN)
    if corrupt:
        problem = f"has {len(corrupt)} corrupt frames of {count}, the first is frame {corrupt[0]}"
        raise video_error(path, problem, "an undamaged file", FETCH_AGAIN)
