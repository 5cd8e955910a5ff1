"""Where the frames of RealEstate10K's clips are: the four ways in which people keep them.

The data set holds addresses and poses, no pictures. A frame is found by its row in the pose file:

* "frames": a picture a frame, `<clip>/<timestamp>.png` or `.jpg`;
* "clips": a video a clip, whose frame k belongs to row k;
* "videos": whole videos as downloaded, in which the frame nearest to the timestamp is taken;
* "chunks": pixelSplat's `.torch` files with poses and JPEGs together.
"""

import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from numpy import ndarray

from probe_datasets.formats.files import (
    FETCH_AGAIN,
    check_relative,
    data_error,
    file_size,
    read_json,
    safe_path,
)
from probe_datasets.formats.realestate10k import ClipPoses, poses_from_rows
from probe_datasets.formats.still_images import decode_rgb
from probe_datasets.frame_index import frame_index

__all__ = [
    "LAYOUTS",
    "ChunkClip",
    "FrameSource",
    "find_frames",
    "find_pose_files",
    "nearest_frames",
    "read_chunk",
    "read_chunk_index",
    "row_pictures",
    "video_frames",
]

LAYOUTS = ("frames", "clips", "videos", "chunks")
_PICTURES = ("png", "jpg", "jpeg")
_VIDEOS = ("mp4", "webm", "mkv", "mov")
_MAX_PICKLE = 1 << 28


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameSource:
    """Where the frames of one clip are."""

    layout: str
    """"frames", "clips" or "videos"."""
    path: Path
    """The folder of pictures, the clip's video or the whole video."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ChunkClip:
    """One clip of a pixelSplat chunk."""

    poses: ClipPoses
    """Times, intrinsics and poses of its frames."""
    images: tuple[UInt8[ndarray, "_"], ...]
    """The encoded JPEG of each frame."""
    path: Path
    """The chunk."""

    def picture(self, row: int) -> UInt8[ndarray, "H W 3"]:
        """Colour of the frame of a row, bytes 0 to 255.

        Args:
            row: which frame, from 0.

        Raises:
            DataError: the picture is damaged.
        """
        return decode_rgb(self.images[row].tobytes(), self.path, formats=("JPEG", "PNG"))


def find_pose_files(root: str | os.PathLike[str], split: str) -> list[Path]:
    """Pose files of a split, sorted by name.

    Args:
        root: the folder that holds `RealEstate10K/<split>/`, `<split>/` or `pose_files/`.
        split: "train" or "test".

    Raises:
        DataError: there are none in any of these folders.
    """
    _plain(split, root)
    tried = (f"RealEstate10K/{split}", split, f"pose_files/{split}", "pose_files")
    for name in tried:
        folder = Path(root, name)
        if folder.is_dir():
            found = sorted(entry for entry in os.listdir(folder) if entry.endswith(".txt"))
            if found:
                return [folder / entry for entry in found]
    problem = f"holds no pose files of split {split!r}"
    raise data_error(root, problem, f"<clip>.txt in one of {', '.join(tried)}", "check the folder")


def find_frames(root: str | os.PathLike[str], split: str, poses: ClipPoses) -> FrameSource | None:
    """Where the frames of a clip are below a root; None where they are not there.

    Args:
        root: the folder that holds the pictures or videos.
        split: "train" or "test".
        poses: the clip.

    Raises:
        DataError: the clip's name is no file name, or a link leaves the root.
    """
    clip, video, _ = _plain(poses.clip, root), poses.video, _plain(split, root)
    holders = (split, f"frames/{split}", f"videos/{split}", f"video_clips/{split}", "")
    more = ("frames", "videos", "clips", "video_clips", f"RealEstate10K/{split}")
    for holder in (*holders, *more):
        below = Path(root, holder)
        folder = safe_path(below, clip)
        if folder.is_dir():
            return FrameSource(layout="frames", path=folder)
        names = [("clips", clip)]
        if video:
            names += [("clips", f"{_plain(video, root)}/{clip}"), ("videos", video)]
        for layout, name in names:
            for extension in _VIDEOS:
                path = safe_path(below, f"{name}.{extension}")
                if path.is_file():
                    return FrameSource(layout=layout, path=path)
    return None


def row_pictures(source: FrameSource, poses: ClipPoses) -> dict[int, Path]:
    """Pictures of a clip in the "frames" layout, by the row that has their timestamp.

    Args:
        source: what `find_frames` returned.
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


def video_frames(source: FrameSource, poses: ClipPoses) -> Int64[ndarray, " N"]:
    """Frame of a clip's own or a whole video that belongs to each row, without decoding.

    Args:
        source: what `find_frames` returned.
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


# --------------------------------------------------------------------------------------- chunks


def read_chunk_index(root: str | os.PathLike[str], split: str) -> Mapping[str, Path]:
    """The chunk that holds each clip, from pixelSplat's `<split>/index.json`.

    Args:
        root: the folder that holds `train/` and `test/`.
        split: "train" or "test".

    Raises:
        DataError: missing, no such table, or a chunk outside the folder.
    """
    path = Path(root, _plain(split, root), "index.json")
    what = "a JSON object {clip: chunk}"
    content = read_json(path, what)
    if not isinstance(content, dict):
        raise data_error(path, "holds no JSON object", what, FETCH_AGAIN)
    for name in content.values():
        if not (isinstance(name, str) and name.endswith(".torch")):
            problem = f"names {str(name)[:80]!r} as a chunk"
            raise data_error(path, problem, "a .torch file", FETCH_AGAIN)
    folder = path.parent
    chunks = {name: safe_path(folder, name, source=path) for name in set(content.values())}
    return {clip: chunks[name] for clip, name in content.items()}


def read_chunk(path: str | os.PathLike[str]) -> list[ChunkClip]:
    """The clips of a pixelSplat chunk, a list of dictionaries of tensors.

    Only torch's restricted reader is used, which builds tensors and plain containers and refuses
    everything else, and only on archives without compression, so that nothing can unfold.

    Args:
        path: the `.torch` file.

    Raises:
        DataError: missing, no such chunk, or anything in it that is no tensor, text or number.
    """
    _check_archive(path)
    what = "a chunk of pixelSplat: a list of clips"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    # The restricted unpickler lets through whatever malformed input makes its steps raise.
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise data_error(path, f"cannot be read safely ({reason})", what, FETCH_AGAIN) from error
    if not isinstance(content, list):
        problem = f"holds a {type(content).__name__}"
        raise data_error(path, problem, what, FETCH_AGAIN)
    return [_chunk_clip(entry, Path(path)) for entry in content]


def _check_archive(path: str | os.PathLike[str]) -> None:
    what = "a .torch file as torch.save writes it"
    size = file_size(path, what)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        problem = f"is no zip archive ({error}), or one that is cut short"
        raise data_error(path, problem, what, FETCH_AGAIN) from error
    for member in members:
        check_relative(member.filename, source=path, below="the archive")
        pickled = member.filename.endswith(".pkl") and member.file_size > _MAX_PICKLE
        if member.compress_type != zipfile.ZIP_STORED or pickled:
            problem = f"holds a compressed or oversized part {member.filename[:80]!r}"
            raise data_error(path, problem, what, FETCH_AGAIN)
    if sum(member.file_size for member in members) > size:
        problem = f"claims parts of more bytes than its own {size}"
        raise data_error(path, problem, what, FETCH_AGAIN)


def _chunk_clip(entry: Any, path: Path) -> ChunkClip:
    expected = "clips of key, url, timestamps, cameras (frames x 18) and images"
    wrong = data_error(path, "holds something that is no clip", expected, FETCH_AGAIN)
    if not isinstance(entry, dict):
        raise wrong
    key, url = entry.get("key"), entry.get("url", "")
    times, cameras, images = (entry.get(name) for name in ("timestamps", "cameras", "images"))
    if not (
        isinstance(key, str)
        and isinstance(url, str)
        and isinstance(times, torch.Tensor)
        and isinstance(cameras, torch.Tensor)
        and isinstance(images, list)
        and times.dim() == 1
        and times.dtype in (torch.int64, torch.int32)
        and tuple(cameras.shape) == (len(times), 18)
        and cameras.dtype in (torch.float32, torch.float64)
        and len(images) == len(times) > 0
    ):
        raise wrong
    # A few bytes can pose as a large tensor by a stride of zero: nothing is copied before this.
    tensors = [times, cameras, *images]
    for tensor in tensors:
        if not (isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided):
            raise wrong
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise wrong
    if any(image.dtype != torch.uint8 or image.dim() != 1 for image in images):
        raise wrong
    rows = cameras.double().numpy()
    poses = poses_from_rows(times.long().numpy(), rows, clip=key, url=url, path=path)
    return ChunkClip(poses=poses, images=tuple(image.numpy() for image in images), path=path)


def _plain(name: str, root: str | os.PathLike[str]) -> str:
    """A name that is one part of a path."""
    if not name or "/" in name or "\\" in name or name.startswith(".") or "\0" in name:
        problem = f"cannot hold a clip or split {name[:80]!r}"
        raise data_error(root, problem, "a plain name", "check the pose files")
    return name
