"""Measures the loaders: clips a second of every dataset, and what reading a clip costs beside.

Sample files are laid out in a temporary folder as each dataset comes, under many names, and opened
as a user opens them. They are read from memory, so disks have no part in the numbers.

    nice python benchmarks/data.py --output benchmarks/results/data.json

Opening and rates are in seconds of the clock, all else in seconds of the processor, which other
programs disturb less. Reports
- loaders: samples; milliseconds to open a dataset for the first time, which indexes its files, and
  again; milliseconds of one clip; and clips a second through `ClipLoader` in batches of 4, without
  workers and with 1 and 2, the time to start them counted; ready clips show what workers cost;
- videos: random clips as a dataset gives them, against loops that open the file, decode with bare
  torchcodec or PyAV and do the same `crop_resize`, all in turns, with pixels that must be equal;
  medians over clips of the ratios, which are to be at most 1.10; and where our own time goes;
- recordings: a random frame of a `.sens` file;
- MOVi-E: everything in an example decoded, beside TFDS where that is installed, and beside 200 ms,
  which a bare parser with OpenCV took for record and pictures of 256 x 256 pixels on one core;
- synthetic world: clips a second on one core, to be 200 at 64 x 64 pixels, or 40 with shadows.
"""

import argparse
import dataclasses
import functools
import importlib
import importlib.util
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import av
import PIL
import torch
import torchcodec
from data_layouts import Layout, layouts
from data_videos import bare_pyav, bare_torchcodec
from torch import Tensor
from turns import machine

import probe_datasets
from probe_datasets import (
    ClipConfig,
    ClipDataset,
    ClipLoader,
    central_window,
    crop_resize,
    read_frames,
)
from probe_datasets.formats.movi_e import MoviExample, read_movi_e
from probe_datasets.formats.sens import index_sens, read_sens_frame
from probe_datasets.formats.tfrecord import record_index
from probe_datasets.frame_index import FrameIndex, frame_index
from probe_datasets.video_files import VideoFiles

PARTS = ("loaders", "videos", "recordings", "movi_e", "synthetic")
STEPS = ("row of the index", "frame times unpacked", "read_frames", "crop_resize")
BATCH = 4
AIM = 1.10
"""Most that a loader may take, as a multiple of a bare loop."""
AIMS = {False: 200, True: 40}
"""Clips a second of the synthetic world at 64 x 64 pixels, without shadows and with."""
OPENCV_MS = 200
Row = dict[str, Any]
Clock = Callable[[], float]


def milliseconds(seconds: list[float]) -> float:
    """Median."""
    return round(1e3 * statistics.median(seconds), 3)


def timed(work: Callable[[], Any], clock: Clock = time.process_time) -> tuple[float, Any]:
    """Seconds, and the result."""
    started = clock()
    result = work()
    return clock() - started, result


def clip_rate(dataset: ClipDataset, workers: int, seconds: float) -> float:
    """Clips a second over whole epochs of at least some seconds."""
    loader = ClipLoader(dataset, BATCH, num_workers=workers)
    clips, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        for batch in loader:
            if batch["failed"]:
                raise SystemExit(f"cannot be read: {batch['failed'][0]['problem']}")
            clips += len(batch["sample_id"])
    return clips / (time.perf_counter() - started)


def measure_loaders(all_: list[Layout], args: argparse.Namespace) -> Iterator[Row]:
    """Opening and reading every dataset."""
    heads = "".join(f"{f'{workers} workers':>11s}" for workers in args.workers)
    print(f"{'loader':36s} samples  open ms  again ms  ms a clip, clips/s of{heads}")
    for layout in all_:
        first, dataset = timed(layout.open, time.perf_counter)
        again, dataset = timed(layout.open, time.perf_counter)
        number = min(2 * len(dataset), 32)
        clips = [
            timed(functools.partial(dataset.clip, i % len(dataset), i))[0] for i in range(number)
        ]
        rates = {workers: clip_rate(dataset, workers, args.seconds) for workers in args.workers}
        row = {
            "loader": layout.title,
            "clip": dataclasses.asdict(layout.clip),
            "samples": len(dataset),
            "ms to open first": round(1e3 * first, 1),
            "ms to open again": round(1e3 * again, 1),
            "ms a clip": milliseconds(clips),
            "clips/s": {f"{workers} workers": round(rate, 2) for workers, rate in rates.items()},
        }
        print(
            f"{layout.title:36s} {len(dataset):7d} {1e3 * first:8.1f} {1e3 * again:9.1f}"
            f" {row['ms a clip']:10.1f}{'':12s}"
            + "".join(f"{rate:11.1f}" for rate in rates.values()),
            flush=True,
        )
        yield row


class Clip:
    """One random clip of one video, in every way of reading it.

    Args:
        dataset: a dataset of videos.
        item: which sample.
        draw: which of its clips.
    """

    def __init__(self, dataset: VideoFiles, item: int, draw: int) -> None:
        self.dataset, self.item, self.draw = dataset, item, draw
        row = dataset.row(item)
        self.path = str(dataset.root / row["path"])
        self.index = frame_index(self.path)
        self.size = dataset.config.size
        self.frames = self._frames()
        self.steps: dict[str, float] = {}

    def _frames(self) -> range:
        """What the dataset draws; nothing is decoded."""
        chosen: list[int] = []

        def stop(row: Row, indices: list[int]) -> Tensor:
            chosen.extend(indices)
            return torch.empty(3, 0, 0, 0)

        with mock.patch.object(self.dataset, "read_video", stop):
            self.dataset.clip(self.item, self.draw)
        stride = self.dataset.config.stride
        frames = range(chosen[0], chosen[0] + stride * len(chosen), stride)
        assert list(frames) == chosen
        return frames

    def ours(self) -> Tensor:
        """As the dataset gives it."""
        return self.dataset.clip(self.item, self.draw)["video"]

    def bare(self, name: str) -> Tensor:
        """As a loop over a bare decoder gives it."""
        if name == "PyAV":
            seconds, frames = timed(lambda: bare_pyav(self.path, self.index.times, self.frames))
        else:
            seconds, frames = timed(lambda: bare_torchcodec(self.path, self.frames))
        self.steps[f"decoding with bare {name}"] = seconds
        return crop_resize(frames, central_window(*frames.shape[-2:]), self.size)

    def in_steps(self) -> Tensor:
        """As the dataset gives it, step by step."""
        row_seconds, row = timed(lambda: self.dataset.row(self.item))
        unpacking, index = timed(lambda: FrameIndex.unpack(self.path, row["frames"]))
        decoding, frames = timed(lambda: read_frames(self.path, self.frames, index=index))
        window = central_window(*frames.shape[-2:])
        cropping, video = timed(lambda: crop_resize(frames, window, self.size))
        parts = (row_seconds, unpacking, decoding, cropping)
        self.steps |= dict(zip(STEPS, parts, strict=True))
        return video


def overhead(dataset: VideoFiles, item: int, trials: int) -> Row:
    """Medians over random clips of one video that all forms read in turns."""
    seconds: dict[str, list[float]] = {}
    for trial in range(-1, trials):  # the first is to warm up
        clip = Clip(dataset, item, trial)
        forms: dict[str, Callable[[], Tensor]] = {
            "ours": clip.ours,
            "bare torchcodec": functools.partial(clip.bare, "torchcodec"),
            "bare PyAV": functools.partial(clip.bare, "PyAV"),
            "in steps": clip.in_steps,
        }
        turn, found = trial % len(forms), {}
        for name in [*forms, *forms][turn : turn + len(forms)]:
            clip.steps[name], found[name] = timed(forms[name])
        if not all(torch.equal(video, found["ours"]) for video in found.values()):
            raise SystemExit(f"sample {item} of {dataset.spec.name}: forms read other pixels")
        clip.steps["all else"] = clip.steps["ours"] - sum(clip.steps[step] for step in STEPS)
        for name, value in clip.steps.items() if trial >= 0 else ():
            seconds.setdefault(name, []).append(value)
    ms = {name: milliseconds(values) for name, values in seconds.items()}

    def ratio(other: str) -> float:
        pairs = zip(seconds["ours"], seconds[other], strict=True)
        return round(statistics.median(one / two for one, two in pairs), 3)

    decoders = {name: ms[f"decoding with bare {name}"] for name in ("torchcodec", "PyAV")}
    faster = min(decoders, key=decoders.__getitem__)
    ratios = {
        "bare torchcodec": ratio("bare torchcodec"),
        "bare PyAV": ratio("bare PyAV"),
        f"decoding alone, {faster}": ratio(f"decoding with bare {faster}"),
    }
    info = clip.index.info
    return {
        "loader": dataset.spec.name,
        "codec": info.codec,
        "size": f"{info.width} x {info.height}",
        "frames": info.num_frames,
        "stride": dataset.config.stride,
        "ms": {name: ms[name] for name in forms} | {"decoding alone": decoders},
        "ratio to": ratios,
        "ratio to the faster loop": ratios[f"bare {faster}"],
        "at most 1.10": ratios[f"bare {faster}"] <= AIM,
        "ms of our steps": {step: ms[step] for step in (*STEPS, "all else")},
    }


def measure_videos(all_: list[Layout], args: argparse.Namespace) -> Iterator[Row]:
    """Every different video of the datasets that cut clips out of videos alone."""
    print(
        f"\n{'loader':12s} {'video':22s}  ours ms   torchcodec        PyAV         decoding"
        "   row  times   read   crop   rest"
    )
    for layout in all_:
        if layout.dataset not in ("ssv2", "kinetics400", "folder"):
            continue
        dataset = layout.open()
        assert isinstance(dataset, VideoFiles)
        different = {dataset.row(i)["size"]: i for i in reversed(range(len(dataset)))}
        for item in sorted(different.values()):
            row = overhead(dataset, item, args.trials)
            ms = row["ms"]
            bare = (ms["bare torchcodec"], ms["bare PyAV"], min(ms["decoding alone"].values()))
            cells = zip(bare, row["ratio to"].values(), strict=True)
            print(
                f"{row['loader']:12s} {row['codec'] + ' ' + row['size']:22s} {ms['ours']:8.1f}"
                + "".join(f" {value:6.1f} x{part:5.2f}" for value, part in cells)
                + "".join(f" {value:6.2f}" for value in row["ms of our steps"].values())
                + ("" if row["at most 1.10"] else f"  above {AIM}"),
                flush=True,
            )
            yield row


def measure_recordings(all_: list[Layout], args: argparse.Namespace) -> Row:
    """A random frame of a `.sens` file, from the file and from the dataset."""
    (layout,) = (one for one in all_ if one.dataset == "scannet")
    path = next(layout.root.rglob("*.sens"))
    index = index_sens(path)
    dataset = dataclasses.replace(layout, clip=ClipConfig(num_frames=1, start="random")).open()
    chance = random.Random(0)
    seconds: dict[str, list[float]] = {}
    for trial in range(2 * args.trials):
        frame = chance.randrange(index.num_frames)
        item = chance.randrange(len(dataset))
        works: dict[str, Callable[[], Any]] = {
            "index a file": functools.partial(index_sens, path),
            "colour and depth": functools.partial(read_sens_frame, index, frame),
            "colour": functools.partial(read_sens_frame, index, frame, depth=False),
            "depth": functools.partial(read_sens_frame, index, frame, color=False),
            "example of one frame at 256 x 256": functools.partial(dataset.clip, item, trial),
        }
        for name, work in works.items():
            seconds.setdefault(name, []).append(timed(work)[0])
    ms = {name: milliseconds(values) for name, values in seconds.items()}
    print(f"\n.sens, {index.color_size[1]} x {index.color_size[0]}, ms: {json.dumps(ms)}")
    return {"frames": index.num_frames, "size": list(index.color_size), "ms": ms}


def measure_movi_e(all_: list[Layout], args: argparse.Namespace) -> Iterator[Row]:
    """All arrays of an example, and the example that the dataset makes."""
    for layout in (one for one in all_ if one.dataset == "movi_e"):
        path = next(layout.root.rglob("*.tfrecord-*"))
        place = record_index(path)[0].tolist()
        dataset = layout.open()
        seconds: dict[str, list[float]] = {}
        for trial in range(args.trials):
            parts, example = decoded(path, *place)
            parts["example of the dataset"], _ = timed(functools.partial(dataset.clip, 0, trial))
            for name, value in parts.items():
                seconds.setdefault(name, []).append(value)
        ms = {name: milliseconds(values) for name, values in seconds.items()}
        pixels = example.height * example.width
        everything = sum(ms[part] for part in parts if part != "example of the dataset")
        tfds = tfds_milliseconds(
            args.shared / "movi_e" / path.parent.relative_to(layout.root), args.trials
        )
        scaled = round((ms["record"] + ms["pictures"]) * 256**2 / pixels, 1)
        row = {
            "size": f"{example.height} x {example.width}",
            "ms": ms,
            "ms of record and pictures at 256 x 256, by pixels": scaled,
            "times OpenCV's": round(scaled / OPENCV_MS, 2),
            "ms of TFDS": tfds,
            "all parts, times TFDS's": None if tfds is None else round(everything / tfds, 2),
        }
        print(f"MOVi-E: {json.dumps(row)}", flush=True)
        yield row


def decoded(path: Path, offset: int, length: int) -> tuple[dict[str, float], MoviExample]:
    """Seconds to decode each part of an example."""
    record, example = timed(lambda: read_movi_e(path, offset, length))
    arrays = ("video", "segmentations", "depth", "normal", "object_coordinates")
    pictures = sum(timed(getattr(example, name))[0] for name in arrays)
    flow, _ = timed(lambda: [example.flow(forward=forward) for forward in (True, False)])
    numbers, _ = timed(lambda: (example.camera, example.instances))
    return {"record": record, "pictures": pictures, "numbers": numbers, "flow": flow}, example


def tfds_milliseconds(folder: Path, rounds: int) -> float | None:
    """An example as TFDS reads it, in all threads together; None where it is not installed."""
    if importlib.util.find_spec("tensorflow_datasets") is None:
        return None
    tensorflow = importlib.import_module("tensorflow")
    tfds = importlib.import_module("tensorflow_datasets")
    options = tensorflow.data.Options()
    options.threading.private_threadpool_size = 1
    config = tfds.ReadConfig(try_autocache=False)
    data = tfds.builder_from_directory(folder).as_dataset(split="train", read_config=config)
    examples = iter(tfds.as_numpy(data.repeat(rounds + 3).with_options(options)))
    for _ in range(3):
        next(examples)
    return round(1e3 / rounds * timed(lambda: list(examples))[0], 1)


def measure_synthetic(args: argparse.Namespace) -> Iterator[Row]:
    """Clips a second on one core."""
    from synthetic import measure_speed

    print()
    for row in measure_speed(args.synthetic_clips, rounds=3):
        if row["size"] == 64:
            aim = AIMS[row["shadows"]]
            row |= {"aim": aim, "reached": row["clips/s"] >= aim}
        print(f"synthetic world: {json.dumps(row)}", flush=True)
        yield row


def main() -> None:
    """Run the benchmark and print its results."""
    beside = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shared", type=Path, default=beside, help="folder of the sample files")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what is measured")
    parser.add_argument("--samples", type=int, default=32, help="files of most datasets")
    parser.add_argument("--trials", type=int, default=21, help="random clips of each video")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each loader, at least")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="of loaders")
    parser.add_argument("--synthetic-clips", type=int, default=20, help="of each setting")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    if not args.shared.is_dir():
        raise SystemExit(f"{args.shared}: no such folder; pass the sample files with --shared")
    torch.set_num_threads(1)
    versions = {
        "torchcodec": torchcodec.__version__,
        "PyAV": av.__version__,
        "Pillow": PIL.__version__,
        "probe-datasets": probe_datasets.__version__,
    }
    settings = ("samples", "trials", "seconds", "synthetic_clips")
    record: Row = {
        "machine": machine() | {"cores": len(os.sched_getaffinity(0))} | versions,
        "arguments": {name: getattr(args, name) for name in settings},
    }
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PROBE_DATASETS_CACHE"] = f"{folder}/indexes"
        all_ = list(layouts(args.shared, Path(folder), args.samples))
        parts: dict[str, Callable[[], Any]] = {
            "loaders": lambda: list(measure_loaders(all_, args)),
            "videos": lambda: list(measure_videos(all_, args)),
            "recordings": lambda: measure_recordings(all_, args),
            "movi_e": lambda: list(measure_movi_e(all_, args)),
            "synthetic": lambda: list(measure_synthetic(args)),
        }
        for part in args.parts:
            record[part] = parts[part]()
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
