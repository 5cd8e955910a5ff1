"""Where the frames of RealEstate10K's clips are, in three of the ways in which people keep them.

The data set holds addresses and poses, no pictures. A frame is found by its row in the pose file:

* "frames": a picture a frame, `<clip>/<timestamp>.png` or `.jpg`;
* "clips": a video a clip, whose frame k belongs to row k;
* "videos": whole videos as downloaded, in which the frame nearest to the timestamp is taken.

The fourth are pixelSplat's chunks; see `realestate10k_chunks`.
"""

import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int64
from numpy import ndarray

from probe_datasets.formats.files import data_error, safe_path
from probe_datasets.formats.realestate10k import ClipPoses, plain_name
from probe_datasets.frame_index import frame_index

__all__ = [
    "FrameFinder",
    "FrameSource",
    "find_pose_files",
    "nearest_frames",
    "picture_run",
    "row_pictures",
    "video_frames",
]

_PICTURES = ("png", "jpg", "jpeg")
_VIDEOS = ("mp4", "webm", "mkv", "mov")


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameSource:
    """Where the frames of one clip are."""

    layout: str
    """"frames", "clips" or "videos"."""
    path: Path
    """The folder of pictures, the clip's video or the whole video."""


def find_pose_files(root: str | os.PathLike[str], split: str) -> list[Path]:
    """Pose files of a split, sorted by name.

    Args:
        root: the folder that holds `RealEstate10K/<split>/`, `<split>/` or `pose_files/`.
        split: "train" or "test".

    Raises:
        DataError: there are none in any of these folders.
    """
    plain_name(split, root)
    tried = (f"RealEstate10K/{split}", split, f"pose_files/{split}", "pose_files")
    for name in tried:
        folder = Path(root, name)
        if folder.is_dir():
            found = sorted(entry for entry in os.listdir(folder) if entry.endswith(".txt"))
            if found:
                return [folder / entry for entry in found]
    problem = f"holds no pose files of split {split!r}"
    raise data_error(root, problem, f"<clip>.txt in one of {', '.join(tried)}", "check the folder")


class FrameFinder:
    """Finds the frames of many clips below a root, whose folders are listed once.

    Args:
        root: the folder that holds the pictures or videos.
        split: "train" or "test".

    Raises:
        DataError: the split's name is no file name.
    """

    def __init__(self, root: str | os.PathLike[str], split: str) -> None:
        self.root = root
        plain_name(split, root)
        below = (split, f"frames/{split}", f"videos/{split}", f"video_clips/{split}", "")
        more = ("frames", "videos", "clips", "video_clips", f"RealEstate10K/{split}")
        folders = [Path(root, holder) for holder in (*below, *more)]
        self._holders = [(f, frozenset(os.listdir(f))) for f in folders if f.is_dir()]

    def find(self, clip: str, video: str) -> FrameSource | None:
        """Where the frames of a clip are; None where they are not there.

        Args:
            clip: its name.
            video: the id of its video; empty where that is not known.

        Raises:
            DataError: a name is no file name, or a link leaves the root.
        """
        plain_name(clip, self.root)
        for below, entries in self._holders:
            if clip in entries and safe_path(below, clip).is_dir():
                return FrameSource(layout="frames", path=Path(below, clip))
            names = [("clips", clip)]
            if video:
                inside = [("clips", f"{video}/{clip}")] if video in entries else []
                names += [*inside, ("videos", plain_name(video, self.root))]
            for layout, name in names:
                for extension in _VIDEOS:
                    file = f"{name}.{extension}"
                    if "/" in file or file in entries:
                        path = safe_path(below, file)
                        if path.is_file():
                            return FrameSource(layout=layout, path=path)
        return None


def row_pictures(source: FrameSource, poses: ClipPoses) -> dict[int, Path]:
    """Pictures of a clip in the "frames" layout, by the row that has their timestamp.

    Args:
        source: what `FrameFinder.find` returned.
        poses: the clip.

    Returns:
        Paths by row; a row whose picture is not there is left out.

    Raises:
        ValueError: the source has another layout.
        DataError: the folder cannot be listed, or holds a picture for none of the rows.
    """
    if source.layout != "frames":
        raise ValueError(f"layout {source.layout!r} has no pictures; only 'frames' has")
    try:
        entries = sorted(os.listdir(source.path))
    except OSError as error:
        problem = f"cannot be listed ({error.strerror})"
        raise data_error(source.path, problem, "a folder of pictures", "check it") from error
    by_time: dict[int, str] = {}
    for entry in entries:
        stem, _, extension = entry.rpartition(".")
        if extension.lower() in _PICTURES and stem.isascii() and stem.isdigit() and len(stem) < 19:
            by_time.setdefault(int(stem), entry)
    times = poses.timestamps.tolist()
    found = {row: by_time[time] for row, time in enumerate(times) if time in by_time}
    if not found:
        problem = f"holds a picture for none of the {len(poses)} timestamps of clip {poses.clip}"
        expected = f"names such as {times[0]}.png or .jpg"
        raise data_error(source.path, problem, expected, "name pictures by their timestamp")
    return {row: safe_path(source.path, name) for row, name in found.items()}


def picture_run(source: FrameSource, poses: ClipPoses) -> tuple[str, int, int]:
    """The longest run of rows that have a picture, the first of equally long ones.

    Args:
        source: what `FrameFinder.find` returned.
        poses: the clip.

    Returns:
        What `%` turns a row's timestamp into the name of its picture; the first row; their number.

    Raises:
        ValueError: the source has another layout.
        DataError: there are no pictures, or the run's are not all named in the same way.
    """
    pictures = row_pictures(source, poses)
    rows = sorted(pictures)
    breaks = [0, *(k for k, (a, b) in enumerate(pairwise(rows), start=1) if b != a + 1), len(rows)]
    first, last = max(pairwise(breaks), key=lambda run: (run[1] - run[0], -run[0]))
    stem, _, extension = pictures[rows[first]].name.rpartition(".")
    pattern = f"%0{len(stem)}d.{extension}"
    for row in rows[first:last]:
        name = pictures[row].name
        if pattern % int(poses.timestamps[row]) != name:
            problem = f"names its pictures in two ways, as {stem}.{extension} and as {name}"
            raise data_error(source.path, problem, "one", "rename them")
    return pattern, rows[first], last - first


def video_frames(source: FrameSource, poses: ClipPoses) -> Int64[ndarray, " N"]:
    """Frame of a clip's own or a whole video that belongs to each row, without decoding.

    Args:
        source: what `FrameFinder.find` returned.
        poses: the clip.

    Raises:
        ValueError: the source has the layout "frames".
        DataError: a clip's own video has not a frame a row, or a whole video is not the right one.
        VideoError: the video is incomplete or none.
        ImportError: PyAV is not installed.
    """
    if source.layout == "frames":
        raise ValueError("layout 'frames' has pictures; ask row_pictures for them")
    index = frame_index(source.path)
    if source.layout == "clips":
        if index.info.num_frames != len(poses):
            problem = f"has {index.info.num_frames} frames for {len(poses)} rows of poses"
            fix = "cut the video again, a frame for each row"
            raise data_error(source.path, problem, "as many", fix)
        return np.arange(len(poses), dtype=np.int64)
    try:
        return nearest_frames(
            np.array(index.times, np.float64) * float(index.time_base), poses.timestamps
        )
    except ValueError as error:
        problem = f"does not show clip {poses.clip} ({error})"
        fix = "download the video again"
        raise data_error(source.path, problem, f"the video {poses.video}", fix) from error


def nearest_frames(
    display_times: Float[ndarray, " n"], timestamps: Int64[ndarray, " N"]
) -> Int64[ndarray, " N"]:
    """Index of the frame of a video that is nearest to each timestamp, by time alone.

    Args:
        display_times: seconds at which the frames are shown, ascending; the first counts as 0.
        timestamps: microseconds since the start of the video.

    Returns:
        Frame indices; of two frames equally near, the earlier.

    Raises:
        ValueError: no frames, or a timestamp further from any frame than the frames lie apart.
    """
    if len(display_times) == 0:
        raise ValueError("display_times is empty; a video has at least one frame")
    times, wanted = display_times - display_times[0], timestamps / 1e6
    right = np.searchsorted(times, wanted).clip(0, len(times) - 1)
    left = (right - 1).clip(0)
    nearest = np.where(wanted - times[left] <= times[right] - wanted, left, right)
    apart = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    away = np.abs(times[nearest] - wanted)
    if (away > apart + 1e-6).any():
        worst = int(away.argmax())
        raise ValueError(
            f"timestamp {int(timestamps[worst])} us lies {away[worst]:.3f} s from the nearest "
            f"frame of a video of {times[-1]:.3f} s; it is not the video that the poses belong to"
        )
    return nearest.astype(np.int64)
