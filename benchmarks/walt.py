"""Speed and memory of the denoiser, one process, the competitors taking turns.

`python benchmarks/walt.py --output benchmarks/results/walt-MACHINE.json` measures

* `Walt.forward`, and `Walt.features` at two thirds of the depth, of one block and of five at once;
* one training step (forward, backward, AdamW) of small models;
* the attention kernels by themselves, and what compiling the blocks brings;

against (a) the same weights in plain PyTorch (separate projections, softmax between two matrix
products, `nn.Linear` as it comes), (b) VideoMAE of Hugging Face transformers, random weights,
cut to few layers of the same width and number of tokens, per FLOP, and (c) the best rate of
PyTorch's own matrix products in the same dtype, over several shapes, those of the model among
them. FLOPs are counted by formula, and the formula is checked against PyTorch's counter.

A CPU without bf16 units takes minutes for a layer in plain bf16: there (a) and (b) are cut to one
layer on few tokens, and a bf16 row also gives the share of the best fp32 rate, which bounds it.
transformers is optional. On a machine that is not idle, use `--threads 1 --clock cpu`: seconds are
then those that the process had a core. Seconds are the best of all rounds.
"""

import argparse
import dataclasses
import functools
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from turns import Bench, Work, machine, peak_gib, rates
from walt_peers import Plain, video_mae, video_mae_flops

from walt_core import WALT_SIZES, Walt, WaltConfig
from walt_core.ops.attention import attention
from walt_core.ops.linear import cpu_has_bf16

TRAINED = {
    "tiny": (WALT_SIZES["tiny"], 16),
    "8 x 512": (
        dataclasses.replace(WALT_SIZES["284m"], width=512, depth=8, num_heads=8, text_width=0),
        1,
    ),
}


def model_flops(config: WaltConfig, grid: tuple[int, int, int], layers: int, head: bool) -> float:
    """FLOPs of the products of one clip's pass, with one token of text; two per multiply-add."""
    d, tokens, text = config.width, grid[0] * grid[1] * grid[2], config.text_width

    def size(window: tuple[int, int, int]) -> int:
        t, h, w = (min(pair) for pair in zip(window, grid, strict=True))
        return t * h * w

    total = tokens * config.input_channels * d + 256 * d + d * d + d * 6 * d + text * d
    for layer in range(1, layers + 1):
        total += tokens * d * d * (4 + 2 * config.mlp_ratio) + 7 * config.adaln_rank * d
        total += 2 * tokens * size(config.window(layer)) * d
        if text:
            total += 4 * tokens * d * d + 2 * d * d
            total += 2 * tokens * (size(config.spatial_window) + 1) * d
    return 2.0 * (total + head * (2 * d * d + tokens * d * config.latent_channels))


def counted_flops(work: Work) -> float:
    """FLOPs by PyTorch's counter."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def build(config: WaltConfig, dtype: torch.dtype, device: str) -> Walt:
    """A model in which nothing is zero."""
    torch.manual_seed(0)
    model = Walt(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    return model.to(device, dtype).eval()


def inputs(model: Walt, batch: int, grid: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Latents, and timesteps."""
    weight = model.patch_embed.weight
    x = torch.randn(batch, model.config.latent_channels, *grid).to(weight)
    return x, torch.full((batch,), 200, device=x.device)


@torch.no_grad()
def measure_passes(bench: Bench, model: Walt, batch: int, peers: bool) -> dict[str, Any]:
    """Forward and features on whole clips; with `peers`, also (a) and (b)."""
    config = model.config
    grid, dtype = config.latent_size, model.patch_embed.weight.dtype
    deepest = round(config.depth * 2 / 3)
    five = sorted({max(1, round(deepest * part / 5)) for part in range(1, 6)})
    x, steps = inputs(model, batch, grid)
    read = functools.partial(model.features, x, timestep=200, noise=torch.randn_like(x))
    works: dict[str, Work] = {
        "ours": lambda: model(x, steps),
        f"features of block {deepest}": lambda: read(blocks=[deepest]),
        f"features of blocks {five}": lambda: read(blocks=five),
    }
    if batch > 1:  # long, and nothing that batch 1 does not show
        del works[f"features of blocks {five}"]
    whole = batch * model_flops(config, grid, config.depth, head=True)
    part = batch * model_flops(config, grid, deepest, head=False)
    counts = dict(zip(works, (whole, part, part), strict=False))
    row: dict[str, Any] = {"dtype": str(dtype).removeprefix("torch."), "batch": batch}
    if peers:
        plain = Plain(model)
        works["plain"], counts["plain"] = (lambda: plain(x, steps)), whole
        other = video_mae(config.width, 4, 2 * grid[0], 16 * grid[1])
        if other is not None:
            other = other.to(bench.device, dtype)
            video = torch.randn(batch, 2 * grid[0], 3, 16 * grid[1], 16 * grid[2]).to(x)
            works["VideoMAE"] = lambda: other(video)
            counts["VideoMAE"] = batch * video_mae_flops(other.config)
    tokens = grid[0] * grid[1] * grid[2]
    gemms = bench.matmuls(torch.float32 if not bench.native(dtype) else dtype, config.width, tokens)
    row |= rates(
        bench, works, counts, gemms, rounds=1 if batch > 1 and bench.device == "cpu" else 0
    )
    if not bench.native(dtype):
        row["share of the best fp32 product"] = row.pop("share of the best product")
    seconds = row["seconds"]
    alone = seconds[f"features of block {deepest}"]
    row["clips/s"] = {n: round(batch / s, 4) for n, s in seconds.items() if n != "VideoMAE"}
    row["features over forward"] = round(alone / seconds["ours"], 3)
    if batch == 1:
        several = seconds[f"features of blocks {five}"]
        row["five blocks over the deepest"] = round(several / alone, 3)
    return row


@torch.no_grad()
def measure_cut(bench: Bench, config: WaltConfig, dtype: torch.dtype) -> dict[str, Any]:
    """(a), (b) and (c) where the dtype has no units: one layer on a quarter of the tokens."""
    grid = (config.latent_size[0], config.latent_size[1] // 2, config.latent_size[2] // 2)
    window = (1, *grid[1:])
    config = dataclasses.replace(
        config, depth=1, latent_size=grid, spatial_window=window, spatiotemporal_window=window
    )
    model = build(config, dtype, bench.device)
    plain = Plain(model)
    x, steps = inputs(model, 1, grid)
    works: dict[str, Work] = {
        "ours": lambda: model(x, steps),
        "plain": lambda: plain(x, steps),
    }
    count = model_flops(config, grid, 1, head=True)
    counts = {"ours": count, "plain": count}
    other = video_mae(config.width, 1, 2, 128)
    if other is not None:
        other, video = other.to(dtype), torch.randn(1, 2, 3, 128, 128).to(x)
        works["VideoMAE"] = lambda: other(video)
        counts["VideoMAE"] = video_mae_flops(other.config)
    row = {"dtype": str(dtype).removeprefix("torch."), "layers": 1, "tokens": x[0, 0].numel()}
    row |= rates(bench, works, counts, bench.matmuls(dtype, config.width, 0), rounds=1)
    return row


def training_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, steps: Tensor
) -> None:
    """Forward, backward and update."""
    optimizer.zero_grad()
    (model(x, steps) - x).square().mean().backward()
    optimizer.step()


def measure_training(bench: Bench, name: str) -> dict[str, Any]:
    """One step of forward, backward and AdamW in fp32; three times the FLOPs of a pass."""
    config, batch = TRAINED[name]
    works: dict[str, Work] = {}
    gemms = bench.matmuls(torch.float32, config.width, batch * 80 if name == "tiny" else 1280)
    for competitor in ("ours", "plain"):
        model: nn.Module = build(config, torch.float32, bench.device)
        x, steps = inputs(model, batch, config.latent_size)
        model = model.train() if competitor == "ours" else Plain(model).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

        works[competitor] = functools.partial(training_step, model, optimizer, x, steps)
    count = 3 * batch * model_flops(config, config.latent_size, config.depth, head=True)
    row = {"model": name, "batch": batch, "dtype": "float32"}
    row |= rates(bench, works, dict.fromkeys(works, count), gemms, rounds=bench.rounds + 1)
    return row


@torch.no_grad()
def measure_kernels(bench: Bench, config: WaltConfig, dtype: torch.dtype) -> dict[str, Any]:
    """Attention alone, at the windows of one clip, with a bias and without."""
    from torch.nn.attention.flex_attention import flex_attention

    t, h, w = config.latent_size
    n, heads = h * w, config.num_heads
    shape = (t, heads, n, config.width // heads)
    q, k, v = (torch.randn(shape, device=bench.device).to(dtype) for _ in range(3))
    bias = torch.randn(heads, n, n, device=bench.device).to(dtype)
    works: dict[str, Work] = {}
    for impl in ("math", "sdpa"):
        works[f"{impl} with bias"] = functools.partial(attention, q, k, v, bias, impl=impl)
        works[f"{impl} without"] = functools.partial(attention, q, k, v, impl=impl)
    try:
        flex = torch.compile(flex_attention, dynamic=False)
        add = lambda score, b, m, i, j: score + bias[m, i, j]  # noqa: E731
        flex(q, k, v, score_mod=add)
        works["flex with bias"] = lambda: flex(q, k, v, score_mod=add)
    except Exception as error:  # a benchmark of what may not be there says so and goes on
        print(f"FlexAttention is left out: {str(error)[:200]}")
    seconds, _ = bench.take_turns(works, 2 * bench.rounds + 2)
    count = 4.0 * t * heads * n * n * shape[-1]
    row = {
        "dtype": str(dtype).removeprefix("torch."),
        "windows, heads, tokens, width": shape,
        "milliseconds": {name: round(1e3 * value, 2) for name, value in seconds.items()},
        "GFLOP/s": {name: round(count / value / 1e9, 1) for name, value in seconds.items()},
    }
    return row


@torch.no_grad()
def measure_compile(bench: Bench, config: WaltConfig) -> dict[str, Any]:
    """Two layers in fp32, as they are and compiled."""
    config = dataclasses.replace(config, depth=2)
    eager, compiled = (build(config, torch.float32, bench.device) for _ in range(2))
    compiled.compile_blocks()
    x, steps = inputs(eager, 1, config.latent_size)
    started = time.perf_counter()
    compiled(x, steps)
    first = time.perf_counter() - started
    works: dict[str, Work] = {
        "eager": lambda: eager(x, steps),
        "compiled": lambda: compiled(x, steps),
    }
    row = {"layers": 2, "dtype": "float32", "first call, seconds": round(first, 1)}
    row["seconds"] = bench.take_turns(works, bench.rounds + 1)[0]
    return row


@torch.no_grad()
def memory(size: str, dtype: str, batch: int, competitor: str) -> None:
    """Prints the peak GiB of this process after two layers, whose tensors are those of all."""
    config = WALT_SIZES[size]
    model = Walt(config).eval().to(getattr(torch, dtype))
    x, steps = inputs(model, batch, config.latent_size)
    if competitor == "ours":
        model.features(x, blocks=[2], timestep=200, noise=torch.randn_like(x))
    elif competitor == "plain":
        Plain(model)(x, steps, depth=2)
    print(peak_gib())


def measure_memory(size: str, batches: list[int], dtypes: list[str]) -> Iterator[dict[str, Any]]:
    """Peak memory with the model loaded and in a pass, each in a process of its own."""
    for dtype in dtypes:
        kinds = ["ours"] + ["plain"] * (dtype == "float32" or cpu_has_bf16())
        for name, batch in [("loaded", 1)] + [(kind, b) for b in batches for kind in kinds]:
            command = [sys.executable, __file__, "--memory", size, dtype, str(batch), name]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            peak = round(float(out.split()[-1]), 3)
            yield {"dtype": dtype, "batch": batch, "what": name, "peak GiB": peak}


def check_formula() -> dict[str, float]:
    """The formula against PyTorch's counter, on `tiny` with text.

    Without SDPA, which the counter passes over on a CPU.
    """
    config = dataclasses.replace(WALT_SIZES["tiny"], text_width=64, attention="math")
    model = build(config, torch.float32, "cpu")
    x, steps = inputs(model, 1, config.latent_size)
    with torch.no_grad():
        counted = counted_flops(lambda: model(x, steps))
    formula = model_flops(config, config.latent_size, config.depth, head=True)
    assert abs(formula / counted - 1) < 1e-3, (formula, counted)
    return {"formula": formula, "counted": counted}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="284m", choices=sorted(WALT_SIZES))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--attention", default="auto", choices=["auto", "math", "sdpa", "flash"])
    parser.add_argument("--position-bias", default="joint", choices=["joint", "axial"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="default: PyTorch's own")
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"])
    parser.add_argument(
        "--matmul-precision",
        default="highest",
        choices=["highest", "high", "medium"],
        help="of fp32; medium is oneDNN's on a CPU, true fp32 on one without AMX",
    )
    parser.add_argument("--output", type=Path)
    parser.add_argument("--memory", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory:
        size, dtype, batch, competitor = args.memory
        memory(size, dtype, int(batch), competitor)
        return
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision(args.matmul_precision)
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    if args.clock == "cpu" and (torch.get_num_threads() > 1 or args.device != "cpu"):
        parser.error("--clock cpu is for the CPU and --threads 1")
    bench = Bench(args.device, clock, args.rounds)
    config = dataclasses.replace(
        WALT_SIZES[args.model], attention=args.attention, position_bias=args.position_bias
    )
    record: dict[str, Any] = {
        "machine": machine(args.device) | settings(args),
        "flops": check_formula(),
    }
    print(json.dumps(record), flush=True)

    def keep(section: str, row: dict[str, Any]) -> None:
        record.setdefault(section, []).append(row)
        print(json.dumps(row), flush=True)
        if args.output:
            args.output.parent.mkdir(parents=True, exist_ok=True)
            args.output.write_text(json.dumps(record, indent=2) + "\n")

    for dtype in args.dtypes:
        kind = getattr(torch, dtype)
        model = build(config, kind, args.device)
        for batch in args.batches:
            keep("passes", measure_passes(bench, model, batch, bench.native(kind)))
        del model
        keep("attention", measure_kernels(bench, config, kind))
        if not bench.native(kind):
            keep("cut", measure_cut(bench, config, kind))
    for name in TRAINED:
        keep("training", measure_training(bench, name))
    keep("compile", measure_compile(bench, config))
    if args.device == "cpu":
        for row in measure_memory(args.model, args.batches, args.dtypes):
            keep("memory", row)


if __name__ == "__main__":
    main()
