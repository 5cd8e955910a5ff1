"""Speed and memory of the tokenizer, one process, the competitors taking turns.

`python benchmarks/tokenizer.py --output benchmarks/results/tokenizer-MACHINE.json` measures

* encode and decode of `magvit2-64` and `magvit2-128`, against the same weights in plain PyTorch
  (`nn.Conv3d` and `nn.GroupNorm` as they come, in contiguous NCDHW memory and in channels-last) and
  against `magvit2-pytorch` at the nearest size, in fp32 and bf16;
* the peak memory of `encode_stream` over clips of growing length, each in a process of its own.

It prints, and writes, seconds, ratios, GFLOP/s and the share of the matrix-multiply peak measured
in the same process. FLOPs are those of the plain network (counted by PyTorch), so an algorithm that
needs fewer products shows as more GFLOP/s. magvit2-pytorch has another network: its ratio is per
FLOP. It is optional: `pip install magvit2-pytorch`, which brings CUDA builds where pip is not held
to a constraints file.
"""

import argparse
import contextlib
import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from turns import machine, peak_gib

from walt_tokenizer import TOKENIZERS, VideoTokenizer
from walt_tokenizer.layers import ResidualBlock
from walt_tokenizer.ops.conv import cpu_has_bf16

LENGTHS = (17, 65, 257)


def plain_norm(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """GroupNorm of every frame by itself."""
    b, c, t, h, w = x.shape
    frames = norm(x.transpose(1, 2).reshape(b * t, c, h, w))
    return frames.reshape(b, t, c, h, w).transpose(1, 2)


def plain_conv(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """Causal convolution: edge padding, then the module."""
    k, s = conv.kernel_size, (conv.kernel_size[1] - 1) // 2
    if k[0] > 1:
        x = F.pad(x, (s, s, s, s, k[0] - 1, 0), mode="replicate")
    return conv(x)


def plain_block(block: ResidualBlock, x: Tensor) -> Tensor:
    """Residual block."""
    h = plain_conv(block.conv1.conv, F.silu(plain_norm(block.norm1.norm, x)))
    h = plain_conv(block.conv2.conv, F.silu(plain_norm(block.norm2.norm, h)))
    return h + (x if block.skip is None else block.skip.conv(x))


def plain_encode(tokenizer: VideoTokenizer, x: Tensor) -> Tensor:
    """The encoder, written as one would first write it."""
    net = tokenizer.encoder
    x = plain_conv(net.conv_in.conv, x)
    for i, stage in enumerate(net.stages):
        for block in stage:
            x = plain_block(block, x)
        if i < len(net.downs):
            x = plain_conv(net.downs[i].conv.conv, x)
    for block in net.middle:
        x = plain_block(block, x)
    return net.conv_out.conv(F.silu(plain_norm(net.norm_out.norm, x)))


def plain_decode(tokenizer: VideoTokenizer, latents: Tensor) -> Tensor:
    """The decoder, written as one would first write it."""
    net = tokenizer.decoder
    x = plain_conv(net.conv_in.conv, latents)
    for block in net.middle:
        x = plain_block(block, x)
    for i, stage in enumerate(net.stages):
        norm = net.norms[i]
        side = x.shape[-1] // latents.shape[-1]
        times = -(-(x.shape[2] - 1) // max(latents.shape[2] - 1, 1)) or 1
        grid = F.interpolate(latents, scale_factor=(times, side, side))[:, :, -x.shape[2] :]
        scale, shift = norm.modulation(grid.movedim(1, -1)).movedim(-1, 1).chunk(2, dim=1)
        x = plain_norm(norm.norm.norm, x) * (1 + scale) + shift
        for block in stage:
            x = plain_block(block, x)
        if i < len(net.ups):
            up = net.ups[i]
            x = plain_conv(up.conv.conv, x)
            b, c, t, h, w = x.shape
            x = x.reshape(b, c // (4 * up.time_stride), up.time_stride, 2, 2, t, h, w)
            x = x.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(b, -1, t * up.time_stride, h * 2, w * 2)[
                :, :, up.time_stride - 1 :
            ]
    return plain_conv(net.conv_out.conv, F.silu(plain_norm(net.norm_out.norm, x)))


@contextlib.contextmanager
def without_torchvision_operators() -> Iterator[None]:
    """Lets torchvision be imported beside a torch build that it was not compiled for."""
    register = torch.library.register_fake

    def skip(name: Any, *args: Any, **options: Any) -> Any:
        if isinstance(name, str) and name.startswith("torchvision::"):
            return lambda function: function
        return register(name, *args, **options)

    torch.library.register_fake = skip
    try:
        yield
    finally:
        torch.library.register_fake = register


def magvit2_pytorch(channels: int, blocks: int, size: int) -> Any:
    """Its tokenizer with our widths and number of blocks; None where it is not installed."""
    try:
        with without_torchvision_operators():
            import magvit2_pytorch
    except ImportError as error:
        print(f"magvit2-pytorch is left out: {error}")
        return None
    stack = ("consecutive_residual", blocks)
    return magvit2_pytorch.VideoTokenizer(
        image_size=size,
        init_dim=channels,
        codebook_size=2**18,
        use_gan=False,
        perceptual_loss_weight=0.0,
        flash_attn=False,
        layers=(
            stack,
            ("compress_space", channels * 2),
            stack,
            ("compress_space", channels * 2),
            ("compress_time", channels * 2),
            stack,
            ("compress_space", channels * 4),
            ("compress_time", channels * 4),
            stack,
            stack,
        ),
    ).eval()


def take_turns(
    works: dict[str, Callable[[], Tensor]], rounds: int
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Median seconds of each work, all of them once in every round, and their last results."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    results = {}
    for turn in range(rounds + (rounds > 1)):
        for name, work in works.items():
            started = time.perf_counter()
            results[name] = work()
            if turn or rounds == 1:  # the first of several rounds warms up
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}, results


def matmul_peak(dtype: torch.dtype, size: int = 2048) -> float:
    """GFLOP/s of a square matrix product."""
    size = size if dtype == torch.float32 or cpu_has_bf16() else 256
    a = torch.randn(size, size).to(dtype)
    best = min(take_turns({"matmul": lambda: a @ a}, 1)[0]["matmul"] for _ in range(4))
    return 2 * size**3 / best / 1e9


def flops(work: Callable[[Tensor], Tensor], sample: Tensor, size: int) -> float:
    """Floating-point operations of convolutions on frames of `size`, from a small `sample`."""
    with FlopCounterMode(display=False) as counter:
        work(sample)
    return counter.get_total_flops() * (size / sample.shape[-1]) ** 2


@torch.no_grad()
def measure_speed(name: str, dtype: torch.dtype, shape: tuple[int, int], rounds: int) -> list[dict]:
    """Rows for encode and decode of one size in one dtype."""
    frames, size = shape
    config = TOKENIZERS[name]
    torch.manual_seed(0)
    tokenizer = VideoTokenizer(config).to(dtype).eval()
    last = VideoTokenizer(config).to(dtype).eval()
    last.load_state_dict(tokenizer.state_dict())
    last.to(memory_format=torch.channels_last_3d)
    video = (torch.rand(1, 3, frames, size, size) * 2 - 1).to(dtype)
    latents = tokenizer.encode(video).contiguous()
    works: dict[str, dict[str, Callable[[Tensor], Tensor]]] = {
        "encode": {
            "ours": tokenizer.encode,
            "plain": lambda x: plain_encode(tokenizer, x),
            "plain channels-last": lambda x: plain_encode(last, x),
        },
        "decode": {
            "ours": tokenizer.decode,
            "plain": lambda x: plain_decode(tokenizer, x),
            "plain channels-last": lambda x: plain_decode(last, x),
        },
    }
    inputs = {"encode": video, "decode": latents}
    other = magvit2_pytorch(config.base_channels, config.num_res_blocks, size)
    if other is not None:
        works["encode"]["magvit2-pytorch"] = other.to(dtype).encode
        works["decode"]["magvit2-pytorch"] = other.decode
    peak = matmul_peak(dtype)
    rows = []
    for task, competitors in works.items():
        turns, counted = {}, {}
        for competitor, work in competitors.items():
            x = inputs[task]
            if task == "decode" and competitor == "magvit2-pytorch":
                x = x.new_zeros(1, config.widths[-1], *x.shape[2:])
            small = x[..., : max(2, 16 * x.shape[-1] // size), : max(2, 16 * x.shape[-1] // size)]
            if competitor in ("plain", "magvit2-pytorch"):
                counted[competitor] = flops(work, small, x.shape[-1])
            if competitor == "plain channels-last":
                x = x.contiguous(memory_format=torch.channels_last_3d)
            turns[competitor] = functools.partial(work, x)
        seconds, results = take_turns(turns, rounds)
        rate = {n: counted.get(n, counted["plain"]) / value / 1e9 for n, value in seconds.items()}
        result, expected = results["ours"].float(), results["plain"].float()
        row = {
            "model": name,
            "task": task,
            "dtype": str(dtype).removeprefix("torch."),
            "clip": f"{frames} x {size} x {size}",
            "rounds": rounds,
            "largest difference from plain, relative": float(
                (result - expected).abs().max() / expected.abs().max()
            ),
            "matmul peak, GFLOP/s": round(peak, 1),
            "seconds": seconds,
            "GFLOP/s": {n: round(value, 3) for n, value in rate.items()},
            "share of peak": {n: round(value / peak, 3) for n, value in rate.items()},
            "times faster per FLOP than": {
                n: round(rate["ours"] / value, 2) for n, value in rate.items() if n != "ours"
            },
        }
        rows.append(row)
        print(
            f"{name} {task} {row['dtype']} {row['clip']}: "
            + ", ".join(f"{n} {value:.4g}" for n, value in row["GFLOP/s"].items())
            + f" GFLOP/s; ours is faster by {row['times faster per FLOP than']}",
            flush=True,
        )
    return rows


def stream_memory(name: str, frames: int, size: int) -> None:
    """Encodes a clip that is made as it is read, and prints the peak memory of the process."""
    torch.manual_seed(0)
    with torch.no_grad():
        tokenizer = VideoTokenizer(TOKENIZERS[name]).eval()
        pieces = (torch.rand(1, 3, 1, size, size) * 2 - 1 for _ in range(frames))
        count = sum(latents.shape[2] for latents in tokenizer.encode_stream(pieces))
    print(json.dumps([count, peak_gib()]))


def measure_memory(name: str, size: int) -> dict[str, Any]:
    """Peak GiB of encoding clips of growing length in chunks."""
    rows = {}
    for frames in LENGTHS:
        command = [sys.executable, __file__, "--stream", name, str(frames), str(size)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        count, peak = json.loads(out.splitlines()[-1])
        rows[str(frames)] = round(peak, 3)
        print(f"{name}, {frames} x {size} x {size} in chunks: {count} latents, {peak:.2f} GiB")
    return {"model": name, "size": size, "peak GiB by frames": rows}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["magvit2-64", "magvit2-128"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-model", default="magvit2-64", help="empty: no memory rows")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--stream", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stream:
        name, frames, size = args.stream
        stream_memory(name, int(frames), int(size))
        return
    record: dict[str, Any] = {"machine": machine(), "speed": [], "memory": []}
    print(record["machine"])
    for name in args.models:
        for dtype in args.dtypes:
            record["speed"] += measure_speed(
                name, getattr(torch, dtype), (args.frames, args.size), args.rounds
            )
    if args.memory_model:
        record["memory"].append(measure_memory(args.memory_model, args.size))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
