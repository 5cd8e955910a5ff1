"""Batches of a dataset that depend on seed and epoch alone: not on workers, processes or restarts.

Axes: b samples.
"""

import hashlib
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.sharedctypes import Synchronized
from typing import Any

import torch
import torch.multiprocessing
from torch.utils.data import default_collate
from torch.utils.data._utils import worker as torch_worker

from probe_datasets.schema import ClipDataset

__all__ = ["Batch", "ClipLoader", "collate", "load_batches"]

Batch = dict[str, Any]
"""The keys of the examples, each stacked along a new first axis `b`; `sample_id`, a list of names;
and `failed`, a list of the `FailedExample`s in the places of samples that could not be read."""

_log = logging.getLogger(__name__)


def collate(examples: Sequence[Any]) -> Batch:
    """Examples as a batch; those that failed are set apart, and nothing takes their place.

    Args:
        examples: of one schema, and of one shape.

    Returns:
        The batch; of the examples' keys only `sample_id` is there, empty, where all failed.
    """
    good = [example for example in examples if "video" in example]
    batch: Batch = default_collate(good) if good else {"sample_id": []}
    batch["failed"] = [example for example in examples if "video" not in example]
    return batch


def load_batches(
    dataset: ClipDataset,
    batches: Sequence[Sequence[tuple[int, int]]],
    *,
    num_workers: int = 0,
    restarts: int = 3,
) -> Iterator[Batch]:
    """Reads batches in their order, also when a worker is killed.

    A worker that dies, for want of memory say, takes the batches under way with it. They are read
    again by new workers, from the first that was not delivered on.

    Args:
        dataset: whose examples are wanted.
        batches: (index, draw) of the samples of each batch.
        num_workers: processes that read, forked as those of torch's DataLoader are, each on one
            thread and two batches ahead; none of its own for 0.
        restarts: how often workers may die before that is an error.

    Yields:
        A batch for each of `batches`.

    Raises:
        BrokenProcessPool: workers die again and again.
    """
    if not num_workers:
        yield from (_read(dataset, batch) for batch in batches)
        return
    done = 0
    while done < len(batches):
        fork = torch.multiprocessing.get_context("fork")
        arguments = (dataset, fork.Value("i", 0), num_workers)
        pool = ProcessPoolExecutor(num_workers, fork, _start_worker, arguments)
        under_way: deque[Future[Batch]] = deque()
        waiting = iter(batches[done:])
        try:
            for batch in islice(waiting, 2 * num_workers):
                under_way.append(pool.submit(_read_here, batch))
            while under_way:
                result = under_way.popleft().result()
                under_way.extend(pool.submit(_read_here, batch) for batch in islice(waiting, 1))
                done += 1
                yield result
        except BrokenProcessPool:
            if not restarts:
                raise
            restarts -= 1
            _log.warning("a worker died; new ones go on at batch %d of %d", done + 1, len(batches))
        finally:
            workers = list((pool._processes or {}).values())
            pool.shutdown(wait=False, cancel_futures=True)
            if not under_way:
                # One that was killed while it waited for work may have left the others a lock that
                # nobody opens, and the program would wait for them at its end.
                for worker in workers:
                    worker.kill()


_dataset: ClipDataset | None = None  # of a worker


def _start_worker(dataset: ClipDataset, started: Synchronized, num_workers: int) -> None:
    global _dataset
    _dataset = dataset
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    with started.get_lock():
        number = started.value
        started.value += 1
    # As in a worker of torch's own, whose collate then stacks straight into shared memory: half
    # the time of a batch that needs no decoding.
    torch_worker._worker_info = torch_worker.WorkerInfo(
        id=number,
        num_workers=num_workers,
        seed=number,
        dataset=dataset,  # type: ignore[arg-type]
    )


def _end_with_parent(parent: int) -> None:
    """Ends this worker when its parent was killed, which tells its children nothing."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _read_here(places: Sequence[tuple[int, int]]) -> Batch:
    assert _dataset is not None
    return _read(_dataset, places)


def _read(dataset: ClipDataset, places: Sequence[tuple[int, int]]) -> Batch:
    return collate([dataset.clip(index, draw) for index, draw in places])


class ClipLoader:
    """Batches of a split, epoch after epoch.

    Batch k of an epoch holds the same samples, cropped alike, for any number of workers and
    processes: each process takes every `world_size`-th of them. A loader that is given the state of
    another goes on with the batch after its last one.

    Args:
        dataset: the split.
        batch_size: samples in a batch, over all processes; the last batch of an epoch may be short.
        shuffle: in an order drawn from seed and epoch; or else in the order of the split.
        seed: decides the order.
        num_workers: processes that read, for this process.
        rank: number of this process.
        world_size: how many processes there are.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        dataset: ClipDataset,
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1 or num_workers < 0:
            raise ValueError(
                f"batch_size {batch_size} must be at least 1 and num_workers {num_workers} not "
                "negative"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} must be from 0 to world_size {world_size} less one")
        if batch_size % world_size:
            raise ValueError(
                f"batch_size {batch_size} must be a multiple of world_size {world_size}, so that "
                "every process has its share"
            )
        self.dataset, self.batch_size, self.shuffle, self.seed = dataset, batch_size, shuffle, seed
        self.num_workers, self.rank, self.world_size = num_workers, rank, world_size
        self.epoch, self.batch = 0, 0

    def __len__(self) -> int:
        """Batches of an epoch."""
        return math.ceil(len(self.dataset) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """The batches of this epoch that were not given yet; then the next epoch begins.

        A process whose share of the last batch is empty gets a batch without samples.
        """
        epoch, order, size = self.epoch, self._order(), self.batch_size
        batches = (order[k * size : (k + 1) * size] for k in range(self.batch, len(self)))
        mine = [[(i, epoch) for i in batch[self.rank :: self.world_size]] for batch in batches]
        for batch in load_batches(self.dataset, mine, num_workers=self.num_workers):
            self.batch += 1
            yield batch
        self.epoch, self.batch = epoch + 1, 0

    def state_dict(self) -> dict[str, int | str]:
        """Where the loader stands, as plain values: epoch, batches given, and what they are of."""
        return {"epoch": self.epoch, "batch": self.batch, **self._identity()}

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Goes on where another loader stood, with any number of workers and processes.

        Args:
            state: what `state_dict` returned.

        Raises:
            ValueError: it is of other data, another order or another batch size.
        """
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise ValueError(
                    f"state has {name} {state.get(name)!r}, this loader {value!r}; it cannot go on "
                    "there"
                )
        epoch, batch = int(state["epoch"]), int(state["batch"])
        if epoch < 0 or not 0 <= batch <= len(self):
            raise ValueError(f"state has epoch {epoch} and batch {batch} of {len(self)}")
        self.epoch, self.batch = epoch, batch

    def _identity(self) -> dict[str, int | str]:
        return {
            "fingerprint": self.dataset.fingerprint,
            "num_samples": len(self.dataset),
            "batch_size": self.batch_size,
            "shuffle": int(self.shuffle),
            "seed": self.seed,
        }

    def _order(self) -> list[int]:
        if not self.shuffle:
            return list(range(len(self.dataset)))
        key = hashlib.sha256(f"{self.seed}/{self.epoch}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:4]))  # it uses 32 bits
        return torch.randperm(len(self.dataset), generator=generator).tolist()
