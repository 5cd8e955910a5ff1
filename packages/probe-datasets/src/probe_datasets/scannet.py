"""ScanNet: indoor scenes with depth and camera poses, as recordings or as exported frames.

Axes: `T` frames, `H W` pixels of the clip, `h w` those of the depth camera.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Unpack

import numpy as np
import pyarrow as pa
import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Float32, UInt8
from numpy import ndarray
from torch import Tensor

from probe_datasets.clips import ClipConfig
from probe_datasets.formats.files import DataError, data_error, read_bytes, safe_path
from probe_datasets.formats.rgbd import read_depth, read_pose
from probe_datasets.formats.scannet import (
    SPLIT_SIZES,
    ExportedScene,
    exported_intrinsics,
    exported_units,
    find_exported,
    find_scenes,
    find_sens,
    find_split,
    name_patterns,
    read_split,
)
from probe_datasets.formats.sens import index_sens, read_sens_frame
from probe_datasets.formats.sens_index import SensIndex
from probe_datasets.formats.still_images import read_rgb
from probe_datasets.index import Listing
from probe_datasets.indexed import IndexedDataset, OpenOptions
from probe_datasets.scan import Row, Scan
from probe_datasets.schema import DepthExample
from probe_datasets.spec import DatasetSpec
from probe_datasets.transforms import crop_nearest, crop_resize
from probe_datasets.windows import central_window, move_intrinsics

__all__ = ["SPEC", "ScanNet"]

SPEC = DatasetSpec(
    name="scannet",
    summary="ScanNet v2: indoor scenes with metric depth and camera poses",
    builder="probe_datasets.scannet:ScanNet",
    task="depth",
    splits=("train", "validation", "test"),
    clip=ClipConfig(num_frames=17, stride=1, size=256),
    expected={
        "train": SPLIT_SIZES["train"],
        "validation": SPLIT_SIZES["val"],
        "test": SPLIT_SIZES["test"],
    },
    layouts=(
        "<scene>/<scene>.sens or <scene>.sens, below scans/, scans_test/ or the root, with "
        "scannetv2_{train,val,test}.txt in the root, Tasks/Benchmark/ or splits/",
        "<scene>/{color/<n>.jpg,depth/<n>.png,pose/<n>.txt,intrinsic/} as SensReader in Python "
        "writes it, or in <scene>/exported/ or <scene>/sens/",
        "<scene>/{frame-<n>.color.jpg,frame-<n>.depth.pgm,frame-<n>.pose.txt,_info.txt} as "
        "SensReader in C++ writes it",
        "scannet_frames_25k/<scene>/{color,depth,pose}/<n>.*, with sparse=True",
    ),
    obtain="agree to the terms of use at http://www.scan-net.org and download the .sens files; the "
    "split lists are in Tasks/Benchmark of https://github.com/ScanNet/ScanNet",
    licence="for non-commercial research and education on the owner's terms of use",
    citation="Dai et al., ScanNet: Richly-annotated 3D Reconstructions of Indoor Scenes, CVPR 2017",
)

_LIST_NAMES = {"train": "train", "validation": "val", "test": "test"}
_NO_DEPTH = (0, 65535)  # the latter in the exports of other recorders of the same format
_Frame = tuple[
    UInt8[Tensor, "1 3 H W"],
    Float[Tensor, "h w"],
    Bool[Tensor, "h w"],
    Float[Tensor, "3 4"],
    bool,
]


class ScanNet(IndexedDataset):
    """Clips of consecutive frames of a scene with depth, poses and intrinsics.

    A clip is the central square of the colour pictures, scaled. Depth, whose pictures have another
    size but the same view, is looked up at the centres of the clip's pixels and never blended; it
    does not count where the sensor had no return. Poses do not count where tracking was lost, and
    the depth of such a frame still does. Intrinsics are those of the colour camera for the clip.
    Nothing is mirrored.

    The first frame is random in training, and that of the recording otherwise. A scene that is
    there both as a recording and as exported frames is read from the recording.

    Reference: From Image to Video, App. D.3 (monocular depth).

    Args:
        root: the folder that holds the scenes, or `scans/`.
        split: "train", "validation" or "test".
        split_file: a list of scenes, one a line, in the place of the official one.
        sparse: take exported frames as they come where their numbers have gaps, as in
            `scannet_frames_25k`, which has every hundredth frame; strides then count exported
            frames. Otherwise scenes with gaps are failed samples.
        common: see `IndexedDataset`.

    Raises:
        DataError: there is no list of the split, or a scene is bad under "raise".
        ValueError: an argument is out of range.
    """

    spec: ClassVar[DatasetSpec] = SPEC
    listed = pa.schema(
        [
            ("folder", pa.string()),  # of exported frames below the root; null for a recording
            ("color", pa.string()),  # patterns of the paths of frames by number
            ("depth", pa.string()),
            ("pose", pa.string()),
            ("numbers", pa.string()),  # of the frames, as ranges
        ]
    )
    scanned = pa.schema([("num_frames", pa.int32()), ("sens", pa.binary())])

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str,
        *,
        split_file: str | os.PathLike[str] | None = None,
        sparse: bool = False,
        **common: Unpack[OpenOptions],
    ) -> None:
        self.split_file = None if split_file is None else Path(split_file)
        self.sparse = sparse
        self._scenes_hash = None if split_file is None else _content_hash(split_file)
        super().__init__(root, split, **common)

    def listing_options(self) -> Mapping[str, Any]:
        """The list of scenes that was passed, by its content, and whether gaps are allowed."""
        return {"split_file": self._scenes_hash, "sparse": self.sparse}

    def list_samples(self) -> Listing:
        """Every scene of the split's list, whether it is there or not.

        Raises:
            DataError: there is no list, or it is damaged.
        """
        path = self.split_file or find_split(self.root, _LIST_NAMES[self.split])
        scenes = read_split(path)
        there = find_scenes(self.root)
        rows = (self._scene_row(scene) for scene in scenes if scene in there)
        first = next((row for row in rows if row["path"]), None)
        if first is None:
            problem = f"holds none of the {len(scenes)} scenes of {path.name}"
            names = f"{scenes[0]}/{scenes[0]}.sens or {scenes[0]}/color/ and depth/"
            expected = f"files such as {names}, in scans/, scans_test/ or the root"
            fix = "pass the folder that holds scans/ or the scenes"
            raise data_error(self.root, problem, expected, fix)
        what = "recordings" if first["folder"] is None else "exported frames"
        return Listing(
            layout=f"{what} (as of {first['sample_id']}), scenes of {path.name}",
            rows=(
                self._scene_row(scene) if scene in there else _row(scene, None) for scene in scenes
            ),
            classes={},
            total=len(scenes),
        )

    def scan(self) -> Scan:
        """Finds the frames of recordings, and looks at the first of exported ones."""
        return _scan_scene

    def read(self, row: Row, chance: torch.Generator) -> DepthExample:
        """The clip of a scene.

        Args:
            row: its row.
            chance: decides the first frame, in training.

        Raises:
            DataError: a frame is damaged.
        """
        indices = self.clip_frames(row["num_frames"], chance)
        size = self.config.size
        scene, window = _open_scene(self.root, row), None
        videos, depths, valids, poses, tracked = [], [], [], [], []
        for color, depth, valid, pose, pose_valid in scene.frames(indices):  # one at a time
            window = window or central_window(*color.shape[-2:])
            videos.append(crop_resize(color, window, size))
            depths.append(crop_nearest(depth, window, size))
            valids.append(crop_nearest(valid, window, size))
            poses.append(pose)
            tracked.append(pose_valid)
        assert window is not None
        camera = scene.camera((window.frame_height, window.frame_width))
        intrinsics = move_intrinsics(torch.tensor(camera, dtype=torch.float32), window)
        return DepthExample(
            video=torch.cat(videos, dim=1),
            sample_id=row["sample_id"],
            poses=torch.stack(poses),
            poses_valid=torch.tensor(tracked),
            intrinsics=repeat(intrinsics, "k -> T k", T=len(indices)),
            depth=torch.stack(depths),
            depth_valid=torch.stack(valids),
        )

    def _scene_row(self, scene: str) -> Row:
        try:
            recording = find_sens(self.root, scene)
            if recording is not None:
                return _row(scene, recording.relative_to(self.root).as_posix())
            exported = find_exported(self.root, scene)
            return _row(scene, None) if exported is None else self._exported_row(scene, exported)
        except DataError as error:  # one scene that cannot serve is no reason to stop
            return {**_row(scene, "."), "problem": str(error)}

    def _exported_row(self, name: str, scene: ExportedScene) -> Row:
        numbers = [frame.number for frame in scene.frames]
        if not self.sparse:
            for number, after in pairwise(numbers):
                if after != number + 1:
                    problem = f"has frame {after} after frame {number}"
                    fix = "export all frames, or pass sparse=True to take them as they come"
                    raise data_error(scene.folder, problem, "every frame, for clips in time", fix)
        color, depth, pose = name_patterns(scene)
        folder = scene.folder.relative_to(self.root).as_posix()
        path, spelled = f"{folder}/{scene.frames[0].color}", _spelled(numbers)
        return _row(name, path, folder, color, depth, pose, spelled)


def _row(scene: str, path: str | None, *listed: str) -> Row:
    values = listed or [None] * len(ScanNet.listed)
    return {
        "sample_id": scene,
        "path": path,
        **dict(zip(ScanNet.listed.names, values, strict=True)),
    }


class _Recording:
    """The frames of a `.sens` file."""

    def __init__(self, root: Path, row: Row) -> None:
        self.index = SensIndex.unpack(root / row["path"], row["sens"])

    def frames(self, indices: list[int]) -> Iterator[_Frame]:
        """Some frames in turn."""
        for i in indices:
            frame = read_sens_frame(self.index, i)
            assert frame.color is not None
            assert frame.depth is not None
            assert frame.depth_valid is not None
            depth = frame.depth, frame.depth_valid
            yield _frame(frame.color, *depth, frame.world_to_camera, frame.pose_valid)

    def camera(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Intrinsics of the colour pictures in their widths and heights."""
        return self.index.intrinsics_color


class _Export:
    """Frames in files of their own."""

    def __init__(self, root: Path, row: Row) -> None:
        self.folder, self.numbers = root / row["folder"], _numbers(row["numbers"])
        self.color, self.depth, self.pose = (row[name] for name in ("color", "depth", "pose"))

    def frames(self, indices: list[int]) -> Iterator[_Frame]:
        """Some frames in turn, whose pictures have one size."""
        units, size, depth_size = exported_units(self.folder), None, None
        for i in indices:
            color, depth, pose = (
                safe_path(self.folder, pattern % self.numbers[i])
                for pattern in (self.color, self.depth, self.pose)
            )
            pixels = read_rgb(color, size=size)
            metres, valid = read_depth(
                depth, units_per_metre=units, invalid=_NO_DEPTH, size=depth_size
            )
            size, depth_size = pixels.shape[:2], metres.shape[:2]
            yield _frame(pixels, metres, valid, *read_pose(pose))

    def camera(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Intrinsics of the colour pictures in their widths and heights."""
        return exported_intrinsics(self.folder, size, what="color")


def _open_scene(root: Path, row: Row) -> _Recording | _Export:
    return _Recording(root, row) if row["folder"] is None else _Export(root, row)


def _scan_scene(path: Path, row: Row) -> list[Row]:
    """Where a recording's frames are; of exported ones the first is read, to see that it serves."""
    if row["folder"] is None:
        index = index_sens(path)
        return [{"num_frames": index.num_frames, "sens": index.pack()}]
    scene = _Export(path.parents[len(Path(row["path"]).parts) - 1], row)
    color, *_ = next(scene.frames([0]))
    scene.camera((color.shape[-2], color.shape[-1]))
    return [{"num_frames": len(scene.numbers), "sens": None}]


def _frame(
    color: UInt8[ndarray, "H W 3"],
    depth: Float32[ndarray, "h w"],
    depth_valid: Bool[ndarray, "h w"],
    pose: Float32[ndarray, "3 4"],
    pose_valid: bool,
) -> _Frame:
    pixels = rearrange(torch.from_numpy(color), "H W c -> 1 c H W")
    maps = torch.from_numpy(depth), torch.from_numpy(depth_valid)
    return pixels, *maps, torch.from_numpy(pose if pose_valid else np.zeros_like(pose)), pose_valid


def _spelled(numbers: Sequence[int]) -> str:
    """Ascending numbers as ranges, "first-last/step" with commas, to keep the index small."""
    spans: list[tuple[int, int, int]] = []
    for number in numbers:
        if spans:
            first, last, step = spans[-1]
            if first == last or number - last == step:
                spans[-1] = (first, number, number - last)
                continue
        spans.append((number, number, 1))
    return ",".join(f"{first}-{last}/{step}" for first, last, step in spans)


def _numbers(text: str) -> list[int]:
    numbers: list[int] = []
    for span in text.split(","):
        ends, _, step = span.partition("/")
        first, _, last = ends.partition("-")
        numbers.extend(range(int(first), int(last) + 1, int(step)))
    return numbers


def _content_hash(path: str | os.PathLike[str]) -> str:
    return hashlib.sha256(read_bytes(path, "a list of scenes")).hexdigest()
