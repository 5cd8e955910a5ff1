"""Where the batches of readouts come from: tables on disk, or clips that are new in every epoch.

A batch is flat: features under the names of the columns of their table, such as `block-04`, and
targets under `<targets>/<name>`, where `<targets>` is a task or one with shuffled labels.

Axes: b samples, t h w feature grid, d width.
"""

import abc
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, overload

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import Dataset

from probe_datasets import ClipDataset
from probe_datasets.loader import load_batches
from probe_eval.backbone import FrozenBackbone
from probe_eval.clock import Clock
from probe_eval.config import ProbeConfig
from probe_eval.order import StepSampler, stream
from probe_eval.storage.chunks import WithTargets
from probe_eval.storage.features import SplitTables
from probe_eval.storage.forwards import column_name, encode_batch, features_of_batch
from probe_eval.tasks.base import Task

Batch = dict[str, Tensor]
PRESENT = "present"
"""Column of a batch: which of its samples could be read; it is left out where all could."""
INDEX, DRAW, VIDEO = "index", "draw", "video"


def targets_name(cell: ProbeConfig) -> str:
    """What the targets of a cell are called in a batch."""
    return f"{cell.task}@{cell.seed}" if cell.shuffle_labels else cell.task


class Source(Dataset[Batch], abc.ABC):
    """Batches for readouts."""

    failed: dict[str, str]
    """Why clips could not be read by this process while it trained, by their names."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def batches(self, sampler: StepSampler) -> Iterator[Batch]:
        """Features and targets of the samples that a sampler names."""


class TableSource(Source):
    """Rows of the tables of a split.

    Args:
        tables: features and targets.
        cells: whose columns are wanted.
        ahead: batches that are read before they are wanted; 0 reads when asked.
    """

    def __init__(
        self, tables: SplitTables, cells: Sequence[ProbeConfig], *, ahead: int = 2
    ) -> None:
        self.tables, self.ahead, self.failed = tables, ahead, {}
        self.columns = sorted({column_name(cell.features.block) for cell in cells})
        self.targets = {
            targets_name(cell): (self.task_columns(cell.task), self.order(cell)) for cell in cells
        }

    def __len__(self) -> int:
        return len(self.tables.features.sample_ids)

    def task_columns(self, task: str) -> list[str]:
        """Columns of the targets of a task."""
        return sorted(name for name in self.tables.targets.columns if name.startswith(f"{task}/"))

    def order(self, cell: ProbeConfig) -> list[int] | None:
        """Rows that lend a cell with shuffled labels its targets; None for their own."""
        if not cell.shuffle_labels:
            return None
        generator = stream(cell.seed, "shuffled labels", 0)
        return torch.randperm(len(self), generator=generator).tolist()

    def rows(self, indices: Sequence[int]) -> Batch:
        """Features and targets of some rows."""
        batch = dict(self.tables.features.rows(indices, self.columns))
        for name, (columns, order) in self.targets.items():
            rows = indices if order is None else [order[index] for index in indices]
            task = name.split("@")[0]
            for column, value in self.tables.targets.rows(rows, columns).items():
                batch[name + column.removeprefix(task)] = value
        return batch

    def batches(self, sampler: StepSampler) -> Iterator[Batch]:
        """Rows, read by a thread that runs ahead."""
        if not self.ahead:
            yield from map(self.rows, sampler)
            return
        with ThreadPoolExecutor(1) as pool:
            waiting: list[Future[Batch]] = []
            try:
                for indices in sampler:
                    waiting.append(pool.submit(self.rows, indices))
                    if len(waiting) > self.ahead:
                        yield waiting.pop(0).result()
                while waiting:
                    yield waiting.pop(0).result()
            finally:
                pool.shutdown(cancel_futures=True)


class ClipSource(Source):
    """Clips with the chance of their epoch, forwarded when they come up.

    Args:
        dataset: clips of the training split.
        backbone: what features come from.
        cells: whose blocks and targets are wanted; they share timestep and noise.
        tasks: their tasks by name.
        accelerator: its precision.
        clock: what is told how long the backbone took.
    """

    def __init__(
        self,
        dataset: ClipDataset,
        backbone: FrozenBackbone,
        cells: Sequence[ProbeConfig],
        tasks: Mapping[str, Task],
        *,
        accelerator: Accelerator,
        clock: Clock,
    ) -> None:
        self.clips, self.accelerator = NumberedClips(dataset, tasks, video=True), accelerator
        self.backbone, self.clock, self.failed = backbone, clock, {}
        self.settings, self.workers = cells[0].features, cells[0].data.workers
        self.blocks = sorted({cell.features.block for cell in cells})

    def __len__(self) -> int:
        return len(self.clips)

    def batches(self, sampler: StepSampler) -> Iterator[Batch]:
        """Features and targets of clips, read by workers that run ahead."""
        places = Places(sampler)
        loaded = load_batches(self.clips, places, num_workers=self.workers)
        for wanted, batch in zip(places, loaded, strict=True):
            yield self.forward(wanted, batch)

    def forward(self, wanted: Sequence[tuple[int, int]], batch: dict[str, Any]) -> Batch:
        """Features and targets of clips that were read."""
        failed, names = batch.pop("failed"), batch.pop("sample_id")
        self.failed.update({example["sample_id"]: example["problem"] for example in failed})
        if failed and not names:
            return {PRESENT: torch.zeros(len(wanted), dtype=torch.bool)}
        draws = list(zip(batch.pop(INDEX).tolist(), batch.pop(DRAW).tolist(), strict=True))
        video = batch.pop(VIDEO)
        with self.clock.time("backbone"):
            features = features_of_batch(
                self.backbone,
                encode_batch(self.backbone, video, self.accelerator),
                names,
                self.settings,
                self.blocks,
                accelerator=self.accelerator,
                clock=self.clock,
            )
            # Copies, because what was made for inference alone cannot be trained on.
            done = {column_name(block): grid.clone() for block, grid in features.items()}
        if failed:
            there = set(draws)
            batch[PRESENT] = torch.tensor([place in there for place in wanted])
        return {**batch, **done}


class NumberedClips(WithTargets):
    """Clips with targets, as workers read them, that say which they are.

    Every draw has a name of its own, so that no two have the same noise.
    """

    def clip(self, index: int, draw: int = 0) -> Any:
        """Video, name and targets; or why the clip cannot be read."""
        example = super().clip(index, draw)
        if VIDEO not in example:
            return example
        name = f"{example['sample_id']}#{draw}"
        return {**example, "sample_id": name, INDEX: index, DRAW: draw}


class Places(Sequence[list[tuple[int, int]]]):
    """The (index, epoch) of all micro-batches of a sampler, counted out again when asked."""

    def __init__(self, sampler: StepSampler, first: int = 0) -> None:
        self.sampler, self.first = sampler, first

    def __len__(self) -> int:
        return len(self.sampler) - self.first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return self.sampler.draws(self.first)

    @overload
    def __getitem__(self, index: int) -> list[tuple[int, int]]: ...

    @overload
    def __getitem__(self, index: slice) -> "Places": ...

    def __getitem__(self, index: int | slice) -> "list[tuple[int, int]] | Places":
        if isinstance(index, int):
            return next(iter(self[index:]))
        if index.stop is not None or index.step is not None or (index.start or 0) < 0:
            raise ValueError(f"slice {index} must have a start alone")
        return Places(self.sampler, self.first + (index.start or 0))
