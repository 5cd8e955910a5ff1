"""Rows of named tensors on disk: written shard by shard, read a few rows at a time.

A table is a folder of shards with `index.json`, which is written last. Reading takes the memory of
the rows that are asked for, however large the table is.
"""

import hashlib
import json
import logging
import os
import secrets
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from probe_eval.runs import read_json, replacing
from probe_eval.storage.shards import (
    DTYPES,
    NAMES,
    DamagedTableError,
    Kind,
    Shard,
    damaged,
    read_shard,
    write_shard,
)

logger = logging.getLogger(__name__)
INDEX_FILE = "index.json"
KEY_FILE = "key.json"
FORMAT = 1
MOST_HEADERS = 1024
"""Headers of shards that are kept in memory."""


def key_digest(key: Mapping[str, Any]) -> str:
    """Hash of plain values, such as what a table is of."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def shard_name(number: int) -> str:
    """File of a shard."""
    return f"shard-{number:06d}.safetensors"


def estimate_bytes(columns: Mapping[str, Kind], rows: int) -> int:
    """Bytes that rows of some columns take."""
    return rows * sum(
        dtype.itemsize * torch.Size(shape).numel() for dtype, shape in columns.values()
    )


def list_shards(folder: Path) -> dict[str, int]:
    """Bytes of each shard in a folder, by file name."""
    with os.scandir(folder) as entries:
        return {
            entry.name: entry.stat().st_size for entry in entries if entry.name.startswith("shard-")
        }


class StoredRows:
    """The rows of one folder.

    Raises:
        DamagedTableError: the table is not finished, or is not as it was written.
    """

    def __init__(self, folder: Path, *, verify: bool = True) -> None:
        self.folder = folder
        if not (folder / INDEX_FILE).is_file():
            raise DamagedTableError(f"{folder} holds no finished table: it has no {INDEX_FILE}")
        index = read_json(folder / INDEX_FILE)
        try:
            if index.pop("sha256") != key_digest(index):
                raise KeyError
            self.key: Mapping[str, Any] = index["key"]
            self.about: Mapping[str, Any] = index["about"]
            self.failed: Mapping[str, str] = index["failed"]
            self.columns: Mapping[str, Kind] = {
                name: (DTYPES[column["dtype"]], tuple(column["shape"]))
                for name, column in index["columns"].items()
            }
            self.sizes = [shard["bytes"] for shard in index["shards"]]
            self.digests = [shard["sha256"] for shard in index["shards"]]
            self.starts = [0, *accumulate(shard["rows"] for shard in index["shards"])]
        except (KeyError, TypeError, AttributeError) as error:
            raise damaged(folder / INDEX_FILE, "has a changed content") from error
        self.digest = key_digest(self.key)
        if verify:
            self.verify_sizes()
        self._headers: dict[int, Shard] = {}

    def __len__(self) -> int:
        return self.starts[-1]

    def shard(self, number: int) -> Shard:
        """The header of a shard.

        Raises:
            DamagedTableError: it is not the one that the index tells of.
        """
        if number not in self._headers:
            shard = self._open_shard(number)
            if len(self._headers) >= MOST_HEADERS:
                self._headers.clear()
            self._headers[number] = shard
            return shard
        return self._headers[number]

    def verify_sizes(self) -> None:
        """Checks that each shard is there in its size, and no other."""
        found = list_shards(self.folder)
        for number, size in enumerate(self.sizes):
            name = shard_name(number)
            if name not in found:
                raise damaged(self.folder / name, "is missing")
            if (have := found.pop(name)) != size:
                raise damaged(self.folder / name, f"has {have} of {size} bytes")
        if found:
            raise damaged(self.folder / min(found), f"is not in {INDEX_FILE}")

    def _open_shard(self, number: int) -> Shard:
        shard = read_shard(self.folder / shard_name(number))
        rows = self.starts[number + 1] - self.starts[number]
        kinds = {name: column.kind for name, column in shard.columns.items()}
        if (
            shard.sha256 != self.digests[number]
            or shard.key != self.digest
            or len(shard.sample_ids) != rows
            or (rows and kinds != dict(self.columns))
        ):
            raise damaged(shard.path, f"is another than {INDEX_FILE} tells")
        return shard

    def read(self, names: Sequence[str], indices: Sequence[int]) -> dict[str, Tensor]:
        """Rows of columns, in the order asked for."""
        out = {
            name: torch.empty(len(indices), *self.columns[name][1], dtype=self.columns[name][0])
            for name in names
        }
        order = sorted(range(len(indices)), key=indices.__getitem__)
        by_shard = groupby(order, lambda place: bisect_right(self.starts, indices[place]) - 1)
        for number, group in by_shard:
            places = list(group)
            rows = [indices[place] - self.starts[number] for place in places]
            for name in names:
                self.shard(number).read(name, rows, places, out[name])
        return out

    def iterate_ids(self) -> Iterator[str]:
        """Names of all rows, in order."""
        for number in range(len(self.sizes)):
            yield from self.shard(number).sample_ids


class SampleIds(Sequence[str]):
    """Names of the rows of a table, which lie on disk."""

    def __init__(self, stored: StoredRows) -> None:
        self.stored = stored

    def __len__(self) -> int:
        return len(self.stored)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"row {index} is outside the table of {len(self)} rows")
        number = bisect_right(self.stored.starts, place) - 1
        return self.stored.shard(number).sample_ids[place - self.stored.starts[number]]

    def __iter__(self) -> Iterator[str]:
        return self.stored.iterate_ids()


class Table:
    """Rows of named tensors on disk.

    Args:
        parts: folders with the same rows in the same order, and different columns.
    """

    def __init__(self, parts: Sequence[StoredRows]) -> None:
        self.parts = tuple(parts)
        self.folder = parts[0].folder
        self.sample_ids: Sequence[str] = SampleIds(parts[0])
        self.failed: Mapping[str, str] = parts[0].failed
        self.columns: Mapping[str, Kind] = {
            name: kind for part in parts for name, kind in part.columns.items()
        }

    def __len__(self) -> int:
        return len(self.parts[0])

    def rows(self, indices: Sequence[int], names: Sequence[str]) -> dict[str, Tensor]:
        """Rows, stacked in the order asked for; those not asked for are not read.

        Args:
            indices: which rows, each 0 or more; one may come twice.
            names: which columns.

        Raises:
            IndexError: there is no such row.
            ValueError: there is no such column, or a row is not as it was written.
        """
        for index in indices:
            if not 0 <= index < len(self):
                raise IndexError(f"row {index} is outside the table of {len(self)} rows")
        if unknown := [name for name in names if name not in self.columns]:
            raise ValueError(
                f"table {self.folder} has no column {unknown[0]!r}; it has "
                f"{', '.join(self.columns)}"
            )
        found: dict[str, Tensor] = {}
        for part in self.parts:
            mine = [name for name in names if name in part.columns]
            found |= part.read(mine, indices) if mine else {}
        return {name: found[name] for name in names}


def open_table(folder: Path, *, verify: bool = True) -> Table:
    """Opens a finished table.

    The size of every shard is checked now; its header when it is first read from, and each row
    when it is first read.

    Args:
        folder: where it lies.
        verify: look at the sizes, too.

    Raises:
        DamagedTableError: naming the shard that is missing, cut, changed or too many.
    """
    return Table([StoredRows(folder, verify=verify)])


def join_tables(tables: Sequence[Table]) -> Table:
    """Tables of the same rows as one with all their columns.

    Raises:
        ValueError: the rows are not the same.
    """
    first, *others = tables
    for other in others:
        check_same_rows(first, other)
    return Table([part for table in tables for part in table.parts])


def check_same_rows(first: Table, second: Table) -> None:
    """Checks that two tables are of the same samples in the same order.

    Raises:
        ValueError: naming the first that differs.
    """
    names = zip(first.sample_ids, second.sample_ids, strict=False)
    different = next((pair for pair in names if pair[0] != pair[1]), None)
    if different is None and len(first) != len(second):
        different = (f"{len(first)} rows", f"{len(second)} rows")
    if different:
        raise ValueError(
            f"{first.folder} and {second.folder} are not of the same samples ({different[0]}, "
            f"{different[1]}): other files could be read when the second was made; delete both "
            "folders and run again"
        )


def verify_table(folder: Path) -> list[str]:
    """Reads a table to the last byte.

    Returns:
        What is wrong with it, a phrase each; nothing where all is as it was written.
    """
    try:
        stored = StoredRows(folder, verify=False)
    except ValueError as error:
        return [str(error)]
    problems = []
    try:
        stored.verify_sizes()
    except DamagedTableError as error:
        problems.append(str(error))
    for number in range(len(stored.sizes)):
        rows = range(stored.starts[number], stored.starts[number + 1])
        try:
            stored.shard(number)
            for row in rows:
                stored.read(list(stored.columns), [row])
        except DamagedTableError as error:
            if str(error) not in problems:
                problems.append(str(error))
    return problems


def write_values(path: Path, values: Mapping[str, Any]) -> None:
    """Writes JSON, whole or not at all; programs of several machines may do so at once."""
    with replacing(path, f"{secrets.token_hex(8)}.partial") as partial:
        partial.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


class TableWriter:
    """Fills a folder with shards; one that is resumed, or not alone, makes only what lacks.

    Args:
        folder: where the table is to be; made where it lacks.
        key: plain values that say what the rows are of.
        num_shards: how many there will be.
        about: plain values that are worth knowing beside the key.
    """

    def __init__(
        self,
        folder: Path,
        key: Mapping[str, Any],
        num_shards: int,
        *,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.key, self.num_shards = folder, dict(key), num_shards
        self.about = dict(about or {})
        self.digest = key_digest(key)

    def start(self) -> None:
        """Makes the folder and says in it what it is going to hold."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / KEY_FILE).is_file():
            write_values(self.folder / KEY_FILE, {"key": self.key, "about": self.about})

    def finished(self) -> bool:
        """Whether the table is complete; one that was damaged since is not."""
        if not (self.folder / INDEX_FILE).is_file():
            return False
        try:
            stored = StoredRows(self.folder)
        except DamagedTableError as error:
            logger.warning("%s", error)
            return False
        return stored.digest == self.digest and len(stored.sizes) == self.num_shards

    def count_missing(self) -> int:
        """How many shards are not there."""
        found = list_shards(self.folder) if self.folder.is_dir() else {}
        return sum(shard_name(number) not in found for number in range(self.num_shards))

    def has(self, number: int) -> bool:
        """Whether a shard is there, whole and of this table."""
        path = self.folder / shard_name(number)
        if not path.is_file():
            return False
        try:
            return read_shard(path).key == self.digest
        except DamagedTableError as error:
            logger.warning("%s", error)
            return False

    def write(
        self,
        number: int,
        sample_ids: Sequence[str],
        columns: Mapping[str, Tensor],
        failed: Mapping[str, str],
    ) -> None:
        """Writes a shard; one that is there whole stays.

        Raises:
            OSError: the disk is full or the folder cannot be written.
        """
        path = self.folder / shard_name(number)
        if path.is_file():
            if self.has(number):
                return
            path.unlink()
        write_shard(path, key=self.digest, sample_ids=sample_ids, columns=columns, failed=failed)

    def finish(self, failed: Mapping[str, str] | None = None) -> None:
        """Writes the index, which makes the folder a table; by one process, when all is there.

        Args:
            failed: why further samples have no row.

        Raises:
            DamagedTableError: a shard is missing or damaged, or its columns are others.
        """
        shards, reasons = [], dict(failed or {})
        columns: dict[str, Kind] = {}
        for number in range(self.num_shards):
            shard = read_shard(self.folder / shard_name(number))
            kinds = {name: column.kind for name, column in shard.columns.items()}
            if shard.sample_ids:
                columns = columns or kinds
            if shard.key != self.digest or (shard.sample_ids and kinds != columns):
                raise damaged(shard.path, "is of another table")
            reasons |= shard.failed
            shards.append(
                {
                    "rows": len(shard.sample_ids),
                    "bytes": shard.num_bytes,
                    "sha256": shard.sha256,
                }
            )
        index = {
            "format": FORMAT,
            "key": self.key,
            "about": self.about,
            "rows": sum(shard["rows"] for shard in shards),
            "columns": {
                name: {"dtype": NAMES[dtype], "shape": list(shape)}
                for name, (dtype, shape) in columns.items()
            },
            "failed": reasons,
            "shards": shards,
        }
        write_values(self.folder / INDEX_FILE, {**index, "sha256": key_digest(index)})
        for leftover in self.folder.glob(".shard-*.partial"):
            leftover.unlink(missing_ok=True)
