"""Works that take turns in one process, beside the matrix products that bound them."""

import dataclasses
import functools
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from walt_core.ops.linear import cpu_has_bf16

Work = Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Bench:
    """Where and how it is measured."""

    device: str
    clock: Callable[[], float]
    rounds: int

    def take_turns(
        self, works: dict[str, Work], rounds: int = 0
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Best seconds of each work, all of them once in every round, and their last results."""
        best, results = dict.fromkeys(works, float("inf")), {}
        for _ in range(rounds or self.rounds):
            for name, work in works.items():
                self.wait()
                started = self.clock()
                results[name] = work()
                self.wait()
                best[name] = min(best[name], self.clock() - started)
        return best, results

    def wait(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()

    def native(self, dtype: torch.dtype) -> bool:
        """Whether the device has units for the dtype."""
        return self.device != "cpu" or dtype == torch.float32 or cpu_has_bf16()

    def matmuls(self, dtype: torch.dtype, width: int, rows: int) -> dict[str, tuple[Work, float]]:
        """Products of several shapes, and their FLOPs."""
        works: dict[str, tuple[Work, float]] = {}
        shapes = [(rows, width, n * width) for n in (1, 3, 4)] + [(rows, 4 * width, width)]
        shapes += [(2048, 2048, 2048)]
        if not self.native(dtype):
            shapes = [(64, width, width), (128, 512, 512), (256, 256, 256)]
        for m, k, n in shapes:
            a = torch.randn(m, k, device=self.device).to(dtype)
            b = torch.randn(n, k, device=self.device).to(dtype)
            works[f"{m} x {k} x {n}"] = (functools.partial(F.linear, a, b), 2.0 * m * k * n)
        return works


def machine(device: str = "cpu") -> dict[str, Any]:
    """What it runs on."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "device": device if device == "cpu" else torch.cuda.get_device_name(),
        "cpu": models[0] if models else platform.processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "bf16 units": cpu_has_bf16(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def peak_gib() -> float:
    """Peak memory of this process, not that of its parent, which getrusage counts in."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 2**20


def rates(
    bench: Bench, works: dict[str, Work], counts: dict[str, float], gemms: dict, rounds: int = 0
) -> dict[str, Any]:
    """Seconds, GFLOP/s and share of the best matrix product, all having taken turns."""
    products = {f"product {name}": work for name, (work, _) in gemms.items()}
    seconds, results = bench.take_turns({**works, **products}, rounds)
    product = {n: count / seconds[f"product {n}"] / 1e9 for n, (_, count) in gemms.items()}
    peak = max(product.values())
    rate = {name: counts[name] / seconds[name] / 1e9 for name in works}
    row = {}
    if "plain" in works and isinstance(results["ours"], Tensor):
        found, expected = results["ours"].float(), results["plain"].float()
        error = float((found - expected).abs().max() / expected.abs().max())
        row["largest difference from plain, relative"] = error
    return row | {
        "seconds": {name: round(seconds[name], 4) for name in works},
        "GFLOP": {name: round(count / 1e9, 3) for name, count in counts.items()},
        "GFLOP/s": {name: round(value, 3) for name, value in rate.items()},
        "GFLOP/s of matrix products": {name: round(value, 3) for name, value in product.items()},
        "share of the best product": {n: round(value / peak, 3) for n, value in rate.items()},
        "times faster per FLOP than": {
            n: round(rate["ours"] / rate[n], 2) for n in ("plain", "VideoMAE") if n in rate
        },
    }
