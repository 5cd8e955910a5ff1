"""TAP-Vid: tracks of any point, in videos of DAVIS, of robots and of rendered stacks.

`python -m probe_datasets.tapvid PICKLE FOLDER` makes the folder from the published pickle.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Unpack

import numpy as np
import pyarrow as pa
import torch
from einops import rearrange

from probe_datasets.clips import ClipConfig
from probe_datasets.formats.class_names import folder_files
from probe_datasets.formats.files import data_error
from probe_datasets.formats.tapvid import frames_offset, read_point_frames, read_point_video
from probe_datasets.index import Listing
from probe_datasets.indexed import IndexedDataset, OpenOptions
from probe_datasets.point_tracks import query_tracks
from probe_datasets.scan import Row, Scan
from probe_datasets.schema import PointTrackExample
from probe_datasets.spec import DatasetSpec
from probe_datasets.transforms import crop_resize
from probe_datasets.windows import whole_window

__all__ = ["SPEC", "TapVid"]

SPEC = DatasetSpec(
    name="tapvid",
    summary="TAP-Vid (DAVIS, RGB-stacking) and RoboTAP: tracks of points through whole videos",
    builder="probe_datasets.tapvid:TapVid",
    task="point tracks",
    splits=("test",),
    clip=ClipConfig(num_frames=17, stride=1, size=256),
    layouts=("<video>.npz at any depth, as `python -m probe_datasets.tapvid` writes them",),
    obtain="tapvid_davis.zip, tapvid_rgb_stacking.zip or robotap.zip from "
    "https://github.com/google-deepmind/tapnet, unpacked; then `python -m probe_datasets.tapvid "
    "PICKLE FOLDER`",
    licence="annotations CC BY 4.0 (DeepMind); videos on their owners' terms",
    citation="Doersch et al., TAP-Vid: A Benchmark for Tracking Any Point in a Video, NeurIPS 2022",
)


def scan_archive(path: Path, row: Row) -> list[Row]:
    """Reads an archive once: its checksums, its tracks and where its frames are.

    Args:
        path: the file.
        row: its row.

    Raises:
        DataError: it is no such archive, or damaged.
    """
    content = read_point_video(path)
    num_frames, height, width, _ = content.video.shape
    return [
        {
            "num_frames": num_frames,
            "height": height,
            "width": width,
            "offset": frames_offset(path),
            "points": np.ascontiguousarray(content.points, "<f4").tobytes(),
            "visible": np.ascontiguousarray(content.visible).tobytes(),
        }
    ]


class TapVid(IndexedDataset):
    """Neighbouring frames with the tracks that they show; for evaluation.

    Frames are scaled to a square as a whole, whatever their aspect, since that is the plane in
    which TAP-Vid's metrics measure distances. So nothing is cut off, and the published coordinates
    stay as they are.

    Each point is queried in the first frame of the clip in which it is visible. Points that the
    clip never shows are left out, and of more than `num_points` the first in the order of the
    archive are taken.

    Reference: Doersch et al., TAP-Vid, 2022.

    Args:
        root: the folder of the archives.
        split: "test".
        num_points: tracks in an example, with padding.
        common: see `IndexedDataset`; nothing is random unless `augment` is
            true.

    Raises:
        DataError: the folder is not as expected, or a sample is bad under "raise".
        ValueError: an argument is out of range.
    """

    spec: ClassVar[DatasetSpec] = SPEC
    training_splits = ()
    scanned = pa.schema(
        [
            ("num_frames", pa.int32()),
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("offset", pa.int64()),  # of the first frame
            ("points", pa.binary()),  # (p, T, 2) float32
            ("visible", pa.binary()),  # (p, T), a byte each
        ]
    )

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str = "test",
        *,
        num_points: int = 64,
        **common: Unpack[OpenOptions],
    ) -> None:
        if num_points < 1:
            raise ValueError(f"num_points {num_points} must be at least 1")
        self.num_points = num_points
        super().__init__(root, split, **common)

    def scan(self) -> Scan:
        """Reads every archive once."""
        return scan_archive

    def example_options(self) -> Mapping[str, Any]:
        """Number of tracks."""
        return {"num_points": self.num_points}

    def list_samples(self) -> Listing:
        """Every archive below the folder.

        Raises:
            DataError: there is none.
        """
        paths = [path for path, _ in folder_files(self.root, ("npz",))]
        if not paths:
            pickles = [path for path, _ in folder_files(self.root, ("pkl",))]
            problem = f"holds no .npz, but {len(pickles)} pickles" if pickles else "holds no .npz"
            fix = "convert the pickle: python -m probe_datasets.tapvid PICKLE FOLDER"
            raise data_error(self.root, problem, "archives <video>.npz", fix)
        rows = [{"sample_id": path.removesuffix(".npz"), "path": path} for path in paths]
        return Listing(layout="archives of videos", rows=rows, classes={}, total=len(rows))

    def read(self, row: Row, chance: torch.Generator) -> PointTrackExample:
        """The clip of a video with its tracks.

        Args:
            row: its row.
            chance: decides the first frame where it is random.

        Raises:
            DataError: the frames cannot be read.
        """
        indices = self.clip_frames(row["num_frames"], chance)
        count, size = row["num_frames"], (row["height"], row["width"])
        pixels = read_point_frames(
            self.root / row["path"], indices, offset=row["offset"], size=size
        )
        points = rearrange(np.frombuffer(row["points"], "<f4"), "(p T c) -> p T c", T=count, c=2)
        visible = rearrange(np.frombuffer(row["visible"], bool), "(p T) -> p T", T=count)
        xy, seen, valid, queries = query_tracks(
            torch.from_numpy(points[:, indices]),
            torch.from_numpy(visible[:, indices]),
            self.num_points,
        )
        frames = rearrange(torch.from_numpy(pixels), "T H W c -> T c H W")
        return PointTrackExample(
            video=crop_resize(frames, whole_window(*size), self.config.size),
            points=xy,
            points_visible=seen,
            points_valid=valid,
            query_frames=queries,
            sample_id=row["sample_id"],
        )
