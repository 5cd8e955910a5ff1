"""Many readouts trained at the same time on the same features, each as if it were alone.

A batch is flat: features under the names of the columns of their table, such as `block-04`, and
targets under `<targets>/<name>`, where `<targets>` is a task or one with shuffled labels.

Axes: b samples, t h w feature grid, d width, n readouts.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from probe_eval.config import ProbeConfig
from probe_eval.distributed import gather_items
from probe_eval.harness import Batch, Loss, Objective, Row
from probe_eval.order import StepSampler, Streams
from probe_eval.probing.sources import PRESENT, Source, targets_name
from probe_eval.storage.forwards import column_name
from probe_eval.tasks.base import Task
from probe_readouts import Readout

FAILED_AT, FAILED_LOSS, UNREADABLE = "failed_at", "failed_loss", "unreadable"
"""What a checkpoint holds of readouts that failed and of clips that could not be read."""
Measure = Callable[[Sequence["Head"]], Mapping[str, Mapping[str, float]]]
"""Measures readouts: name of a cell -> numbers by name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """A readout, and what it is trained on."""

    name: str
    """Name of its cell."""
    cell: ProbeConfig
    """Settings."""
    task: Task
    """Its loss and metric."""
    readout: Readout
    """What is trained."""
    num_frames: int
    """Frames that it reads: those of the clip, or 1 where features are averaged over time."""

    @property
    def features(self) -> str:
        """Column of its features."""
        return column_name(self.cell.features.block)

    @property
    def targets(self) -> str:
        """What its targets are called in a batch."""
        return targets_name(self.cell)


class HeadBank(nn.Module):
    """All readouts as one module, whose forward pass is every one's loss.

    Nothing is shared, so the gradient of a sum of losses is for each readout that of its own loss.
    One call holds all of them, so that distributed training wraps them once.
    """

    def __init__(self, heads: Sequence[Head]) -> None:
        super().__init__()
        self.heads = tuple(heads)
        self.readouts = nn.ModuleList(head.readout for head in heads)
        self.frozen: set[int] = set()
        """Numbers of the readouts that are trained no more."""

    def forward(self, batch: Batch, positions: Sequence[int]) -> Float[Tensor, " n"]:
        """Mean loss of every readout; that of a frozen one is 0, and so are its gradients.

        Args:
            batch: features and targets; see above.
            positions: places of the samples in the endless stream of samples, for their chance.
        """
        columns = {head.features for head in self.heads}
        batch = {name: value.float() if name in columns else value for name, value in batch.items()}
        losses = [
            still(readout) if number in self.frozen else self.loss(head, batch, positions)
            for number, (head, readout) in enumerate(zip(self.heads, self.readouts, strict=True))
        ]
        return torch.stack(losses)

    def loss(
        self, head: Head, batch: Mapping[str, Tensor], positions: Sequence[int]
    ) -> Float[Tensor, ""]:
        """Mean loss of one readout, whose chance depends on its cell and the places alone."""
        if not len(positions):
            return still(head.readout)
        chance = Streams(head.cell.seed, f"chance of {head.cell.task}", positions)
        return head.task.loss(
            head.readout,
            batch[head.features],
            targets_of(batch, head.targets),
            num_frames=head.num_frames,
            generators=chance,
        ).float()


def still(readout: nn.Module) -> Float[Tensor, ""]:
    """0, with gradients of 0, so that every process has gradients of the same weights."""
    terms = [p.sum() for p in readout.parameters() if p.requires_grad]
    return torch.stack(terms).nan_to_num(0.0, 0.0, 0.0).sum().float() * 0.0


def targets_of(batch: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The targets of a task in a flat batch, by their own names."""
    start = f"{name}/"
    return {
        column.removeprefix(start): value
        for column, value in batch.items()
        if column.startswith(start)
    }


def create_readout(cell: ProbeConfig, task: Task, dataset: object, *, feature_dim: int) -> Readout:
    """A readout whose weights depend on the seed of its cell and on nothing before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cell.seed)
        return task.create_readout(
            dataset,  # type: ignore[arg-type]
            cell.readout,
            feature_dim=feature_dim,
            num_frames=frames(cell),
        )


def frames(cell: ProbeConfig) -> int:
    """Frames that a readout of a cell reads."""
    return 1 if cell.features.average_time else cell.data.num_frames


class HeadsObjective(Objective):
    """Readouts of cells that share their batches.

    Reference: From Image to Video, Sec. 3.4 and App. E.

    A readout whose loss is not finite is trained no more, and the others go on.

    Args:
        title: shown beside the progress bar.
        heads: the readouts.
        source: where batches come from.
        accelerator: the processes.
        measure: measures all readouts while they are trained.
        log: called with the rows of losses and evaluations.
    """

    keep_last = True

    def __init__(
        self,
        title: str,
        heads: Sequence[Head],
        source: Source,
        *,
        accelerator: Accelerator,
        measure: Measure | None = None,
        log: Callable[[Row], None] | None = None,
    ) -> None:
        self.title, self.heads, self.source = title, tuple(heads), source
        self.accelerator = accelerator
        self.bank = HeadBank(heads)
        self.models = {"heads": self.bank}
        self.dataset = source
        self.measure, self.report = measure, log
        self.failed: dict[int, tuple[int, float]] = {}
        """Number of a readout -> the step at which its loss was not finite, and that loss."""

    def groups(self, model: str) -> Mapping[str, Iterable[nn.Parameter]]:
        """A group of parameters for each readout, by the name of its cell."""
        return {
            head.name: [p for p in head.readout.parameters() if p.requires_grad]
            for head in self.heads
        }

    def batches(self, sampler: StepSampler) -> Iterator[Batch]:
        """Features and targets of the samples that a sampler names."""
        return self.source.batches(sampler)

    def losses(
        self, models: Mapping[str, nn.Module], batch: Batch, generators: Streams, step: int
    ) -> Iterator[Loss]:
        """The sum of all losses; a sample that could not be read adds nothing to its batch."""
        positions: Sequence[int] = generators.positions
        share = 1.0
        if PRESENT in batch:
            present = batch[PRESENT].tolist()
            share = sum(present) / len(present)
            positions = [p for p, there in zip(positions, present, strict=True) if there]
        losses = models["heads"](batch, positions) * share
        yield Loss("heads", losses.nan_to_num(0.0, 0.0, 0.0).sum(), {"heads": losses})

    def after_backward(
        self, step: int, means: Mapping[str, Tensor], accelerator: Accelerator
    ) -> None:
        """Freezes the readouts whose loss is not finite on any process, before they are moved."""
        losses = accelerator.reduce(means["heads"], reduction="mean").tolist()
        for number, loss in enumerate(losses):
            if number not in self.failed and not math.isfinite(loss):
                self.failed[number] = (step + 1, loss)
                self.bank.frozen.add(number)
        for number in self.failed:
            for parameter in self.heads[number].readout.parameters():
                parameter.grad = None

    def row(self, step: int, means: Mapping[str, Tensor]) -> Row:
        """`loss`, the mean over the readouts that are still trained, and that of each."""
        losses = {
            head.name: loss
            for number, (head, loss) in enumerate(
                zip(self.heads, means["heads"].tolist(), strict=True)
            )
            if number not in self.failed
        }
        mean = math.fsum(losses.values()) / len(losses) if losses else 0.0
        return {"step": step, "loss": mean, **losses}

    def note(self, row: Row) -> str:
        """The loss, and how many readouts it is the mean of."""
        alive = len(self.heads) - len(self.failed)
        many = f" (mean of {alive})" if len(self.heads) > 1 else ""
        return f"loss {row['loss']:.4f}{many}"

    def log(self, row: Row) -> None:
        """Hands the row on."""
        if self.report is not None:
            self.report(row)

    def evaluate(self, step: int) -> Row:
        """Numbers of every readout as `<cell>/<name>`."""
        if self.measure is None:
            return {}
        alive = [head for number, head in enumerate(self.heads) if number not in self.failed]
        self.bank.eval()
        found = self.measure(alive)
        self.bank.train()
        return {
            f"{cell}/{name}": value
            for cell, numbers in found.items()
            for name, value in numbers.items()
        }

    def state_tensors(self) -> dict[str, Tensor]:
        """Which readouts failed, when and how, and what could not be read so far."""
        failed = [self.failed.get(number, (0, 0.0)) for number in range(len(self.heads))]
        unreadable = json.dumps(self.unreadable(), sort_keys=True).encode()
        return {
            FAILED_AT: torch.tensor([step for step, _ in failed]),
            FAILED_LOSS: torch.tensor([loss for _, loss in failed]),
            UNREADABLE: torch.tensor(list(unreadable), dtype=torch.uint8),
        }

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Freezes what had failed."""
        pairs = zip(tensors[FAILED_AT].tolist(), tensors[FAILED_LOSS].tolist(), strict=True)
        self.failed = {number: pair for number, pair in enumerate(pairs) if pair[0]}
        self.bank.frozen = set(self.failed)
        self.source.failed.update(json.loads(bytes(tensors[UNREADABLE].tolist())))

    def unreadable(self) -> dict[str, str]:
        """Why clips could not be read on any process, by their names."""
        parts = gather_items(self.accelerator, [self.source.failed])
        return {name: reason for part in parts for name, reason in part.items()}

    def reasons(self) -> dict[str, str]:
        """Why readouts failed, by the names of their cells."""
        reasons = {}
        for number, head in enumerate(self.heads):
            if number in self.failed:
                step, loss = self.failed[number]
                reasons[head.name] = f"loss is {loss} at step {step}"
            elif not all(bool(p.isfinite().all()) for p in head.readout.parameters()):
                reasons[head.name] = "weights are not finite after the last step"
        return {
            name: f"{reason}; lower --optim.peak-lr, or set --optim.clip-norm"
            for name, reason in reasons.items()
        }
