"""Perception Test: tracks of points through videos of everyday scenes."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Unpack

import numpy as np
import pyarrow as pa
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from probe_datasets.clips import ClipConfig
from probe_datasets.containers import video_error
from probe_datasets.formats.files import data_error, safe_path
from probe_datasets.formats.perception_test import TrackedVideo, read_annotations
from probe_datasets.frame_index import FrameIndex
from probe_datasets.index import Listing
from probe_datasets.indexed import OpenOptions
from probe_datasets.point_tracks import query_tracks
from probe_datasets.scan import Row, Scan
from probe_datasets.schema import PointTrackExample
from probe_datasets.spec import DatasetSpec
from probe_datasets.transforms import crop_resize
from probe_datasets.video_files import VideoFiles, scan_file
from probe_datasets.video_io import read_frames
from probe_datasets.windows import whole_window

__all__ = ["SPEC", "PerceptionTest"]

_SPLITS = {"train": "train", "validation": "valid"}
_TABLES = ("point_tracking_{}.json", "all_{}.json")
_FOLDERS = (
    "videos",
    "{}/videos",
    "{}_videos",
    "{}",
    "point_tracking_{}_videos",
    "point_tracking_{}_videos/videos",
    "",
)

SPEC = DatasetSpec(
    name="perception_test",
    summary="Perception Test, point tracks: people handle objects, and points are followed by hand",
    builder="probe_datasets.perception_test:PerceptionTest",
    task="point tracks",
    splits=("train", "validation"),
    clip=ClipConfig(num_frames=17, stride=4, size=256),
    expected={"validation": 73},
    layouts=(
        "videos/<video>.mp4, or in {train,valid}_videos, {train,valid}/videos, {train,valid}, "
        "point_tracking_{train,valid}_videos or the root, with point_tracking_{train,valid}.json "
        "there or in annotations/",
        "the same with all_{train,valid}.json, of whose videos those with point tracks count",
    ),
    obtain="point_tracking_valid_videos.zip and point_tracking_valid_annotations.zip from "
    "https://github.com/google-deepmind/perception_test, unpacked in one folder",
    licence="CC BY 4.0 (DeepMind)",
    citation="Patraucean et al., Perception Test: A Diagnostic Benchmark for Multimodal Video "
    "Models, NeurIPS 2023",
)


def scan_tracked(path: Path, row: Row) -> list[Row]:
    """As `scan_file`; and tracks that are of another number of frames do not fit the video.

    Args:
        path: the file.
        row: its row.

    Raises:
        VideoError: it is no video, incomplete, or of another length than its annotations say.
    """
    (found,) = scan_file(path, row)
    if found["num_frames"] != row["num_annotated"]:
        problem = f"has {found['num_frames']} frames"
        expected = f"{row['num_annotated']}, as its annotations say"
        raise video_error(path, problem, expected, "take the video as it was published")
    return [found]


class PerceptionTest(VideoFiles):
    """The first 17 frames at stride 4, with the tracks that they show; for evaluation.

    Frames are scaled to a square as a whole, whatever their aspect, since that is the plane in
    which TAP-Vid's metrics measure distances. So nothing is cut off, and the published coordinates
    stay as they are.

    Each point is queried in the first frame of the clip in which it is visible; what it does before
    does not count. A point without a published position in a frame is occluded there. Points that
    the clip never shows are left out, and of more than `num_points` the first in the order of the
    file are taken.

    Reference: From Image to Video, App. D.5 (point tracking).

    Args:
        root: the folder of the data.
        split: "train" or "validation".
        num_points: tracks in an example, with padding.
        common: see `IndexedDataset`; nothing is random unless `augment` is
            true.

    Raises:
        DataError: the folder is not as expected, or a sample is bad under "raise".
        ValueError: an argument is out of range.
    """

    spec: ClassVar[DatasetSpec] = SPEC
    training_splits = ()
    listed = pa.schema(
        [
            ("num_annotated", pa.int32()),  # frames that the video must have
            ("visible", pa.binary()),  # (p, T) bits, rows of whole bytes
            ("points", pa.binary()),  # xy, float32, of the visible ones alone
        ]
    )

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str,
        *,
        num_points: int = 64,
        **common: Unpack[OpenOptions],
    ) -> None:
        if num_points < 1:
            raise ValueError(f"num_points {num_points} must be at least 1")
        self.num_points = num_points
        super().__init__(root, split, **common)

    def scan(self) -> Scan:
        """Counts frames without decoding them, and compares their number with the tracks'."""
        return scan_tracked

    def example_options(self) -> Mapping[str, Any]:
        """Number of tracks."""
        return {"num_points": self.num_points}

    def list_samples(self) -> Listing:
        """Every video of the annotations that has point tracks, whether it is there or not.

        Raises:
            DataError: the annotations are not there or damaged, or none of their videos is there.
        """
        path = self._annotations()
        videos = read_annotations(path)
        if all(row["path"] is None for row in self._videos(videos)):
            problem = f"holds none of the {len(videos)} videos of {path.name}"
            expected = f"files such as {next(iter(videos))}.mp4, in videos/ or the root"
            raise data_error(self.root, problem, expected, "move them there or link the folder")
        layout = f"videos by name, tracks of {path.relative_to(self.root)}"
        return Listing(layout=layout, rows=self._videos(videos), classes={}, total=len(videos))

    def read(self, row: Row, chance: torch.Generator) -> PointTrackExample:
        """The clip of a video with its tracks.

        Args:
            row: its row.
            chance: decides the first frame where it is random.

        Raises:
            VideoError: the frames cannot be decoded.
        """
        indices = self.clip_frames(row["num_frames"], chance)
        points, visible = _unpacked(row)
        xy, seen, valid, queries = query_tracks(
            points[:, indices], visible[:, indices], self.num_points
        )
        return PointTrackExample(
            video=self.read_video(row, indices),
            points=xy,
            points_visible=seen,
            points_valid=valid,
            query_frames=queries,
            sample_id=row["sample_id"],
        )

    def read_video(self, row: Row, indices: list[int]) -> Float[Tensor, "3 T H W"]:
        """Whole frames of a video, scaled to a square.

        Args:
            row: its row.
            indices: which frames.
        """
        path = self.root / row["path"]
        frames = read_frames(path, indices, index=FrameIndex.unpack(path, row["frames"]))
        return crop_resize(frames, whole_window(*frames.shape[-2:]), self.config.size)

    def _annotations(self) -> Path:
        split = _SPLITS[self.split]
        names = [table.format(split) for table in _TABLES]
        for path in (self.root / folder / n for n in names for folder in ("", "annotations")):
            if path.is_file():
                return path
        problem = f"holds no annotations of split {self.split!r}"
        expected = f"{' or '.join(names)}, there or in annotations/"
        raise data_error(self.root, problem, expected, "copy them there")

    def _videos(self, videos: Mapping[str, TrackedVideo]) -> Iterator[Row]:
        split = _SPLITS[self.split]
        folders = [folder.format(split) for folder in _FOLDERS]
        present = {f: _files(self.root / f) for f in folders}
        for name, video in videos.items():
            file = f"{name}.mp4"
            folder = next((f for f in folders if file in present[f]), None)
            path = None if folder is None else f"{folder}/{file}".lstrip("/")
            if path is not None:
                safe_path(self.root / (folder or ""), file)
            yield {
                "sample_id": name,
                "path": path,
                "num_annotated": video.num_frames,
                "visible": np.packbits(video.visible, axis=1).tobytes(),
                "points": video.points[video.visible].tobytes(),
            }


def _files(folder: Path) -> set[str]:
    """Names in a folder; none where it does not exist."""
    try:
        return set(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        problem = f"cannot be listed ({error.strerror or error})"
        raise data_error(folder, problem, "a folder of videos", "check it") from error


def _unpacked(row: Row) -> tuple[Float32[Tensor, "n T 2"], Bool[Tensor, "n T"]]:
    """All tracks of a row: xy, zeros where not visible, and visibility."""
    frames = row["num_annotated"]
    packed = np.frombuffer(row["visible"], np.uint8)
    bits = np.unpackbits(rearrange(packed, "(n b) -> n b", b=-(-frames // 8)), axis=1)
    visible = bits[:, :frames].astype(bool)
    points = np.zeros((*visible.shape, 2), np.float32)
    points[visible] = rearrange(np.frombuffer(row["points"], np.float32), "(k c) -> k c", c=2)
    return torch.from_numpy(points), torch.from_numpy(visible)
