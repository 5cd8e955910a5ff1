"""Measures a sweep: all cells on shared forwards, against the same cells one by one.

The sweep is one `probe-eval sweep`; of its cells some are drawn and trained again, each by a
`probe-eval run` of its own with an empty cache, as somebody without the sweep would. Backbones are
untrained, which costs the same. Both are processes of the same number of threads, and the cells are
run in turns with nothing else.

    python benchmarks/sweep.py --record benchmarks/results/sweep.json

Reports wall seconds of both, the ratio (the mean of the drawn cells times the number of cells, over
the sweep), the forwards that were counted in both, and for every drawn cell the largest difference
between its weights in the sweep and alone.
"""

import argparse
import dataclasses
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from turns import machine

import probe_eval
import probe_eval.recipes
import walt_core
import walt_tokenizer
from probe_eval.backbones.walt import WINDOWS


def write_twins(folder: Path, tokenizer_size: str, walt_size: str) -> int:
    """Untrained twins with every weight different from zero; returns their depth."""
    torch.manual_seed(0)
    tokenizer = walt_tokenizer.VideoTokenizer(walt_tokenizer.TOKENIZERS[tokenizer_size])
    tokenizer.save_pretrained(folder / "tokenizer")
    size = walt_core.WALT_SIZES[walt_size]
    for name, windows in WINDOWS.items():
        model = walt_core.Walt(dataclasses.replace(size, windows=windows))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        model.latent_mean.copy_(tokenizer.latent_mean)
        model.latent_std.copy_(tokenizer.latent_std)
        model.save_pretrained(folder / name)
    return size.depth


def run(words: list[str], cache: Path, threads: int) -> float:
    """Wall seconds of a command in a process of its own, from its start to its end."""
    environment = {
        **os.environ,
        "PROBE_EVAL_CACHE": str(cache),
        "OMP_NUM_THREADS": str(threads),
    }
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "probe_eval", *words],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"probe-eval {' '.join(words)} failed:\n{done.stderr}")
    return seconds


def run_words(recipe: str, preset: str, record: Mapping[str, Any], output: Path) -> list[str]:
    """The command that trains one cell of a sweep alone."""
    words = ["run", recipe, "--preset", preset, "--output", str(output)]
    config = record["config"]
    chosen = {
        "features": ("backbone", "pretrained", "block", "timestep"),
        "data": ("size", "limit"),
        "optim": ("steps", "batch_size", "warmup_steps"),
    }
    for part, names in chosen.items():
        for name in names:
            words += [f"--{part}.{name.replace('_', '-')}", str(config[part][name])]
    return [*words, "--seed", str(record["seed"]), "--trackers"]


def difference(one: Path, other: Path) -> float:
    """Largest difference between weights of two readouts."""
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys(), (one, other)
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def main() -> None:
    """Run the benchmark and print its results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--recipes",
        nargs="+",
        default=["synthetic-action", "synthetic-depth", "synthetic-pose", "synthetic-boxes"],
        help="tasks, of one data set",
    )
    parser.add_argument("--preset", default="smoke", help="size of the recipes")
    parser.add_argument("--tokenizer", default="tiny", help="size of the tokenizer")
    parser.add_argument("--walt", default="nano", help="size of the denoisers")
    parser.add_argument("--blocks", type=int, default=5, help="blocks, evenly from 0 to the depth")
    parser.add_argument("--timesteps", nargs="+", type=int, default=[0, 50, 200])
    parser.add_argument("--size", type=int, default=32, help="pixels on a side of a clip")
    parser.add_argument("--clips", type=int, default=256, help="clips of each split")
    parser.add_argument("--steps", type=int, default=100, help="steps of each readout")
    parser.add_argument("--batch", type=int, default=8, help="clips of a step")
    parser.add_argument("--alone", type=int, default=12, help="cells that are also run alone")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch")
    parser.add_argument("--record", type=Path, help="JSON file to write")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(args, Path(folder))
    record = {
        "machine": machine() | {"threads": args.threads, "probe-eval": probe_eval.__version__},
        "arguments": {k: v for k, v in vars(args).items() if k != "record"},
        **results,
    }
    if args.record:
        args.record.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Both ways in turns: half of the drawn cells before the sweep has run would not be known."""
    depth = write_twins(folder / "twins", args.tokenizer, args.walt)
    blocks = sorted({round(depth * k / (args.blocks - 1)) for k in range(args.blocks)})
    settings = {
        "data.size": args.size,
        "data.limit": args.clips,
        "optim.steps": args.steps,
        "optim.batch_size": args.batch,
        "optim.warmup_steps": min(5, args.steps),
    }
    sweep = [
        *("sweep", "--tasks", *args.recipes, "--preset", args.preset),
        *("--backbones", *WINDOWS, "--pretrained", str(folder / "twins")),
        *("--blocks", *map(str, blocks), "--timesteps", *map(str, args.timesteps)),
        *("--seeds", "0", "--held-out", "0", "--output", str(folder / "sweep")),
        *("--set", *(f"{name}={value}" for name, value in settings.items())),
    ]
    together = run(sweep, folder / "cache", args.threads)
    found = {
        path.parent: json.loads(path.read_text())
        for path in (folder / "sweep").rglob("record.json")
    }
    jobs = {
        (record["backbone"]["name"], record["features"]["timestep"]): record["time"]["forwards"]
        for record in found.values()
    }
    clips = 2 * args.clips
    print(
        f"sweep: {len(found)} cells in {together:.1f} s; {sum(jobs.values()):,} forwards, that is "
        f"{clips} clips x {len(args.timesteps)} timesteps x {len(WINDOWS)} backbones "
        f"= {clips * len(jobs):,}",
        flush=True,
    )
    drawn = random.Random(0).sample(sorted(found), min(args.alone, len(found)))
    tasks = {probe_eval.recipes.recipe(name, args.preset).task: name for name in args.recipes}
    rows = []
    for number, cell in enumerate(drawn):
        record, output = found[cell], folder / "alone" / str(number)
        words = run_words(tasks[record["task"]], args.preset, record, output)
        seconds = run(words, folder / f"cache-{number}", args.threads)
        alone = json.loads((output / "record.json").read_text())
        readouts = [place / "readout.safetensors" for place in (cell, output)]
        row = {
            "cell": cell.name,
            "seconds": round(seconds, 2),
            "forwards": alone["time"]["forwards"],
            "largest difference of weights": difference(*readouts),
            "score in the sweep": record["metric"]["value"],
            "score alone": alone["metric"]["value"],
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
    each = statistics.fmean(row["seconds"] for row in rows)
    slowest, fastest = (pick(row["seconds"] for row in rows) for pick in (max, min))
    worst = max(row["largest difference of weights"] for row in rows)
    ratio = each * len(found) / together
    print(
        f"alone: {each:.1f} s a cell ({fastest:.1f} to {slowest:.1f}), {each * len(found):.0f} s "
        f"for all; the sweep is {ratio:.1f} times as fast; weights differ by {worst:.2g} at most"
    )
    return {
        "cells": len(found),
        "blocks": blocks,
        "sweep": {
            "seconds": round(together, 2),
            "forwards": sum(jobs.values()),
            "clips x timesteps x backbones": clips * len(jobs),
        },
        "one by one": {
            "seconds a cell": round(each, 2),
            "seconds of all cells": round(each * len(found), 1),
            "forwards of all cells": rows[0]["forwards"] * len(found),
        },
        "times as fast": round(ratio, 2),
        "largest difference of weights": worst,
        "cells that were run alone": rows,
    }


if __name__ == "__main__":
    main()
