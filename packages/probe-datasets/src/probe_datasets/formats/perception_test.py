"""Perception Test's point tracks, from its JSON annotations.

Axes: `p` points (tracks) of a video, `T` all frames of the video, `xy` in [0, 1] with pixel centres
at (i + 0.5) / W. The files list y before x and only the frames in which a point is visible; every
other frame counts as occluded.

Reference:
    Patraucean et al., Perception Test, 2023; google-deepmind/perception_test, point tracking
    notebook (the axes of `points`, the meaning of `frame_ids`).
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
from jaxtyping import Bool, Float32, Int64
from numpy import ndarray

from probe_datasets.formats.files import FETCH_AGAIN, DataError, data_error, read_json

__all__ = ["TrackedVideo", "parse_video", "read_annotations"]

_WHAT = "Perception Test annotations: a JSON object of videos"
_MAX_FRAMES = 100_000
_MAX_VALUES = 200_000_000
_MARGIN = 0.05


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrackedVideo:
    """The point tracks of one video."""

    video: str
    """Name of the video, such as `video_1009`."""
    split: str
    """Split that the metadata names."""
    num_frames: int
    """Frames that the video must have."""
    fps: float
    """Frames in a second."""
    size: tuple[int, int]
    """(height, width) in pixels."""
    moving_camera: bool
    """Whether the camera moves."""
    track_ids: Int64[ndarray, " p"]
    """Number of each track in the annotations."""
    points: Float32[ndarray, "p T 2"]
    """xy in [0, 1]; 0 where not visible."""
    visible: Bool[ndarray, "p T"]
    """False where occluded, out of view or not annotated."""


def read_annotations(path: str | os.PathLike[str]) -> Mapping[str, TrackedVideo]:
    """The videos of an annotation file that have point tracks, such as of the valid split.

    Args:
        path: the file, such as `point_tracking_valid.json`.

    Raises:
        DataError: missing, no such file, or a track that does not fit its video.
    """
    content = read_json(path, _WHAT)
    if not isinstance(content, dict):
        raise data_error(path, "holds no JSON object", _WHAT, FETCH_AGAIN)
    videos = {}
    for name, entry in content.items():
        if isinstance(entry, dict) and entry.get("point_tracking"):
            videos[name] = parse_video(name, entry, path)
    if not videos:
        problem = f"has no point tracks in any of its {len(content)} entries"
        fix = "pass point_tracking_{train,valid}.json or all_{train,valid}.json"
        raise data_error(path, problem, _WHAT, fix)
    return videos


def parse_video(name: str, entry: Any, path: str | os.PathLike[str]) -> TrackedVideo:
    """The point tracks of one entry of an annotation file.

    Args:
        name: name of the video.
        entry: its entry, as JSON gives it.
        path: the file, for the message.

    Raises:
        DataError: the name is no file name, or a field is missing or does not fit the others.
    """

    def wrong(what: str, expected: str) -> DataError:
        return data_error(path, f"has {what} in {name[:40]!r}", expected, FETCH_AGAIN)

    if not name.isprintable() or name[:1] in ("", ".") or "/" in name or "\\" in name:
        raise data_error(path, f"names a video {name[:40]!r}", "a plain file name", FETCH_AGAIN)
    metadata = entry.get("metadata") if isinstance(entry, dict) else None
    tracks = entry.get("point_tracking") if isinstance(entry, dict) else None
    if not isinstance(metadata, dict) or not isinstance(tracks, list):
        raise wrong("no metadata or no point_tracking", "both")
    num_frames, fps = metadata.get("num_frames"), metadata.get("frame_rate")
    resolution = metadata.get("resolution")
    if not _is_count(num_frames, _MAX_FRAMES):
        raise wrong(f"num_frames {str(num_frames)[:40]}", f"1 to {_MAX_FRAMES}")
    if not isinstance(fps, int | float) or isinstance(fps, bool) or not 0 < fps < 1000:
        raise wrong(f"frame_rate {str(fps)[:40]}", "frames in a second")
    if not (
        isinstance(resolution, list)
        and len(resolution) == 2
        and all(_is_count(side, 65536) for side in resolution)
    ):
        raise wrong(f"resolution {str(resolution)[:40]}", "[height, width] in pixels")
    if len(tracks) * num_frames > _MAX_VALUES:
        raise wrong(f"{len(tracks)} tracks of {num_frames} frames", "a size that fits in memory")
    points = np.zeros((len(tracks), num_frames, 2), np.float32)
    visible = np.zeros((len(tracks), num_frames), bool)
    track_ids = np.empty(len(tracks), np.int64)
    for row, track in enumerate(tracks):
        try:
            track_ids[row] = _track_id(track, row)
            frames, xy = _track(track, num_frames)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            expected = "id, frame_ids and points [y, x] in [0, 1] of the visible frames"
            raise wrong(f"a bad point track {row} ({error})", expected) from error
        points[row, frames], visible[row, frames] = xy, True
    return TrackedVideo(
        video=name,
        split=str(metadata.get("split", "")),
        num_frames=num_frames,
        fps=float(fps),
        size=(resolution[0], resolution[1]),
        moving_camera=bool(metadata.get("is_camera_moving", False)),
        track_ids=track_ids,
        points=points,
        visible=visible,
    )


def _track(
    track: dict[str, Any], num_frames: int
) -> tuple[Int64[ndarray, " n"], Float32[ndarray, "n 2"]]:
    """Visible frames of a track, and its xy in them."""
    frames = np.array(track["frame_ids"])
    if frames.size == 0:
        return np.empty(0, np.int64), np.empty((0, 2), np.float32)
    if frames.ndim != 1 or frames.dtype.kind != "i":
        raise ValueError("frame_ids is no list of whole numbers")
    if frames.min() < 0 or frames.max() >= num_frames:
        raise ValueError(f"frame_ids goes outside of 0 to {num_frames - 1}")
    if len(np.unique(frames)) != len(frames):
        raise ValueError("frame_ids names a frame twice")
    points = np.array(track["points"])
    if points.ndim != 2 or points.dtype.kind not in "if":
        raise ValueError("points is no table of numbers")
    # The files hold a list of y and a list of x; the format's description has a pair per frame.
    # With two frames the two cannot be told apart, and what the files do decides.
    if points.shape == (2, len(frames)):
        y, x = points
    elif points.shape == (len(frames), 2):
        y, x = points[:, 0], points[:, 1]
    else:
        raise ValueError(f"points of shape {points.shape} does not fit {len(frames)} frame_ids")
    xy = np.stack([x, y], axis=-1)
    if not ((xy >= -_MARGIN) & (xy <= 1 + _MARGIN)).all():
        raise ValueError("points lies outside of the picture")
    return frames.astype(np.int64), xy.astype(np.float32)


def _track_id(track: Any, row: int) -> int:
    identity = track.get("id", row) if isinstance(track, dict) else None
    if isinstance(identity, bool) or not isinstance(identity, int) or abs(identity) >= 1 << 62:
        raise ValueError("id is no whole number")
    return identity


def _is_count(value: Any, largest: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= largest
