"""The one training loop: probing and pretraining are both objectives on it.

Everything random in a step is a pure function of (seed, step, position in the global batch), so a
resumed run equals an unbroken one to the bit, and the number of processes changes nothing but the
order in which gradients are summed.
"""

import contextlib
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from probe_eval.config import OptimConfig
from probe_eval.optim import create_optimizer, learning_rate
from probe_eval.progress import Tracker
from probe_eval.runs import read_json, write_json

logger = logging.getLogger(__name__)
STEPS_BETWEEN_LOSSES = 10
KEPT_CHECKPOINTS = 2

Batch = dict[str, Tensor]


@runtime_checkable
class Objective(Protocol):
    """What a training run optimises."""

    @property
    def title(self) -> str:
        """Shown beside the progress bar."""
        ...

    @property
    def model(self) -> nn.Module:
        """The module that is trained."""
        ...

    @property
    def dataset(self) -> Dataset[Batch]:
        """Samples; each is a pure function of its index."""
        ...

    def loss(self, model: nn.Module, batch: Batch, generators: Sequence[torch.Generator]) -> Tensor:
        """Mean loss of a micro-batch.

        Args:
            model: `self.model`, as wrapped for distributed training.
            batch: stacked samples.
            generators: one source of randomness per sample.
        """
        ...


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
        epoch, order = -1, torch.empty(0, dtype=torch.long)
        for step in range(self.start, self.config.steps):
            for micro in range(self.config.accumulate):
                indices = []
                for position in self.positions(step, micro):
                    if position // self.num_samples != epoch:
                        epoch = position // self.num_samples
                        order = torch.randperm(
                            self.num_samples, generator=stream(self.seed, "order", epoch)
                        )
                    indices.append(int(order[position % self.num_samples]))
                yield indices

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


def train(
    objective: Objective,
    config: OptimConfig,
    *,
    accelerator: Accelerator,
    seed: int,
    folder: Path,
    checkpoint_every: int,
) -> list[tuple[int, float]]:
    """Trains `objective.model` in place, resuming from the newest whole checkpoint below `folder`.

    Args:
        objective: model, samples and loss.
        config: optimiser, schedule, batch.
        accelerator: devices, processes and precision.
        seed: seed of the order of samples and of all noise.
        folder: where `checkpoints/` lies while training is under way; it is removed by
            `finish`, once the caller has written what it keeps.
        checkpoint_every: steps between checkpoints.

    Returns:
        (step, loss) every few steps, over the whole run.

    Raises:
        ValueError: if the batch does not divide among the processes, there are no samples, or
            the loss is not finite.
    """
    num_samples = len(objective.dataset)  # type: ignore[arg-type]
    if num_samples == 0:
        raise ValueError("there are no samples to train on")
    set_seed(seed)
    optimizer = create_optimizer(objective.model.parameters(), config)
    model, optimizer = accelerator.prepare(objective.model, optimizer)
    start, losses = resume(accelerator, folder)
    sampler = StepSampler(
        num_samples,
        config,
        seed=seed,
        start=start,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    try:
        batches = iter(DataLoader(objective.dataset, batch_sampler=sampler))
        model.train()
        with Tracker(objective.title, config.steps, start) as tracker:
            for step in range(start, config.steps):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(config, step)
                total = torch.zeros((), device=accelerator.device)
                for micro in range(config.accumulate):
                    batch = {
                        name: value.to(accelerator.device) for name, value in next(batches).items()
                    }
                    generators = [stream(seed, "noise", p) for p in sampler.positions(step, micro)]
                    last = micro == config.accumulate - 1
                    with contextlib.nullcontext() if last else accelerator.no_sync(model):
                        with accelerator.autocast():
                            loss = objective.loss(model, batch, generators) / config.accumulate
                        accelerator.backward(loss)
                    total += loss.detach()
                if config.clip_norm:
                    accelerator.clip_grad_norm_(model.parameters(), config.clip_norm)
                optimizer.step()
                optimizer.zero_grad()
                done = step + 1
                if done % STEPS_BETWEEN_LOSSES == 0 or done == config.steps:
                    value = float(accelerator.reduce(total, reduction="mean"))
                    if not torch.isfinite(torch.tensor(value)):
                        raise ValueError(
                            f"loss of '{objective.title}' is {value} at step {done}; lower peak_lr "
                            f"{config.peak_lr} or check the data"
                        )
                    losses.append((done, value))
                    tracker.note = f"loss {value:.4f}"
                tracker.advance()
                if done % checkpoint_every == 0 and done < config.steps:
                    save(accelerator, folder, done, losses)
    finally:
        objective.model.eval()
        accelerator.free_memory()
    return losses


def save(accelerator: Accelerator, folder: Path, step: int, losses: list) -> None:
    """Writes a checkpoint that appears whole or not at all, and drops the oldest ones."""
    home = folder / "checkpoints"
    partial, final = home / ".partial", home / f"step-{step:08d}"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_json(partial / "progress.json", {"step": step, "losses": losses})
        shutil.rmtree(final, ignore_errors=True)  # there only when it was unreadable
        os.replace(partial, final)
        for old in sorted(home.glob("step-*"))[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def resume(accelerator: Accelerator, folder: Path) -> tuple[int, list[tuple[int, float]]]:
    """Loads the newest readable checkpoint; (0, []) when there is none."""
    found = sorted((folder / "checkpoints").glob("step-*"), reverse=True)
    for checkpoint in found:
        try:
            progress = read_json(checkpoint / "progress.json")
            accelerator.load_state(str(checkpoint))
        except Exception as error:
            kind = type(error).__name__
            logger.warning("checkpoint %s is unreadable (%s); trying older", checkpoint.name, kind)
            continue
        return progress["step"], [(int(step), float(loss)) for step, loss in progress["losses"]]
    if found:
        raise ValueError(
            f"no readable checkpoint in {folder / 'checkpoints'}; delete that folder to start again"
        )
    return 0, []


def finish(accelerator: Accelerator, folder: Path) -> None:
    """Removes the checkpoints of a training run whose result has been written."""
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
