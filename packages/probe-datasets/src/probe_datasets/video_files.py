"""Datasets whose samples are video files.

Axes: `T` frames, `H W` pixels.
"""

from pathlib import Path

import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from probe_datasets.frame_index import FrameIndex, frame_index
from probe_datasets.indexed import IndexedDataset
from probe_datasets.scan import Row, Scan
from probe_datasets.schema import LabelledVideoExample, VideoExample
from probe_datasets.transforms import crop_resize
from probe_datasets.video_io import read_frames, scan_video
from probe_datasets.windows import central_window

__all__ = ["VIDEO_COLUMNS", "VideoFiles", "scan_file", "scan_file_fully"]

VIDEO_COLUMNS = pa.schema([("num_frames", pa.int32()), ("frames", pa.binary())])
"""Frames of a video, and its packed `FrameIndex`."""


def scan_file(path: Path, row: Row) -> list[Row]:
    """Counts a video's frames and finds the time of each, without decoding them.

    Args:
        path: the file.
        row: its row.

    Raises:
        VideoError: it is no video, or incomplete.
    """
    index = frame_index(path)
    return [{"num_frames": index.info.num_frames, "frames": index.pack()}]


def scan_file_fully(path: Path, row: Row) -> list[Row]:
    """As `scan_file`, and decodes every frame to find corrupt ones.

    Args:
        path: the file.
        row: its row.

    Raises:
        VideoError: it is no video, incomplete, or has corrupt frames.
    """
    scan_video(path, verify=True)
    return scan_file(path, row)


class VideoFiles(IndexedDataset):
    """Square clips of videos, one a sample, with a class label where the listing gives one.

    Frames are scaled and their central square is kept, as in the study.

    Reference: From Image to Video, App. D.2 (action recognition).
    """

    scanned = VIDEO_COLUMNS

    def scan(self) -> Scan | None:
        """Counts frames without decoding them."""
        return scan_file

    def read(self, row: Row, chance: torch.Generator) -> VideoExample:
        """The clip of a video.

        Args:
            row: its row.
            chance: decides the first frame, in training.

        Raises:
            VideoError: the frames cannot be decoded.
        """
        return self.example(row, self.read_video(row, self.clip_frames(row["num_frames"], chance)))

    def example(self, row: Row, video: Float[Tensor, "3 T H W"]) -> VideoExample:
        """A clip with its name, and its label where there is one.

        Args:
            row: its row.
            video: its pixels.
        """
        if "label" not in self.listed.names:
            return VideoExample(video=video, sample_id=row["sample_id"])
        (label,) = self.classes
        return LabelledVideoExample(
            video=video, labels={label: row["label"]}, sample_id=row["sample_id"]
        )

    def read_video(self, row: Row, indices: list[int]) -> Float[Tensor, "3 T H W"]:
        """Frames of a video as a square clip.

        Args:
            row: its row.
            indices: which frames.
        """
        path = self.root / row["path"]
        index = FrameIndex.unpack(path, row["frames"])
        frames = read_frames(path, indices, index=index)
        return crop_resize(frames, central_window(*frames.shape[-2:]), self.config.size)
