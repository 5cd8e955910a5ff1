"""Sample files laid out as each dataset comes, under many names, so that its loader can be timed.

A file is copied once and has its other names as hard links, so that what is read stays in memory.
"""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pyarrow import parquet

from probe_datasets import (
    ClipConfig,
    ClipDataset,
    Coverage,
    VideoExample,
    open_dataset,
    scan_video,
)
from probe_datasets.formats.tfrecord import masked_crc32c, read_record, record_index
from probe_datasets.formats.waymo import CAMERAS, parse_frame

CLASS = "n02085620"
"""The class that all pictures are given; what they show does not matter here."""
STEP = 100_000
"""Microseconds between two frames of a drive."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """A folder in one dataset's native layout, and how it is opened."""

    title: str
    dataset: str
    root: Path
    split: str
    clip: ClipConfig
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def open(self) -> ClipDataset:
        """The dataset, as a user opens it."""
        return open_dataset(self.dataset, self.root, self.split, clip=self.clip, **self.options)


class ReadyClips:
    """The same clip again and again, read already, so that only batches and workers take time."""

    def __init__(self, clip: ClipConfig, count: int) -> None:
        self.classes: dict[str, tuple[str, ...]] = {}
        self.fingerprint = "ready"
        self.coverage = Coverage(expected=count, found=count)
        self.video = torch.zeros(3, clip.num_frames, clip.size, clip.size)

    def __len__(self) -> int:
        return self.coverage.found

    def __getitem__(self, index: int) -> VideoExample:
        return self.clip(index)

    def sample_id(self, index: int) -> str:
        """Name of a sample."""
        return str(index)

    def clip(self, index: int, draw: int = 0) -> VideoExample:
        """The clip."""
        return VideoExample(video=self.video, sample_id=self.sample_id(index))


class ReadyLayout(Layout):
    """No folder at all."""

    def open(self) -> ClipDataset:
        """A dataset that reads nothing."""
        return ReadyClips(self.clip, **self.options)


class Names:
    """Files under other names.

    Args:
        folder: where they are put.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._first: dict[Path, Path] = {}

    def put(self, source: Path, name: str) -> None:
        """Give a file a name below the folder."""
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source in self._first:
            target.hardlink_to(self._first[source])
        else:
            self._first[source] = Path(shutil.copyfile(source, target))

    def write(self, name: str, text: str) -> None:
        """Write a list or a table below the folder."""
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


def layouts(shared: Path, folder: Path, count: int) -> Iterator[Layout]:
    """Every layout that there are sample files for, one after the other.

    Args:
        shared: the folder of the sample files.
        folder: an empty folder.
        count: videos of most datasets; there are more pictures, and fewer of what is large.
    """
    few = max(count // 4, 1)
    yield ReadyLayout("ready clips", "none", folder, "train", ClipConfig(), {"count": 4 * count})
    yield imagenet(shared, folder / "imagenet", 4 * count)
    yield ssv2(shared, folder / "ssv2", count)
    yield kinetics(shared, folder / "kinetics", count)
    yield videos(shared, folder / "videos", max(count // 2, 4))
    yield perception_test(shared, folder / "perception_test", few)
    yield realestate10k(shared, folder / "realestate10k", count)
    yield scannet(shared, folder / "scannet", few)
    yield davis(shared, folder / "davis", few)
    for side in (64, 128):
        yield movi_e(shared, folder / f"movi_e{side}", few, side)
    yield from waymo(shared, folder / "waymo", few)


def imagenet(shared: Path, root: Path, count: int) -> Layout:
    """Photographs in a class folder; their central squares."""
    names = Names(root)
    files = ("dog1.jpg", "dog2.jpg", "grace_hopper_517x606.jpg", "person1.jpg")
    for k in range(count):
        source = shared / "images" / files[k % len(files)]
        names.put(source, f"val/{CLASS}/ILSVRC2012_val_{k + 1:08d}.JPEG")
    return Layout("imagenet, JPEG", "imagenet", root, "validation", ClipConfig())


def ssv2(shared: Path, root: Path, count: int) -> Layout:
    """Short VP9 videos by their ids."""
    names = Names(root)
    classes = (shared / "ssv2" / "label_map_174.txt").read_text().splitlines()
    names.write("labels/labels.json", json.dumps({c: str(i) for i, c in enumerate(classes)}))
    clips = [{"id": str(k + 1), "template": classes[k % len(classes)]} for k in range(count)]
    for part in ("train", "validation"):
        names.write(f"labels/{part}.json", json.dumps(clips))
    for clip in clips:
        names.put(shared / "ssv2" / "166766.webm", f"videos/{clip['id']}.webm")
    clip_config = ClipConfig(stride=2, short="clamp")
    return Layout("ssv2, WebM", "ssv2", root, "train", clip_config)


def kinetics(shared: Path, root: Path, count: int) -> Layout:
    """Videos of ten seconds by their ids and times."""
    names = Names(root)
    files = sorted((shared / "kinetics").glob("*.mp4"))
    lines = ["label,youtube_id,time_start,time_end,split"]
    for k in range(count):
        names.put(files[k % len(files)], f"train/clip{k:07d}_000000_000010.mp4")
        lines.append(f"arm wrestling,clip{k:07d},0,10,train")
    names.write("train.csv", "\n".join(lines) + "\n")
    return Layout("kinetics400, MP4", "kinetics400", root, "train", ClipConfig())


def videos(shared: Path, root: Path, count: int) -> Layout:
    """Videos of any kind."""
    names = Names(root)
    files = sorted((shared / "video_misc").glob("*.mp4"))
    for k in range(count):
        names.put(files[k % len(files)], f"{k:04d}.mp4")
    options = {"verify": False}
    return Layout("folder, MP4", "folder", root, "all", ClipConfig(), options)


def perception_test(shared: Path, root: Path, count: int) -> Layout:
    """Videos with tracks of points, which stand still here."""
    names = Names(root)
    files = sorted((shared / "video_misc").glob("0*.mp4"))
    entries = {}
    for k in range(count):
        source = files[k % len(files)]
        names.put(source, f"videos/video_{k}.mp4")
        info = scan_video(source, verify=False)
        frames = list(range(info.num_frames))
        line = [0.5] * len(frames)
        entries[f"video_{k}"] = {
            "metadata": {
                "split": "valid",
                "frame_rate": 30.0,
                "num_frames": info.num_frames,
                "resolution": [info.height, info.width],
            },
            "point_tracking": [
                {"id": i, "frame_ids": frames, "points": [line, line]} for i in range(64)
            ],
        }
    names.write("point_tracking_valid.json", json.dumps(entries))
    clip = ClipConfig(stride=4)
    return Layout("perception_test, 720p MP4", "perception_test", root, "validation", clip)


def realestate10k(shared: Path, root: Path, count: int) -> Layout:
    """Videos of a clip each, with a pose for each of their 16 frames."""
    names = Names(root)
    files = sorted((shared / "re10k" / "clips").glob("*.mp4"))
    for k in range(count):
        source = files[k % len(files)]
        names.put(source, f"clips/{k:016x}.mp4")
        poses = shared / "re10k" / "pose_files" / f"{source.stem}.txt"
        names.put(poses, f"RealEstate10K/train/{k:016x}.txt")
    title = "realestate10k, 9 of 16 frames, MP4"
    return Layout(title, "realestate10k", root, "train", ClipConfig(num_frames=9))


def scannet(shared: Path, root: Path, count: int) -> Layout:
    """Recordings of 24 frames with depth."""
    names = Names(root)
    scenes = [f"scene{k:04d}_00" for k in range(count)]
    names.write("scannetv2_train.txt", "\n".join(scenes) + "\n")
    source = shared / "scannet_sens" / "scene0000_00" / "scene0000_00.sens"
    for scene in scenes:
        names.put(source, f"scans/{scene}/{scene}.sens")
    return Layout("scannet, .sens of 640 x 480", "scannet", root, "train", ClipConfig())


def davis(shared: Path, root: Path, count: int) -> Layout:
    """Sequences of 24 frames with masks, of which two are repeated."""
    names = Names(root)
    for kind, extension in (("JPEGImages", "jpg"), ("Annotations", "png")):
        source = shared / "davis" / "DAVIS" / kind / "480p" / "bear"
        for k in range(count):
            for t in range(24):
                name = f"{kind}/480p/sequence{k}/{t:05d}.{extension}"
                names.put(source / f"{t % 2:05d}.{extension}", name)
    return Layout("davis, 480p", "davis", root, "all", ClipConfig())


def movi_e(shared: Path, root: Path, count: int, side: int) -> Layout:
    """Files of one example each."""
    names = Names(root)
    version = f"movi_e/{side}x{side}/1.0.0"
    source = shared / "movi_e" / version / "movi_e-train.tfrecord-00000-of-00001"
    for k in range(count):
        names.put(source, f"{version}/movi_e-train.tfrecord-{k:05d}-of-{count:05d}")
    return Layout(f"movi_e, {side} x {side}", "movi_e", root, "train", ClipConfig())


def waymo(shared: Path, root: Path, count: int) -> Iterator[Layout]:
    """Segments of 40 frames, one frame at rising times, as both releases have them."""
    source = shared / "waymo" / "v1" / "pvps_data_one_frame.tfrecord"
    record = read_record(source, *record_index(source)[0].tolist())
    frame = parse_frame(record, "the sample")
    times = [frame.timestamp_micros + STEP * t for t in range(40)]
    clip = ClipConfig(stride=2)

    records = []
    for time in times:
        old, new = (b"\x10" + varint(t) for t in (frame.timestamp_micros, time))
        records.append(bytes(record).replace(old, new, 1))
        assert parse_frame(memoryview(records[-1]), "a copy").timestamp_micros == time
    root.mkdir(parents=True)
    segment = root / "segment.tfrecord"
    write_tfrecord(segment, records)
    names = Names(root / "v1")
    for k in range(count):
        names.put(segment, f"training/segment-{k}_with_camera_labels.tfrecord")
    yield Layout("waymo v1, 1920 x 1280", "waymo", root / "v1", "train", clip)

    names = Names(root / "v2")
    for component, table in v2_tables(frame, times).items():
        path = root / f"{component}.parquet"
        parquet.write_table(table, path, row_group_size=8, compression="SNAPPY")
        for k in range(count):
            names.put(path, f"training/{component}/{k}.parquet")
    yield Layout("waymo v2, 1920 x 1280", "waymo", root / "v2", "train", clip)


def v2_tables(frame: Any, times: list[int]) -> dict[str, pa.Table]:
    """Pictures of all cameras, which are the same here, and the boxes of the first."""

    def keys(of: list[int], cameras: list[int]) -> dict[str, pa.Array]:
        return {
            "key.segment_context_name": pa.array([frame.context] * len(of)),
            "key.frame_timestamp_micros": pa.array(of),
            "key.camera_name": pa.array(cameras, pa.int8()),
        }

    pictures = [(time, camera) for time in times for camera in CAMERAS.values()]
    labels = frame.labels
    boxes = [time for time in times for _ in labels.ids]
    low, high = (np.tile(part, (len(times), 1)) for part in np.split(labels.boxes, 2, axis=1))
    name = "[CameraBoxComponent]"
    values = {"center": (low + high) / 2, "size": high - low}
    return {
        "camera_image": pa.table(
            keys(*map(list, zip(*pictures, strict=True)))
            | {"[CameraImageComponent].image": pa.array([frame.image] * len(pictures))}
        ),
        "camera_box": pa.table(
            keys(boxes, [CAMERAS["FRONT"]] * len(boxes))
            | {"key.camera_object_id": pa.array(list(labels.ids) * len(times))}
            | {
                f"{name}.box.{what}.{axis}": pa.array(xy[:, k])
                for what, xy in values.items()
                for k, axis in enumerate("xy")
            }
            | {f"{name}.type": pa.array(labels.types.tolist() * len(times), pa.int8())}
        ),
    }


def write_tfrecord(path: Path, records: list[bytes]) -> None:
    """A TFRecord file with its checksums."""
    with open(path, "wb") as file:
        for record in records:
            length = len(record).to_bytes(8, "little")
            for part in (length, record):
                file.write(part + masked_crc32c(part).to_bytes(4, "little"))


def varint(number: int) -> bytes:
    """A variable-length integer of a protocol buffer."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])
