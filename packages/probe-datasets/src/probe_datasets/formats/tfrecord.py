"""TFRecord files: where each record lies, told from headers alone, and reading one of them.

A record is its length (u64), the masked CRC-32C of these eight bytes (u32), the data, and the
masked CRC-32C of the data (u32), all little-endian. Both checksums are verified, so that a damaged
record is found and never becomes a wrong sample.

Reference:
    TensorFlow guide "TFRecord and tf.train.Example", section "TFRecords format details".
"""

import os
import struct
from typing import BinaryIO

import numpy as np
from jaxtyping import Int64

from probe_datasets.formats.crc32c import crc32c
from probe_datasets.formats.files import FETCH_AGAIN, data_error, file_size

__all__ = ["masked_crc32c", "read_prefix", "read_record", "record_index"]

_HEADER = struct.Struct("<QI")
HEADER_SIZE = _HEADER.size
"""Bytes from the offset of a record to its data."""
_FOOTER = struct.Struct("<I")
_AROUND = _HEADER.size + _FOOTER.size
_WHAT = "a TFRecord file"


def masked_crc32c(data: bytes | bytearray | memoryview) -> int:
    """The checksum of a TFRecord: CRC-32C rotated right by 15 bits plus a constant.

    Args:
        data: the bytes.
    """
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def record_index(path: str | os.PathLike[str]) -> Int64[np.ndarray, "n 2"]:
    """Where the records of a file are; reads sixteen bytes of each and no data.

    Args:
        path: an uncompressed TFRecord file.

    Returns:
        Offset of each record's header, and bytes of its data: what `read_record` takes.

    Raises:
        DataError: the file is missing, empty, cut short, damaged in a header or no TFRecord file.
    """
    size = file_size(path, _WHAT)
    found: list[tuple[int, int]] = []
    try:
        with open(path, "rb", buffering=0) as file:
            offset = 0
            while offset < size:
                length = _length(file, path, offset, size, len(found))
                found.append((offset, length))
                offset += length + _AROUND
    except OSError as error:
        raise data_error(
            path, f"cannot be read ({error.strerror or error})", _WHAT, "see to its permissions"
        ) from error
    return np.array(found, np.int64)


def read_record(
    path: str | os.PathLike[str], offset: int, length: int, *, verify: bool = True
) -> memoryview:
    """The data of one record.

    Args:
        path: an uncompressed TFRecord file.
        offset: where its header begins.
        length: bytes of its data.
        verify: compare the data with its checksum.

    Returns:
        A view of bytes that were read from the file and belong to the caller.

    Raises:
        DataError: the file has no such record, or the record is damaged.
    """
    size = file_size(path, _WHAT)
    try:
        with open(path, "rb", buffering=0) as file:
            if _length(file, path, offset, size, None) != length:
                problem = f"has a record of another length than {length} at byte {offset}"
                raise data_error(path, problem, "the file that was indexed", "index it again")
            content = memoryview(_read(file, offset + _HEADER.size, length + _FOOTER.size))
    except OSError as error:
        raise data_error(
            path, f"cannot be read ({error.strerror or error})", _WHAT, "see to its permissions"
        ) from error
    if len(content) != length + _FOOTER.size:
        raise _cut(path, offset, length, size)
    data = content[:length]
    if verify and masked_crc32c(data) != _FOOTER.unpack(content[length:])[0]:
        problem = f"is damaged: the record at byte {offset} does not match its checksum"
        raise data_error(path, problem, "an undamaged file", FETCH_AGAIN)
    return data


def read_prefix(path: str | os.PathLike[str], offset: int, count: int) -> memoryview:
    """The first bytes of the data of a record, which no checksum covers.

    Args:
        path: an uncompressed TFRecord file.
        offset: where the header of the record begins.
        count: how many, at most as many as the record has.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            return memoryview(_read(file, offset + _HEADER.size, count))
    except OSError as error:
        raise data_error(
            path, f"cannot be read ({error.strerror or error})", _WHAT, "see to its permissions"
        ) from error


def _length(
    file: BinaryIO, path: str | os.PathLike[str], offset: int, size: int, rank: int | None
) -> int:
    """Bytes of the data of the record at an offset, which the file is long enough to hold."""
    which = f"the record at byte {offset}" if rank is None else f"record {rank} (byte {offset})"
    head = _read(file, offset, _HEADER.size)
    if len(head) < _HEADER.size:
        problem = f"ends inside the header of {which}"
        raise data_error(path, problem, "a complete TFRecord file", FETCH_AGAIN)
    length, crc = _HEADER.unpack(head)
    if masked_crc32c(head[:8]) != crc:
        if offset:
            problem = f"is damaged in the header of {which}"
            raise data_error(path, problem, "an undamaged file", FETCH_AGAIN)
        if head[:2] == b"\x1f\x8b" or (head[0] == 0x78 and head[1] in b"\x01\x5e\x9c\xda"):
            raise data_error(path, "is compressed", "an uncompressed TFRecord", "decompress it")
        problem = f"is no TFRecord file (first bytes {head[:8].hex(' ')})"
        raise data_error(path, problem, _WHAT, "check the path, or " + FETCH_AGAIN)
    if length > size - offset - _AROUND:
        raise _cut(path, offset, length, size)
    return length


def _cut(path: str | os.PathLike[str], offset: int, length: int, size: int) -> ValueError:
    problem = (
        f"is cut short: the record at byte {offset} has {length} bytes, the file ends at {size}"
    )
    return data_error(path, problem, "a complete TFRecord file", FETCH_AGAIN)


def _read(file: BinaryIO, offset: int, count: int) -> bytes:
    """Bytes at an offset; fewer at the end of the file."""
    file.seek(offset)
    parts = []
    while count > 0 and (part := file.read(count)):  # one read gives at most 2 GB
        parts.append(part)
        count -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
