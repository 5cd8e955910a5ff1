"""Decoding some frames of an indexed video, with torchcodec and with PyAV.

Both are asked for frames by their exact display times and give the same bytes. Axes as in
`video_io`: `T` frames in the order asked for, `3` colours, `H W` pixels; `c` is `3`, last.
"""

import json
import logging
import operator
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Container, Iterator
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import UInt8
from torch import Tensor

from probe_datasets.containers import CONVERT, FETCH_AGAIN, VideoError, video_error
from probe_datasets.frame_index import INSTALL, opened, rgb_converter
from probe_datasets.frame_times import FrameIndex

__all__ = [
    "MARKS_UNREFERRED",
    "WrongFrames",
    "read_pyav",
    "read_torchcodec",
    "size_changes",
    "torchcodec_decoder",
    "upright_size",
]

MARKS_UNREFERRED = frozenset({"h264"})
"""Codecs whose frames say when no other refers to them, and whose decoder passes over such frames
on request. HEVC's marks are no such promise: they speak of one temporal layer."""

_WORTH_SEEKING = 4  # frames; decoding fewer than these costs no more than a seek

_log = logging.getLogger(__name__)


def _segments(index: FrameIndex, ranks: list[int]) -> list[tuple[int, list[int]]]:
    """Ranks of frames, grouped by where a seek is worth its while.

    Args:
        index: what is known of the file.
        ranks: which frames, ascending.

    Returns:
        (number of the entry to seek to, or -1 to begin with the file; the ranks read from there).
    """
    segments: list[tuple[int, list[int]]] = [(-1, [])]
    position = 0
    for rank in ranks:
        time = index.times[rank]
        entry = bisect_right(index.entries, time, key=operator.itemgetter(0)) - 1
        if entry >= 0:
            skipped = bisect_left(index.times, index.entries[entry][0]) - position
            if skipped > _WORTH_SEEKING:
                segments.append((entry, []))
        segments[-1][1].append(rank)
        position = rank + 1
    return segments if segments[0][1] else segments[1:]


# --------------------------------------------------------------------------------- torchcodec


class WrongFrames(Exception):
    """torchcodec does not give the frames that were asked for; says why as a verb phrase."""


def torchcodec_decoder() -> Any:
    """The decoder class of torchcodec.

    Raises:
        ImportError: it is not installed or does not load.
    """
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


def read_torchcodec(index: FrameIndex, wanted: list[int]) -> UInt8[Tensor, "T 3 H W"]:
    """Frames of an indexed file by their ranks, with torchcodec.

    Args:
        index: what is known of the file.
        wanted: ranks of the frames, in any order.

    Raises:
        WrongFrames: torchcodec fails or gives other frames.
        ImportError: it is not installed or does not load.
    """
    if index.pyav_only:
        torchcodec_decoder()
        raise WrongFrames(index.pyav_only)
    try:
        mapping, places = _mapping(index, sorted(set(wanted)))
        options = {"custom_frame_mappings": mapping}
        return _checked_frames(index, wanted, [places[i] for i in wanted], options)
    except WrongFrames as error:
        # Some files, such as live recordings, can be seeked only after all packets were read.
        _log.debug("%s: torchcodec scans it, since reading by index %s", index.info.path, error)
        return _checked_frames(index, wanted, wanted, {"seek_mode": "exact"})


def _checked_frames(
    index: FrameIndex, wanted: list[int], places: list[int], options: dict[str, str]
) -> UInt8[Tensor, "T 3 H W"]:
    """What torchcodec with some options has at some places, if that is the frames wanted."""
    decoder_class = torchcodec_decoder()
    try:
        decoder = decoder_class(
            str(index.info.path),
            stream_index=index.stream,
            dimension_order="NCHW",
            num_ffmpeg_threads=1,
            device="cpu",
            **options,
        )
        batch = decoder.get_frames_at(places)
    except (RuntimeError, IndexError, KeyError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise WrongFrames(f"makes torchcodec fail ({reason})") from error
    # On open groups of pictures behind an edit list torchcodec 0.13 answers with later frames.
    times = [round(s / index.time_base) for s in batch.pts_seconds.tolist()]
    if times != [index.times[i] for i in wanted]:
        raise WrongFrames("makes torchcodec return other frames than those asked for")
    if batch.data.shape[-2:] != (index.info.height, index.info.width):
        raise WrongFrames("makes torchcodec return frames of another size")
    return batch.data.contiguous(memory_format=torch.channels_last)


def _mapping(index: FrameIndex, ranks: list[int]) -> tuple[str, dict[int, int]]:
    """The part of a file's index that torchcodec needs, so that it does not read all packets.

    Args:
        index: what is known of the file.
        ranks: which frames, ascending.

    Returns:
        The mapping as torchcodec reads it, and the position in it of each of those frames.
    """
    # A frame is listed with its neighbours: torchcodec takes frames that follow each other in the
    # list to do so in the file.
    count = len(index.times)
    times = {index.times[i] for r in ranks for i in (r - 1, r, r + 1) if 0 <= i < count}
    keys = set()
    for entry, (first, *_) in _segments(index, ranks) if index.entries else ():
        if entry < 0:
            entry = bisect_right(index.entries, index.times[first], key=operator.itemgetter(0)) - 1
        keys.add(index.entries[max(0, entry)][0])
    listed = sorted(times | keys)
    frames = [{"pts": time, "duration": 1, "key_frame": int(time in keys)} for time in listed]
    return json.dumps({"frames": frames}), {r: bisect_left(listed, index.times[r]) for r in ranks}


# --------------------------------------------------------------------------------------- PyAV


def read_pyav(index: FrameIndex, wanted: list[int]) -> UInt8[Tensor, "T 3 H W"]:
    """Frames of an indexed file by their ranks, with PyAV.

    Args:
        index: what is known of the file.
        wanted: ranks of the frames, in any order.

    Raises:
        VideoError: a frame cannot be decoded, is corrupt or has another size.
        ImportError: PyAV is not installed.
    """
    pixels = np.empty((len(wanted), index.info.height, index.info.width, 3), np.uint8)
    # In a hurry; then in case a seek overshot; then all frames from the first, which says at the
    # latest what is wrong.
    try:
        _decode(index, wanted, pixels, seek=True, hurry=True)
    except VideoError:
        try:
            _decode(index, wanted, pixels, seek=True, hurry=False)
        except VideoError:
            _decode(index, wanted, pixels, seek=False, hurry=False)
    return rearrange(torch.from_numpy(pixels), "T H W c -> T c H W")


def _decode(
    index: FrameIndex, wanted: list[int], pixels: np.ndarray, *, seek: bool, hurry: bool
) -> None:
    """Decode some frames.

    Args:
        index: what is known of the file.
        wanted: ranks of the frames.
        pixels: where to put them, in the order of `wanted`: (T, H, W, 3).
        seek: go to the nearest entry; otherwise all is decoded from the first frame on.
        hurry: seek by display time, and pass over frames that no other one refers to.
    """
    path, convert = index.info.path, rgb_converter()
    places: dict[int, list[int]] = {}
    for place, rank in enumerate(wanted):
        places.setdefault(index.times[rank], []).append(place)
    ranks = sorted(set(wanted))
    needed = places if hurry and index.info.codec in MARKS_UNREFERRED else None
    with opened(str(path), index.info.container, index.stream) as (source, stream):
        for entry, members in _segments(index, ranks) if seek else [(-1, ranks)]:
            entry_time = None
            if entry >= 0:
                entry_time, early_time = index.entries[entry]
                source.seek(entry_time if hurry else early_time, stream=stream)
            left = {index.times[rank] for rank in members}
            last = index.times[members[-1]]
            for frame in _frames(source, stream, entry_time, needed):
                if frame.pts not in left:
                    if hurry and frame.pts is not None and frame.pts > last:
                        break
                    continue
                rank = wanted[places[frame.pts][0]]
                if frame.is_corrupt:
                    problem = f"frame {rank} of {index.info.num_frames} is corrupt"
                    raise video_error(path, problem, "an undamaged file", FETCH_AGAIN)
                pixels[places[frame.pts]] = _rgb(index, frame, convert)
                left.remove(frame.pts)
                if not left:
                    break
            if left:
                rank = min(wanted[places[time][0]] for time in left)
                problem = f"frame {rank} of {index.info.num_frames} cannot be decoded"
                raise video_error(path, problem, "an undamaged file", FETCH_AGAIN)


def _frames(
    source: Any, stream: Any, entry_time: int | None, needed: Container[int] | None
) -> Iterator[Any]:
    """Decoded frames from here on; none when a seek went past the keyframe it was to reach.

    Args:
        source: the file, opened.
        stream: its video stream.
        entry_time: display time of that keyframe; None when there was no seek.
        needed: display times of the frames that are wanted, so that of the others only those are
            decoded that some frame refers to; None to decode all.
    """
    decoder, skips = stream.codec_context, False
    for packet in source.demux(stream):
        if entry_time is not None:
            if not packet.is_keyframe or packet.pts is None or packet.pts > entry_time:
                return
            entry_time = None
        if needed is not None and skips == (packet.pts in needed):
            skips = not skips
            decoder.skip_frame = "NONREF" if skips else "DEFAULT"
        yield from packet.decode()


def _rgb(index: FrameIndex, frame: Any, convert: Callable[[Any], Any]) -> np.ndarray:
    """Upright RGB of a frame, (H, W, 3) bytes."""
    if upright_size(index, frame) != (index.info.height, index.info.width):
        raise size_changes(index)
    if frame.interlaced_frame and not index.pyav_only:
        # PyAV would interpolate the colours of each field by itself, which torchcodec does not.
        progressive = type(frame).from_ndarray(frame.to_ndarray(), format=frame.format.name)
        progressive.colorspace, progressive.color_range = frame.colorspace, frame.color_range
        frame = progressive
    return np.rot90(convert(frame).to_ndarray(), index.quarter_turns)


def upright_size(index: FrameIndex, frame: Any) -> tuple[int, int]:
    """Rows and columns of a decoded frame once it is turned upright.

    Args:
        index: what is known of the file.
        frame: the frame as PyAV gives it.
    """
    size = (frame.height, frame.width)
    return size[::-1] if index.quarter_turns % 2 else size


def size_changes(index: FrameIndex) -> VideoError:
    """The error of a file whose frames have several sizes.

    Args:
        index: what is known of the file.
    """
    problem = f"changes its frame size from {index.info.height} x {index.info.width} on the way"
    return video_error(index.info.path, problem, "frames of one size", CONVERT)
