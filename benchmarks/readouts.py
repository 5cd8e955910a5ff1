"""Measures the readouts: a training step of each head against its formulas written down.

Both forms have the same weights and take turns in one process, at the study's sizes: batch 4,
16 x 16 tokens of width 1024, 17 frames of video. `latents 5` are the features that a causal video
model gives, 5 latent frames that are resized to 17; `frames 17`, measured for trackers, are 17
frames of features that come as they are.

    python benchmarks/readouts.py --record benchmarks/results/readouts.json

Reports, for every head: seconds forward and backward, the ratio to the plain form, the
difference of outputs and gradients; for trackers the same with a compiled step, and the share of
the time loop that is spent outside of operators; for depth the memory of decoding whole images,
each size in a process of its own.
"""

import argparse
import copy
import functools
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import readouts_plain as plain
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from turns import Bench, machine, peak_gib

import probe_readouts
from probe_readouts import PixelGrid, Readout, create_readout

FRAMES = 17
Forward = Callable[[], Any]


def outputs_of(result: Any) -> list[Tensor]:
    """What a loss may read."""
    return [result] if isinstance(result, Tensor) else [result.values, result.logits]


def objective(result: Any) -> Tensor:
    """A loss that weighs every output differently, the same for both forms."""
    total = torch.zeros((), device=outputs_of(result)[0].device)
    for output in outputs_of(result):
        generator = torch.Generator().manual_seed(7)
        total = total + (output * torch.randn(output.shape, generator=generator).to(output)).mean()
    return total


def heads(args: argparse.Namespace) -> Iterator[tuple[str, Readout, Callable, Callable]]:
    """Name, readout, and both forms as functions of (readout, features)."""
    torch.manual_seed(0)
    points = torch.rand(args.batch, args.points, 2, device=args.device)
    corners = torch.rand(args.batch, args.boxes, 2, 2, device=args.device).sort(dim=2).values
    boxes = corners.flatten(2)
    grid = PixelGrid((args.pixels, args.pixels), 8, (3, 5)).coordinates(args.device)
    for name, queries in (("point_tracks", points), ("waymo_boxes", boxes)):
        yield (
            name,
            create_readout(name, args.width),
            functools.partial(lambda q, r, f: r(f, q, num_frames=FRAMES), queries),
            functools.partial(lambda q, r, f: plain.tracks(r, f, q, FRAMES), queries),
        )
    yield (
        "scannet_depth",
        create_readout("scannet_depth", args.width),
        lambda r, f: r(f, grid, num_frames=FRAMES),
        lambda r, f: plain.depth(r, f, grid, FRAMES),
    )
    for name, form in (
        ("re10k_pose", plain.pose),
        ("ssv2", plain.attentive),
        ("kinetics400", plain.attentive),
    ):
        yield (
            name,
            create_readout(name, args.width),
            lambda r, f: r(f, num_frames=FRAMES),
            functools.partial(lambda form, r, f: form(r, f, FRAMES), form),
        )


def step_times(bench: Bench, forms: dict[str, Forward], readout: nn.Module) -> dict[str, Any]:
    """Best seconds of forward, backward and both, all forms taking turns, and their agreement."""
    seconds: dict[str, dict[str, float]] = {}
    found: dict[str, tuple[list[Tensor], list[Tensor | None]]] = {}
    for _ in range(bench.rounds):
        for name, form in forms.items():
            readout.zero_grad()
            bench.wait()
            started = bench.clock()
            result = form()
            bench.wait()
            middle = bench.clock()
            objective(result).backward()
            bench.wait()
            ended = bench.clock()
            times = {
                "forward": middle - started,
                "backward": ended - middle,
                "both": ended - started,
            }
            best = seconds.setdefault(name, times)
            seconds[name] = {part: min(best[part], times[part]) for part in times}
            gradients = [None if p.grad is None else p.grad.clone() for p in readout.parameters()]
            found[name] = ([o.detach() for o in outputs_of(result)], gradients)
    reference = found["plain"]
    row: dict[str, Any] = {
        name: {part: round(value, 4) for part, value in parts.items()}
        for name, parts in seconds.items()
    }
    for name in forms:
        if name == "plain":
            continue
        ratio = {part: seconds["plain"][part] / seconds[name][part] for part in seconds[name]}
        row[name]["times as fast as plain"] = {p: round(value, 2) for p, value in ratio.items()}
        row[name]["difference, relative"] = {
            "outputs": difference(found[name][0], reference[0]),
            "gradients": difference(found[name][1], reference[1]),
        }
    return row


def difference(found: list, expected: list) -> float:
    """Relative difference, in norm, of all tensors together."""
    pairs = [(a, b) for a, b in zip(found, expected, strict=True) if b is not None]
    wrong = sum(float((a - b).square().sum()) for a, b in pairs)
    return (wrong / sum(float(b.square().sum()) for _, b in pairs)) ** 0.5


def outside_operators(form: Forward) -> float:
    """Share of a forward pass in which no operator runs: Python, and the profiler itself."""
    form()
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as profiler:
        started = time.perf_counter()
        form()
        wall = time.perf_counter() - started
    busy = sum(event.self_cpu_time_total for event in profiler.key_averages()) / 1e6
    return max(0.0, 1.0 - busy / wall)


def measure_heads(args: argparse.Namespace, bench: Bench) -> dict[str, Any]:
    """Every head on latent frames, trackers also on as many frames as the video has."""
    rows: dict[str, Any] = {}
    for name, readout, ours, reference in heads(args):
        readout.to(args.device)
        rows[name] = {}
        tracker = hasattr(readout, "step")
        kinds = {"latents 5": 5} | ({"frames 17": FRAMES} if tracker else {})
        for kind, frames in kinds.items():
            torch.manual_seed(1)
            shape = (args.batch, frames, args.tokens, args.tokens, args.width)
            features = torch.randn(shape, device=args.device)
            forms: dict[str, Forward] = {
                "plain": functools.partial(reference, readout, features),
                "ours": functools.partial(ours, readout, features),
            }
            row = step_times(bench, forms, readout)
            if tracker and args.compile:
                row |= measure_compiled(readout, ours, features, forms, bench)
            if tracker and args.device == "cpu":
                row["share of ours outside of operators"] = round(
                    outside_operators(forms["ours"]), 4
                )
            rows[name][kind] = row
            ratio = row["ours"]["times as fast as plain"]
            print(f"{name:14s} {kind:10s} {json.dumps(ratio)}", flush=True)
            if "compiled" in row:
                print(
                    f"{'':14s} compiled   {json.dumps(row['compiled']['times as fast as plain'])}"
                )
    return rows


def measure_compiled(
    readout: nn.Module,
    ours: Callable,
    features: Tensor,
    forms: dict[str, Forward],
    bench: Bench,
) -> dict[str, Any]:
    """The step compiled, beside the plain form; its first call is timed on its own."""
    twin = copy.deepcopy(readout)
    twin.step.compile()
    started = bench.clock()
    objective(ours(twin, features)).backward()
    bench.wait()
    first = bench.clock() - started
    # The twin shares the weights, so that both leave their gradients in one place.
    for (_, theirs), (path, _) in zip(
        list(readout.named_parameters()), list(twin.named_parameters()), strict=True
    ):
        owner, _, leaf = path.rpartition(".")
        setattr(twin.get_submodule(owner), leaf, theirs)
    compiled = {**forms, "compiled": functools.partial(ours, twin, features)}
    del compiled["ours"]
    row = step_times(bench, compiled, readout)
    return {
        "compiled": {**row["compiled"], "first call": round(first, 1)},
        "plain again": row["plain"],
    }


def decode(side: int, max_queries: int, threads: int, queue: multiprocessing.Queue) -> None:
    """Peak memory of decoding one clip's depth at every pixel of an image, in this process."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    readout = create_readout("scannet_depth")
    features = torch.randn(1, 5, 16, 16, 1024)
    grid = PixelGrid((side, side), 1).coordinates()
    form = functools.partial(plain.depth, readout)
    if max_queries:
        readout.max_queries = max_queries
        form = readout
    with torch.inference_mode():
        form(features, grid[:1], num_frames=FRAMES)
        before = peak_gib()
        started = time.perf_counter()
        form(features, grid, num_frames=FRAMES)
    queue.put((peak_gib() - before, time.perf_counter() - started))


def measure_depth_memory(threads: int) -> list[dict[str, Any]]:
    """Decoding one clip of 17 frames at every pixel; 0 stands for the plain form."""
    rows = []
    context = multiprocessing.get_context("spawn")
    for max_queries in (4096, 16384, 65536, 0):
        for side in (64, 128, 256) if max_queries else (64, 128):
            queue = context.Queue()
            process = context.Process(target=decode, args=(side, max_queries, threads, queue))
            process.start()
            gib, seconds = queue.get()
            process.join()
            form = f"ours, max_queries {max_queries}" if max_queries else "plain"
            row = {"form": form, "side": side, "GiB": round(gib, 3), "seconds": round(seconds, 2)}
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def main() -> None:
    """Run the benchmark and print its results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch")
    parser.add_argument("--batch", type=int, default=4, help="clips")
    parser.add_argument("--tokens", type=int, default=16, help="tokens on a side of a frame")
    parser.add_argument("--width", type=int, default=1024, help="channels of the features")
    parser.add_argument("--points", type=int, default=64, help="points of a clip")
    parser.add_argument("--boxes", type=int, default=25, help="boxes of a clip")
    parser.add_argument("--pixels", type=int, default=256, help="pixels on a side of a frame")
    parser.add_argument("--rounds", type=int, default=6, help="turns; the best counts")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="eager only")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="times only")
    parser.add_argument("--record", type=Path, help="JSON file to write")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    bench = Bench(args.device, time.perf_counter, args.rounds)
    record: dict[str, Any] = {
        "machine": machine(args.device) | {"probe-readouts": probe_readouts.__version__},
        "arguments": {k: v for k, v in vars(args).items() if k != "record"},
        "training step": measure_heads(args, bench),
    }
    if args.memory and args.device == "cpu":
        record["depth of one clip at every pixel"] = measure_depth_memory(args.threads)
    if args.record:
        args.record.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
