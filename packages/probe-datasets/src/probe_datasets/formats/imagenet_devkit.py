"""The order in which ImageNet's development kit numbers its classes, from its `meta.mat`.

The file is in MATLAB's format, version 5: elements with a type and a length, of which one is an
array of structures named `synsets`. Only what that takes is read.
Compressed elements, as the kit's file has them, carry a checksum; plain ones have none.

Reference:
    MathWorks, MAT-File Format, "Level 5 MAT-Files" (tags, compressed elements, structures).
"""

import os
import struct
import zlib
from typing import Any

import numpy as np

from probe_datasets.formats.files import FETCH_AGAIN, DataError, data_error, read_bytes
from probe_datasets.formats.imagenet import NUM_CLASSES

__all__ = ["read_devkit_order"]

_WHAT = "the development kit's meta.mat"
_MAX_BYTES = 1 << 26
_HEADER_BYTES = 128
_MATRIX, _COMPRESSED = 14, 15
_STRUCT, _CHAR = 2, 4
_NUMBERS = {
    **{1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8"},
    **{12: "<i8", 13: "<u8", 16: "u1"},
}


def read_devkit_order(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """WordNet id of each of the kit's numbers, from 1 on.

    Args:
        path: `ILSVRC2012_devkit_t12/data/meta.mat`.

    Raises:
        DataError: missing, damaged, or without the 1,000 classes that have no children.
    """
    data = read_bytes(path, _WHAT, max_bytes=_MAX_BYTES)
    try:
        synsets = _synsets(memoryview(data))
        leaves = {
            int(entry["ILSVRC2012_ID"]): str(entry["WNID"])
            for entry in synsets
            if int(entry["num_children"]) == 0
        }
    except DataError:
        raise
    except (ValueError, TypeError, LookupError, OverflowError, struct.error, zlib.error) as error:
        problem = f"cannot be read ({type(error).__name__}: {error})"
        raise data_error(path, problem, _WHAT, FETCH_AGAIN) from error
    order = tuple(leaves[number] for number in sorted(leaves))
    if sorted(leaves) != list(range(1, NUM_CLASSES + 1)) or len(set(order)) != NUM_CLASSES:
        problem = f"has {len(leaves)} classes without children"
        raise data_error(path, problem, f"{NUM_CLASSES}, numbered from 1", FETCH_AGAIN)
    return order


def _synsets(data: memoryview) -> list[dict[str, Any]]:
    if bytes(data[124:128]) != b"\x00\x01IM":
        raise ValueError("no little-endian MATLAB file of version 5")
    position = _HEADER_BYTES
    while position < len(data):
        kind, body, position = _element(data, position)
        if kind == _COMPRESSED:
            stream = zlib.decompressobj()
            content = stream.decompress(body, _MAX_BYTES)
            if not stream.eof:
                raise ValueError("a compressed part that is too large or cut short")
            kind, body, _ = _element(memoryview(content), 0)
        if kind == _MATRIX:
            name, value = _matrix(body)
            if name == "synsets" and isinstance(value, list):
                return value
    raise ValueError("no array of structures named synsets")


def _element(data: memoryview, position: int) -> tuple[int, memoryview, int]:
    """Type and body of an element, and where the next one begins."""
    first, length = struct.unpack_from("<II", data, position)
    start, small = position + 8, first >> 16
    if small:  # up to four bytes stand in the tag itself
        first, length, start = first & 0xFFFF, small, position + 4
    end = start + length
    if end > len(data) or (small and small > 4):
        raise ValueError(f"an element at byte {position} that ends at {end} of {len(data)}")
    following = (
        end if first == _COMPRESSED else position + (8 if small else 8 + -(-length // 8) * 8)
    )
    return first, data[start:end], following


def _matrix(data: memoryview) -> tuple[str, Any]:
    """Name and value of a matrix: a list of dictionaries, text, a number, or an array."""
    if len(data) == 0:
        return "", np.empty(0)
    _, flags, position = _element(data, 0)
    _, sides, position = _element(data, position)
    _, name, position = _element(data, position)
    kind, count = flags[0], 1
    for side in np.frombuffer(sides, "<i4").tolist():
        count *= side
    if kind == _STRUCT:
        return bytes(name).decode("ascii"), _structures(data, position, count)
    number, body, _ = _element(data, position)
    if number not in _NUMBERS:
        raise ValueError(f"a value of type {number}")
    if kind == _CHAR and number in (1, 2, 16):
        return "", bytes(body).decode("utf-8")
    values = np.frombuffer(body, _NUMBERS[number])
    if kind == _CHAR:
        return "", "".join(map(chr, values.tolist()))
    return "", values[0] if len(values) == 1 else values


def _structures(data: memoryview, position: int, count: int) -> list[dict[str, Any]]:
    _, width_bytes, position = _element(data, position)
    _, names, position = _element(data, position)
    (width,) = struct.unpack("<i", width_bytes)
    if not 1 <= width <= 64 or not 0 <= count <= len(data) // 8:
        raise ValueError(f"{count} structures with names of {width} bytes")
    fields = [
        bytes(names[i : i + width]).split(b"\0")[0].decode("ascii")
        for i in range(0, len(names), width)
    ]
    if len(fields) > 64:
        raise ValueError(f"structures of {len(fields)} fields")
    result = []
    for _ in range(count):
        entry: dict[str, Any] = {}
        for field in fields:
            _, body, position = _element(data, position)
            # Structures within structures are none of the file's, and would have no bound.
            if len(body) > 16 and body[8] == _STRUCT:
                raise ValueError(f"a structure as {field}")
            entry[field] = _matrix(body)[1]
        result.append(entry)
    return result
