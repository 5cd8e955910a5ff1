"""Names that lists, tables, JSON files and archives hold, and that would leave their folder."""

import json
import os
import pickle
import runpy
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from probe_datasets.formats import (
    davis,
    imagenet,
    inat2018,
    kinetics,
    perception_test,
    places365,
    realestate10k_chunks,
    scannet,
    ssv2,
    tapvid,
)
from probe_datasets.formats.files import DataError, safe_path
from probe_datasets.formats.movi_e_files import find_movi_e
from probe_datasets.formats.realestate10k import ClipPoses
from probe_datasets.formats.realestate10k_frames import FrameFinder, find_pose_files
from probe_datasets.formats.waymo import open_v1
from probe_datasets.formats.waymo_v2 import open_v2

BAD = ("../x", "/etc/passwd", "a/../../x", "..", "x\0y", "..\\x")
HERE = Path(__file__).parent


def writers(name: str) -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(HERE / f"test_formats_{name}.py")))


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def places(folder: Path, name: str) -> Any:  # whose lists begin a path with a slash
    return list(places365.iterate_list(write(folder / "list.txt", f"/{name} 3\n")))


def species(folder: Path, name: str) -> Any:
    content = writers("inat2018").annotations()
    content["images"][0]["file_name"] = name
    return inat2018.read_species(write(folder / "a.json", content))


def kinetics_table(folder: Path, name: str) -> Any:
    row = f"label,youtube_id,time_start,time_end\nzumba,{name},1,11\n"
    return kinetics.read_table(write(folder / "a.csv", row))


def kaggle(folder: Path, name: str) -> Any:
    row = f"ImageId,PredictionString\n{name},n01440764 1 2 3 4\n"
    return imagenet.read_kaggle_solution(write(folder / "a.csv", row))


def ssv2_clips(folder: Path, name: str) -> Any:
    return ssv2.read_clips(write(folder / "a.json", [{"id": name}]), ("a",))


def tracked_video(folder: Path, name: str) -> Any:
    made = writers("perception_test")
    return perception_test.read_annotations(
        write(folder / "a.json", {name: made.entry([made.track()])})
    )


def davis_list(folder: Path, name: str) -> Any:
    write(folder / "ImageSets/2017/val.txt", f"{name}\n")
    return davis.read_sequences(folder, "val")


def davis_frames(folder: Path, name: str) -> Any:
    write(folder / "ImageSets/2016/val.txt", f"/JPEGImages/480p/{name}/00000.jpg\n")
    return [davis.find_sequence(folder, n) for n in davis.read_sequences(folder, "val", 2016)]


def davis_sequence(folder: Path, name: str) -> Any:
    return davis.find_sequence(folder, name)


def scannet_list(folder: Path, name: str) -> Any:
    return scannet.read_split(write(folder / "a.txt", f"{name}\n"))


def scannet_scene(folder: Path, name: str) -> Any:
    return scannet.find_sens(folder, name)


def scannet_export(folder: Path, name: str) -> Any:
    return scannet.find_exported(folder, name)


def chunk_index(folder: Path, name: str) -> Any:
    write(folder / "train/index.json", {"a" * 16: f"{name}/x.torch"})
    return realestate10k_chunks.read_chunk_index(folder, "train")


def chunk_clip(folder: Path, name: str) -> Any:
    torch.save([writers("realestate10k").chunk_entry(key=name)], folder / "a.torch")
    return realestate10k_chunks.read_chunk(folder / "a.torch")


def chunk_member(folder: Path, name: str) -> Any:
    with zipfile.ZipFile(folder / "a.torch", "w") as archive:
        archive.writestr(zipfile.ZipInfo(name.replace("\0", "/../")), b"x")
    return realestate10k_chunks.read_chunk(folder / "a.torch")


def clip_frames(folder: Path, name: str) -> Any:
    poses = ClipPoses(
        clip=name,
        url="",
        video="",
        timestamps=np.zeros(1, np.int64),
        intrinsics=np.full((1, 4), 0.5, np.float32),
        world_to_camera=np.eye(3, 4, dtype=np.float32)[None],
    )
    return FrameFinder(folder, "train").find(poses.clip, poses.video)


def clip_split(folder: Path, name: str) -> Any:
    return find_pose_files(folder, name)


def movi_config(folder: Path, name: str) -> Any:
    (folder / "movi_e/12x10/1.0.0").mkdir(parents=True)
    return find_movi_e(folder, "train", config=name)


def pickled_name(folder: Path, name: str) -> Any:
    (folder / "a.pkl").write_bytes(pickle.dumps({name: writers("tapvid").entry()}))
    return tapvid.convert_pickle(folder / "a.pkl", folder / "inside" / "out")


def waymo_record(folder: Path, name: str) -> Any:
    made = writers("waymo")
    path = made.WRITE.write_tfrecord(folder / "a", [made.frame(made.TIMES[0], context=name)])
    return open_v1(path).frames([0])


def waymo_table(folder: Path, name: str) -> Any:
    path = writers("waymo").write_v2(folder)["camera_image"]
    table = parquet.read_table(path)
    contexts = pa.array([name] * len(table))
    parquet.write_table(table.set_column(0, "key.segment_context_name", contexts), path)
    return open_v2(path, None)


def archived_name(folder: Path, name: str) -> Any:
    np.savez(folder / "a.npz", **writers("tapvid").entry())
    with zipfile.ZipFile(folder / "a.npz", "a") as archive:
        archive.writestr(zipfile.ZipInfo(name.replace("\0", "/../")), b"x")
    return tapvid.read_point_video(folder / "a.npz")


READERS = (
    *(places, species, kinetics_table, kaggle, ssv2_clips),
    *(tracked_video, davis_list, davis_frames, davis_sequence, scannet_list),
    *(scannet_scene, scannet_export, chunk_index, chunk_clip, chunk_member, clip_frames),
    *(clip_split, movi_config, pickled_name, archived_name),
    *(waymo_record, waymo_table),
)


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("read", READERS)
def test_a_name_that_leaves_its_folder_is_refused(
    tmp_path: Path, read: Callable[[Path, str], Any], name: str
):
    root = tmp_path / "a" / "root"
    root.mkdir(parents=True)
    with pytest.raises(DataError) as caught:
        read(root, name)
    assert str(root) in str(caught.value)
    outside = [path for path in tmp_path.rglob("*") if root not in (path, *path.parents)]
    assert outside == [tmp_path / "a"]


def link(target: Path, name: Path) -> None:
    name.parent.mkdir(parents=True, exist_ok=True)
    os.symlink(target, name)


LINKS = {
    "SSv2": ("78687.webm", ssv2.find_videos),
    "ScanNet": ("scans/scene0000_00", lambda r: scannet.find_sens(r, "scene0000_00")),
    "ScanNet export": ("scans/scene0000_00", lambda r: scannet.find_exported(r, "scene0000_00")),
    "DAVIS": ("JPEGImages/480p/bear", lambda r: davis.find_sequence(r, "bear")),
    "RE10K": ("train/" + "a" * 16, lambda r: clip_frames(r, "a" * 16)),
    "RE10K chunk": ("train/x.torch", lambda r: chunk_index(r, ".")),
    "iNaturalist": ("train_val2018/a.jpg", lambda r: safe_path(r, "train_val2018/a.jpg")),
}


@pytest.mark.parametrize("kind", LINKS)
def test_a_link_that_leaves_the_root_is_refused(tmp_path: Path, kind: str):
    name, read = LINKS[kind]
    root, outside = tmp_path / "root", tmp_path / "outside"
    outside.mkdir()
    for file in ("scene0000_00.sens", "00000.jpg", "1.png"):
        (outside / file).touch()
    link(outside / "1.png" if kind == "SSv2" else outside, root / name)
    with pytest.raises(DataError, match="a link that leaves"):
        read(root)
