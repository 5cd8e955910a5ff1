"""What the samples of a split are and where: an Arrow file outside the data folder, built once.

An index holds text, numbers and offsets, never pixels, one row a sample. It is kept under a name
made from the dataset, the split and the folder, and is made again when the name, size, time or mode
of any file below the folder changed. Then files that were sound and did not change are not scanned
again; those that were bad are, since what was wrong may lie elsewhere. Rows are written in batches,
so that memory does not grow with their number, and read by mapping the file into memory.

The folder of the indexes is PROBE_DATASETS_CACHE, or else `probe-datasets` in XDG_CACHE_HOME or in
`~/.cache`.
"""

import fcntl
import hashlib
import json
import logging
import os
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from probe_datasets.file_states import describe_files
from probe_datasets.formats.files import data_error
from probe_datasets.scan import Known, Progress, Row, Scan, scan_files

__all__ = ["MAX_REASONS", "Index", "IndexRequest", "Listing", "cache_folder", "open_index"]

MAX_REASONS = 100
"""Bad samples that are named; all are counted."""
_VERSION = 1
_BATCH = 4096
# Names of files need not be UTF-8, so they are kept as the bytes that the system knows.
_NAMES = ("sample_id", "path")
_COMMON = (
    pa.field("sample_id", pa.binary(), nullable=False),
    pa.field("path", pa.binary()),  # below the root; null where there is no such file
    pa.field("size", pa.int64()),  # bytes
    pa.field("changed", pa.int64()),  # nanoseconds
    pa.field("problem", pa.string()),  # why the sample cannot be used; null where it can
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """What a dataset says that its split consists of, before any of its files is opened."""

    layout: str
    """How the folder is laid out, for people."""
    rows: Iterable[Row]
    """`sample_id`, `path` below the root (None where the sample has no file) and the columns that
    the listing fills: of every sample or, where a file holds many, of every file."""
    classes: Mapping[str, tuple[str, ...]]
    """Label name -> class names in the order of their indices."""
    total: int = 0
    """Number of the rows; 0 where it is not known."""
    expected: int = 0
    """Samples that the published split has, where its files do not list them; 0 otherwise."""
    ignored: int = 0
    """Files that were passed over."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexRequest:
    """Which index is wanted, and how to make it."""

    dataset: str
    """Name of the dataset."""
    root: Path
    """Folder of the data."""
    split: str
    """Name of the split."""
    options: Mapping[str, Any]
    """Plain values that decide what the rows are."""
    watched: tuple[Path, ...]
    """Files, and folders with all below them, whose change makes the index stale."""
    listed: pa.Schema
    """What the listing fills beside the common columns."""
    scanned: pa.Schema
    """What the scan fills; with `sample_id` where a file holds many samples."""
    scan: Scan | None = None
    """Finds what the index needs to know of one file."""
    workers: int | None = None
    """Processes that scan; see `scan_files`."""
    progress: Progress | None = None
    """Called with (files scanned, files in all)."""


class Index:
    """The rows of a split, mapped into memory.

    Args:
        path: the file.
        signature: of the files that it has to be about.

    Raises:
        ValueError: it is about other files, or damaged.
    """

    def __init__(self, path: Path, signature: str) -> None:
        self.path, self.signature = path, signature
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        self._facts = json.loads(reader.schema.metadata[b"facts"])
        if self._facts["version"] != _VERSION or self._facts["signature"] != signature:
            raise ValueError("is the index of other files")
        self._schema = reader.schema
        self._batches = [reader.get_batch(k) for k in range(reader.num_record_batches)]
        for batch in self._batches:
            batch.validate(full=True)
        self._ends = np.cumsum([0, *(batch.num_rows for batch in self._batches)], dtype=np.int64)

    def __reduce__(self) -> tuple[type["Index"], tuple[Path, str]]:
        return Index, (self.path, self.signature)

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def layout(self) -> str:
        """How the folder is laid out, for people."""
        return self._facts["layout"]

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """Label name -> class names in the order of their indices."""
        return {name: tuple(names) for name, names in self._facts["classes"].items()}

    @property
    def expected(self) -> int:
        """Samples that the published split has, where its files do not list them; 0 otherwise."""
        return self._facts["expected"]

    @property
    def ignored(self) -> int:
        """Files that were passed over."""
        return self._facts["ignored"]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over names, sizes and listed columns of the usable samples; not over times."""
        digest = hashlib.sha256(json.dumps(self._facts["classes"]).encode())
        columns = ["sample_id", "size", *self._facts["listed"]]
        for batch in self._batches:
            kept = batch.select(columns).filter(batch["problem"].is_null())
            digest.update(repr([tuple(row.values()) for row in kept.to_pylist()]).encode())
        return digest.hexdigest()

    def row(self, number: int) -> Row:
        """One row by column.

        Args:
            number: which row, from 0.
        """
        k = int(np.searchsorted(self._ends, number, side="right")) - 1
        return _plain(self._batches[k].slice(number - int(self._ends[k]), 1).to_pylist()[0])

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[Row]:
        """All rows in turn.

        Args:
            columns: names of the columns that are wanted; all of them where it is None.
        """
        for batch in self._batches:
            wanted = batch if columns is None else batch.select(columns)
            yield from map(_plain, wanted.to_pylist())

    def column(self, name: str) -> pa.ChunkedArray:
        """All values of one column.

        Args:
            name: its name.
        """
        kind = self._schema.field(name).type
        return pa.chunked_array([batch[name] for batch in self._batches], kind)

    def usable(self) -> Int64[np.ndarray, " n"]:
        """Numbers of the rows that can be used, ascending."""
        return np.flatnonzero(self.column("problem").is_null().to_numpy())

    def unusable(self, *, missing: bool) -> tuple[int, list[tuple[str, str]]]:
        """How many samples cannot be used, and (sample_id, why) of a hundred of them at most.

        Args:
            missing: count those without a file; or else those whose file is bad.
        """
        count, reasons = 0, []
        for batch in self._batches:
            bad = batch.filter(batch["problem"].is_valid())
            bad = bad.filter(bad["path"].is_null() if missing else bad["path"].is_valid())
            rows = bad.select(["sample_id", "problem"])
            count += rows.num_rows
            for row in map(_plain, rows.slice(0, MAX_REASONS - len(reasons)).to_pylist()):
                reasons.append((row["sample_id"], row["problem"]))
        return count, reasons


def _plain(row: Row) -> Row:
    for name in _NAMES:
        if row.get(name) is not None:
            row[name] = os.fsdecode(row[name])
    return row


def cache_folder() -> Path:
    """The folder that the indexes are kept in."""
    if "PROBE_DATASETS_CACHE" in os.environ:
        return Path(os.environ["PROBE_DATASETS_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "probe-datasets")


def open_index(request: IndexRequest, list_samples: Callable[[], Listing]) -> Index:
    """The index of a split: its file while nothing changed, or else a new one.

    Where several processes ask at once, one makes it and the others wait.

    Args:
        request: which index.
        list_samples: says what the split consists of; called when the index has to be made.

    Raises:
        DataError: a folder cannot be listed, or two samples have one name.
    """
    key = [request.dataset, request.split, os.path.realpath(request.root), dict(request.options)]
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]
    path = _writable(cache_folder()) / f"{request.dataset}-{request.split}-{name}.arrow"
    with _locked(path):
        signature = _signature(request)
        try:
            return Index(path, signature)
        except FileNotFoundError:
            _log.info("%s: is made", path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            _log.info("%s: is made again, since it %s", path, error)
        _build(request, list_samples(), path, signature)
        return Index(path, signature)


def _build(request: IndexRequest, listing: Listing, path: Path, signature: str) -> None:
    facts = {
        "version": _VERSION,
        "signature": signature,
        "layout": listing.layout,
        "classes": dict(listing.classes),
        "expected": listing.expected,
        "ignored": listing.ignored,
        "listed": request.listed.names,
    }
    columns = [*_COMMON, *request.listed, *(f for f in request.scanned if f.name != "sample_id")]
    schema = pa.schema(columns, metadata={"facts": json.dumps(facts)})
    rows = scan_files(
        listing.rows,
        request.root,
        request.scan,
        known=_earlier(path, request, schema) if request.scan is not None else None,
        workers=request.workers,
        progress=request.progress,
        total=listing.total,
    )
    keys = array("Q")
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
    os.close(handle)
    try:
        with pa.OSFile(draft, "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            while batch := list(islice(rows, _BATCH)):
                for row in batch:
                    row["sample_id"] = os.fsencode(row["sample_id"])
                    keys.append(_key(row["sample_id"]))
                    row["path"] = None if row["path"] is None else os.fsencode(row["path"])
                    if row["problem"] is not None:  # it may spell a name that is no UTF-8
                        problem = row["problem"].encode("utf-8", "backslashreplace")
                        row["problem"] = problem.decode()
                writer.write_batch(pa.RecordBatch.from_pylist(batch, schema))
        _check_names(draft, keys, request.root)
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise


def _key(name: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest())


def _check_names(draft: str, keys: array, root: Path) -> None:
    """Refuses two samples of one name, at eight bytes a name."""
    ordered = np.sort(np.frombuffer(keys, np.uint64))
    twice = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    if not twice:
        return
    reader, seen = pa.ipc.open_file(pa.memory_map(draft)), set[bytes]()
    for k in range(reader.num_record_batches):
        for name in reader.get_batch(k)["sample_id"].to_pylist():
            if name in seen:
                problem = f"holds two samples named {os.fsdecode(name)[:80]!r}"
                raise data_error(root, problem, "one of each name", "remove or rename one")
            if _key(name) in twice:
                seen.add(name)


def _earlier(path: Path, request: IndexRequest, schema: pa.Schema) -> Known | None:
    """What an index of the same samples, made when the files were others, says of each file."""
    try:
        found = pa.ipc.open_file(pa.memory_map(str(path))).schema
        index = Index(path, json.loads(found.metadata[b"facts"])["signature"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if not found.equals(schema):  # its columns alone; those of other code
        return None
    scanned = request.scanned.names
    # A scan that names its samples finds all those of a file; others find the one of their row.
    many = "sample_id" in scanned
    name = "path" if many else "sample_id"
    same = ("path", "size", "changed", *request.listed.names)
    first: dict[str, int] = {}
    for number, row in enumerate(index.rows(["sample_id", "path"])):
        if row["path"] is not None:
            first.setdefault(row[name], number)

    def known(row: Row) -> list[Row] | None:
        number, rows = first.get(row[name]), []
        while number is not None and number < len(index) and (many or not rows):
            old = index.row(number)
            if any(old[key] != row.get(key) for key in same):
                break
            if old["problem"] is not None:
                return None
            rows.append({key: old[key] for key in scanned})
            number += 1
        return rows or None

    return known


def _signature(request: IndexRequest) -> str:
    """Hash of the columns, and of all files that the index is about."""
    listed, scanned = request.listed.to_string(), request.scanned.to_string()
    digest = hashlib.sha256(f"{listed}/{scanned}".encode())
    for line in describe_files(request.watched, request.root):
        digest.update(line + b"\0")
    return digest.hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open(path.with_suffix(".lock"), "w"))
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:  # no locks here, or another user's: work may be done twice
            _log.info("%s: cannot be locked (%s)", path, error)
        yield


@cache
def _fallback() -> Path:
    return Path(tempfile.mkdtemp(prefix="probe-datasets-"))


def _writable(folder: Path) -> Path:
    """The folder, or one of this process where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
        reason = "is not writable"
    except OSError as error:
        reason = f"cannot be made ({error.strerror})"
    _log.warning(
        "%s %s: indexes are kept for this process alone; set PROBE_DATASETS_CACHE", folder, reason
    )
    return _fallback()
