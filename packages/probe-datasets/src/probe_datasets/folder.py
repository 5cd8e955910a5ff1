"""Every video below a folder, as an unlabelled dataset of clips."""

import hashlib
import json
import math
import operator
import os
from collections.abc import Callable
from pathlib import Path

import torch
from einops import rearrange

from probe_datasets.clips import clip_indices, clip_span
from probe_datasets.containers import VIDEO_CONTAINERS, VideoError, video_error
from probe_datasets.schema import Coverage, VideoExample
from probe_datasets.transforms import centre_crop, resize_short_side, to_float
from probe_datasets.video_io import read_frames, scan_video

__all__ = ["FolderDataset"]

_SPLITS = ("train", "validation", "all")
_VALIDATION_SHARE = 0.1


class FolderDataset:
    """Square clips of every mp4, mov, webm and mkv file below a folder, one item per video.

    Files are found by extension in any case, in sorted order; names that begin with a dot are
    passed over, and so are other files, which are counted. A tenth of the videos, by a hash of the
    path below `root`, is the validation split; a video keeps its split when others come and go.
    Only where that would leave train or validation empty, one video is moved over by its hash.

    Each video of the split is scanned once, here: about a full decode of the data with `verify`.

    Args:
        root: the folder.
        split: "train", "validation" or "all".
        num_frames: frames in a clip.
        stride: distance between neighbouring frames of a clip, in frames of the video.
        size: height and width of a clip in pixels.
        seed: decides the random starts.
        on_error: "raise" on the first video that cannot be read or is shorter than a clip; or
            "skip" such videos, and say which and why in `coverage`.
        verify: decode every frame once to find corrupt ones; see `scan_video`.
        progress: called with (videos scanned, videos in the split) after each of them.

    Raises:
        VideoError: a video is bad under "raise", or none can be used.
        ValueError: the folder holds no video, the split is empty, or an argument is out of range.
        ImportError: PyAV is not installed.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str = "train",
        num_frames: int = 17,
        stride: int = 1,
        size: int = 64,
        seed: int = 0,
        *,
        on_error: str = "raise",
        verify: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        if split not in _SPLITS:
            raise ValueError(f"split {split!r} must be one of {', '.join(_SPLITS)}")
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error {on_error!r} must be 'raise' or 'skip'")
        if size < 1:
            raise ValueError(f"size {size} must be at least 1 pixel")
        span = clip_span(num_frames, stride)
        self.root = Path(root)
        self.split, self.seed = split, seed
        self.num_frames, self.stride, self.size = num_frames, stride, size
        found, ignored = _find_videos(self.root)
        members = _members(found, split, self.root)

        self._videos: list[tuple[str, int]] = []  # (path below root, frames)
        reasons: list[tuple[str, str]] = []
        for done, name in enumerate(members, start=1):
            try:
                self._videos.append((name, _scan(self.root / name, span, verify)))
            except VideoError as error:
                if on_error == "raise":
                    raise VideoError(f"{error} (on_error='skip' leaves such videos out)") from error
                reasons.append((name, str(error)))
            if progress is not None:
                progress(done, len(members))
        if not self._videos:
            raise VideoError(
                f"none of the {len(members)} videos of split {split!r} can be used, for example "
                f"{reasons[0][1]}"
            )
        self._coverage = Coverage(
            expected=len(members),
            found=len(self._videos),
            failed=len(reasons),
            ignored=ignored,
            reasons=tuple(reasons),
        )
        self._fingerprint = self._hash()

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """No labels."""
        return {}

    @property
    def coverage(self) -> Coverage:
        """How many videos of the split can be used, and why the others cannot."""
        return self._coverage

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the videos' paths below the root, their sizes in bytes and the settings."""
        return self._fingerprint

    def __len__(self) -> int:
        return len(self._videos)

    def __getitem__(self, index: int) -> VideoExample:
        return self.clip(index)

    def sample_id(self, index: int) -> str:
        """Path of video `index` below the root, with forward slashes."""
        return self._video(index)[0]

    def clip(self, index: int, draw: int = 0) -> VideoExample:
        """One clip of video `index`.

        Args:
            index: which video.
            draw: which of the random clips, any integer, such as the epoch. The start is a pure
                function of seed, draw and `sample_id`. The validation split has no chance in it:
                every draw is the clip in the middle of the video.

        Returns:
            Pixels in [-1, 1], and the path below the root as `sample_id`.

        Raises:
            IndexError: there is no such video.
            VideoError: the file was changed or damaged since it was scanned.
        """
        name, available = self._video(index)
        indices = clip_indices(
            available,
            num_frames=self.num_frames,
            stride=self.stride,
            start="centre" if self.split == "validation" else "random",
            generator=_generator(self.seed, draw, name),
        )
        frames = read_frames(self.root / name, indices)
        # Frame by frame: as float, a clip of large frames would take hundreds of megabytes.
        small = [centre_crop(resize_short_side(to_float(f), self.size), self.size) for f in frames]
        video = rearrange(torch.stack(small), "T c H W -> c T H W").contiguous()
        return VideoExample(video=video, sample_id=name)

    def _video(self, index: int) -> tuple[str, int]:
        count, i = len(self._videos), operator.index(index)
        if not 0 <= i < count:
            raise IndexError(f"video {i} is outside the split of {count} videos")
        return self._videos[i]

    def _hash(self) -> str:
        settings = {
            "dataset": "folder/1",
            "split": self.split,
            "num_frames": self.num_frames,
            "stride": self.stride,
            "size": self.size,
            "seed": self.seed,
        }
        files = [(name, (self.root / name).stat().st_size) for name, _ in self._videos]
        # ensure_ascii also keeps file names that are not UTF-8 apart
        text = json.dumps([settings, files], sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()


def _find_videos(root: Path) -> tuple[list[str], int]:
    """Sorted paths of the videos below a folder, and how many other files there are."""
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise ValueError(f"root {str(root)!r} {what}; pass the folder that holds the videos")

    def fail(error: OSError) -> None:
        raise ValueError(f"folder {error.filename!r} cannot be listed: {error.strerror}") from error

    found: list[str] = []
    ignored = 0
    visited: set[str] = set()
    for folder, folders, files in os.walk(root, onerror=fail, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:  # a link back into the tree
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for file in files:
            if file.startswith("."):
                continue
            if os.path.splitext(file)[1][1:].lower() in VIDEO_CONTAINERS:
                found.append(Path(folder, file).relative_to(root).as_posix())
            else:
                ignored += 1
    if not found:
        extensions = " ".join(f".{name}" for name in VIDEO_CONTAINERS)
        raise ValueError(
            f"root {str(root)!r} holds no videos; expected files that end in {extensions} at any "
            f"depth, found {ignored} other files; convert other videos with ffmpeg"
        )
    return sorted(found), ignored


def _members(found: list[str], split: str, root: Path) -> list[str]:
    """The videos of one split."""
    if split == "all":
        return found
    share = {name: _unit_hash(name) for name in found}
    validation = {name for name in found if share[name] < _VALIDATION_SHARE}
    if not validation and len(found) > 1:
        validation = {min(found, key=share.__getitem__)}
    if len(validation) == len(found) > 1:
        validation.remove(max(found, key=share.__getitem__))
    members = [name for name in found if (name in validation) == (split == "validation")]
    if not members:
        raise ValueError(
            f"split {split!r} of root {str(root)!r} is empty, because one video cannot be divided; "
            "add videos or use split='all'"
        )
    return members


def _scan(path: Path, span: int, verify: bool) -> int:
    """Frames of a video that is long enough for a clip."""
    available = scan_video(path, verify=verify).num_frames
    if available < span:
        raise video_error(
            path,
            f"has {available} frames, fewer than a clip spans",
            f"at least {span}",
            "use fewer frames or a smaller stride",
        )
    return available


def _unit_hash(text: str) -> float:
    """A number in [0, 1) that depends on a text alone."""
    return int.from_bytes(hashlib.sha256(os.fsencode(text)).digest()[:6]) / math.pow(2, 48)


def _generator(seed: int, draw: int, name: str) -> torch.Generator:
    key = hashlib.sha256(f"{seed}/{draw}/".encode() + os.fsencode(name)).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:7]))
