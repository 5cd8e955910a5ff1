"""One file of rows: safetensors whose header holds names, failures and a checksum of every row.

A shard is there whole or not at all, and once it is there nobody replaces it. Its header, with a
checksum of its own, proves what it says; each row is proven when it is first read.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import secrets
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Name in the file -> type."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}
CHECKSUM_BYTES = 8
LONGEST_HEADER = 100_000_000
MOST_ROWS_AT_ONCE = 1000
"""Pieces that one call of preadv may fill: IOV_MAX is 1024 on Linux."""
MOST_BYTES_AT_ONCE = 1 << 30

Kind = tuple[torch.dtype, tuple[int, ...]]
"""Type and shape of a row of a column."""


class DamagedTableError(ValueError):
    """A file of a table is not as it was written."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """Where the rows of one column lie."""

    kind: Kind
    offset: int
    """Of the first row, from the start of the file."""
    row_bytes: int
    checksums: bytes
    """`CHECKSUM_BYTES` of each row."""
    proven: bytearray
    """1 for each row that was found to be as it was written."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """What the header of a shard says."""

    path: Path
    key: str
    num_bytes: int
    sha256: str
    """Of the part of the header that holds names, failures and the rows' checksums."""
    sample_ids: tuple[str, ...]
    failed: Mapping[str, str]
    columns: Mapping[str, Column]

    def read(self, name: str, rows: Sequence[int], places: Sequence[int], into: Tensor) -> None:
        """Reads rows of a column, those that follow each other in one go.

        Args:
            name: the column.
            rows: numbers within this shard, in ascending order.
            places: the row of `into` for each.
            into: contiguous, of the column's type.

        Raises:
            DamagedTableError: a row is not as it was written, or the file is cut.
        """
        column = self.columns[name]
        if not column.row_bytes:
            return
        flat = into.reshape(len(into), -1).view(torch.uint8).numpy()
        with opened(self.path) as descriptor:
            for first, last in neighbours(rows, column.row_bytes):
                views = [flat[place] for place in places[first:last]]
                offset = column.offset + rows[first] * column.row_bytes
                if os.preadv(descriptor, views, offset) != len(views) * column.row_bytes:
                    raise damaged(self.path, "is cut")
        for row, place in zip(rows, places, strict=True):
            if not column.proven[row]:
                known = column.checksums[row * CHECKSUM_BYTES :][:CHECKSUM_BYTES]
                if checksum(flat[place]) != known:
                    raise damaged(self.path, f"has other content in row {row} of {name!r}")
                column.proven[row] = 1


def neighbours(rows: Sequence[int], row_bytes: int) -> Iterator[tuple[int, int]]:
    """Cuts ascending numbers into pieces (first, last + 1) that one call can read."""
    most = min(MOST_ROWS_AT_ONCE, max(MOST_BYTES_AT_ONCE // row_bytes, 1))
    first = 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or rows[end] != rows[end - 1] + 1 or end - first == most:
            yield first, end
            first = end


def checksum(row: Any) -> bytes:
    """Of the bytes of a row."""
    return hashlib.sha256(row).digest()[:CHECKSUM_BYTES]


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """A file to read, as its descriptor."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise damaged(path, "is missing") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def damaged(path: Path, what: str) -> DamagedTableError:
    """Says what is wrong with a file of a table, and the way out."""
    return DamagedTableError(
        f"{path} {what}; delete that file (if it is there) and run again, which makes it anew"
    )


def write_shard(
    path: Path,
    *,
    key: str,
    sample_ids: Sequence[str],
    columns: Mapping[str, Tensor],
    failed: Mapping[str, str],
) -> None:
    """Writes a shard, unless it is there already.

    Whoever is first wins: two programs that fill the same table never replace what the other has
    already counted on.

    Args:
        path: the file.
        key: digest of what the rows are of.
        sample_ids: one name a row.
        columns: on the CPU, with as many rows each.
        failed: why some samples have no row.

    Raises:
        ValueError: a column has another number of rows, or a type that no file holds.
        OSError: the disk is full or the folder cannot be written.
    """
    for name, values in columns.items():
        if len(values) != len(sample_ids) or values.dtype not in NAMES:
            raise ValueError(
                f"column {name!r} has {len(values)} rows of {values.dtype} for {len(sample_ids)} "
                f"samples; give one row each, of {', '.join(str(dtype) for dtype in NAMES)}"
            )
    # Wide types first: then every row begins at a multiple of its type's size.
    names = sorted(columns, key=lambda name: (-columns[name].element_size(), name))
    ready = {name: columns[name].detach().cpu().contiguous() for name in names}
    raw = {name: values.reshape(-1).view(torch.uint8).numpy() for name, values in ready.items()}
    about = {
        "key": key,
        "sample_ids": list(sample_ids),
        "failed": dict(failed),
        "checksums": {name: row_checksums(raw[name], len(sample_ids)) for name in names},
    }
    header: dict[str, Any] = {}
    end = 0
    for name in names:
        begin, end = end, end + raw[name].nbytes
        header[name] = {
            "dtype": NAMES[ready[name].dtype],
            "shape": list(ready[name].shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps([about, header], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    metadata = {"about": json.dumps(about, sort_keys=True), "sha256": digest}
    words = json.dumps({"__metadata__": metadata, **header}).encode()
    words += b" " * (-len(words) % 8)
    publish(path, [struct.pack("<Q", len(words)), words, *(raw[name].data for name in names)])


def row_checksums(raw: np.ndarray, rows: int) -> str:
    """Checksums of the rows of a column, as hexadecimal digits."""
    if not raw.nbytes:
        return (checksum(b"") * rows).hex()
    return b"".join(checksum(row) for row in raw.reshape(rows, -1)).hex()


def publish(path: Path, pieces: Sequence[Any]) -> None:
    """Writes a file that appears whole, or leaves alone the one that is there."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        with partial.open("wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(partial, path)
        except FileExistsError:
            pass
        except FileNotFoundError:  # another program has finished the table and cleaned up
            if not path.is_file():
                raise
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                raise
            os.replace(partial, path)  # a file system without hard links
    finally:
        partial.unlink(missing_ok=True)


def read_shard(path: Path) -> Shard:
    """Reads the header of a shard.

    Raises:
        DamagedTableError: the file is missing, cut, or its header changed.
    """
    with opened(path) as descriptor:
        num_bytes = os.fstat(descriptor).st_size
        start = os.pread(descriptor, 8, 0)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else LONGEST_HEADER
        if length > min(LONGEST_HEADER, num_bytes - 8):
            raise damaged(path, "is cut or has no header")
        words = os.pread(descriptor, length, 8)
    try:
        header = json.loads(words)
        metadata = header.pop("__metadata__")
        about = json.loads(metadata["about"])
        text = json.dumps([about, header], sort_keys=True)
        if hashlib.sha256(text.encode()).hexdigest() != metadata["sha256"]:
            raise ValueError
        columns = {
            name: Column(
                kind=(DTYPES[entry["dtype"]], tuple(entry["shape"][1:])),
                offset=8 + length + entry["data_offsets"][0],
                row_bytes=(entry["data_offsets"][1] - entry["data_offsets"][0])
                // max(len(about["sample_ids"]), 1),
                checksums=bytes.fromhex(about["checksums"][name]),
                proven=bytearray(len(about["sample_ids"])),
            )
            for name, entry in header.items()
        }
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise damaged(path, "has a changed header") from error
    if num_bytes != 8 + length + end:
        raise damaged(path, f"has {num_bytes} of {8 + length + end} bytes")
    return Shard(
        path=path,
        key=about["key"],
        num_bytes=num_bytes,
        sha256=metadata["sha256"],
        sample_ids=tuple(about["sample_ids"]),
        failed=about["failed"],
        columns=columns,
    )
