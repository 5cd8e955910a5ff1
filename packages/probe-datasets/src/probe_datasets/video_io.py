"""Counting, checking and reading the frames of a video file.

Axes: `T` frames in the order asked for; `3` red, green, blue; `H W` pixels, turned upright when the
file says that the camera was rotated. Bytes 0 to 255. Pixels are taken as stored: neither
deinterlaced nor stretched where they are not square.

A frame's index is its rank in display order among the frames that the file presents.
"""

import logging
import operator
import os
from collections.abc import Sequence
from functools import cache

from jaxtyping import UInt8
from torch import Tensor

from probe_datasets.containers import CONVERT, FETCH_AGAIN, VideoError, file_size, video_error
from probe_datasets.frame_decoding import (
    MARKS_UNREFERRED,
    WrongFrames,
    read_pyav,
    read_torchcodec,
    size_changes,
    torchcodec_decoder,
    upright_size,
)
from probe_datasets.frame_index import ffmpeg_error, frame_index, opened, rgb_converter
from probe_datasets.frame_times import FrameIndex, VideoInfo

__all__ = ["BACKENDS", "VideoError", "VideoInfo", "read_frames", "scan_video"]

BACKENDS = ("auto", "torchcodec", "pyav")
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
    path: str | os.PathLike[str],
    indices: Sequence[int],
    *,
    backend: str = "auto",
    index: FrameIndex | None = None,
) -> UInt8[Tensor, "T 3 H W"]:
    """Decode some frames of a video: the same bytes from every backend.

    Args:
        path: an mp4, mov, webm or mkv file.
        indices: which frames, from 0, in any order; repeats are allowed.
        backend: "torchcodec" or "pyav", each of which raises where it cannot do it; or "auto",
            which is the quicker one that can be imported, decided and logged once for each codec:
            for H.264 PyAV, which passes over frames that nothing refers to, and else torchcodec.
            Under "auto" PyAV also reads the few files that torchcodec would get wrong.
        index: the index of this file, from `frame_index` or `FrameIndex.unpack`. Without it the
            file is walked on its first read in this process, which takes longer than a clip.

    Returns:
        The frames in the order of `indices`, bytes 0 to 255. As decoders give them, the three
        colours of a pixel lie side by side in memory (`torch.channels_last`).

    Raises:
        VideoError: the file is no video or incomplete, an index is out of range, the frames cannot
            be decoded, the backend named would get the file wrong, or the file has another size
            than when it was indexed. Damage inside frames is for `scan_video` to find: PyAV
            refuses a frame that it knows is corrupt, torchcodec cannot.
        ValueError: unknown backend, no indices, or the index of another file.
        ImportError: the backend is not installed.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} must be one of {', '.join(BACKENDS)}")
    wanted = [operator.index(i) for i in indices]
    if not wanted:
        raise ValueError("indices is empty; ask for at least one frame")
    if index is None:
        index = frame_index(path)
    else:
        _check_same(path, index)
    count = index.info.num_frames
    for i in wanted:
        if not 0 <= i < count:
            problem = f"frame index {i} is out of range for a video of {count} frames"
            fix = "choose indices with clip_indices(num_available, ...)"
            raise video_error(path, problem, f"indices from 0 to {count - 1}", fix)
    if (_auto_backend(index.info.codec) if backend == "auto" else backend) == "pyav":
        return read_pyav(index, wanted)
    try:
        return read_torchcodec(index, wanted)
    except WrongFrames as error:
        if backend == "torchcodec":
            expected = "a file on which both backends agree"
            raise video_error(path, str(error), expected, "use backend='auto'") from error
        _log.debug("%s: reading with PyAV, since it %s", path, error)
        return read_pyav(index, wanted)


def _check_same(path: str | os.PathLike[str], index: FrameIndex) -> None:
    """Raise unless the index is of the file at this path, as far as its size tells."""
    if os.path.abspath(path) != os.fspath(index.info.path):
        raise ValueError(
            f"index is of {os.fspath(index.info.path)!r} and not of {os.fspath(path)!r}; unpack it "
            "with the path that is read"
        )
    try:
        num_bytes = os.stat(path).st_size
    except OSError:
        num_bytes = file_size(path)
    if num_bytes != index.num_bytes:
        problem = f"has {num_bytes} bytes, but had {index.num_bytes} when it was indexed"
        raise video_error(path, problem, "the file unchanged", "build the dataset's index again")


@cache
def _auto_backend(codec: str) -> str:
    """The backend that "auto" stands for in this process, for files of a codec."""
    order = {"torchcodec": torchcodec_decoder, "pyav": rgb_converter}
    if codec in MARKS_UNREFERRED:
        order = {name: order[name] for name in ("pyav", "torchcodec")}
    reasons = []
    for name, load in order.items():
        try:
            load()
        except ImportError as error:
            reasons.append(str(error))
            continue
        _log.info("video backend for %s: %s", codec, " ".join([name, *(f"({r})" for r in reasons)]))
        return name
    raise ImportError("; ".join(reasons))


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
                if upright_size(index, frame) != (index.info.height, index.info.width):
                    raise size_changes(index)
                if frame.is_corrupt:
                    corrupt.append(rank)
                rank += 1
    if rank < count:
        problem = f"gives only {rank} of its {count} frames"
        raise video_error(path, problem, "an undamaged file", FETCH_AGAIN)
    if corrupt:
        problem = f"has {len(corrupt)} corrupt frames of {count}, the first is frame {corrupt[0]}"
        raise video_error(path, problem, "an undamaged file", FETCH_AGAIN)
