"""TAP-Vid's pickles as NumPy archives, converted once and without running the pickles.

Axes: `p` points (tracks), `T` frames, `H W` pixels, `3` red, green, blue, bytes 0 to 255; points
are `xy` in [0, 1]. One archive a video, `<video>.npz`, with `video` (T H W 3), `points` (p T 2) and
`occluded` (p T).

An archive has checksums, which are compared. A pickle has none: damage to its numbers is found only
where it makes impossible ones, so make sure that it is whole before converting it.

Reference:
    Doersch et al., TAP-Vid, 2022; google-deepmind/tapnet, tapvid/README (the pickles' content).
"""

import mmap
import os
import struct
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from numpy import ndarray

from probe_datasets.formats.files import FETCH_AGAIN, DataError, data_error, file_size
from probe_datasets.formats.plain_pickle import load_plain
from probe_datasets.formats.still_images import decode_rgb

__all__ = ["PointVideo", "convert_pickle", "frames_offset", "read_point_frames", "read_point_video"]

_WHAT = "a TAP-Vid pickle: videos with video, points and occluded"
_NAMES = ("video", "points", "occluded")
_LARGEST_POINT = 2.0
_LOCAL_HEADER = struct.Struct("<26xHH")  # lengths of the name and of the extra field


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PointVideo:
    """One video with its tracks."""

    video: UInt8[ndarray, "T H W 3"]
    """Bytes 0 to 255."""
    points: Float32[ndarray, "p T 2"]
    """xy in [0, 1]; anything where not visible."""
    visible: Bool[ndarray, "p T"]
    """False where occluded."""


def convert_pickle(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write every video of a TAP-Vid pickle as an archive of its own.

    The pickle is mapped, not loaded, so memory is that of one video.

    Args:
        path: the pickle, such as `tapvid_davis.pkl`: a dictionary or a list of videos.
        folder: where the archives go; it is made if it is not there.
        progress: called with (videos written, videos in all).

    Returns:
        The archives, in the order of the pickle.

    Raises:
        DataError: not such a pickle, anything in it that is not plain data, or an archive that is
            there already.
    """
    file_size(path, _WHAT)
    with open(path, "rb") as file:
        # Never closed by hand: it lives as long as the last array that is a view of it.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return _convert(memoryview(mapped), path, Path(folder), progress)


def _convert(
    whole: memoryview,
    path: str | os.PathLike[str],
    folder: Path,
    progress: Callable[[int, int], None] | None,
) -> list[Path]:
    content = load_plain(whole, path)
    if isinstance(content, list):
        content = {f"video_{i:05d}": entry for i, entry in enumerate(content)}
    if not isinstance(content, dict) or not content:
        raise data_error(path, f"holds a {type(content).__name__}", _WHAT, FETCH_AGAIN)
    for name in content:
        if (
            not isinstance(name, str)
            or not name
            or name[0] == "."
            or any(c in name for c in "/\\\0")
        ):
            problem = f"names a video {str(name)[:60]!r}"
            raise data_error(path, problem, "plain file names", FETCH_AGAIN)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, entry in content.items():
        target = folder / f"{name}.npz"
        if target.exists():
            problem = "is there already"
            raise data_error(target, problem, "a new archive", "remove it or choose a new folder")
        arrays = _checked(entry, name, path)
        # Under another name until it is whole, so that a stop leaves no half archive.
        handle, part = tempfile.mkstemp(dir=folder, prefix=".", suffix=".part")
        try:
            with open(handle, "wb") as sink:
                np.savez(
                    sink,
                    video=arrays["video"],
                    points=arrays["points"],
                    occluded=arrays["occluded"],
                )
            os.replace(part, target)
        except BaseException:
            os.unlink(part)
            raise
        written.append(target)
        if progress is not None:
            progress(len(written), len(content))
    return written


def _checked(entry: Any, name: str, path: str | os.PathLike[str]) -> dict[str, ndarray]:
    """The three arrays of a video, of the right kinds and of one length."""
    if not isinstance(entry, dict) or not set(_NAMES) <= entry.keys():
        raise data_error(path, f"has no {', '.join(_NAMES)} in {name[:60]!r}", _WHAT, FETCH_AGAIN)
    video, points, occluded = (entry[key] for key in _NAMES)
    if isinstance(video, list):  # encoded pictures
        if not video or not all(isinstance(frame, memoryview) for frame in video):
            raise data_error(path, f"has no frames in {name[:60]!r}", _WHAT, FETCH_AGAIN)
        frames = [decode_rgb(bytes(video[0]), path)]
        size = frames[0].shape[:2]
        frames += [decode_rgb(bytes(frame), path, size=size) for frame in video[1:]]
        video = np.stack(frames)
    problem = _problem(video, points, occluded)
    if problem:
        raise data_error(path, f"has {problem} in {name[:60]!r}", _WHAT, FETCH_AGAIN)
    return {
        "video": np.ascontiguousarray(video),  # so that a frame is a run of bytes
        "points": points.astype(np.float32),
        "occluded": np.not_equal(occluded.view(np.uint8), 0),
    }


def _problem(video: Any, points: Any, occluded: Any) -> str:
    """What does not fit among the arrays of a video; empty when all does."""
    if not all(isinstance(array, ndarray) for array in (video, points, occluded)):
        return "something that is no array"
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or 0 in video.shape:
        return f"a video of shape {video.shape} and type {video.dtype}"
    if occluded.dtype != np.bool_ or occluded.ndim != 2 or occluded.shape[1] != len(video):
        return f"occlusion of shape {occluded.shape} for {len(video)} frames"
    if points.dtype.kind != "f" or points.shape != (*occluded.shape, 2):
        return f"points of shape {points.shape} for tracks of shape {occluded.shape}"
    seen = points[~np.not_equal(occluded.view(np.uint8), 0)]
    if not (np.abs(seen) <= _LARGEST_POINT).all():
        return "points that are not normalised by width and height"
    return ""


def read_point_video(path: str | os.PathLike[str]) -> PointVideo:
    """One video that `convert_pickle` wrote.

    Args:
        path: the archive.

    Raises:
        DataError: no such archive, cut short or damaged, or arrays that do not fit each other.
    """
    what = "an archive of video, points and occluded"
    size = file_size(path, what)
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename: member for member in archive.infolist()}
            if set(members) != {f"{name}.npy" for name in _NAMES}:
                problem = f"holds {', '.join(sorted(members))[:80] or 'nothing'}"
                raise data_error(path, problem, what, FETCH_AGAIN)
            video, points, occluded = (
                _member(archive, members[f"{name}.npy"], size) for name in _NAMES
            )
    except DataError:
        raise
    except (
        *(OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError),
        *(SyntaxError, TypeError, LookupError, RuntimeError, OverflowError, UnicodeError),
    ) as error:
        problem = f"cannot be read ({str(error)[:200] or type(error).__name__})"
        raise data_error(path, problem, what, FETCH_AGAIN) from error
    problem = _problem(video, points, occluded)
    if problem:
        raise data_error(path, f"has {problem}", what, FETCH_AGAIN)
    visible = np.equal(occluded.view(np.uint8), 0)
    return PointVideo(video=video, points=points.astype(np.float32, copy=False), visible=visible)


def frames_offset(path: str | os.PathLike[str]) -> int:
    """Where the pixels begin in an archive that `read_point_video` accepted.

    Args:
        path: the archive.

    Raises:
        DataError: its frames are not one after the other, as `convert_pickle` writes them.
    """
    with zipfile.ZipFile(path) as archive, open(path, "rb") as raw:
        member = archive.getinfo("video.npy")
        with archive.open(member) as file:
            np.lib.format.read_magic(file)
            shape, fortran, _ = np.lib.format.read_array_header_1_0(file)
            header = file.tell()
        if fortran and sum(side > 1 for side in shape) > 1:
            expected = "an archive that the converter wrote"
            raise data_error(path, "has frames in another order", expected, "convert it again")
        raw.seek(member.header_offset)
        local = raw.read(_LOCAL_HEADER.size)
        name, extra = _LOCAL_HEADER.unpack(local)[-2:]
        return member.header_offset + len(local) + name + extra + header


def read_point_frames(
    path: str | os.PathLike[str], indices: Sequence[int], *, offset: int, size: tuple[int, int]
) -> UInt8[ndarray, "T H W 3"]:
    """Some frames of an archive, without reading the others.

    The archive's checksum, which is of all frames, is not compared here: `read_point_video` does.

    Args:
        path: the archive.
        indices: which frames.
        offset: what `frames_offset` returned.
        size: (height, width) of the frames.

    Raises:
        DataError: the archive ends before a frame does, or cannot be read.
    """
    height, width = size
    frames = np.empty((len(indices), height, width, 3), np.uint8)
    try:
        with open(path, "rb") as file:
            for frame, index in zip(frames, indices, strict=True):
                file.seek(offset + index * frame.nbytes)
                if file.readinto(frame.data) != frame.nbytes:
                    problem = f"ends before its frame {index}"
                    raise data_error(path, problem, "the whole archive", FETCH_AGAIN)
    except OSError as error:
        problem = f"cannot be read ({error.strerror or error})"
        raise data_error(path, problem, "an archive", "check it") from error
    return frames


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, size: int) -> ndarray:
    """One array, whose header and length agree before anything is read; the checksum guards it."""
    if member.compress_type != zipfile.ZIP_STORED or member.file_size > size:
        raise ValueError(f"{member.filename} is compressed or claims {member.file_size} bytes")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"{member.filename} has version {version}")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        count = 1
        for side in shape:
            count *= side
        if dtype.kind not in "bfu" or count * dtype.itemsize != member.file_size - file.tell():
            raise ValueError(f"{member.filename} claims shape {shape} of {dtype}")
        data = file.read()
    return np.ndarray(shape, dtype, data, order="F" if fortran else "C")
