"""Kubric MOVi-E: rendered videos of falling objects, with point tracks computed from the scene.

Axes: `T` frames, `H W` pixels, `p` points.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Unpack

import numpy as np
import pyarrow as pa
import torch
from einops import rearrange

from probe_datasets.clips import ClipConfig
from probe_datasets.formats.files import DataError, data_error
from probe_datasets.formats.movi_e import read_movi_e
from probe_datasets.formats.movi_e_files import MoviShard, MoviSplit, find_movi_e, shard_index
from probe_datasets.formats.movi_e_tracks import example_tracks, sample_queries
from probe_datasets.index import Listing
from probe_datasets.indexed import IndexedDataset, OpenOptions
from probe_datasets.scan import Row, Scan
from probe_datasets.schema import PointTrackExample
from probe_datasets.spec import DatasetSpec
from probe_datasets.transforms import crop_resize
from probe_datasets.windows import move_points, track_window, whole_window

__all__ = ["SPEC", "MoviE", "scan_shard"]

SPEC = DatasetSpec(
    name="movi_e",
    summary="Kubric MOVi-E: rendered videos of objects, with tracks of 64 points from frame 0",
    builder="probe_datasets.movi_e:MoviE",
    task="point tracks",
    splits=("train", "validation", "test"),
    clip=ClipConfig(num_frames=17, stride=1, size=256),
    # As Kubric made it: 10,000 videos, 2.5 % of them for validation, and 1,000 more for the test.
    # The study's 97,500 for training are ten times as many. dataset_info.json, where it is there,
    # decides instead.
    expected={"train": 9750, "validation": 250, "test": 1000},
    layouts=(
        "[movi_e/][<height>x<width>/][<version>/]movi_e-<split>.tfrecord-<i>-of-<n>, as TFDS does",
    ),
    obtain="gsutil -m cp -r gs://kubric-public/tfds/movi_e/256x256 <folder>/movi_e/",
    licence="Kubric is under Apache-2.0; objects and backgrounds have licences of their own",
    citation="Greff et al., Kubric: a scalable dataset generator, CVPR 2022",
)


def scan_shard(path: Path, row: Row) -> list[Row]:
    """Finds the records of a file by their headers.

    Args:
        path: a TFRecord file.
        row: its row, with the number of examples that it should hold, or None.

    Returns:
        Name, offset and bytes of each example; or of each that it should hold, what is wrong.

    Raises:
        DataError: the file is damaged, and it is not known how many examples it should hold.
    """
    count = row["num_examples"]
    try:
        index = shard_index(MoviShard(path=path, present=True, num_examples=count))
    except DataError as error:
        if count is None:
            raise
        return [{"sample_id": _name(path, k), "problem": str(error)} for k in range(count)]
    return [
        {"sample_id": _name(path, k), "offset": offset, "length": length}
        for k, (offset, length) in enumerate(index.tolist())
    ]


class MoviE(IndexedDataset):
    """Clips of 17 of 24 frames with tracks of points, all queried in the clip's first frame.

    Queries are spread over the objects and lie on a grid of every fourth pixel. In training the
    clip begins at a random frame and shows a random window of a changed aspect, in which the
    queries lie; else it shows all of the first frames, and the queries depend on the sample alone.
    Points are tracked by `formats.movi_e_tracks`; outside the window they cannot be seen. A query
    whose own track does not show it in the first frame, as at a ragged edge, is left out.

    Args:
        root: the TFDS data folder, or one of the folders of MOVi-E in it.
        split: "train", "validation" or "test".
        config: which configuration, such as "256x256", where there are several.
        num_points: tracks in an example; where there are fewer, the rest is padding.
        common: see `IndexedDataset`.

    Raises:
        DataError: the files are not as expected.
        ValueError: an argument is out of range.

    Reference:
        From Image to Video, App. D.5; Kubric's challenges/point_tracking, which also queries
        other frames and uses all 24.
    """

    spec: ClassVar[DatasetSpec] = SPEC
    listed = pa.schema([("num_examples", pa.int64())])
    scanned = pa.schema(
        [("sample_id", pa.binary()), ("offset", pa.int64()), ("length", pa.int64())]
    )

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str,
        *,
        config: str | None = None,
        num_points: int = 64,
        **common: Unpack[OpenOptions],
    ) -> None:
        if num_points < 1:
            raise ValueError(f"num_points {num_points} must be at least 1")
        self.resolution, self.num_points = config, num_points
        super().__init__(root, split, **common)

    @cached_property
    def files(self) -> MoviSplit:
        """The files of the split."""
        return find_movi_e(self.root, self.split, config=self.resolution)

    def watched(self) -> tuple[Path, ...]:
        """The folder of the chosen configuration and version."""
        return (self.files.folder,)

    def listing_options(self) -> Mapping[str, Any]:
        """The configuration."""
        return {"config": self.resolution}

    def example_options(self) -> Mapping[str, Any]:
        """The number of tracks."""
        return {"num_points": self.num_points}

    def scan(self) -> Scan:
        """Finds the records of each file."""
        return scan_shard

    def list_samples(self) -> Listing:
        """The files of the split; of those that are not there, the examples that they should hold.

        Raises:
            DataError: the folder holds no such split, or its files contradict each other.
        """
        shards = self.files.shards
        rows = [row for shard in shards for row in self._rows_of(shard)]
        lengths_known = all(shard.num_examples is not None for shard in shards)
        return Listing(
            layout=f"TFDS, {self.files.folder.relative_to(self.root).as_posix()}",
            rows=rows,
            classes={},
            total=len(rows),
            expected=0 if lengths_known else self.spec.expected.get(self.split, 0),
        )

    def read(self, row: Row, chance: torch.Generator) -> PointTrackExample:
        """The clip of a record and its tracks; only pictures that these need are decoded.

        Args:
            row: its row.
            chance: decides first frame, window and queries, in training.

        Raises:
            DataError: the record is damaged or too short.
        """
        example = read_movi_e(self.root / row["path"], row["offset"], row["length"])
        if example.num_frames < self.frames_needed():
            expected = f"{self.frames_needed()}, which a clip spans"
            fix = "use fewer frames, a smaller stride, or short='clamp' or 'loop'"
            raise data_error(example.source, f"has {example.num_frames} frames", expected, fix)
        frames = self.clip_frames(example.num_frames, chance)
        size = (example.height, example.width)
        window = track_window(*size, chance) if self.augment else whole_window(*size)
        queries = sample_queries(
            example.segmentations(frames[:1]),
            self.num_points,
            generator=_numpy_generator(chance if self.augment else None, row["sample_id"]),
            window=(
                window.top,
                window.left,
                window.top + window.height,
                window.left + window.width,
            ),
        )
        tracks = [torch.from_numpy(array) for array in example_tracks(example, queries, frames)]
        moved, seen = move_points(tracks[0], tracks[1], window)
        moved, seen = moved[seen[:, 0]], seen[seen[:, 0]]
        points = torch.zeros(self.num_points, len(frames), 2)
        visible = torch.zeros(self.num_points, len(frames), dtype=torch.bool)
        points[: len(moved)], visible[: len(moved)] = moved, seen
        video = rearrange(torch.from_numpy(example.video(frames)), "T H W c -> T c H W")
        return PointTrackExample(
            video=crop_resize(video, window, self.config.size),
            points=points,
            points_visible=visible,
            points_valid=torch.arange(self.num_points) < len(moved),
            query_frames=torch.zeros(self.num_points, dtype=torch.int64),
            sample_id=row["sample_id"],
        )

    def _rows_of(self, shard: MoviShard) -> Iterator[Row]:
        """One row to be scanned; or one for each example that cannot be there."""
        path = shard.path.relative_to(self.root).as_posix() if shard.present else None
        if path is not None and _num_bytes(shard.path):
            yield {
                "sample_id": _name(shard.path, 0),
                "path": path,
                "num_examples": shard.num_examples,
            }
            return
        for k in range(1 if shard.num_examples is None else shard.num_examples):
            yield {
                "sample_id": _name(shard.path, k),
                "path": path,
                "num_examples": shard.num_examples,
            }


def _name(path: Path, rank: int) -> str:
    """Name of an example: split and number of its file, and its rank there."""
    return f"{path.name.removeprefix('movi_e-').replace('.tfrecord', '')}/{rank:04}"


def _num_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # gone since it was listed, or a link to nowhere
        return 0


def _numpy_generator(chance: torch.Generator | None, name: str) -> np.random.Generator:
    """A generator seeded by another, or by a name alone."""
    if chance is not None:
        return np.random.default_rng(int(torch.randint(2**63 - 1, (), generator=chance)))
    return np.random.default_rng(int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8]))
