"""Measuring readouts on the tables of a split, the work shared among processes.

Axes: b samples, t h w feature grid, d width.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

import torch
from accelerate import Accelerator

from probe_eval.clock import Clock
from probe_eval.distributed import gather_items, share
from probe_eval.metrics.state import ReadoutState
from probe_eval.probing.heads import Head, targets_of
from probe_eval.progress import Tracker
from probe_eval.storage.features import SplitTables
from probe_eval.storage.forwards import column_name


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Numbers:
    """What was measured of one readout."""

    variant: str
    """What distinguishes the numbers from others of the same names."""
    values: Mapping[str, float]
    """All numbers by name."""
    samples: int
    """Samples that were measured."""


def by_block(heads: Sequence[Head]) -> Iterator[list[Head]]:
    """The readouts of each block, which read the same features."""
    for _, group in itertools.groupby(
        sorted(heads, key=lambda head: head.cell.features.block),
        key=lambda head: head.cell.features.block,
    ):
        yield list(group)


def measure(
    heads: Sequence[Head],
    tables: SplitTables,
    accelerator: Accelerator,
    *,
    batch_size: int,
    clock: Clock,
    title: str = "",
) -> dict[str, Numbers | str]:
    """Numbers of readouts, the same for any number of processes.

    Batches are formed before they are dealt out, so no number depends on who measured what.

    Args:
        heads: the readouts.
        tables: features and targets of the split.
        accelerator: devices and processes.
        batch_size: samples at once.
        clock: what is told how long reading and measuring took.
        title: shown beside the progress; empty for none.

    Returns:
        By the name of the cell, what was measured, or why it could not be.
    """
    total = len(tables.features.sample_ids)
    starts = range(0, total, batch_size)
    parts: dict[str, list[ReadoutState]] = {head.name: [] for head in heads}
    errors: dict[str, str] = {}
    for head in heads:
        head.readout.eval()
    with Tracker(title, total) if title else _Silent() as tracker:
        for start in share(accelerator, starts):
            rows = range(start, min(start + batch_size, total))
            with clock.time("data"):
                batch = read(heads, tables, rows)
                ids = [tables.features.sample_ids[row] for row in rows]
            with clock.time("heads"):
                batch = {name: value.to(accelerator.device) for name, value in batch.items()}
                for head in heads:
                    if head.name in errors:
                        continue
                    try:
                        parts[head.name].append(measure_batch(head, batch, ids))
                    except (ValueError, torch.linalg.LinAlgError) as error:
                        errors[head.name] = " ".join(str(error).split())
            tracker.advance(min(len(rows) * accelerator.num_processes, total))
    states = {name: merge(found) for name, found in parts.items()}
    everyone = gather_items(accelerator, [(states, errors)])
    return {head.name: combine(head, everyone) for head in heads}


def read(heads: Sequence[Head], tables: SplitTables, rows: Sequence[int]) -> dict:
    """Features and targets of some rows; targets are always the samples' own."""
    features = sorted({column_name(head.cell.features.block) for head in heads})
    tasks = {head.cell.task for head in heads}
    targets = [name for name in tables.targets.columns if name.split("/")[0] in tasks]
    return {**tables.features.rows(rows, features), **tables.targets.rows(rows, sorted(targets))}


@torch.no_grad()
def measure_batch(
    head: Head, batch: Mapping[str, torch.Tensor], ids: Sequence[str]
) -> ReadoutState:
    """The state of one batch."""
    found = head.task.measure(
        head.readout,
        batch[head.features].float(),
        targets_of(batch, head.cell.task),
        num_frames=head.num_frames,
        sample_ids=ids,
    )
    return ReadoutState.of(ids, found)


def merge(states: Sequence[ReadoutState]) -> ReadoutState:
    """Pairs of pairs, so that no sample is copied more than log n times."""
    states = list(states) or [ReadoutState()]
    while len(states) > 1:
        pairs = itertools.zip_longest(states[::2], states[1::2], fillvalue=ReadoutState())
        states = [one.merge(other) for one, other in pairs]
    return states[0]


def combine(
    head: Head, everyone: Sequence[tuple[Mapping[str, ReadoutState], Mapping[str, str]]]
) -> Numbers | str:
    """The numbers of one readout from all processes' states, or the first problem."""
    for _, errors in everyone:
        if head.name in errors:
            return errors[head.name]
    state = merge([states[head.name] for states, _ in everyone])
    try:
        values = state.compute()
    except ValueError as error:
        return " ".join(str(error).split())
    samples = len(next(iter(state.metrics.values())).sums)
    return Numbers(variant=state.variant, values=values, samples=samples)


class _Silent:
    """A tracker that tells nobody."""

    def __enter__(self) -> "_Silent":
        return self

    def __exit__(self, *_: object) -> None: ...

    def advance(self, items: int = 1) -> None: ...
