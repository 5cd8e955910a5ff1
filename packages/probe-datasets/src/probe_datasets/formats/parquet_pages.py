"""The footer and page headers of a parquet file, checked before Arrow believes them.

No checksum covers either. Arrow takes the length of a page from its header and allocates that much
before it notices that the file ends earlier, and a footer with a hole in it can crash it.

Reference:
    Apache Parquet, parquet.thrift (FileMetaData, PageHeader); Apache Thrift, "Thrift Compact
    protocol encoding".
"""

from dataclasses import dataclass
from typing import Any, BinaryIO

from probe_datasets.formats.protobuf import read_varint

__all__ = ["Column", "check_pages", "read_columns"]

_TYPES = range(4)  # data, index, dictionary, data of version 2
_WINDOWS = (1 << 12, 1 << 20)  # bytes; page headers have less than 100 but for long statistics
_TRUE, _FALSE, _BYTE, _INTEGERS, _DOUBLE, _BINARY = 1, 2, 3, (4, 5, 6), 7, 8
_LISTS, _STRUCT = (9, 10), 12
_DEEPEST = 12
_MAX_FOOTER, _MAX_PAGE = 1 << 26, 1 << 28


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """Where a column of a row group lies."""

    start: int
    """Byte of its first page."""
    stored: int
    """Bytes of its pages in the file."""
    unpacked: int
    """Bytes that they unpack to."""


def read_columns(file: BinaryIO) -> list[dict[str, Column]]:
    """The columns of each row group by name, as the footer has them.

    Args:
        file: a parquet file.

    Raises:
        ValueError: the footer is malformed, or names bytes that the file does not have.
    """
    size = file.seek(0, 2)
    file.seek(max(size - 8, 0))
    tail = file.read(8)
    length = int.from_bytes(tail[:4], "little")
    if len(tail) < 8 or tail[4:] != b"PAR1" or not 0 < length <= min(size - 12, _MAX_FOOTER):
        raise ValueError("it does not end with a footer, so it is cut short or no parquet file")
    file.seek(size - 8 - length)
    try:
        footer, _ = _struct(file.read(length))
        return [
            dict(_column(entry[3], size - 8 - length) for entry in group[1].values())
            for group in footer[4].values()
        ]
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError("its footer is damaged") from error


def _column(metadata: dict[int, Any], end: int) -> tuple[str, Column]:
    name = ".".join(part.decode("utf-8", "backslashreplace") for part in metadata[3].values())
    start, stored, unpacked = (
        min(metadata[9], metadata.get(11) or metadata[9]),
        metadata[7],
        metadata[6],
    )
    if not 4 <= start < start + stored <= end or unpacked < 0:
        raise ValueError(f"a column from byte {start} to {start + stored} of {end}")
    return name, Column(start=start, stored=stored, unpacked=unpacked)


def check_pages(file: BinaryIO, column: Column) -> None:
    """Walk the pages of a column by their headers.

    Args:
        file: the table.
        column: one of its columns.

    Raises:
        ValueError: a header is malformed, or claims a page that does not fit.
    """
    position, end = column.start, column.start + column.stored
    most = min(column.unpacked, _MAX_PAGE)
    while position < end:
        kind, raw, packed, length = _page(file, position, end)
        here, position = position, position + length + packed
        if kind not in _TYPES or position > end or raw > most:
            raise ValueError(f"a page at byte {here} of {packed} bytes that unpack to {raw}")


def _page(file: BinaryIO, position: int, end: int) -> tuple[int, int, int, int]:
    """Kind, unpacked and stored bytes of a page, and bytes of its header."""
    for window in _WINDOWS:
        file.seek(position)
        try:
            header, length = _struct(file.read(min(window, end - position)))
        except (ValueError, IndexError):
            continue
        kind, raw, packed = (header.get(i, -1) for i in (1, 2, 3))
        if all(isinstance(number, int) and number >= 0 for number in (kind, raw, packed)):
            return kind, raw, packed, length
        break
    raise ValueError(f"no page header at byte {position}")


# ------------------------------------------------------------------------------------- thrift


def _struct(data: bytes) -> tuple[dict[int, Any], int]:
    """The fields of a structure by number, and its length; a list is a dictionary by rank.

    One loop with a stack of its own, as footers have thousands of values.
    """
    root: dict[int, Any] = {}
    # Of each open structure or list: the values, what a list is of, and the last number of a field
    # or the items left.
    stack: list[list[Any]] = [[root, 0, 0]]
    position = 0
    while stack:
        if position >= len(data):
            raise ValueError("a structure that is cut short")
        values, kind, count = stack[-1]
        if kind == 0:
            head, position = data[position], position + 1
            if head == 0:
                stack.pop()
                continue
            if head < 16:
                raise ValueError(f"a field without its number at byte {position}")
            kind, number = head & 15, count + (head >> 4)
            stack[-1][2] = number
            if kind in (_TRUE, _FALSE):
                values[number] = kind == _TRUE
                continue
        elif count == 0:
            stack.pop()
            continue
        else:
            stack[-1][2], number = count - 1, len(values)
        if kind in (_BYTE, _TRUE, _FALSE):
            values[number], position = data[position], position + 1
        elif kind == _DOUBLE:
            values[number], position = data[position : position + 8], position + 8
        elif kind in (_STRUCT, *_LISTS):
            if len(stack) == _DEEPEST:
                raise ValueError(f"values within values without end at byte {position}")
            values[number] = {}
            of, items = 0, 0
            if kind in _LISTS:
                head, position = data[position], position + 1
                of, items = head & 15, head >> 4
                if items == 15:
                    items, position = read_varint(memoryview(data), position)
                if of == 0:
                    raise ValueError(f"a list of nothing at byte {position}")
            stack.append([values[number], of, items])
        elif kind in _INTEGERS or kind == _BINARY:
            coded, shift = 0, 0
            while shift < 64:
                byte, position = data[position], position + 1
                coded, shift = coded | (byte & 127) << shift, shift + 7
                if byte < 128:
                    break
            if kind == _BINARY:
                values[number], position = data[position : position + coded], position + coded
            else:
                values[number] = coded >> 1 ^ -(coded & 1)
        else:
            raise ValueError(f"a value of type {kind} at byte {position}")
    return root, position
