"""Looking once into many files: their sizes, times and what a dataset needs to know of each.

A row is a dictionary of plain values. A scan turns the row of a file into the rows of the samples
that it holds; a DataError that it raises becomes the `problem` of that file.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from probe_datasets.formats.files import DataError

__all__ = ["Known", "Progress", "Row", "Scan", "scan_files"]

Row = dict[str, Any]
"""Values of one sample by column."""
Scan = Callable[[Path, Row], list[Row]]
"""From a file and its row to what each of its samples has beside that row."""
Progress = Callable[[int, int], None]
"""Called with (files done, files in all, or 0 where that is not known)."""
Known = Callable[[Row], list[Row] | None]
"""From a row, with its file's bytes and time of change, to what an earlier scan of the same found;
None where there is none."""

_BATCH = 1024
_WORTH_SHARING = 32  # files; to start processes costs as much as to scan about so many


def scan_files(
    rows: Iterable[Row],
    root: Path,
    scan: Scan | None,
    *,
    known: Known | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    total: int = 0,
) -> Iterator[Row]:
    """Rows of all samples, in the order of the files, a batch in memory at a time.

    Args:
        rows: with `sample_id`, and `path` below the root or None, and perhaps a `problem`.
        root: the folder.
        scan: looks into a file; None where its size and time are enough.
        known: what an earlier scan found.
        workers: processes that scan, forked as those of torch's DataLoader are; by default one for
            each core, eight at most, and none of its own where this process may not have children.
        progress: called after every file that is scanned, and now and then where none has to be.
        total: files in all; 0 where it is not known.

    Yields:
        The rows with `size` and `changed` (nanoseconds), `problem` and what the scan found. A path
        at which nothing is becomes None.
    """
    count = _workers(workers) if scan is not None else 1
    iterator, done = iter(rows), 0
    with ExitStack() as stack:
        pool: Executor | None = None
        while batch := list(islice(iterator, _BATCH)):
            batch = [_located(row, root) for row in batch]
            found: list[list[Row] | None] = [
                [{}] if scan is None or row["problem"] else _known(row, known) for row in batch
            ]
            todo = [i for i, rows_of in enumerate(found) if rows_of is None]
            if scan is not None and todo:
                if pool is None and count > 1 and len(todo) >= _WORTH_SHARING:
                    fork = multiprocessing.get_context("fork")
                    pool = stack.enter_context(ProcessPoolExecutor(count, mp_context=fork))
                work = partial(_scanned, scan, root)
                files = (batch[i] for i in todo)
                results = map(work, files) if pool is None else pool.map(work, files, chunksize=8)
                for k, (i, result) in enumerate(zip(todo, results, strict=True), start=1):
                    found[i] = result
                    if progress is not None:
                        progress(done + len(batch) - len(todo) + k, total)
            done += len(batch)
            if progress is not None and not todo:
                progress(done, total)
            for row, rows_of in zip(batch, found, strict=True):
                yield from ({**row, **sample} for sample in rows_of or ())


def _workers(wanted: int | None) -> int:
    if wanted is not None and wanted < 1:
        raise ValueError(f"workers {wanted} must be at least 1")
    if multiprocessing.current_process().daemon:
        return 1
    return wanted or min(8, len(os.sched_getaffinity(0)))


def _located(row: Row, root: Path) -> Row:
    """A row with the size and time of its file."""
    row = {"size": None, "changed": None, "problem": None, **row}
    if row["path"] is None:
        row["problem"] = row["problem"] or "there is no file of this sample"
        return row
    try:
        status = os.stat(os.path.join(root, row["path"]))
    except (OSError, ValueError) as error:
        gone = isinstance(error, FileNotFoundError | NotADirectoryError)
        row["problem"] = "there is no such file" if gone else f"cannot be read ({error})"
        return {**row, "path": None} if gone else row
    if status.st_size == 0:
        row["problem"] = f"{row['path']}: is empty (0 bytes); copy or download the file again"
    return {**row, "size": status.st_size, "changed": status.st_mtime_ns}


def _known(row: Row, known: Known | None) -> list[Row] | None:
    return None if known is None else known(row)


def _scanned(scan: Scan, root: Path, row: Row) -> list[Row]:
    try:
        return scan(root / row["path"], row)
    except DataError as error:
        return [{"problem": str(error)}]
