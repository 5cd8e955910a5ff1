"""A process of the program that knows a denoiser of milliseconds, can stop, and can shard.

`STOPPED_AT`: number of the training step, from 1, in which it stops as at Ctrl-C, to begin again.
`ACCELERATE_USE_FSDP`: Accelerate shards only on GPUs, so it is told here that it does, after which
its own code for FSDP 2 runs on CPUs as it is.
"""

import os
import runpy
import sys
from pathlib import Path

from probe_eval import distributed, harness
from probe_eval.config import OptimConfig


def shard() -> None:
    """Has every Accelerate handle shard."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    def create_accelerator() -> Accelerator:
        accelerator = Accelerator()
        plugin = FullyShardedDataParallelPlugin()
        if accelerator.mixed_precision != "no":
            plugin.set_mixed_precision(accelerator.mixed_precision)
        AcceleratorState._shared_state["fsdp_plugin"] = plugin
        for state in (AcceleratorState, PartialState):
            state._shared_state["distributed_type"] = DistributedType.FSDP
        return accelerator

    distributed.create_accelerator = create_accelerator


def stop_in(doomed: int) -> None:
    """Has the process stop in a step of training, once; says at which step the next one begins."""
    rate = harness.learning_rate

    def stopping(config: OptimConfig, step: int) -> float:
        if step + 1 == doomed:
            harness.learning_rate = told
            raise KeyboardInterrupt
        return rate(config, step)

    def told(config: OptimConfig, step: int) -> float:
        if distributed.is_main_process():
            print("goes on at step", step + 1)  # noqa: T201
        harness.learning_rate = rate
        return rate(config, step)

    harness.learning_rate = stopping


if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).parent / "minimal_sizes.py"))["register"]()
    if "ACCELERATE_USE_FSDP" in os.environ:
        shard()
    from probe_eval.cli import main

    if "STOPPED_AT" in os.environ:
        stop_in(int(os.environ["STOPPED_AT"]))
        assert main(sys.argv[1:]) == 130
    raise SystemExit(main(sys.argv[1:]))
