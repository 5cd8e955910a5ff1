"""A small file of every text format, and the reader that makes samples of it."""

import json
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

COMMON = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "damage_formats.py")))
Format, writers = COMMON.Format, COMMON.writers


def formats() -> dict[str, Any]:
    """The text formats by name."""
    from probe_datasets.formats import (
        imagenet,
        inat2018,
        kinetics,
        perception_test,
        places365,
        realestate10k,
        rgbd,
        scannet,
        ssv2,
    )
    from probe_datasets.formats.davis import find_sequence, read_sequences
    from probe_datasets.formats.movi_e_files import find_movi_e
    from probe_datasets.formats.realestate10k_chunks import read_chunk_index

    tests = {
        name: writers(f"test_formats_{name}")
        for name in ("realestate10k", "inat2018", "perception_test", "ssv2", "kinetics", "scannet")
    }
    templates = ("Dropping something", "Holding something next to something")
    clips = [tests["ssv2"].CLIP, {"id": "12", "template": "Dropping [something]"}]
    tracked = tests["perception_test"]
    annotations = {
        f"video_{i}": tracked.entry([tracked.track(), tracked.track(id=7)]) for i in "ab"
    }
    folders = ("airfield", "bakery/shop", "zen_garden")
    places = [
        (f"/{n[0]}/{n}/{i:08d}.jpg", 7 * k + 100) for k, n in enumerate(folders) for i in (1, 2)
    ]
    numbers = np.random.default_rng(0).permutation(np.arange(50_000) % 1000 + 1)
    order = [f"n{i:08d}" for i in range(1000)]
    sequences = ("bear", "car-shadow", "dance-twirl")

    def text(
        content: str,
        read: Callable[[Path], Any],
        *,
        file: str = "a.txt",
        rows: bool = False,
        cut: bool = False,
        slow: int = 1,
    ) -> Any:
        return Format(file, lambda p: p.write_text(content), read, rows=rows, cut=cut, slow=slow)

    def by_row(table: kinetics.KineticsTable) -> Any:
        columns = (table.ids, table.labels, table.starts, table.ends)
        classes = [table.classes[i] if i >= 0 else "" for i in table.labels]
        return [*zip(*(c.tolist() for c in (columns[0], *columns[2:])), classes, strict=True)]

    def write_davis(path: Path, lines: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(lines)

    def davis(path: Path, year: int) -> Any:
        root = path.parent
        for name in sequences:
            (root / "JPEGImages/480p" / name).mkdir(parents=True, exist_ok=True)
            (root / "JPEGImages/480p" / name / "00000.jpg").touch()
        (root / f"ImageSets/{year}").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, root / f"ImageSets/{year}/val.txt")
        try:
            return [find_sequence(root, n).name for n in read_sequences(root, "val", year)]
        finally:
            shutil.rmtree(root / "JPEGImages")

    def shards(path: Path) -> Any:
        for i in range(2):
            (path.parent / f"movi_e-train.tfrecord-{i:05}-of-00002").touch()
        return [s.num_examples for s in find_movi_e(path.parent, "train").shards]

    def chunks(path: Path) -> Any:
        (path.parent / "train").mkdir()
        shutil.copyfile(path, path.parent / "train" / "index.json")
        found = read_chunk_index(path.parent, "train")
        return {clip: chunk.name for clip, chunk in found.items()}

    lengths = [{"name": "train", "shardLengths": ["2", "1"]}]
    matrix = "1170.5 0.0 647.75 0.0\n0.0 1170.5 483.75 0.0\n0.0 0.0 1.0 0.0\n0.0 0.0 0.0 1.0\n"
    kaggle = [f"ILSVRC2012_val_{i:08d},{order[7 * i]} 1 2 30 40 " for i in range(9)]
    frames = "".join(
        f"/JPEGImages/480p/{n}/00000.jpg /Annotations/480p/{n}/00000.png\n" for n in sequences
    )
    return {
        "RE10K poses": text(tests["realestate10k"].pose_text(6), _re10k, rows=True),
        "RE10K scales": text(
            f"clip,metres\n{'a' * 16},2.5\n{'b' * 16},31.25\n",
            realestate10k.read_scale_table,
            file="a.csv",
            rows=True,
            cut=True,
        ),
        "RE10K chunk index": text(
            json.dumps({"a" * 16: "000000.torch", "b" * 16: "000001.torch"}), chunks
        ),
        "Perception Test": text(json.dumps(annotations), perception_test.read_annotations),
        "SSv2 clips": text(json.dumps(clips), lambda p: ssv2.read_clips(p, templates)),
        "SSv2 labels": text(json.dumps(tests["ssv2"].LABELS), ssv2.read_classes),
        "iNaturalist": text(json.dumps(tests["inat2018"].annotations()), inat2018.read_species),
        "Kinetics table": text(
            tests["kinetics"].HEADER + tests["kinetics"].ROWS,
            lambda p: by_row(kinetics.read_table(p)),
            rows=True,
        ),
        "Places list": text(
            "".join(f"{path} {label}\n" for path, label in places), _places, rows=True, cut=True
        ),
        "Places categories": text(
            "/a/airfield 0\n/b/bakery/shop 1\n",
            lambda p: places365.read_categories(p, official=False),
            rows=True,
        ),
        "ImageNet validation": text(
            "".join(f"{order[n - 1]}\n" for n in numbers), imagenet.read_validation_wnids, slow=8
        ),
        "ImageNet ground truth": text(
            "".join(f"{n}\n" for n in numbers),
            lambda p: imagenet.read_ground_truth(p, order),
            slow=8,
        ),
        "ImageNet Kaggle": text(
            "ImageId,PredictionString\n" + "\n".join(kaggle) + "\n",
            imagenet.read_kaggle_solution,
            rows=True,
        ),
        "ImageNet names": text(
            "n01440764 tench, Tinca tinca\nn01443537 goldfish\n",
            imagenet.read_synset_mapping,
            rows=True,
            cut=True,
        ),
        "DAVIS 2017": text("\n".join(sequences) + "\n", lambda p: davis(p, 2017), rows=True),
        "DAVIS 2016": text(frames, lambda p: davis(p, 2016), rows=True),
        "ScanNet list": text("scene0000_00\nscene0123_01\n", scannet.read_split, rows=True),
        "ScanNet scene": text(
            "axisAlignment = 1 0 0\ncolorHeight = 968\n",
            scannet.read_scene_file,
            rows=True,
            cut=True,
        ),
        "ScanNet pose": text(tests["scannet"].CAMERA_TO_WORLD, rgbd.read_pose),
        "ScanNet intrinsics": text(matrix, lambda p: rgbd.read_intrinsics(p, (968, 1296))),
        "MOVi-E dataset_info": text(
            json.dumps({"splits": lengths}), shards, file="dataset_info.json"
        ),
    }


def _re10k(path: Path) -> Any:
    from probe_datasets.formats.realestate10k import read_pose_file

    poses = read_pose_file(path)
    return list(zip(poses.timestamps, poses.intrinsics, poses.world_to_camera, strict=True))


def _places(path: Path) -> Any:
    from probe_datasets.formats.places365 import iterate_list

    return list(iterate_list(path))
