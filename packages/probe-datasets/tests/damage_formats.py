"""A small file of every binary format, and the reader that makes samples of it.

Writers are those of the tests of the formats.
"""

import dataclasses
import io
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

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


def formats() -> dict[str, Format]:
    """The binary formats by name."""
    return {**_videos(), **_recordings(), **_archives(), **_pictures()}


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
    from probe_datasets.formats.realestate10k_chunks import read_chunk
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
