"""RealEstate10K's pose files: one line of 19 numbers a frame.

Axes: `N` frames of a clip in the order of their times. Intrinsics are (fx, fy, cx, cy) in widths
and heights of the picture; they hold after any resize. Poses are 3x4, world to camera, OpenCV axes,
with a scale of their own in each clip: metres only after a scale table was applied.
"""

import csv
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from einops import rearrange
from jaxtyping import Float32, Float64, Int64
from numpy import ndarray

from probe_datasets.formats.files import (
    FETCH_AGAIN,
    data_error,
    ends_a_line,
    read_json,
    read_lines,
    real_number,
    whole_number,
)
from probe_datasets.formats.poses import is_rigid

__all__ = [
    "ClipPoses",
    "plain_name",
    "poses_from_rows",
    "read_pose_file",
    "read_scale_table",
    "read_video_id",
    "scaled",
]

_WHAT = "a RealEstate10K pose file"
_COLUMNS = 19
_CLIP = re.compile(r"[0-9a-f]{16}")
_VIDEO = re.compile(r"(?:[?&]v=|youtu\.be/|/embed/|/shorts/)([0-9A-Za-z_-]{11})(?![0-9A-Za-z_-])")
_MAX_FRAMES = 1_000_000
_MAX_ADDRESS = 4096


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ClipPoses:
    """Times, intrinsics and poses of one clip."""

    clip: str
    """Name of the clip, 16 hexadecimal digits."""
    url: str
    """Address of the video on YouTube."""
    video: str
    """The 11 characters of the video's id; empty where the address has none."""
    timestamps: Int64[ndarray, " N"]
    """Microseconds since the start of the video, ascending."""
    intrinsics: Float32[ndarray, "N 4"]
    """(fx, fy, cx, cy) in widths and heights."""
    world_to_camera: Float32[ndarray, "N 3 4"]
    """Rigid motions; the unit of length is the clip's own unless it was scaled."""

    def __len__(self) -> int:
        return len(self.timestamps)


def read_pose_file(path: str | os.PathLike[str]) -> ClipPoses:
    """One clip's pose file `<clip>.txt`.

    Args:
        path: the file: the video's address, then a line a frame with the time in microseconds,
            fx, fy, cx, cy, two zeros and twelve numbers of [R|t] by rows.

    Raises:
        DataError: missing, no such file, cut within its last number, times that go back, or a pose
            that is no rigid motion.
    """
    url = ""
    times: list[int] = []
    rows: list[list[float]] = []
    digits: list[int] = []
    for line, text in read_lines(path, _WHAT):
        fields = text.split()
        if line == 1 and len(fields) == 1 and "://" in text:
            url = fields[0]
            continue
        if not url or len(fields) != _COLUMNS or len(times) >= _MAX_FRAMES:
            problem = f"has {len(fields)} columns in line {line}"
            if not url:
                problem = f"begins with {text[:60]!r}"
            expected = f"the video's address, then {_COLUMNS} columns a frame"
            raise data_error(path, problem, expected, FETCH_AGAIN)
        times.append(whole_number(fields[0], path, line, "a time in microseconds"))
        rows.append([real_number(field, path, line, "a number") for field in fields[1:]])
        digits.append(len(fields[-1].partition(".")[2]))
    if not rows:
        raise data_error(path, "holds no frames", _WHAT, FETCH_AGAIN)
    if digits[-1] < min(digits[:-1], default=0) and not ends_a_line(path):
        problem = "seems to be cut short within its last number"
        raise data_error(path, problem, "as many digits as in the lines before", FETCH_AGAIN)
    return poses_from_rows(
        np.array(times, np.int64),
        np.array(rows, np.float64),
        clip=Path(path).stem,
        url=url,
        path=path,
    )


def poses_from_rows(
    timestamps: Int64[ndarray, " N"],
    rows: Float64[ndarray, "N 18"],
    *,
    clip: str,
    url: str,
    path: str | os.PathLike[str],
) -> ClipPoses:
    """Poses from the numbers of a clip: fx, fy, cx, cy, two zeros and [R|t] by rows.

    Args:
        timestamps: microseconds since the start of the video.
        rows: the 18 numbers of each frame.
        clip: name of the clip.
        url: address of the video.
        path: where the numbers come from, for the message.

    Raises:
        DataError: times that go back, a camera that cannot be, or a pose that is no rigid motion.
    """
    if (timestamps < 0).any() or (np.diff(timestamps) < 0).any():
        problem = f"has times in clip {clip[:40]!r} that are negative or go back"
        raise data_error(path, problem, "ascending microseconds", FETCH_AGAIN)
    intrinsics, poses = rows[:, :4], rearrange(rows[:, 6:], "N (i j) -> N i j", i=3)
    camera = ((intrinsics > 0) & (intrinsics < [10, 10, 1, 1])).all()
    if not camera or (rows[:, 4:6] != 0).any():
        problem = f"has intrinsics in clip {clip[:40]!r} that are not normalised"
        raise data_error(path, problem, "fx fy cx cy in widths and heights, then 0 0", FETCH_AGAIN)
    if not is_rigid(poses, tolerance=1e-3):
        problem = f"has a pose in clip {clip[:40]!r} that is no rigid motion"
        raise data_error(path, problem, "a rotation and a translation by rows", FETCH_AGAIN)
    match = _VIDEO.search(url)
    return ClipPoses(
        clip=clip,
        url=url,
        video=match[1] if match else "",
        timestamps=timestamps,
        intrinsics=intrinsics.astype(np.float32),
        world_to_camera=poses.astype(np.float32),
    )


def plain_name(name: str, root: str | os.PathLike[str]) -> str:
    """A name that is one part of a path.

    Args:
        name: of a clip, a video or a split.
        root: the folder of the data, for the message.

    Raises:
        DataError: it is none.
    """
    if not name or "/" in name or "\\" in name or name.startswith(".") or "\0" in name:
        problem = f"cannot hold a clip or split {name[:80]!r}"
        raise data_error(root, problem, "a plain name", "check the pose files")
    return name


def read_video_id(data: bytes) -> str:
    """The id of the video that a pose file is about; empty where its first line has none.

    Args:
        data: the file, or its beginning.
    """
    match = _VIDEO.search(data[:_MAX_ADDRESS].partition(b"\n")[0].decode("utf-8", "replace"))
    return match[1] if match else ""


def read_scale_table(path: str | os.PathLike[str]) -> Mapping[str, float]:
    """Metres in a unit of length of each clip, from a table that the user supplies.

    Args:
        path: a JSON object {clip: metres}, or a CSV of lines `clip,metres`; it may have a header.

    Raises:
        DataError: missing, no such table, a clip twice, or a scale that is not positive.
    """
    what = "a table of clips and their scale in metres"
    table: dict[str, float] = {}

    def add(clip: object, value: object, where: str) -> None:
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        if not (isinstance(clip, str) and clip and plain and 1e-6 < float(str(value)) < 1e6):
            problem = f"has {str(value)[:40]!r} for {str(clip)[:40]!r} in {where}"
            raise data_error(path, problem, "positive metres in a unit of length", "correct it")
        if clip in table:
            raise data_error(path, f"has {clip[:40]!r} twice", "each clip once", "remove one")
        table[clip] = float(str(value))

    if os.fspath(path).lower().endswith(".json"):
        content = read_json(path, what)
        if not isinstance(content, dict):
            raise data_error(path, "holds no JSON object", "{clip: metres}", "correct it")
        for clip, value in content.items():
            add(clip, value, "the object")
        return table
    for line, text in read_lines(path, what):
        try:
            fields = [field.strip() for field in next(csv.reader([text]))]
        except csv.Error as error:
            problem = f"has a line {line} that is no table row ({error})"
            raise data_error(path, problem, "clip,metres", "correct it") from error
        if len(fields) != 2:
            problem = f"has {len(fields)} columns in line {line}"
            raise data_error(path, problem, "clip,metres", "correct it")
        if line == 1 and not _CLIP.fullmatch(fields[0]) and fields[1][:1].isalpha():
            continue
        add(fields[0], real_number(fields[1], path, line, "a scale"), f"line {line}")
    return table


def scaled(poses: ClipPoses, metres: float) -> ClipPoses:
    """The same clip with its translations in metres.

    Args:
        poses: the clip.
        metres: metres in its unit of length.

    Raises:
        ValueError: the scale is not positive and finite.
    """
    if not 0 < metres < np.inf:
        raise ValueError(f"scale {metres} must be positive metres in a unit of length")
    matrices = poses.world_to_camera.copy()
    matrices[..., 3] *= np.float32(metres)
    return replace(poses, world_to_camera=matrices)
