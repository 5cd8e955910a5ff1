"""RealEstate10K: clips of houses from a moving camera whose pose is known in every frame.

Axes: `T` frames, `H W` pixels of a frame, `N` rows of a clip's pose file.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Unpack

import numpy as np
import pyarrow as pa
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from probe_datasets.clips import ClipConfig
from probe_datasets.formats.files import DataError, data_error, read_bytes, safe_path
from probe_datasets.formats.realestate10k import (
    ClipPoses,
    read_pose_file,
    read_scale_table,
    read_video_id,
    scaled,
)
from probe_datasets.formats.realestate10k_chunks import (
    ChunkPlaces,
    chunk_places,
    read_chunk_index,
    read_chunk_picture,
    read_chunk_poses,
)
from probe_datasets.formats.realestate10k_frames import (
    FrameFinder,
    FrameSource,
    find_pose_files,
    picture_run,
    video_frames,
)
from probe_datasets.formats.still_images import read_rgb
from probe_datasets.frame_index import FrameIndex, frame_index
from probe_datasets.index import Listing
from probe_datasets.indexed import IndexedDataset, OpenOptions
from probe_datasets.scan import Row, Scan
from probe_datasets.schema import CameraExample
from probe_datasets.spec import DatasetSpec
from probe_datasets.transforms import crop_resize
from probe_datasets.video_io import read_frames
from probe_datasets.windows import Window, central_window, move_intrinsics

__all__ = ["SPEC", "RealEstate10K"]

SPEC = DatasetSpec(
    name="realestate10k",
    summary="RealEstate10K: clips of houses with the camera's pose in every frame",
    builder="probe_datasets.realestate10k:RealEstate10K",
    task="camera pose",
    splits=("train", "test"),
    clip=ClipConfig(num_frames=17, stride=1, size=256),
    layouts=(
        "<clip>/<timestamp>.png or .jpg, a picture a frame, below <split>/, frames/<split>/ or "
        "frames/",
        "<clip>.mp4 or <video>/<clip>.mp4, whose frame k belongs to row k of the pose file, below "
        "<split>/, clips/ or video_clips/",
        "<video>.mp4 or .webm, videos as downloaded, below <split>/, videos/ or the root",
        "<split>/index.json with pixelSplat's chunks <split>/<number>.torch, which need no pose "
        "files; all others need <clip>.txt in RealEstate10K/<split>/, <split>/ or pose_files/",
    ),
    obtain="download the pose files from https://google.github.io/realestate10k and the videos "
    "that they name",
    licence="pose files CC BY 4.0 (Google LLC); the videos belong to those who uploaded them",
    citation="Zhou et al., Stereo Magnification: Learning View Synthesis using Multiplane Images, "
    "SIGGRAPH 2018",
)

_LAYOUTS = {
    "frames": "a picture a frame, by clip and timestamp",
    "clips": "a video a clip, a frame a row",
    "videos": "whole videos, frames by the nearest time",
}
_POSE_FILE = "a RealEstate10K pose file"
_SCANNED = (
    ("num_frames", pa.int32()),  # rows of the longest part without a gap
    ("first_row", pa.int32()),  # of that part
    ("pattern", pa.string()),  # of the pictures' names by timestamp
    ("video", pa.binary()),  # packed FrameIndex
    ("frames", pa.binary()),  # of a whole video, by row: int32
    ("places", pa.binary()),  # packed ChunkPlaces
    ("scale", pa.float64()),  # metres in the clip's unit
)


class RealEstate10K(IndexedDataset):
    """Clips with the world-to-camera pose and the intrinsics of every frame.

    Frames are consecutive rows of a clip's pose file at the clip's stride. Where pictures are
    missing in between, they are rows of the longest part without a gap. Frames are cut to the
    central square and scaled, and intrinsics hold for that. Nothing is mirrored.

    Poses are as published: from the world to the camera of each frame, so that the first is not the
    identity. The motion that a readout has to find is last * inverse(first). Their unit of length
    is each clip's own, except with a scale table, which makes it the metre; `metric` says which.

    The first frame is random in training, and the clip's first otherwise.

    Reference: From Image to Video, App. D.4 (camera pose).

    Args:
        root: the folder that holds the pose files and the frames, or chunks.
        split: "train" or "test".
        scale_table: metres in a unit of length of each clip, as JSON {clip: metres} or as CSV lines
            clip,metres. Clips that it does not have are failed samples.
        common: see `IndexedDataset`.

    Raises:
        DataError: there are no pose files or no frames, or a clip is bad under "raise".
        ValueError: an argument is out of range.
    """

    spec: ClassVar[DatasetSpec] = SPEC
    listed = pa.schema(
        [
            ("layout", pa.string()),
            ("poses", pa.binary()),  # the pose file below the root; null in a chunk
            ("poses_hash", pa.binary()),
            ("pictures", pa.binary()),  # the folder of a clip's pictures
            ("pictures_hash", pa.binary()),  # of their names, or of those of a chunk's clips
        ]
    )

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str,
        *,
        scale_table: str | os.PathLike[str] | None = None,
        **common: Unpack[OpenOptions],
    ) -> None:
        self._chunked = split in SPEC.splits and Path(root, split, "index.json").is_file()
        self._scales: Mapping[str, float] | None = None
        self._scales_hash: str | None = None
        if scale_table is not None:
            self._scales = read_scale_table(scale_table)
            content = read_bytes(scale_table, "a scale table")
            self._scales_hash = hashlib.sha256(content).hexdigest()
        names = [("sample_id", pa.binary())] if self._chunked else []  # a chunk holds many
        self.scanned = pa.schema([*names, *_SCANNED])
        super().__init__(root, split, **common)

    @property
    def metric(self) -> bool:
        """Whether translations are in metres; otherwise each clip has a unit of its own."""
        return self._scales is not None

    def listing_options(self) -> Mapping[str, Any]:
        """The scale table, by its content, and whether the data comes in chunks."""
        return {"scale_table": self._scales_hash, "chunks": self._chunked}

    def example_options(self) -> Mapping[str, Any]:
        """Whether translations are in metres."""
        return {"metric": self.metric}

    def list_samples(self) -> Listing:
        """Every clip that has a pose file or is in the table of chunks, whether it is there or not.

        Raises:
            DataError: there are no pose files, or frames of none of the clips.
        """
        if self._chunked:
            return self._list_chunks()
        clips = self._read_pose_files()
        finder = FrameFinder(self.root, self.split)

        def rows() -> Iterator[Row]:
            return (self._clip_row(finder, *clip) for clip in clips)

        first = next((row for row in rows() if row["layout"] is not None), None)
        if first is None:
            problem = f"holds frames of none of the {len(clips)} clips of split {self.split!r}"
            names = "frames/{1}/<timestamp>.png, clips/{1}.mp4 or videos/{0}.mp4".format(*clips[0])
            raise data_error(self.root, problem, f"files such as {names}", "check their names")
        what, where = _LAYOUTS[first["layout"]], Path(os.fsdecode(first["poses"])).parent
        return Listing(
            layout=f"{what} (as of {first['sample_id']}), pose files in {where.as_posix()}",
            rows=rows(),
            classes={},
            total=len(clips),
        )

    def scan(self) -> Scan:
        """Finds the frame of every row, without decoding any."""
        return _scan_chunk if self._chunked else partial(_scan_clip, self.root)

    def read(self, row: Row, chance: torch.Generator) -> CameraExample:
        """The clip of a row.

        Args:
            row: its row.
            chance: decides the first frame, in training.

        Raises:
            DataError: a frame is damaged, or the pose file changed.
        """
        chosen = self.clip_frames(row["num_frames"], chance)
        rows = [row["first_row"] + i for i in chosen]
        if row["layout"] == "chunks":
            poses = read_chunk_poses(self.root / row["path"], _places(row))
        else:
            poses = _read_poses(self.root, row)
        video, window = self._video(row, poses, rows)
        if row["scale"] is not None:
            poses = scaled(poses, row["scale"])
        return CameraExample(
            video=video,
            sample_id=row["sample_id"],
            poses=torch.from_numpy(poses.world_to_camera[rows]),
            poses_valid=torch.ones(len(rows), dtype=torch.bool),
            intrinsics=move_intrinsics(torch.from_numpy(poses.intrinsics[rows]), window),
        )

    def _read_pose_files(self) -> list[tuple[str, str, Path, bytes]]:
        """(video, clip, pose file, its hash), so that the clips of a video follow each other."""
        found = []
        for path in find_pose_files(self.root, self.split):
            try:
                data = read_bytes(path, _POSE_FILE)
            except DataError:  # which its scan says again
                data = b""
            found.append((read_video_id(data), path.stem, path, _hash(data)))
        return sorted(found)

    def _clip_row(
        self, finder: FrameFinder, video: str, clip: str, poses: Path, poses_hash: bytes
    ) -> Row:
        pose_file = poses.relative_to(self.root).as_posix()
        row: Row = {
            "sample_id": clip,
            "path": None,
            "layout": None,
            "poses": os.fsencode(pose_file),
            "poses_hash": poses_hash,
            "pictures": None,
            "pictures_hash": None,
            "scale": None if self._scales is None else self._scales.get(clip),
        }
        try:
            source = finder.find(clip, video)
        except DataError as error:  # one clip that cannot serve is no reason to stop
            return {**row, "path": pose_file, "problem": str(error)}
        if source is None:
            return row
        row |= {"path": source.path.relative_to(self.root).as_posix(), "layout": source.layout}
        if source.layout == "frames":  # of many files the pose file stands for the sample
            row |= {"pictures": os.fsencode(row["path"]), "path": pose_file}
            names = sorted(os.fsencode(name) for name in os.listdir(source.path))
            row["pictures_hash"] = _hash(b"\0".join(names))
        if self.metric and row["scale"] is None:
            row["problem"] = _no_scale(clip)
        return row

    def _list_chunks(self) -> Listing:
        chunks: dict[Path, list[str]] = {}
        for clip, chunk in read_chunk_index(self.root, self.split).items():
            chunks.setdefault(chunk, []).append(clip)
        return Listing(
            layout=f"chunks of {self.split}/index.json",
            rows=self._chunk_rows(chunks),
            classes={},
            total=len(chunks),
        )

    def _chunk_rows(self, chunks: Mapping[Path, list[str]]) -> Iterator[Row]:
        for chunk, clips in sorted(chunks.items()):
            path = chunk.relative_to(self.root).as_posix()
            row = {"path": path, "layout": "chunks", **dict.fromkeys(self.listed.names[1:])}
            row["pictures_hash"] = _hash("\n".join(clips).encode())
            scales = None if self._scales is None else {c: self._scales.get(c) for c in clips}
            if chunk.is_file():
                yield {**row, "sample_id": path, "clips": clips, "scales": scales}
            else:
                yield from ({**row, "sample_id": clip, "path": None} for clip in clips)

    def _video(
        self, row: Row, poses: ClipPoses, rows: list[int]
    ) -> tuple[Float[Tensor, "3 T H W"], Window]:
        """Frames of some rows of the pose file, and what of them is kept."""
        path = self.root / row["path"]
        if row["layout"] == "chunks":
            return self._pictures(partial(read_chunk_picture, path, _places(row)), rows)
        if row["layout"] == "frames":
            return self._pictures(partial(_read_picture, self.root, row, poses), rows)
        numbers = rows if row["frames"] is None else np.frombuffer(row["frames"], "<i4")[rows]
        wanted = [int(number) for number in numbers]
        frames = read_frames(path, wanted, index=FrameIndex.unpack(path, row["video"]))
        window = central_window(*frames.shape[-2:])
        return crop_resize(frames, window, self.config.size), window

    def _pictures(
        self, read_picture: Callable[..., UInt8[np.ndarray, "H W 3"]], rows: list[int]
    ) -> tuple[Float[Tensor, "3 T H W"], Window]:
        size, window, videos = None, None, []
        for i in rows:  # one decoded picture in memory at a time
            pixels = read_picture(i, size=size)
            size = pixels.shape[:2]
            window = window or central_window(*size)
            frame = rearrange(torch.from_numpy(pixels), "H W c -> 1 c H W")
            videos.append(crop_resize(frame, window, self.config.size))
        assert window is not None
        return torch.cat(videos, dim=1), window


def _scan_clip(root: Path, path: Path, row: Row) -> list[Row]:
    """Which frame belongs to which row of the pose file."""
    poses = _read_poses(root, row)
    found: Row = {"num_frames": len(poses), "first_row": 0, "scale": row["scale"]}
    found |= dict.fromkeys(("pattern", "video", "frames", "places"))
    if row["layout"] == "frames":
        source = FrameSource(layout="frames", path=root / os.fsdecode(row["pictures"]))
        pattern, first, count = picture_run(source, poses)
        return [{**found, "num_frames": count, "first_row": first, "pattern": pattern}]
    frames = video_frames(FrameSource(layout=row["layout"], path=path), poses)
    if row["layout"] == "videos":
        found["frames"] = frames.astype("<i4").tobytes()
    return [{**found, "video": frame_index(path).pack()}]


def _scan_chunk(path: Path, row: Row) -> list[Row]:
    """Where the clips of a chunk are in it."""
    try:
        places = chunk_places(path)
    except DataError as error:
        return [{"sample_id": clip, "problem": str(error)} for clip in row["clips"]]
    rows: list[Row] = []
    scales = row["scales"]
    empty = dict.fromkeys(("pattern", "video", "frames"))
    for clip in places:
        found: Row = {"sample_id": clip.clip, "num_frames": len(clip.offsets), "first_row": 0}
        found |= {**empty, "places": clip.pack()}
        found["scale"] = None if scales is None else scales.get(clip.clip)
        if scales is not None and found["scale"] is None:
            found["problem"] = _no_scale(clip.clip)
        rows.append(found)
    gone, problem = set(row["clips"]) - {c.clip for c in places}, f"{path.name} does not hold it"
    return rows + [{"sample_id": clip, "problem": problem} for clip in sorted(gone)]


def _read_poses(root: Path, row: Row) -> ClipPoses:
    path, problem = root / os.fsdecode(row["poses"]), "changed since it was indexed"
    if _hash(read_bytes(path, _POSE_FILE)) != row["poses_hash"]:
        raise data_error(path, problem, "the same file", "open the dataset again")
    return read_pose_file(path)


def _read_picture(
    root: Path, row: Row, poses: ClipPoses, i: int, *, size: tuple[int, int] | None
) -> UInt8[np.ndarray, "H W 3"]:
    """The picture of a row of the pose file."""
    name = row["pattern"] % int(poses.timestamps[i])
    return read_rgb(safe_path(root / os.fsdecode(row["pictures"]), name), size=size)


def _places(row: Row) -> ChunkPlaces:
    return ChunkPlaces.unpack(row["sample_id"], row["places"])


def _no_scale(clip: str) -> str:
    return f"{clip}: is not in the scale table; add it, or leave scale_table out"


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
