"""Which samples a step sees, and its chance: pure functions of a seed and of places in a stream.

The samples of all steps, one after the other, are one endless stream, epoch after epoch. What is
random depends on a seed, on what it is for, and on the place in that stream, so that neither
resuming nor the number of processes changes it.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from probe_eval.config import OptimConfig


class StepSampler:
    """The sample indices of each micro-batch of one process, from a given step on.

    Every epoch is a permutation of its own, so no sample returns before all others have been
    seen; the permutation depends on (seed, epoch) alone.
    """

    def __init__(
        self, num_samples: int, config: OptimConfig, *, seed: int, start: int, rank: int, world: int
    ) -> None:
        check_batch(config, world)
        self.num_samples, self.config, self.seed, self.start = num_samples, config, seed, start
        self.rank = rank
        self.shard = config.batch_size // (world * config.accumulate)

    def positions(self, step: int, micro: int) -> range:
        """Places of a micro-batch in the endless stream of samples."""
        first = step * self.config.batch_size
        first += (self.rank * self.config.accumulate + micro) * self.shard
        return range(first, first + self.shard)

    def __iter__(self) -> Iterator[list[int]]:
        return ([index for index, _ in batch] for batch in self.draws())

    def draws(self, skip: int = 0) -> Iterator[list[tuple[int, int]]]:
        """(index, epoch) of the samples of each micro-batch, but for the first `skip`."""
        epoch, order = -1, torch.empty(0, dtype=torch.long)
        first = self.start * self.config.accumulate + skip
        for number in range(first, self.config.steps * self.config.accumulate):
            batch = []
            for position in self.positions(*divmod(number, self.config.accumulate)):
                if position // self.num_samples != epoch:
                    epoch = position // self.num_samples
                    generator = stream(self.seed, "order", epoch)
                    order = torch.randperm(self.num_samples, generator=generator)
                batch.append((int(order[position % self.num_samples]), epoch))
            yield batch

    def __len__(self) -> int:
        return (self.config.steps - self.start) * self.config.accumulate


def check_batch(config: OptimConfig, world: int) -> None:
    """Checks that a batch divides among the processes and their micro-batches.

    Raises:
        ValueError: naming what it must be a multiple of.
    """
    if config.batch_size % (world * config.accumulate):
        raise ValueError(
            f"batch_size {config.batch_size} must be a multiple of processes x accumulate = "
            f"{world} x {config.accumulate}"
        )


def stream(seed: int, name: str, number: int) -> torch.Generator:
    """A source of randomness that depends on its three names alone."""
    digest = hashlib.blake2b(f"{seed}/{name}/{number}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


class Streams(Sequence[torch.Generator]):
    """A source of randomness for each place in the endless stream of samples, made when used.

    Args:
        seed: their seed.
        name: what they are for.
        positions: the places.
    """

    def __init__(self, seed: int, name: str, positions: Sequence[int]) -> None:
        self.seed, self.name, self.positions = seed, name, positions
        self._made: dict[int, torch.Generator] = {}

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        position = self.positions[index]
        if position not in self._made:
            self._made[position] = stream(self.seed, self.name, position)
        return self._made[position]
