"""Decoding of JPEG and PNG pictures: colour, 16-bit depth and palette indices.

Axes: `H` rows from the top, `W` columns from the left, `3` red, green, blue; bytes 0 to 255.

A picture is decoded only when its header gives the size that was expected, or one within bounds,
so that a few bytes cannot ask for gigabytes. Only the formats named are tried.

Every chunk of a PNG is compared with its checksum. A PGM has none, and neither has a JPEG, but of a
JPEG with one baseline scan, as cameras write them, data that ends too early or too late is refused.
Other damage inside the pixels of these two cannot be told from a picture.
"""

import io
import os
import struct
import zlib
from typing import Any

import numpy as np
from jaxtyping import UInt8, UInt16

from probe_datasets.formats.files import FETCH_AGAIN, DataError, data_error, read_bytes
from probe_datasets.formats.jpeg_header import without_metadata
from probe_datasets.formats.jpeg_scan import JpegStream, jpeg_stream
from probe_datasets.formats.rgb16 import PNG_SIGNATURE, png_chunks

__all__ = ["decode_indices", "decode_rgb", "decode_u16", "read_rgb"]

MAX_PIXELS = 64_000_000
"""Pixels beyond which a picture is refused; the largest photographs of the datasets have 25 M."""
MAX_BYTES = 1 << 28
_PIXELS_PER_BYTE = {"JPEG": 1024, "PNG": 8300}  # the most that a picture of one level comes to
_FORMATS = ("JPEG", "PNG")


def decode_rgb(
    data: bytes,
    path: str | os.PathLike[str],
    *,
    size: tuple[int, int] | None = None,
    formats: tuple[str, ...] = _FORMATS,
) -> UInt8[np.ndarray, "H W 3"]:
    """Colour of a JPEG or PNG; grey, palette, CMYK and transparent pictures become RGB.

    Args:
        data: the encoded picture.
        path: where it comes from, for the message.
        size: (height, width) that it must have.
        formats: names of the formats allowed, as PIL spells them.

    Raises:
        DataError: not such a picture, cut short, damaged, or of another size.
    """
    picture = _decoded(data, path, size, formats)
    if picture.mode == "I;16":  # PIL would clip 16 bits to 255
        return np.repeat((np.array(picture) >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if picture.mode == "P" or "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return np.array(picture.convert("RGB"))


def read_rgb(
    path: str | os.PathLike[str], *, size: tuple[int, int] | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    """Colour of a JPEG or PNG file; see `decode_rgb`.

    Args:
        path: the file.
        size: (height, width) that it must have.

    Raises:
        DataError: not such a picture, cut short, damaged, or of another size.
    """
    return decode_rgb(read_bytes(path, "a JPEG or PNG", max_bytes=MAX_BYTES), path, size=size)


def decode_u16(
    data: bytes, path: str | os.PathLike[str], *, size: tuple[int, int] | None = None
) -> UInt16[np.ndarray, "H W"]:
    """Values of a grey 16-bit PNG or PGM, as depth cameras store them.

    Args:
        data: the encoded picture.
        path: where it comes from, for the message.
        size: (height, width) that it must have.

    Raises:
        DataError: not such a picture, cut short, damaged, of fewer bits or of another size.
    """
    picture = _decoded(data, path, size, ("PNG", "PPM"))
    # PIL reads a 16-bit PGM as 32-bit numbers.
    if not (picture.mode == "I;16" or (picture.mode == "I" and picture.format == "PPM")):
        problem = f"has pixels of kind {picture.mode!r}"
        raise data_error(path, problem, "one channel of 16 bits", "pass the depth picture")
    values = np.array(picture)
    return values.astype(np.uint16)


def decode_indices(
    data: bytes, path: str | os.PathLike[str], *, size: tuple[int, int] | None = None
) -> UInt8[np.ndarray, "H W"]:
    """Palette indices of a PNG, as segmentation masks store them; the colours are not looked up.

    Args:
        data: the encoded picture.
        path: where it comes from, for the message.
        size: (height, width) that it must have.

    Raises:
        DataError: not such a picture, cut short, damaged, without indices or of another size.
    """
    picture = _decoded(data, path, size, ("PNG",))
    if picture.mode == "1":
        picture = picture.convert("L").point([0] * 255 + [1])
    if picture.mode not in ("P", "L"):
        problem = f"has pixels of kind {picture.mode!r}"
        raise data_error(path, problem, "a palette or grey PNG of indices", "pass the mask")
    return np.array(picture)


def _decoded(
    data: bytes,
    path: str | os.PathLike[str],
    size: tuple[int, int] | None,
    formats: tuple[str, ...],
) -> Any:
    """A PIL picture, checked by its header before its pixels are decoded."""
    from PIL import Image, UnidentifiedImageError

    expected = " or ".join(formats)
    try:
        stream = _stream(data, path)
        picture = Image.open(stream, formats=formats)
        width, height = picture.size
        if size is not None and (height, width) != size:
            problem = f"has a picture of {height} x {width} pixels"
            raise data_error(path, problem, f"{size[0]} x {size[1]}", FETCH_AGAIN)
        if width * height > min(
            MAX_PIXELS, len(data) * _PIXELS_PER_BYTE.get(str(picture.format), 8)
        ):
            problem = f"claims {height} x {width} pixels in {len(data)} bytes"
            raise data_error(path, problem, f"at most {MAX_PIXELS} pixels", "scale it down")
        picture.load()
        if isinstance(stream, JpegStream) and not stream.exhausted:
            problem = "has a JPEG whose data goes on behind its last pixel"
            raise data_error(path, problem, "an undamaged picture", FETCH_AGAIN)
        return picture
    except DataError:
        raise
    except UnidentifiedImageError as error:
        problem = f"is no {expected} picture (first bytes {data[:8].hex(' ')})"
        raise data_error(path, problem, f"a {expected}", FETCH_AGAIN) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        problem = "claims more pixels than can be right"
        raise data_error(path, problem, f"at most {MAX_PIXELS}", "scale it down") from error
    # What PIL's readers raise on damage: OSError mostly, others from their parsing of chunks.
    except (
        *(OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError),
        *(OverflowError, MemoryError, zlib.error, struct.error),
    ) as error:
        problem = f"cannot be decoded ({error})"
        raise data_error(path, problem, f"a {expected}", FETCH_AGAIN) from error


def _stream(data: bytes, path: str | os.PathLike[str]) -> io.BytesIO:
    """What PIL reads the picture from.

    A PNG's checksums, which it passes over, are compared; a JPEG's EXIF, over whose damage it
    warns, is taken off.
    """
    if data.startswith(PNG_SIGNATURE):
        for _ in png_chunks(data, path):
            pass
    if not data.startswith(b"\xff\xd8"):
        return io.BytesIO(data)
    data = without_metadata(data)
    return jpeg_stream(data) or io.BytesIO(data)
