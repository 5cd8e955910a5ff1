"""The one training loop: probing and pretraining are both objectives on it.

Everything random in a step is a pure function of (seed, step, position in the global batch), so a
resumed run equals an unbroken one to the bit, and the number of processes changes nothing but the
order in which gradients are summed.
"""

import abc
import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from probe_eval import checkpoints
from probe_eval.config import OptimConfig
from probe_eval.optim import create_optimizer, learning_rate
from probe_eval.progress import Tracker

STEPS_BETWEEN_LOSSES = 10

Batch = dict[str, Tensor]
Row = dict[str, int | float]
"""Named numbers of one step, `step` among them."""


@dataclasses.dataclass(frozen=True, slots=True)
class Loss:
    """What one model is to be improved in, on one micro-batch."""

    model: str
    """Name of the model whose gradient this is."""
    value: Tensor
    """The loss, differentiable."""
    parts: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    """What it consists of, before weighting, for the log."""


class Objective(abc.ABC):
    """What a training run optimises; the methods below `losses` do nothing unless overridden."""

    title: str
    """Shown beside the progress bar."""
    models: Mapping[str, nn.Module]
    """The modules that are trained, by name; the loss of the first is the loss of the run."""
    dataset: Dataset[Batch]
    """Samples; each is a pure function of its index."""
    shards: bool = False
    """Whether its one model may be cut into shards: it is gathered where it is used whole."""

    @abc.abstractmethod
    def losses(
        self,
        models: Mapping[str, nn.Module],
        batch: Batch,
        generators: Sequence[torch.Generator],
        step: int,
    ) -> Iterator[Loss]:
        """Mean losses of a micro-batch, one model after the other.

        The loop runs backward on each before it asks for the next, so what a model computed can
        serve the next one, detached.

        Args:
            models: `self.models`, as wrapped for mixed precision and distributed training. Each
                returns fp32.
            batch: stacked samples.
            generators: one source of randomness per sample.
            step: number of the step, from 0.
        """

    def after_step(self, step: int) -> None:  # noqa: B027
        """Called when all models have been improved; `step` counts from 1."""

    def evaluate(self, step: int) -> Row:
        """Measures the models; writes what is to be seen of them."""
        return {}

    def state_tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold beyond the models, equal on all processes."""
        return {}

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state_tensors`."""
        if tensors:
            raise ValueError(f"checkpoint has tensors that {self.title!r} has no use for")


@dataclasses.dataclass(kw_only=True, slots=True)
class History:
    """What was measured over a whole run, also before it was resumed."""

    losses: list[Row] = dataclasses.field(default_factory=list)
    """Every few steps: `loss`, that of the first model, and the parts of all losses."""
    evaluations: list[Row] = dataclasses.field(default_factory=list)
    """What `Objective.evaluate` returned."""

    @property
    def curve(self) -> list[tuple[int, float]]:
        """(step, loss) every few steps."""
        return [(int(row["step"]), row["loss"]) for row in self.losses]


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
    optims: Mapping[str, OptimConfig],
    *,
    accelerator: Accelerator,
    seed: int,
    folder: Path,
    checkpoint_every: int,
    evaluate_every: int = 0,
) -> History:
    """Trains `objective.models` in place, resuming from the newest whole checkpoint in `folder`.

    Args:
        objective: models, samples and losses.
        optims: optimiser and schedule of each model, by its name; the first says how many steps
            there are, and how large a batch is.
        accelerator: devices, processes and precision.
        seed: seed of the order of samples and of all noise.
        folder: where `checkpoints/` lies while training is under way; it is removed by
            `checkpoints.finish`, once the caller has written what it keeps.
        checkpoint_every: steps between checkpoints.
        evaluate_every: steps between evaluations, of which one is at the last step; 0 for none.

    Raises:
        ValueError: if the batch does not divide among the processes, there are no samples, or
            a loss is not finite.
    """
    config = optims[next(iter(objective.models))]
    num_samples = len(objective.dataset)  # type: ignore[arg-type]
    if num_samples == 0:
        raise ValueError("there are no samples to train on")
    if len(objective.models) > 1 and accelerator.mixed_precision == "fp16":
        raise ValueError("several models cannot share the loss scale of fp16; use bf16 or no")
    set_seed(seed)
    models, optimizers = prepare(objective, optims, accelerator)
    start, progress, tensors = checkpoints.resume(accelerator, folder)
    if start:
        objective.load_state_tensors(tensors)
    history = History(**progress)
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
        for model in models.values():
            model.train()
        with Tracker(objective.title, config.steps, start) as tracker:
            for step in range(start, config.steps):
                for name, optimizer in optimizers.items():
                    for group in optimizer.param_groups:
                        group["lr"] = learning_rate(optims[name], step)
                micro_batches = [
                    (next(batches), [stream(seed, "noise", p) for p in sampler.positions(step, i)])
                    for i in range(config.accumulate)
                ]
                means = improve(
                    objective, models, optimizers, optims, micro_batches, step, accelerator
                )
                done = step + 1
                objective.after_step(done)
                last = done == config.steps
                if done % STEPS_BETWEEN_LOSSES == 0 or last:
                    row = collect(objective, means, done, accelerator)
                    history.losses.append(row)
                    tracker.note = note(row)
                tracker.advance()
                if evaluate_every and (done % evaluate_every == 0 or last):
                    history.evaluations.append({"step": done, **objective.evaluate(done)})
                if done % checkpoint_every == 0 and not last:
                    progress = dataclasses.asdict(history)
                    tensors = objective.state_tensors()
                    checkpoints.save(accelerator, folder, done, progress, tensors)
    finally:
        for name, model in models.items():
            accelerator.unwrap_model(model, keep_fp32_wrapper=False)
            objective.models[name].eval()
        accelerator.free_memory()
    return history


def prepare(
    objective: Objective, optims: Mapping[str, OptimConfig], accelerator: Accelerator
) -> tuple[dict[str, nn.Module], dict[str, torch.optim.Optimizer]]:
    """Models and their optimisers, as wrapped by Accelerate.

    Raises:
        ValueError: if Accelerate is to shard what it cannot.
    """
    if accelerator.distributed_type == DistributedType.FSDP:
        prepare_sharding(objective, optims, accelerator)
    optimizers = {
        name: create_optimizer(model.parameters(), optims[name])
        for name, model in objective.models.items()
    }
    names = list(objective.models)
    prepared = accelerator.prepare(*objective.models.values(), *optimizers.values())
    models, wrapped = prepared[: len(names)], prepared[len(names) :]
    return dict(zip(names, models, strict=True)), dict(zip(names, wrapped, strict=True))


def prepare_sharding(
    objective: Objective, optims: Mapping[str, OptimConfig], accelerator: Accelerator
) -> None:
    """Checks what Accelerate is to shard, and has it reduce gradients and return losses in fp32.

    Raises:
        ValueError: for FSDP of version 1, an objective that needs its models whole, or Adafactor.
    """
    if not accelerator.is_fsdp2:
        raise ValueError("FSDP of version 1 is not supported; set FSDP_VERSION=2")
    if not objective.shards:
        raise ValueError(
            f"FSDP is for denoisers; {objective.title!r} needs its weights whole: launch without it"
        )
    if any(optim.name == "adafactor" for optim in optims.values()):
        raise ValueError("torch's Adafactor cannot read sharded weights; use AdamW with FSDP")
    plugin: Any = accelerator.state.fsdp_plugin
    if plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = dataclasses.replace(
            plugin.mixed_precision_policy, reduce_dtype=torch.float32, output_dtype=None
        )


def improve(
    objective: Objective,
    models: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    optims: Mapping[str, OptimConfig],
    micro_batches: Sequence[tuple[Batch, list[torch.Generator]]],
    step: int,
    accelerator: Accelerator,
) -> dict[str, Tensor]:
    """One step of every model.

    Returns:
        Every loss and its parts, as means over the micro-batches of this process.
    """
    sums: dict[str, Tensor] = {}
    for number, (samples, generators) in enumerate(micro_batches, start=1):
        batch = {name: value.to(accelerator.device) for name, value in samples.items()}
        with contextlib.ExitStack() as stack:
            if number < len(micro_batches):
                for model in models.values():
                    stack.enter_context(accelerator.no_sync(model))
            for loss in objective.losses(models, batch, generators, step):
                accelerator.backward(loss.value / len(micro_batches))
                first = loss.model == next(iter(models))
                named = {"loss" if first else f"{loss.model}_loss": loss.value, **loss.parts}
                for name, value in named.items():
                    sums[name] = sums.get(name, 0) + value.detach() / len(micro_batches)
    for name, optimizer in optimizers.items():
        if optims[name].clip_norm:
            accelerator.clip_grad_norm_(models[name].parameters(), optims[name].clip_norm)
        optimizer.step()
        optimizer.zero_grad()
    return sums


def collect(
    objective: Objective, means: Mapping[str, Tensor], step: int, accelerator: Accelerator
) -> Row:
    """The losses of a step as numbers, as means over all processes.

    Raises:
        ValueError: if one is not finite.
    """
    reduced = accelerator.reduce(torch.stack(list(means.values())), reduction="mean")
    row = dict(zip(means, reduced.tolist(), strict=True))
    for name, value in row.items():
        if not math.isfinite(value):
            raise ValueError(
                f"{name} of {objective.title!r} is {value} at step {step}; lower peak_lr or check "
                "the data"
            )
    return {"step": step, **row}


def note(row: Row) -> str:
    """The numbers of a row for the progress line."""
    return "  ".join(f"{name} {value:.4f}" for name, value in row.items() if name != "step")
