"""The one training loop: probing and pretraining are both objectives on it.

Everything random in a step is a pure function of (seed, step, position in the global batch), so a
resumed run equals an unbroken one to the bit, and the number of processes changes nothing but the
order in which gradients are summed.
"""

import abc
import contextlib
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from probe_eval import checkpoints
from probe_eval.clock import Clock
from probe_eval.config import OptimConfig
from probe_eval.optim import create_optimizer, learning_rate
from probe_eval.order import StepSampler, Streams, check_batch, stream
from probe_eval.progress import Tracker

__all__ = [
    "Batch",
    "History",
    "Loss",
    "Objective",
    "Row",
    "StepSampler",
    "Streams",
    "check_batch",
    "prepare",
    "prepare_sharding",
    "stream",
    "train",
]

STEPS_BETWEEN_LOSSES = 10
MOST_LOSSES = 1000
"""Longer runs keep a loss less often."""

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
    """What a training run optimises; only `losses` must be written."""

    title: str
    """Shown beside the progress bar."""
    models: Mapping[str, nn.Module]
    """The modules that are trained, by name; the loss of the first is the loss of the run."""
    dataset: Dataset[Batch]
    """Samples; each is a pure function of its index."""
    shards: bool = False
    """Whether its one model may be cut into shards: it is gathered where it is used whole."""
    keep_last: bool = False
    """Whether there is a checkpoint at the last step as well, for work that comes after it."""

    @abc.abstractmethod
    def losses(
        self,
        models: Mapping[str, nn.Module],
        batch: Batch,
        generators: Streams,
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

    def groups(self, model: str) -> Mapping[str, Iterable[nn.Parameter]]:
        """Parameters of a model by the name of their optimiser's settings."""
        return {model: self.models[model].parameters()}

    def batches(self, sampler: StepSampler) -> Iterator[Batch]:
        """The micro-batches whose samples a sampler names, in its order."""
        return iter(DataLoader(self.dataset, batch_sampler=sampler))

    def after_backward(  # noqa: B027
        self, step: int, means: Mapping[str, Tensor], accelerator: Accelerator
    ) -> None:
        """Called when all gradients of a step are there, before they are clipped and used.

        Args:
            step: number of the step, from 0.
            means: the losses and their parts, as means over the micro-batches of this process.
            accelerator: the processes.
        """

    def after_step(self, step: int) -> None:  # noqa: B027
        """Called when all models have been improved; `step` counts from 1."""

    def evaluate(self, step: int) -> Row:
        """Measures the models; writes what is to be seen of them."""
        return {}

    def row(self, step: int, means: Mapping[str, Tensor]) -> Row:
        """The losses of a step as numbers.

        Args:
            step: number of the step, from 1.
            means: the losses and their parts, as means over all processes.

        Raises:
            ValueError: if one is not finite.
        """
        row = {name: float(value) for name, value in means.items()}
        for name, value in row.items():
            if not math.isfinite(value):
                raise ValueError(
                    f"{name} of {self.title!r} is {value} at step {step}; lower peak_lr or check "
                    "the data"
                )
        return {"step": step, **row}

    def note(self, row: Row) -> str:
        """The numbers of a row for the progress line."""
        return "  ".join(f"{name} {value:.4f}" for name, value in row.items() if name != "step")

    def log(self, row: Row) -> None:  # noqa: B027
        """Called with every row of losses or evaluations, on every process."""

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


def train(
    objective: Objective,
    optims: Mapping[str, OptimConfig],
    *,
    accelerator: Accelerator,
    seed: int,
    folder: Path,
    checkpoint_every: int,
    evaluate_every: int = 0,
    clock: Clock | None = None,
) -> History:
    """Trains `objective.models` in place, resuming from the newest whole checkpoint in `folder`.

    Args:
        objective: models, samples and losses.
        optims: optimiser and schedule of each group of parameters, by its name, which is that of
            the model unless the objective says otherwise; that of the first group says how many
            steps there are, and how large a batch is.
        accelerator: devices, processes and precision.
        seed: seed of the order of samples and of all noise.
        folder: where `checkpoints/` lies while training is under way; it is removed by
            `checkpoints.finish`, once the caller has written what it keeps.
        checkpoint_every: steps between checkpoints.
        evaluate_every: steps between evaluations, of which one is at the last step; 0 for none.
        clock: what is told how long the loop waited for data, and how long it trained (heads).

    Raises:
        ValueError: if the batch does not divide among the processes, there are no samples, or
            a loss is not finite.
    """
    clock = clock or Clock()
    names = [group for model in objective.models for group in objective.groups(model)]
    config = optims[names[0]]
    between = max(STEPS_BETWEEN_LOSSES, config.steps // MOST_LOSSES)
    num_samples = len(objective.dataset)  # type: ignore[arg-type]
    if num_samples == 0:
        raise ValueError("there are no samples to train on")
    if len(names) > 1 and accelerator.mixed_precision == "fp16":
        raise ValueError(
            "several models or readouts cannot share the loss scale of fp16; use bf16 or no"
        )
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
        batches = objective.batches(sampler)
        for model in models.values():
            model.train()
        with Tracker(objective.title, config.steps, start) as tracker:
            for step in range(start, config.steps):
                for name, optimizer in optimizers.items():
                    for group, settings in zip(
                        optimizer.param_groups, objective.groups(name), strict=True
                    ):
                        group["lr"] = learning_rate(optims[settings], step)
                with clock.time("data"):
                    micro_batches = [
                        (next(batches), Streams(seed, "noise", sampler.positions(step, micro)))
                        for micro in range(config.accumulate)
                    ]
                with clock.time("heads"):
                    means = improve(
                        objective, models, optimizers, optims, micro_batches, step, accelerator
                    )
                done = step + 1
                objective.after_step(done)
                last = done == config.steps
                if done % between == 0 or last:
                    row = objective.row(done, accelerator.reduce(means, reduction="mean"))
                    history.losses.append(row)
                    objective.log(row)
                    tracker.note = objective.note(row)
                tracker.advance()
                if evaluate_every and (done % evaluate_every == 0 or last):
                    evaluation = {"step": done, **objective.evaluate(done)}
                    history.evaluations.append(evaluation)
                    objective.log(evaluation)
                if objective.keep_last if last else done % checkpoint_every == 0:
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
        name: create_optimizer(
            [(parameters, optims[group]) for group, parameters in objective.groups(name).items()]
        )
        for name in objective.models
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
    micro_batches: Sequence[tuple[Batch, Streams]],
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
    objective.after_backward(step, sums, accelerator)
    for name, optimizer in optimizers.items():
        settings = [optims[group] for group in objective.groups(name)]
        for group, config in zip(optimizer.param_groups, settings, strict=True):
            if config.clip_norm:
                # Sharded weights are recognised by being those of the whole model.
                whole = len(settings) == 1
                parameters = models[name].parameters() if whole else group["params"]
                accelerator.clip_grad_norm_(parameters, config.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
    return sums
