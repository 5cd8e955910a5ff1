"""Time of the tokenizer in channels-last against contiguous memory, one process, interleaved.

`python benchmarks/tokenizer_layout.py --name tiny --size 32 --output benchmarks/results/X.json`
prints, and writes, the median of each layout and their ratio for encoding, decoding and a training
step. The numbers that both layouts give are compared first.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import walt_tokenizer.model
from walt_tokenizer import TOKENIZERS, VideoTokenizer, reconstruction_loss

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last_3d": torch.channels_last_3d}


def measure(work: Callable[[], object], rounds: int) -> dict[str, float]:
    """Median seconds of `work` in each layout, the layouts taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in LAYOUTS}
    for turn in range(rounds + 1):
        for name, layout in LAYOUTS.items():
            walt_tokenizer.model.LAYOUT = layout
            started = time.perf_counter()
            work()
            if turn:  # the first turn warms up
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="tiny", choices=list(TOKENIZERS))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    tokenizer = VideoTokenizer(TOKENIZERS[args.name])
    video = torch.rand(args.batch, 3, args.frames, args.size, args.size) * 2 - 1
    with torch.no_grad():
        latents = {}
        for name, layout in LAYOUTS.items():
            walt_tokenizer.model.LAYOUT = layout
            latents[name] = tokenizer.encode(video)
    z = latents["contiguous"]
    difference = (z - latents["channels_last_3d"]).abs().max() / z.abs().max()

    def step() -> None:
        reconstruction_loss(tokenizer(video), video).backward()

    work = {
        "encode": torch.no_grad()(lambda: tokenizer.encode(video)),
        "decode": torch.no_grad()(lambda: tokenizer.decode(z)),
        "training step": step,
    }
    record = {
        "what": f"{args.name}, {args.batch} x {args.frames} x {args.size} x {args.size}, fp32",
        "largest relative difference": float(difference),
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "rows": {},
    }
    for name, run in work.items():
        row = measure(run, args.rounds)
        row["ratio"] = row["contiguous"] / row["channels_last_3d"]
        record["rows"][name] = row
        print(
            f"{name:14s} contiguous {row['contiguous'] * 1e3:7.1f} ms   channels_last_3d "
            f"{row['channels_last_3d'] * 1e3:7.1f} ms   ratio {row['ratio']:.2f}"
        )
    print({key: value for key, value in record.items() if key != "rows"})
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
