"""Waymo Open: drives seen by one camera, with the boxes of vehicles, pedestrians and cyclists.

Axes: `T` frames, `H W` pixels, `m` objects.
"""

import os
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Unpack

import numpy as np
import pyarrow as pa
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from probe_datasets.clips import ClipConfig, clip_indices
from probe_datasets.formats.files import DataError, data_error
from probe_datasets.formats.still_images import decode_rgb
from probe_datasets.formats.waymo import (
    CAMERAS,
    WaymoFrame,
    WaymoV1Segment,
    labelled_frames,
    open_v1,
)
from probe_datasets.formats.waymo_boxes import NO_BOXES, box_tracks, select_boxes, subsample
from probe_datasets.formats.waymo_v2 import WaymoV2Segment, open_v2, read_boxes
from probe_datasets.index import Listing
from probe_datasets.indexed import IndexedDataset, OpenOptions
from probe_datasets.scan import Row, Scan
from probe_datasets.schema import BoxTrackExample
from probe_datasets.spec import DatasetSpec
from probe_datasets.transforms import crop_resize
from probe_datasets.windows import central_window, move_boxes

__all__ = ["LAYOUTS", "SPEC", "Waymo", "scan_v1", "scan_v2"]

LAYOUTS = ("auto", "v1", "v2")
"""Which release the files are of; "auto" for the one that is there."""

SPEC = DatasetSpec(
    name="waymo",
    summary="Waymo Open: drives at 5 frames a second with the boxes of up to 25 objects",
    builder="probe_datasets.waymo:Waymo",
    task="box tracks",
    splits=("train", "validation"),
    # Frames of 1280 x 1920 are scaled to 256 x 384, of which the central 256 x 256 stay. The study
    # does not say the first; it is what keeps the aspect. Of 10 frames a second, every 2nd is used.
    clip=ClipConfig(num_frames=17, stride=2, size=256),
    expected={"train": 798, "validation": 202},
    layouts=(
        "v1: {training,validation}/[<part>/]segment-<context>_with_camera_labels.tfrecord",
        "v2: {training,validation}/{camera_image,camera_box}/<context>.parquet",
    ),
    obtain="accept the terms at https://waymo.com/open; copy gs://waymo_open_dataset_v_1_4_3, or "
    "camera_image and camera_box of gs://waymo_open_dataset_v_2_0_1",
    licence="Waymo Dataset License Agreement for non-commercial use; not to be redistributed",
    citation="Sun et al., Scalability in perception for autonomous driving: Waymo Open Dataset, "
    "CVPR 2020",
)

_FOLDERS = {"train": ("training", "train"), "validation": ("validation", "val")}
_IMAGES, _BOXES = "camera_image", "camera_box"
_FETCH = "accept the terms at https://waymo.com/open and copy the files from there"


def scan_v1(path: Path, row: Row, *, camera: str) -> list[Row]:
    """Finds the frames of a segment and whether its camera was labelled; reads no picture.

    Args:
        path: a TFRecord file.
        row: its row.
        camera: name of the camera.

    Raises:
        DataError: it is damaged, no segment, or the camera was labelled in none of its frames.
    """
    segment = open_v1(path, camera)
    context, labelled = labelled_frames(segment)
    if not labelled.any():
        raise _unlabelled(path, camera)
    return [_row(context, segment.timestamps, segment.index, labelled)]


def scan_v2(path: Path, row: Row, *, camera: str) -> list[Row]:
    """Finds the pictures of a segment.

    Whether its camera was labelled is seen when the boxes are read: they lie in another file, which
    may change on its own.

    Args:
        path: a table of pictures.
        row: its row.
        camera: name of the camera.

    Raises:
        DataError: it is damaged, no such table, or has no pictures of the camera.
    """
    segment = open_v2(path, None, camera)
    labelled = np.ones(len(segment.timestamps), bool)
    return [_row(segment.context, segment.timestamps, segment.rows, labelled)]


class Waymo(IndexedDataset):
    """Clips of 17 frames, 5 a second, with the boxes of the objects in their first frame.

    Every second frame in the order of time makes the video; the clip begins at a random one of
    those in training, else at the first. The central square of the frames is kept. Boxes are cut at
    its edge; what is outside has no box. Objects are those with a box in the clip's first frame
    that has at least `min_area` of the square there; of more than `max_boxes`, the largest.

    A frame that was not labelled differs from one without objects: no clip begins there, and later
    in a clip no object has a valid box in it. A segment whose camera was labelled in no frame, or
    in none that a clip can begin with, counts as failed. In v2, segments are labelled as a whole.

    Args:
        root: the folder with `training` and `validation`, or the one with `individual_files`.
        split: "train" or "validation".
        camera: FRONT, FRONT_LEFT, FRONT_RIGHT, SIDE_LEFT or SIDE_RIGHT.
        layout: one of `LAYOUTS`.
        max_boxes: objects in an example; where there are fewer, the rest is padding.
        min_area: least part of the square that a box takes in the first frame, in [0, 1].
        common: see `IndexedDataset`.

    Raises:
        DataError: the files are not as expected.
        ValueError: an argument is out of range.

    Reference:
        From Image to Video, App. D.6. Which boxes are kept of more than 25 is not said there.
    """

    spec: ClassVar[DatasetSpec] = SPEC
    listed = pa.schema([("boxes_size", pa.int64())])
    scanned = pa.schema(
        [
            ("context", pa.string()),
            ("num_frames", pa.int32()),
            ("times", pa.list_(pa.int64())),  # microseconds, ascending
            ("places", pa.list_(pa.int64())),  # of each frame: offset and length, or group and row
            ("labelled", pa.list_(pa.bool_())),
        ]
    )

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str,
        *,
        camera: str = "FRONT",
        layout: str = "auto",
        max_boxes: int = 25,
        min_area: float = 0.005,
        **common: Unpack[OpenOptions],
    ) -> None:
        if camera not in CAMERAS:
            raise ValueError(f"camera {camera!r} must be one of {', '.join(CAMERAS)}")
        if layout not in LAYOUTS:
            raise ValueError(f"layout {layout!r} must be one of {', '.join(LAYOUTS)}")
        if max_boxes < 1 or not 0 <= min_area <= 1:
            raise ValueError(
                f"max_boxes {max_boxes} must be at least 1 and min_area {min_area} from 0 to 1"
            )
        self.camera, self.layout = camera, layout
        self.max_boxes, self.min_area = max_boxes, min_area
        super().__init__(root, split, **common)

    @cached_property
    def files(self) -> tuple[str, Path]:
        """The release that is there, "v1" or "v2", and the folder of the split.

        Raises:
            DataError: neither is there, or both are and the choice is left open.
        """
        names = [f"{base}{name}" for name in _FOLDERS[self.split] for base in ("", _INDIVIDUAL)]
        for folder in (self.root / name for name in names):
            found = [
                layout
                for layout, there in (
                    ("v1", bool(_records(folder))),
                    ("v2", (folder / _IMAGES).is_dir()),
                )
                if there and self.layout in ("auto", layout)
            ]
            if len(found) > 1:
                problem = "holds files of v1 and of v2"
                raise data_error(folder, problem, "a choice", "say which with layout=")
            if found:
                return found[0], folder
        files = {
            "v1": f"{names[0]}/segment-<context>_with_camera_labels.tfrecord",
            "v2": f"{names[0]}/camera_image/<context>.parquet and the same in camera_box/",
        }
        expected = " or ".join(files[k] for k in files if self.layout in ("auto", k))
        fix = f"pass the folder that holds {names[0]}/; to get the files, {_FETCH}"
        raise data_error(self.root, f"holds no files of split {self.split!r}", expected, fix)

    def watched(self) -> tuple[Path, ...]:
        """The folder of the split; of v2, those of pictures and boxes alone."""
        layout, folder = self.files
        return (folder,) if layout == "v1" else (folder / _IMAGES, folder / _BOXES)

    def listing_options(self) -> Mapping[str, Any]:
        """Camera and release."""
        return {"camera": self.camera, "layout": self.files[0]}

    def example_options(self) -> Mapping[str, Any]:
        """What decides which boxes are kept."""
        return {"max_boxes": self.max_boxes, "min_area": self.min_area}

    def scan(self) -> Scan:
        """Finds the frames of a segment."""
        return partial(scan_v1 if self.files[0] == "v1" else scan_v2, camera=self.camera)

    def list_samples(self) -> Listing:
        """Every segment of the split that is there.

        Raises:
            DataError: the folder is in no layout that is known.
        """
        layout, folder = self.files
        rows = (
            [self._row_of(path, path.name, None) for path in _records(folder)]
            if layout == "v1"
            else [self._row_with_boxes(path) for path in _tables(folder)]
        )
        return Listing(
            layout=f"{layout}, {folder.relative_to(self.root).as_posix()}",
            rows=rows,
            classes={},
            total=len(rows),
            expected=self.spec.expected[self.split],
        )

    def read(self, row: Row, chance: torch.Generator) -> BoxTrackExample:
        """The clip of a segment and its boxes; only the pictures of the clip are read.

        Args:
            row: its row.
            chance: decides the first frame, in training.

        Raises:
            DataError: the segment is damaged, or no clip can begin with a labelled frame.
        """
        ranks = self._ranks(row, chance)
        frames = self._frames(row, ranks)
        video, height, width = self._video(frames, row["path"])
        labels = [NO_BOXES if frame.labels is None else frame.labels for frame in frames]
        tracks, there, _ = box_tracks(labels, height, width)
        moved, left = move_boxes(
            torch.from_numpy(tracks), torch.from_numpy(there), central_window(height, width)
        )
        kept = select_boxes(
            moved[:, 0].numpy(),
            left[:, 0].numpy(),
            min_area=self.min_area,
            max_boxes=self.max_boxes,
        )
        boxes = torch.zeros(self.max_boxes, len(frames), 4)
        valid = torch.zeros(self.max_boxes, len(frames), dtype=torch.bool)
        boxes[: len(kept)], valid[: len(kept)] = moved[kept].float(), left[kept]
        return BoxTrackExample(
            video=video, boxes=boxes, boxes_valid=valid, sample_id=row["sample_id"]
        )

    def _ranks(self, row: Row, chance: torch.Generator) -> list[int]:
        """Which frames make the clip, by their rank in time."""
        slower = subsample(np.array(row["times"], np.int64), self.config.stride)
        count, labelled = self.config.num_frames, np.array(row["labelled"])[slower]
        starts = np.flatnonzero(labelled[: max(len(slower) - count, 0) + 1])
        if not len(starts):
            raise _unlabelled(self.root / row["path"], self.camera)
        start = self.start()
        if start == "random":
            first = starts[int(torch.randint(len(starts), (), generator=chance))]
        elif start == "centre":
            first = starts[np.abs(starts - max(len(slower) - count, 0) // 2).argmin()]
        else:
            first = starts[0]
        chosen = clip_indices(
            len(slower), num_frames=count, start=int(first), short=self.config.short
        )
        return slower[chosen].tolist()

    def _frames(self, row: Row, ranks: list[int]) -> list[WaymoFrame]:
        """Pictures and labels of some frames."""
        path = self.root / row["path"]
        times = np.array(row["times"], np.int64)
        places = rearrange(np.array(row["places"], np.int64), "(n pair) -> n pair", pair=2)
        if self.files[0] == "v1":
            v1 = WaymoV1Segment(path=path, camera=self.camera, timestamps=times, index=places)
            frames = v1.frames(ranks)
            if other := {frame.context for frame in frames} - {row["context"]}:
                problem = f"has a frame of the segment {other.pop()!r}"
                raise data_error(path, problem, f"frames of {row['context']!r}", _FETCH)
            return frames
        wanted = set(times[ranks].tolist())
        boxes = path.parents[1] / _BOXES / path.name
        found = read_boxes(boxes, self.camera, row["context"], set(row["times"]), wanted)
        if found is None:
            raise _unlabelled(boxes, self.camera)
        labels = tuple(found.get(time, NO_BOXES) for time in row["times"])
        v2 = WaymoV2Segment(
            path=path, context=row["context"], timestamps=times, rows=places, labels=labels
        )
        return v2.frames(ranks)

    def _video(
        self, frames: list[WaymoFrame], path: str
    ) -> tuple[Float[Tensor, "3 T H W"], int, int]:
        """The central square of each frame, and the size of the frames; one at a time in memory."""
        video, size = torch.zeros(3, len(frames), self.config.size, self.config.size), None
        for t, frame in enumerate(frames):
            source = f"{self.root / path} (time {frame.timestamp_micros})"
            pixels = decode_rgb(frame.image, source, size=size, formats=("JPEG",))
            size = pixels.shape[:2]
            picture = rearrange(torch.from_numpy(pixels), "H W c -> 1 c H W")
            video[:, t] = crop_resize(picture, central_window(*size), self.config.size)[:, 0]
        assert size is not None
        return video, *size

    def _row_of(self, path: Path, name: str, boxes_size: int | None) -> Row:
        name = name.removesuffix(".tfrecord").removesuffix("_with_camera_labels")
        return {
            "sample_id": name.removeprefix("segment-"),
            "path": path.relative_to(self.root).as_posix(),
            "boxes_size": boxes_size,
        }

    def _row_with_boxes(self, path: Path) -> Row:
        boxes = path.parents[1] / _BOXES / path.name
        try:
            return self._row_of(path, path.stem, boxes.stat().st_size)
        except OSError:
            problem = f"{boxes}: there is no such file; expected the boxes of the pictures"
            return self._row_of(path, path.stem, None) | {"problem": f"{problem}; {_FETCH}"}


_INDIVIDUAL = "individual_files/"


def _records(folder: Path) -> list[Path]:
    """The TFRecord files of a folder and of those in it, such as unpacked archives."""
    found = [*folder.glob("*.tfrecord"), *folder.glob("*/*.tfrecord")]
    return sorted(path for path in found if not path.name.startswith("."))


def _tables(folder: Path) -> list[Path]:
    """The tables of pictures."""
    found = (folder / _IMAGES).glob("*.parquet")
    return sorted(path for path in found if not path.name.startswith("."))


def _row(
    context: str,
    times: Int64[np.ndarray, " n"],
    places: Int64[np.ndarray, "n 2"],
    labelled: Bool[np.ndarray, " n"],
) -> Row:
    return {
        "context": context,
        "num_frames": len(times),
        "times": times.tolist(),
        "places": places.ravel().tolist(),
        "labelled": labelled.tolist(),
    }


def _unlabelled(path: Path, camera: str) -> DataError:
    problem = f"was not labelled for the camera {camera!r} where a clip could begin"
    return data_error(path, problem, "2-D labels of that camera", "choose another camera=")
