"""Clips and rows in the groups that the backbone takes, whatever number of processes shares them.

A split is cut into units of equally many clips, which become shards; a unit is cut into chunks,
which go through the backbone together.
"""

import hashlib
import itertools
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, cast, overload

import torch
from torch import Tensor

from probe_datasets import ClipDataset, Coverage
from probe_datasets.loader import Batch, load_batches
from probe_eval.clock import Clock
from probe_eval.storage.tables import Table
from probe_eval.tasks.base import Task

CLIPS_AT_ONCE = 8
"""Clips that one call of a loading worker reads."""
IDS_LOOKED_AT = 1000


class WithTargets:
    """Clips with the targets of tasks in place of their labels; what loading workers make.

    Args:
        dataset: the clips.
        tasks: by name.
        video: whether the pixels are wanted, too.
    """

    def __init__(self, dataset: ClipDataset, tasks: Mapping[str, Task], *, video: bool) -> None:
        self.dataset, self.tasks, self.video = dataset, dict(tasks), video

    def clip(self, index: int, draw: int = 0) -> Any:
        example = self.dataset.clip(index, draw)
        if "video" not in example:
            return example
        return {
            "video": example["video"] if self.video else torch.empty(0),
            "sample_id": example["sample_id"],
            **targets_of(self.tasks, example),
        }

    @property
    def classes(self) -> Mapping[str, tuple[str, ...]]:
        return self.dataset.classes

    @property
    def fingerprint(self) -> str:
        return self.dataset.fingerprint

    @property
    def coverage(self) -> Coverage:
        return self.dataset.coverage

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.clip(index)

    def sample_id(self, index: int) -> str:
        return self.dataset.sample_id(index)


def targets_of(tasks: Mapping[str, Task], example: Mapping[str, Any]) -> dict[str, Tensor]:
    """The targets of an example, by `<task>/<name>`."""
    labels = {name: value for name, value in example.items() if name != "video"}
    return {
        f"{name}/{target}": value
        for name, task in tasks.items()
        for target, value in task.targets(labels).items()
    }


def first_readable(dataset: ClipDataset) -> Any:
    """The first example that can be read.

    Raises:
        ValueError: there is none; with what is wrong with the first.
    """
    problem = "there are no clips"
    for index in range(len(dataset)):
        example = dataset.clip(index, 0)
        if "video" in example:
            return example
        problem = example["problem"] if index == 0 else problem
    raise ValueError(f"none of the {len(dataset)} clips can be read, the first: {problem}")


def describe_data(dataset: ClipDataset, example: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values that two splits share only where they are the same clips in the same order.

    The fingerprint says what the split is; the pixels of a clip say what decoders and transforms
    make of it here.
    """
    step = max(len(dataset) // IDS_LOOKED_AT, 1)
    ids = hashlib.sha256()
    for index in range(0, len(dataset), step):
        ids.update(os.fsencode(f"{dataset.sample_id(index)}\n"))
    return {
        "fingerprint": dataset.fingerprint,
        "num_clips": len(dataset),
        "order": ids.hexdigest(),
        "clip": list(example["video"].shape),
        "pixels": digest_tensors({"video": example["video"]}),
    }


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Hash of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class Pieces(Sequence[list[tuple[int, int]]]):
    """(index, draw) of the clips that are read together, for some units; made when asked for.

    Args:
        units: numbers of the units.
        unit_clips: clips of a unit; the last of a split may be short.
        at_once: clips of a chunk, which divide a unit.
        count: clips of the split.
    """

    def __init__(self, units: Sequence[int], unit_clips: int, at_once: int, count: int) -> None:
        self.units, self.unit_clips, self.at_once, self.num_clips = (
            units,
            unit_clips,
            at_once,
            count,
        )
        self.starts = [
            start
            for chunk in range(0, unit_clips, at_once)
            for start in range(chunk, min(chunk + at_once, unit_clips), CLIPS_AT_ONCE)
        ]
        last = sum(units[-1] * unit_clips + start < count for start in self.starts if len(units))
        self.length = max(len(units) - 1, 0) * len(self.starts) + last

    def __len__(self) -> int:
        return self.length

    def owner(self, number: int) -> tuple[int, int]:
        """Unit of a piece, and number of its chunk there."""
        unit, piece = divmod(number, len(self.starts))
        return self.units[unit], self.starts[piece] // self.at_once

    @overload
    def __getitem__(self, index: int) -> list[tuple[int, int]]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[list[tuple[int, int]]]: ...
    def __getitem__(self, index: int | slice) -> Sequence[Any]:
        if isinstance(index, slice):
            return _Part(self, range(*index.indices(len(self))))
        if not 0 <= index < len(self):
            raise IndexError(f"piece {index} is outside the {len(self)}")
        unit, chunk = self.owner(index)
        start = unit * self.unit_clips + self.starts[index % len(self.starts)]
        chunk_end = unit * self.unit_clips + (chunk + 1) * self.at_once
        end = min(start + CLIPS_AT_ONCE, chunk_end, (unit + 1) * self.unit_clips, self.num_clips)
        return [(clip, 0) for clip in range(start, end)]


class _Part(Sequence[Any]):
    def __init__(self, pieces: Pieces, places: range) -> None:
        self.pieces, self.places = pieces, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        place = self.places[index]
        return _Part(self.pieces, place) if isinstance(place, range) else self.pieces[place]


def clip_chunks(
    dataset: ClipDataset, pieces: Pieces, *, num_workers: int, clock: Clock
) -> Iterator[tuple[int, Batch]]:
    """Reads clips, workers running ahead of whoever takes them.

    Yields:
        The number of the unit, and a chunk of it.
    """
    batches = load_batches(dataset, pieces, num_workers=num_workers)
    with closing(cast("Generator[Batch]", batches)) as loaded:
        places = range(len(pieces))
        for (number, _), group in itertools.groupby(places, pieces.owner):
            with clock.time("data"):
                chunk = merge([next(loaded) for _ in group])
            yield number, chunk


def merge(batches: Sequence[Batch]) -> Batch:
    """Batches as one."""
    merged: Batch = {
        "sample_id": [name for batch in batches for name in batch["sample_id"]],
        "failed": [failed for batch in batches for failed in batch["failed"]],
    }
    filled = [batch for batch in batches if batch["sample_id"]]
    for name in filled[0] if filled else ():
        if name not in merged:
            values = [batch[name] for batch in filled]
            merged[name] = values[0] if len(values) == 1 else torch.cat(values)
    return merged


def row_chunks(
    table: Table, name: str, units: Sequence[int], unit_rows: int, at_once: int, *, clock: Clock
) -> Iterator[tuple[int, Batch]]:
    """Reads rows of a column.

    Yields:
        The number of the unit, and a chunk of it.
    """
    for number in units:
        end = min((number + 1) * unit_rows, len(table))
        for start in range(number * unit_rows, end, at_once):
            with clock.time("data"):
                rows = range(start, min(start + at_once, end))
                chunk: Batch = table.rows(rows, [name])
                chunk |= {"sample_id": [table.sample_ids[row] for row in rows], "failed": []}
            yield number, chunk
