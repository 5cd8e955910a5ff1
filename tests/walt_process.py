"""A process of the program that knows a denoiser of milliseconds, can be killed, and can shard.

`KILLED_AT`: number of the training step, from 1, in which it is killed. `STOPPED_AT`: likewise, but
it stops as at Ctrl-C, and begins again. `ACCELERATE_USE_FSDP`: Accelerate shards only on GPUs, so
it is told here that it does, after which its own code for FSDP 2 runs on CPUs as it is.
"""

import os
import signal
import sys

import walt_core
from probe_eval import distributed, harness
from probe_eval.config import OptimConfig

SIZE = walt_core.WaltConfig(
    width=16,
    depth=2,
    num_heads=2,
    latent_channels=4,
    latent_size=(2, 2, 2),
    spatial_window=(1, 2, 2),
    spatiotemporal_window=(2, 2, 2),
    self_conditioning=True,
    frame_conditioning=True,
)
"""For clips of 5 x 16 x 16 and the smallest tokenizer."""


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


def die_in(doomed: int, kill: bool) -> None:
    """Has the process end in a step of training; a stop happens once, killing as often as run."""
    rate = harness.learning_rate

    def deadly(config: OptimConfig, step: int) -> float:
        if step + 1 == doomed and kill:
            os.kill(os.getpid(), signal.SIGKILL)
        if step + 1 == doomed:
            harness.learning_rate = told
            raise KeyboardInterrupt
        return rate(config, step)

    def told(config: OptimConfig, step: int) -> float:
        if distributed.is_main_process():
            print("goes on at step", step + 1)  # noqa: T201
        harness.learning_rate = rate
        return rate(config, step)

    harness.learning_rate = deadly


if __name__ == "__main__":
    walt_core.WALT_SIZES["minimal"] = SIZE
    if "ACCELERATE_USE_FSDP" in os.environ:
        shard()
    from probe_eval.cli import main

    if "KILLED_AT" in os.environ:
        die_in(int(os.environ["KILLED_AT"]), kill=True)
    if "STOPPED_AT" in os.environ:
        die_in(int(os.environ["STOPPED_AT"]), kill=False)
        assert main(sys.argv[1:]) == 130
    raise SystemExit(main(sys.argv[1:]))
