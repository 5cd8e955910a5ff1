"""Measures reading clips of videos: `read_frames` with an index against bare decoder loops.

A clip is 17 frames that begin anywhere; the file is opened anew for each. The bare loops open it,
seek, decode on one thread and stack, and check nothing: torchcodec's with an exact decoder,
PyAV's with the time of each frame at hand. All forms read the same clips, taking turns in one
process, and their pixels must be equal.

    python benchmarks/data_videos.py FOLDER_OR_FILE... --record benchmarks/results/data_videos.json

Reports, for every file and stride: median milliseconds of each form and the median, over clips,
of the ratio to the bare loop, above 1 where ours takes longer; milliseconds to index a file
without decoding it; bytes of its packed index; and clips a second through a DataLoader, decoded
and turned into floats.
"""

import argparse
import functools
import json
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torchcodec
from einops import rearrange
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchcodec.decoders import VideoDecoder
from turns import machine

from probe_datasets import read_frames, scan_video, to_float
from probe_datasets.containers import VIDEO_CONTAINERS
from probe_datasets.frame_index import FrameIndex, frame_index

FRAMES = 17
Form = Callable[[range], Tensor]


def bare_torchcodec(path: str, frames: range) -> Tensor:
    """The frames as torchcodec alone reads them."""
    decoder = VideoDecoder(path, seek_mode="exact", num_ffmpeg_threads=1)
    return decoder.get_frames_in_range(frames.start, frames.stop, frames.step).data


def bare_pyav(path: str, times: Sequence[int], frames: range) -> Tensor:
    """The frames as PyAV alone reads them."""
    wanted = {times[i] for i in frames}
    found = []
    with av.open(path) as source:
        stream = source.streams.video[0]
        stream.codec_context.thread_count, stream.thread_type = 1, "NONE"
        source.seek(times[frames.start], stream=stream)
        for frame in source.decode(stream):
            if frame.pts in wanted:
                found.append(frame.to_ndarray(format="rgb24", threads=1))
            if len(found) == len(frames):
                break
    return rearrange(torch.from_numpy(np.stack(found)), "T H W c -> T c H W")


def clip_of(num_frames: int, stride: int, chance: random.Random) -> range:
    """Frames of a random clip."""
    span = (FRAMES - 1) * stride + 1
    start = chance.randrange(num_frames - span + 1)
    return range(start, start + span, stride)


def clip_times(index: FrameIndex, stride: int, trials: int) -> dict[str, Any]:
    """Medians over random clips, which all forms read in turns, the first one in turns too."""
    path = str(index.info.path)
    forms: dict[str, Form] = {
        "bare torchcodec": functools.partial(bare_torchcodec, path),
        "bare PyAV": functools.partial(bare_pyav, path, index.times),
    }
    for backend in ("torchcodec", "pyav", "auto"):
        forms[f"ours {backend}"] = functools.partial(
            read_frames, path, backend=backend, index=index
        )
    names = list(forms)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    chance = random.Random(0)
    for trial in range(-1, trials):  # the first is to warm up
        frames = clip_of(len(index.times), stride, chance)
        results = {}
        for name in names[trial % len(names) :] + names[: trial % len(names)]:
            started = time.perf_counter()
            results[name] = forms[name](frames)
            if trial >= 0:
                seconds[name].append(time.perf_counter() - started)
        for name, result in results.items():
            if not torch.equal(result, results["bare torchcodec"]):
                raise SystemExit(f"{path}: {name} reads other pixels of {frames}")

    def ratio(ours: str, bare: str) -> float:
        pairs = zip(seconds[ours], seconds[bare], strict=True)
        return round(statistics.median(one / other for one, other in pairs), 3)

    return {
        "ms": {name: round(1e3 * statistics.median(all_), 2) for name, all_ in seconds.items()},
        "ratio torchcodec": ratio("ours torchcodec", "bare torchcodec"),
        "ratio PyAV": ratio("ours pyav", "bare PyAV"),
        "ratio auto to torchcodec": ratio("ours auto", "bare torchcodec"),
    }


def index_times(index: FrameIndex, trials: int) -> dict[str, Any]:
    """Milliseconds to index fresh copies of a file, and to pack and unpack what was found."""
    scans, unpacks = [], []
    packed = index.pack()
    with tempfile.TemporaryDirectory() as folder:
        for trial in range(trials):
            copy = shutil.copyfile(index.info.path, Path(folder, f"{trial}.video"))
            started = time.perf_counter()
            scan_video(copy, verify=False)
            scans.append(time.perf_counter() - started)
            copy.unlink()
            started = time.perf_counter()
            FrameIndex.unpack(index.info.path, packed)
            unpacks.append(time.perf_counter() - started)
    return {
        "ms to index": round(1e3 * statistics.median(scans), 2),
        "packed bytes": len(packed),
        "ms to unpack": round(1e3 * statistics.median(unpacks), 3),
    }


class Clips(Dataset):
    """Random clips of one file as floats, by way of its packed index."""

    def __init__(self, path: Path, packed: bytes, num_frames: int, stride: int, count: int) -> None:
        self.path, self.packed = path, packed
        self.num_frames, self.stride, self.count = num_frames, stride, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, item: int) -> Tensor:
        frames = clip_of(self.num_frames, self.stride, random.Random(item))
        index = FrameIndex.unpack(self.path, self.packed)
        return to_float(read_frames(self.path, frames, index=index))


def loader_rate(index: FrameIndex, workers: int, clips: int) -> float:
    """Clips a second of a second epoch, whose workers have started."""
    dataset = Clips(index.info.path, index.pack(), len(index.times), 1, clips)
    loader = DataLoader(dataset, batch_size=1, num_workers=workers, persistent_workers=True)
    for _ in loader:
        pass
    started = time.perf_counter()
    for _ in loader:
        pass
    return clips / (time.perf_counter() - started)


def find_videos(paths: list[Path]) -> list[Path]:
    """The files, and the videos directly in the folders."""
    found = []
    for path in paths:
        inside = sorted(path.iterdir()) if path.is_dir() else [path]
        found += [p for p in inside if p == path or p.suffix[1:].lower() in VIDEO_CONTAINERS]
    return found


def measure(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Everything of one file, printed on the way."""
    index = frame_index(path)
    info = index.info
    row: dict[str, Any] = {
        "codec": info.codec,
        "size": f"{info.width} x {info.height}",
        "frames": info.num_frames,
        "entries": len(index.entries),
        **index_times(index, args.trials),
    }
    for stride in args.strides:
        if info.num_frames <= (FRAMES - 1) * stride:
            continue
        times = row[f"stride {stride}"] = clip_times(index, stride, args.trials)
        ms = times["ms"]
        print(
            f"{path.name[:28]:28s} {info.codec:5s} {stride:6d}"
            f" {ms['bare torchcodec']:9.1f} {ms['ours torchcodec']:8.1f}"
            f" {times['ratio torchcodec']:6.2f}"
            f" {ms['bare PyAV']:9.1f} {ms['ours pyav']:8.1f} {times['ratio PyAV']:6.2f}"
            f" {ms['ours auto']:8.1f} {times['ratio auto to torchcodec']:6.2f}",
            flush=True,
        )
    if args.clips and info.num_frames >= FRAMES:
        row["clips a second"] = {
            f"{workers} workers": round(loader_rate(index, workers, args.clips), 1)
            for workers in args.workers
        }
    rest = {key: row[key] for key in ("ms to index", "packed bytes", "ms to unpack")}
    print(f"{'':28s} {json.dumps(rest | row.get('clips a second', {}))}", flush=True)
    return row


def main() -> None:
    """Run the benchmark and print its results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("videos", type=Path, nargs="+", help="files, or folders of files")
    parser.add_argument("--trials", type=int, default=21, help="clips of each file and stride")
    parser.add_argument("--strides", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--clips", type=int, default=32, help="of a DataLoader's epoch; 0 for none")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--record", type=Path, help="file to write the results to")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{'file':28s} {'codec':5s} stride torchcodec    ours  ratio      PyAV     ours  ratio"
        "     auto  ratio"
    )
    results = {
        "machine": machine() | {"torchcodec": torchcodec.__version__, "PyAV": av.__version__},
        "trials": args.trials,
        "files": {path.name: measure(path, args) for path in find_videos(args.videos)},
    }
    if args.record:
        args.record.parent.mkdir(parents=True, exist_ok=True)
        args.record.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
