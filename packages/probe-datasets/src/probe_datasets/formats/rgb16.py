"""Decoding of colour PNGs with 16 bits a channel, of which PIL keeps only the upper eight."""

import os
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt16

from probe_datasets.formats.files import FETCH_AGAIN, data_error

__all__ = ["PNG_SIGNATURE", "decode_rgb16", "png_chunks", "png_size"]

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_IHDR = struct.Struct(">IIBBBBB")
_KIND = (16, 2, 0, 0, 0)  # bits, RGB, deflate, adaptive filters, not interlaced
_WHAT = "a PNG of three channels of 16 bits"


def png_size(data: bytes | memoryview, path: str | os.PathLike[str]) -> tuple[int, int]:
    """Height and width that the header of a PNG claims.

    Args:
        data: the encoded picture.
        path: where it comes from, for the message.

    Raises:
        DataError: it is no PNG.
    """
    head = bytes(data[:29])
    if len(head) < 29 or head[:8] != PNG_SIGNATURE or head[12:16] != b"IHDR":
        problem = f"has a picture that is no PNG (first bytes {head[:8].hex(' ')})"
        raise data_error(path, problem, "a PNG", FETCH_AGAIN)
    width, height = struct.unpack(">II", head[16:24])
    return height, width


def png_chunks(data: bytes, path: str | os.PathLike[str]) -> Iterator[tuple[bytes, memoryview]]:
    """The chunks of a PNG up to its end, each compared with its checksum.

    Args:
        data: the encoded picture.
        path: where it comes from, for the message.

    Yields:
        Name and content.

    Raises:
        DataError: a chunk is damaged, or the end is missing.
    """
    view, position = memoryview(data), len(PNG_SIGNATURE)
    while position + 12 <= len(data):
        end = position + 8 + int.from_bytes(data[position : position + 4])
        if end + 4 > len(data):
            break
        if zlib.crc32(view[position + 4 : end]) != int.from_bytes(data[end : end + 4]):
            problem = "has a picture with a damaged chunk"
            raise data_error(path, problem, "a PNG that matches its checksums", FETCH_AGAIN)
        name = data[position + 4 : position + 8]
        yield name, view[position + 8 : end]
        if name == b"IEND":
            return
        position = end + 4
    raise data_error(path, "has a picture that is cut short", "a whole PNG", FETCH_AGAIN)


def decode_rgb16(
    data: bytes, path: str | os.PathLike[str], *, size: tuple[int, int]
) -> UInt16[np.ndarray, "H W 3"]:
    """Values of a 16-bit colour PNG.

    Args:
        data: the encoded picture.
        path: where it comes from, for the message.
        size: (height, width) that it must have.

    Raises:
        DataError: not such a picture, cut short, damaged, or of another size.
    """
    from PIL import Image

    height, width = png_size(data, path)
    kind = _IHDR.unpack(data[16:29])[2:]
    if (height, width) != size or kind != _KIND:
        problem = f"has a picture of {height} x {width} pixels of kind {kind}"
        expected = f"{size[0]} x {size[1]} of kind {_KIND} (16-bit RGB)"
        raise data_error(path, problem, expected, FETCH_AGAIN)
    inflate, num_bytes = zlib.decompressobj(), height * (1 + width * 6)
    try:
        # One byte more than is right, so that a stream that is too long shows as such.
        deflated = b"".join(content for name, content in png_chunks(data, path) if name == b"IDAT")
        rows = inflate.decompress(deflated, num_bytes + 1)
    except zlib.error as error:
        raise data_error(path, f"has a damaged picture ({error})", _WHAT, FETCH_AGAIN) from error
    if len(rows) != num_bytes or not inflate.eof:
        problem = f"has a picture of {len(rows)} bytes or more, or without its end"
        raise data_error(path, problem, f"{num_bytes} bytes", FETCH_AGAIN)
    # PIL undoes the filters and keeps one byte of each value: the upper by the one name of the
    # pixel format, the lower by the other. It wants a zlib stream, so it gets one that only copies.
    stored = zlib.compress(rows, 0)
    try:
        upper, lower = (
            np.asarray(Image.frombytes("RGB", (width, height), stored, "zip", name))
            for name in ("RGB;16B", "RGB;16L")
        )
    except (ValueError, OSError) as error:
        raise data_error(path, f"has a damaged picture ({error})", _WHAT, FETCH_AGAIN) from error
    return upper.astype(np.uint16) << 8 | lower
