"""One or many processes: what each of them is, and what they tell each other."""

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")


def is_main_process() -> bool:
    """Whether this process speaks; known before torch is imported."""
    return int(os.environ.get("RANK", "0")) == 0


def create_accelerator() -> "Accelerator":
    """The Accelerate handle, after a check that it sees every launched process.

    Raises:
        ValueError: if the launcher started more processes than Accelerate sees, or Accelerate does
            not shard although it was told to.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedType, parse_flag_from_env

    accelerator = Accelerator()
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise ValueError(
            f"{launched} processes were launched but Accelerate sees {accelerator.num_processes}; "
            "on a machine without GPUs set ACCELERATE_USE_CPU=true"
        )
    sharded = accelerator.distributed_type == DistributedType.FSDP
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and not sharded:
        raise ValueError(
            "FSDP was asked for, but Accelerate shards only between several processes with GPUs; "
            "launch more of them, or without FSDP"
        )
    return accelerator


def share(accelerator: "Accelerator", items: Iterable[T]) -> list[T]:
    """The items that are this process's part of the work."""
    return list(items)[accelerator.process_index :: accelerator.num_processes]


def gather_items(accelerator: "Accelerator", items: Sequence[T]) -> list[T]:
    """All processes' items on every process, in the order of the ranks."""
    if accelerator.num_processes == 1:
        return list(items)
    from accelerate.utils import gather_object

    return list(gather_object(list(items)))


def gather_ordered(accelerator: "Accelerator", items: Sequence[tuple[int, T]]) -> list[T]:
    """What all processes made, on every process, in the order of the number that stands before."""
    parts = sorted(gather_items(accelerator, items), key=lambda part: part[0])
    return [made for _, made in parts]
