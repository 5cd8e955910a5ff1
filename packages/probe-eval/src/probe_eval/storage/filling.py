"""Tables that all processes of a run fill together, each the shards that fall to it."""

import dataclasses
import itertools
import logging
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from probe_datasets.loader import Batch
from probe_eval.clock import Clock
from probe_eval.distributed import gather_items
from probe_eval.progress import Tracker
from probe_eval.storage import cache
from probe_eval.storage.tables import TableWriter, estimate_bytes

logger = logging.getLogger(__name__)
Columns = dict[str, Tensor]
Chunks = Callable[[Sequence[int], Sequence[str]], Iterator[tuple[int, Batch]]]
"""Reads the units of some numbers as some writers need them: the unit's number, a chunk of it."""
Make = Callable[[Batch, Sequence[str]], dict[str, Columns]]
"""What some writers are given of a chunk."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Survey:
    """What lacks before anything is made; the same on all processes."""

    missing: Mapping[str, int]
    """Shards that lack of each table that is not complete."""
    cache_bytes: int
    """Size of the cache."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Filling:
    """Tables of the same rows, and how they are made.

    Args:
        writers: by name.
        cache_root: where the cache lies.
        unit: clips or rows of a shard.
        count: clips or rows in all.
        chunks: see `Chunks`.
        make: see `Make`.
        check_size: called with the bytes that a row takes in each table, before the first write;
            raises where the tables would become too large.
        step: opened by all processes while they make what falls to them.
        failed: why samples have no row, beside those of the chunks.
        title: shown beside the progress bar.
    """

    writers: Mapping[str, TableWriter]
    cache_root: Path
    unit: int
    count: int
    chunks: Chunks
    make: Make
    check_size: Callable[[Mapping[str, int]], None]
    step: Callable[[], AbstractContextManager[None]]
    failed: Mapping[str, str]
    title: str
    accelerator: Accelerator
    clock: Clock

    def run(self) -> None:
        """Makes what lacks; shard k falls to process k modulo their number.

        Raises:
            ValueError: the tables would become too large.
            OSError: the disk is full or a folder cannot be written.
        """
        for writer in self.writers.values():
            with cache.told_disk_errors(writer.folder):
                # Taken before anybody looks at it, so that nobody removes it meanwhile.
                cache.hold(writer.folder, writer)
        survey = self.survey()
        if not survey.missing:
            return
        for name in survey.missing:
            with cache.told_disk_errors(self.writers[name].folder):
                self.writers[name].start()
        problem: ValueError | OSError | None = None
        with self.step():
            try:
                self.make_shards(survey)
            except (ValueError, OSError) as error:
                if self.accelerator.num_processes > 1:
                    logger.warning("%s; waiting for the other processes", error)
                problem = error
        self.raise_together(problem)
        try:
            if self.accelerator.is_main_process:
                self.finish(list(survey.missing))
        except (ValueError, OSError) as error:
            problem = error
        self.raise_together(problem)

    def finish(self, names: Sequence[str]) -> None:
        """Makes tables of the shards of some writers."""
        for name in names:
            with cache.told_disk_errors(self.writers[name].folder):
                self.writers[name].finish(self.failed)

    def raise_together(self, problem: ValueError | OSError | None) -> None:
        """Waits for all processes, and raises on all of them what one of them met.

        One that failed alone would leave the others waiting, if its caller goes on.
        """
        mine = None if problem is None else (isinstance(problem, OSError), str(problem))
        found = gather_items(self.accelerator, [mine])
        if problem is not None:
            raise problem
        for of_system, text in filter(None, found):
            raise (OSError if of_system else ValueError)(text)

    def survey(self) -> Survey:
        """What lacks, as the main process sees it."""
        found = Survey(missing={}, cache_bytes=0)
        if self.accelerator.is_main_process:
            missing = {
                name: writer.count_missing()
                for name, writer in self.writers.items()
                if not writer.finished()
            }
            kept = any(self.is_kept(name) for name in missing)
            size = cache.cache_bytes(self.cache_root) if kept else 0
            found = Survey(missing=missing, cache_bytes=size)
        return gather_items(self.accelerator, [found])[0]

    def is_kept(self, name: str) -> bool:
        """Whether a table lies in the cache."""
        return self.writers[name].folder.is_relative_to(self.cache_root)

    def make_shards(self, survey: Survey) -> None:
        """Makes the shards that fall to this process, writing one while the next is made."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        wanted = {
            number: names
            for number in range(rank, math.ceil(self.count / self.unit), world)
            if (names := self.lacking(number, survey.missing))
        }
        if not wanted:
            return
        mine = sum(min(self.unit, self.count - number * self.unit) for number in wanted)
        names = sorted({name for names in wanted.values() for name in names})
        written: Future[None] | None = None
        checked = False
        with (
            ThreadPoolExecutor(1) as pool,
            Tracker(self.title, self.count, max(self.count - mine * world, 0)) as tracker,
        ):
            units = self.chunks(list(wanted), names)
            for number, chunks in itertools.groupby(units, operator.itemgetter(0)):
                # Another program that fills the same tables may have been here.
                rows = UnitRows(self.lacking(number, wanted[number]))
                for _, chunk in chunks:
                    rows.add(chunk, self.make)
                    done = len(chunk["sample_id"]) + len(chunk["failed"])
                    tracker.advance(done * world)
                columns = rows.columns()
                if rows.sample_ids and columns and not checked:
                    self.check(columns, survey)
                    checked = True
                with self.clock.time("data"):
                    if written:
                        written.result()
                    written = pool.submit(self.write, number, rows, columns)
            with self.clock.time("data"):
                if written:
                    written.result()

    def lacking(self, number: int, names: Sequence[str] | Mapping[str, int]) -> list[str]:
        """Tables whose shard of a number is not there."""
        return [name for name in names if not self.writers[name].has(number)]

    def write(self, number: int, rows: "UnitRows", columns: Mapping[str, Columns]) -> None:
        """Writes the shards of a unit."""
        for name, values in columns.items():
            writer = self.writers[name]
            with cache.told_disk_errors(writer.folder):
                writer.write(number, rows.sample_ids, values, rows.failed)

    def check(self, made: Mapping[str, Columns], survey: Survey) -> None:
        """Refuses tables that would become too large, for the cache, for their disk, or at all."""
        row = {
            name: estimate_bytes(
                {
                    column: (value.dtype, tuple(value.shape[1:]))
                    for column, value in columns.items()
                },
                1,
            )
            for name, columns in made.items()
        }
        self.check_size(row)
        need = {
            name: size * min(survey.missing[name] * self.unit, self.count)
            for name, size in row.items()
        }
        kept = sum(size for name, size in need.items() if self.is_kept(name))
        if kept:
            cache.check_cap(self.cache_root, survey.cache_bytes, kept)
            cache.check_disk(self.cache_root, kept)
        if rest := sum(need.values()) - kept:
            folder = next(self.writers[name].folder for name in need if not self.is_kept(name))
            cache.check_disk(folder, rest)


class UnitRows:
    """What becomes a shard in each of some tables.

    Args:
        names: of the tables.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.sample_ids: list[str] = []
        self.failed: dict[str, str] = {}
        self.parts: dict[str, list[Columns]] = {name: [] for name in names}

    def add(self, chunk: Batch, make: Make) -> None:
        """Adds what is made of a chunk."""
        self.failed |= {failed["sample_id"]: failed["problem"] for failed in chunk["failed"]}
        if chunk["sample_id"] and self.parts:
            self.sample_ids += chunk["sample_id"]
            for name, columns in make(chunk, list(self.parts)).items():
                self.parts[name].append(columns)

    def columns(self) -> dict[str, Columns]:
        """Rows of each table, by column; the parts are given up one table after the other."""
        whole: dict[str, Columns] = {}
        for name in list(self.parts):
            parts = self.parts.pop(name)
            whole[name] = {
                column: torch.cat([part[column] for part in parts])
                for column in (parts[0] if parts else ())
            }
        return whole
