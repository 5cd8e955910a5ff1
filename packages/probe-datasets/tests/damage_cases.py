"""A small file of every format, its reader, and damage to it; run as a program, one process.

`python damage_cases.py FOLDER TRUNCATIONS FLIPS SEED [NAME ...]` prints a JSON object of counts. The
name of the case at hand is in `FOLDER/at`, for when the process dies. Writers are those of the
tests of the formats. Each outcome is one of

* refused: a DataError that names the file;
* equal: the sample of the undamaged file;
* shorter: the beginning of a list of rows, for text that says nowhere how long it is;
* changed: another sample, where the format has no checksum over what was hit;
* wrong: anything else, or too slow, or too large; described.
"""

import dataclasses
import hashlib
import io
import json
import os
import random
import resource
import runpy
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

SECONDS, GROWTH = 1.0, 200 << 20
ADDRESS_SPACE = 2 << 30  # beyond what the process has when the cases begin
HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Format:
    """One format: how to write a file of it, and all that its reader makes of that."""

    file: str
    """Name of the file."""
    write: Callable[[Path], Any]
    """Write it."""
    read: Callable[[Path], Any]
    """Everything that reaches a sample."""
    guarded: bool = False
    """Whether a flipped bit can never change what is read."""
    rows: bool = False
    """Whether a file cut short between two rows is a file of fewer rows."""
    cut: bool = False
    """Whether a cut inside the last row can pass for a shorter word or number."""
    slow: int = 1
    """By how much fewer cases suffice in the short run."""


def writers(name: str) -> SimpleNamespace:
    """What a test module defines."""
    return SimpleNamespace(**runpy.run_path(str(HERE / f"{name}.py")))


# ------------------------------------------------------------------------------------ the formats


def formats() -> dict[str, Format]:
    """All formats by name."""
    return {**_videos(), **_recordings(), **_archives(), **_pictures(), **_texts()}


def _videos() -> dict[str, Format]:
    from fractions import Fraction

    import av

    from probe_datasets.video_io import read_frames, scan_video

    picture = writers("conftest").picture

    def write(path: Path, codec: str, options: dict[str, str]) -> None:
        with av.open(str(path), "w") as sink:
            stream = sink.add_stream(codec, rate=25, options=options)
            stream.height, stream.width, stream.pix_fmt = 32, 64, "yuv420p"
            stream.codec_context.gop_size = 6
            stream.codec_context.time_base = stream.time_base = Fraction(1, 25)
            for i in range(12):
                frame = av.VideoFrame.from_ndarray(picture(i), format="rgb24")
                frame.pts, frame.time_base = i, Fraction(1, 25)
                sink.mux(stream.encode(frame))
            sink.mux(stream.encode(None))

    def read(path: Path) -> Any:
        info = scan_video(path)
        frames = read_frames(path, range(info.num_frames), backend="pyav")
        return info.num_frames, info.height, info.width, frames.numpy()

    vp9 = {"deadline": "realtime", "cpu-used": "8", "crf": "10", "b": "0"}
    return {
        "mp4": Format("a.mp4", lambda p: write(p, "libx264", {"bf": "2"}), read, slow=3),
        "webm": Format("a.webm", lambda p: write(p, "libvpx-vp9", vp9), read, slow=3),
    }


def _recordings() -> dict[str, Format]:
    from probe_datasets.formats.movi_e import read_movi_e
    from probe_datasets.formats.sens import index_sens, read_sens_frame
    from probe_datasets.formats.tfrecord import record_index
    from probe_datasets.formats.waymo import open_v1
    from probe_datasets.formats.waymo_v2 import open_v2

    sens, waymo, records = (
        writers(n) for n in ("test_formats_sens", "test_formats_waymo", "record_writers")
    )

    def write_sens(path: Path, color: int) -> None:
        turns = [sens.pose(0.3, (1, 2, 3)), sens.LOST, sens.pose(-0.2, (0, 0.5, -1))]
        sens.write_sens(path, turns, color)

    def read_sens(path: Path) -> Any:
        index = index_sens(path)
        frames = [read_sens_frame(index, i) for i in range(index.num_frames)]
        return index.intrinsics_color, index.intrinsics_depth, index.depth_shift, frames

    def write_movi(path: Path) -> None:
        examples = (records.movi_features(seed)["features"] for seed in (0, 1))
        records.write_tfrecord(path, [records.example(features) for features in examples])

    def read_movi(path: Path) -> Any:
        found = []
        for offset, length in record_index(path).tolist():
            e = read_movi_e(path, offset, length)
            pictures = [e.video(), e.segmentations(), e.depth(), e.normal(), e.flow()]
            found.append([*pictures, e.object_coordinates(), e.camera, e.instances, e.depth_range])
        return found

    def write_v1(path: Path) -> None:
        small = bytes(100_000), bytes(300)  # of the lasers
        frames = []
        for i in range(4):
            whole = waymo.frame(waymo.TIMES[i], 100 + i)
            long, short = (records.field(5, laser) for laser in small)
            assert long in whole
            frames.append(whole.replace(long, short))
        records.write_tfrecord(path, frames)

    def read_v1(path: Path) -> Any:
        segment = open_v1(path)
        return segment.timestamps, segment.frames(range(len(segment.timestamps)))

    def write_v2(path: Path, name: str, **options: Any) -> None:
        # Both tables, so that the one that is left alone lies beside the damaged one.
        other = {"camera_image": "camera_box", "camera_box": "camera_image"}[name]
        paths = waymo.write_v2(path.parent, **options)
        shutil.move(paths[other], path.parent / "other.parquet")
        shutil.move(paths[name], path)

    def read_v2(path: Path, name: str) -> Any:
        other = path.parent.parent / "whole" / "other.parquet"
        segment = open_v2(*((path, other) if name == "camera_image" else (other, path)))
        return segment.timestamps, segment.frames(range(len(segment.timestamps)))

    def table(name: str, guarded: bool, **options: Any) -> Format:
        return Format(
            "a.parquet",
            lambda p: write_v2(p, name, **options),
            lambda p: read_v2(p, name),
            guarded,
        )

    checked = {"write_page_checksum": True, "compression": "zstd"}
    return {
        "sens": Format("a.sens", lambda p: write_sens(p, 2), read_sens),
        "sens of PNG": Format("a.sens", lambda p: write_sens(p, 1), read_sens),
        "MOVi-E": Format("a.tfrecord", write_movi, read_movi, guarded=True, slow=3),
        "Waymo v1": Format("a.tfrecord", write_v1, read_v1, guarded=True),
        "Waymo v2 images, checked": table("camera_image", False, **checked),
        "Waymo v2 boxes, checked": table("camera_box", False, **checked),
        "Waymo v2 images": table("camera_image", False, compression="snappy"),
        "Waymo v2 boxes": table("camera_box", False, compression="snappy"),
    }


def _archives() -> dict[str, Format]:
    import pickle

    import torch

    from probe_datasets.formats.imagenet_devkit import read_devkit_order
    from probe_datasets.formats.realestate10k_frames import read_chunk
    from probe_datasets.formats.tapvid import convert_pickle, read_point_video

    tapvid, devkit, re10k = (
        writers(f"test_formats_{n}") for n in ("tapvid", "imagenet_devkit", "realestate10k")
    )

    def write_npz(path: Path) -> None:
        np.savez(path, **tapvid.entry(5))

    def write_pickle(path: Path, jpeg: bool) -> None:
        content = {name: tapvid.entry(3, seed) for seed, name in enumerate(("bear", "car"))}
        if jpeg:
            for entry in content.values():
                entry["video"] = [_photograph("JPEG", height=24, width=32) for _ in range(3)]
        path.write_bytes(pickle.dumps(content))

    def read_pickle(path: Path) -> Any:
        archives = convert_pickle(path, path.parent / "out")
        return [(archive.name, read_point_video(archive)) for archive in archives]

    def write_chunk(path: Path) -> None:
        torch.save([re10k.chunk_entry(), re10k.chunk_entry(key="f" * 16)], path)

    def read_clips(path: Path) -> Any:
        clips = read_chunk(path)
        return [(c.poses, [c.picture(i) for i in range(len(c.poses))]) for c in clips]

    def mat(packed: bool) -> Format:
        return Format(
            "meta.mat",
            lambda p: devkit.write_meta(p, devkit.synsets(), packed=packed),
            read_devkit_order,
            guarded=packed,
            slow=3,
        )

    return {
        "TAP-Vid npz": Format("a.npz", write_npz, read_point_video, guarded=True),
        "TAP-Vid pickle": Format("a.pkl", lambda p: write_pickle(p, False), read_pickle),
        "TAP-Vid pickle of JPEG": Format("a.pkl", lambda p: write_pickle(p, True), read_pickle),
        "pixelSplat chunk": Format("a.torch", write_chunk, read_clips, guarded=True),
        "devkit": mat(True),
        "devkit, not packed": mat(False),
    }


def _photograph(kind: str, height: int = 60, width: int = 80, **options: Any) -> bytes:
    from PIL import Image

    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(0).integers(0, 40, (height, width, 3))
    pixels = np.clip(np.stack([2 * x, 3 * y, x + y], -1) + noise, 0, 255).astype(np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, kind, **options)
    return sink.getvalue()


def _pictures() -> dict[str, Format]:
    from PIL import Image

    from probe_datasets.formats.davis import read_mask
    from probe_datasets.formats.rgb16 import decode_rgb16
    from probe_datasets.formats.rgbd import read_depth
    from probe_datasets.formats.still_images import read_rgb

    records = writers("record_writers")
    wide = np.random.default_rng(0).integers(0, 65536, (12, 16), dtype=np.uint16)

    def write_mask(path: Path) -> None:
        picture = Image.fromarray((wide % 5).astype(np.uint8), mode=None).convert("P")
        picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0, 0, 0, 128])
        picture.save(path)

    def jpeg(**options: Any) -> Format:
        return Format("a.jpg", lambda p: p.write_bytes(_photograph("JPEG", **options)), read_rgb)

    def read_wide(path: Path) -> Any:
        return decode_rgb16(path.read_bytes(), path, size=(4, 16))

    colours = wide[:12].reshape(4, 16, 3)
    return {
        "JPEG": jpeg(quality=90),
        "JPEG with restarts": jpeg(quality=90, restart_marker_blocks=4),
        "JPEG, progressive": jpeg(quality=90, progressive=True),
        "PNG": Format("a.png", lambda p: p.write_bytes(_photograph("PNG")), read_rgb, guarded=True),
        "PNG of depth": Format(
            "a.png", lambda p: Image.fromarray(wide).save(p), read_depth, guarded=True
        ),
        "PNG of 3 x 16 bits": Format(
            "a.png", lambda p: p.write_bytes(records.png(colours)), read_wide, guarded=True
        ),
        "PNG of a mask": Format("a.png", write_mask, read_mask, guarded=True),
        "PGM": Format(
            "a.pgm",
            lambda p: p.write_bytes(b"P5\n16 12\n65535\n" + wide.astype(">u2").tobytes()),
            read_depth,
        ),
    }


def _texts() -> dict[str, Format]:
    from probe_datasets.formats import imagenet, inat2018, kinetics, perception_test, places365
    from probe_datasets.formats import realestate10k, rgbd, scannet, ssv2
    from probe_datasets.formats.class_names import read_label_map
    from probe_datasets.formats.davis import find_sequence, read_sequences
    from probe_datasets.formats.movi_e_files import find_movi_e
    from probe_datasets.formats.realestate10k_frames import read_chunk_index

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
    ) -> Format:
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
        "Kinetics names": text(
            "abseiling\nair drumming\nzumba\n", read_label_map, rows=True, cut=True
        ),
        "Places list": text(
            "".join(f"{path} {label}\n" for path, label in places), _places, rows=True, cut=True
        ),
        "Places list, no labels": text(
            "a.jpg\nb.jpg\n",
            lambda p: places365.read_list(p, labelled=False)[0],
            rows=True,
            cut=True,
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
    from probe_datasets.formats.places365 import read_list

    paths, labels = read_list(path)
    return list(zip(paths, labels.tolist(), strict=True))


# ------------------------------------------------------------------------------------- the damage


def damages(content: bytes, truncations: int, flips: int, chance: random.Random) -> Any:
    """Damaged versions of a file, each with what was done."""
    size = len(content)
    ends = chance.sample(range(size), min(size, truncations))
    for end in ends:
        yield f"cut at {end}", content[:end]
    for i in range(flips):
        damaged = bytearray(content)
        kind = i % 10
        for _ in range(1 if kind < 8 else chance.randint(2, 8)):
            position = chance.randrange(size)
            if kind < 7:
                damaged[position] ^= 1 << chance.randrange(8)
            else:
                damaged[position] = chance.randrange(256)
        if kind == 9:
            position = chance.randrange(size)
            run = min(chance.randint(2, 64), size - position)
            damaged[position : position + run] = bytes(run)
        yield f"flip {i} at {position}", bytes(damaged)


def frozen(value: Any) -> Any:
    """The same value made of text and tuples, to be compared."""
    if isinstance(value, np.ndarray):
        data = np.ascontiguousarray(value).tobytes()
        return value.shape, value.dtype.str, hashlib.sha256(data).hexdigest()
    if dataclasses.is_dataclass(value):
        names = (field.name for field in dataclasses.fields(value))
        return tuple(frozen(getattr(value, name)) for name in names if name != "path")
    if isinstance(value, dict):
        return tuple((key, frozen(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(frozen(item) for item in value)
    return value.hex() if isinstance(value, bytes) else repr(value)


def outcome(form: Format, path: Path, whole: Any) -> tuple[str, str]:
    """What becomes of one damaged file, and words about it."""
    from probe_datasets.containers import VideoError
    from probe_datasets.formats.files import DataError

    try:
        found = frozen(form.read(path))
    except (DataError, VideoError) as error:
        cause: BaseException | None = error
        while cause is not None:
            # FFmpeg says so of a length beyond its own bound, without having asked for any.
            if isinstance(cause, MemoryError) and not type(cause).__module__.startswith("av."):
                return "wrong", f"asked for too much memory: {error}"
            cause = cause.__cause__
        text = str(error)
        fine = str(path.parent) in text and len(text.splitlines()) == 1
        return ("refused", "") if fine else ("wrong", f"the message does not serve: {text!r}")
    except BaseException as error:
        return "wrong", f"{type(error).__name__}: {error}"
    if found == whole:
        return "equal", ""
    if form.rows and len(found) < len(whole) and found == whole[: len(found)]:
        return "shorter", ""
    return "changed", ""


def sweep(
    name: str, form: Format, folder: Path, truncations: int, flips: int, seed: int
) -> dict[str, Any]:
    """Counts of the outcomes of one format, by cuts and flips, and what was wrong."""
    (folder / "whole").mkdir(parents=True)
    path = folder / "whole" / form.file
    form.write(path)
    content, whole = path.read_bytes(), frozen(form.read(path))
    counts: dict[str, Any] = {"bytes": len(content), "cut": {}, "flip": {}, "wrong": []}
    chance = random.Random(f"{name} {seed}")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    slowest = 0.0
    for number, (what, damaged) in enumerate(damages(content, truncations, flips, chance)):
        kind = what.partition(" ")[0]
        path = folder / str(number) / form.file
        path.parent.mkdir()
        path.write_bytes(damaged)
        (folder.parent / "at").write_text(f"{name}: {what}: {path}")
        start = time.process_time()
        result, words = outcome(form, path, whole)
        seconds = time.process_time() - start
        slowest = max(slowest, seconds)
        growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before
        if kind == "flip" and result == "shorter":
            result = "changed"
        if (result == "changed" and not form.cut and kind == "cut") or (
            result == "changed" and form.guarded
        ):
            result, words = "wrong", "another sample"
        if seconds > SECONDS or growth > GROWTH:
            result, words = "wrong", f"{seconds:.2f} s and {growth >> 20} MB more; {words}"
            before += growth
        if result == "wrong":
            counts["wrong"].append(f"{what}: {words}")
            if keep := os.environ.get("DAMAGE_KEEP"):
                Path(keep).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, Path(keep, f"{name} {what} {form.file}".replace(" ", "_")))
        counts[kind][result] = counts[kind].get(result, 0) + 1
        shutil.rmtree(path.parent)
    return {**counts, "slowest": round(slowest, 3)}


def main(folder: str, truncations: str, flips: str, seed: str, *names: str) -> None:
    """Sweep some formats, all by default, and print what came out."""
    known = formats()
    (size,) = (int(n) * 4096 for n in Path("/proc/self/statm").read_text().split()[:1])
    resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESS_SPACE, size + ADDRESS_SPACE))
    short = int(flips) < 500
    found = {}
    for name in names or known:
        share = known[name].slow if short else 1
        counts = int(truncations) // share, int(flips) // share
        place = Path(folder, name.replace(" ", "_"))
        found[name] = sweep(name, known[name], place, *counts, int(seed))
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
