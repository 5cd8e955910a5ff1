"""Pictures written here, and the real oddities and damaged ones."""

import struct
import tracemalloc
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from probe_datasets.formats.files import DataError
from probe_datasets.formats.still_images import decode_indices, decode_rgb, decode_u16, read_rgb


def encode(picture: Image.Image, kind: str = "PNG") -> bytes:
    sink = BytesIO()
    picture.save(sink, kind)
    return sink.getvalue()


def test_every_kind_of_colour_becomes_rgb():
    grey = np.arange(24, dtype=np.uint8).reshape(4, 6)
    rgb = np.stack([grey, grey + 50, grey + 100], axis=-1)
    colour = Image.fromarray(rgb)
    for picture in (colour, colour.convert("RGBA"), colour.quantize(64)):
        np.testing.assert_array_equal(decode_rgb(encode(picture), "a"), rgb)
    for picture in (Image.fromarray(grey), Image.fromarray(grey).convert("LA")):
        np.testing.assert_array_equal(decode_rgb(encode(picture), "a")[..., 1], grey)
    wide = Image.fromarray(grey.astype(np.uint16) * 257)
    np.testing.assert_array_equal(decode_rgb(encode(wide), "a")[..., 2], grey)
    cmyk = encode(Image.new("CMYK", (6, 4), (0, 255, 255, 0)), "JPEG")
    red = decode_rgb(cmyk, "a")[2, 3].tolist()
    assert red[0] > 200
    assert max(red[1:]) < 60


def test_units_and_indices_keep_their_values():
    units = np.arange(24, dtype=np.uint16).reshape(4, 6) * 2700
    np.testing.assert_array_equal(decode_u16(encode(Image.fromarray(units)), "a"), units)
    pgm = b"P5\n6 4\n65535\n" + units.astype(">u2").tobytes()
    np.testing.assert_array_equal(decode_u16(pgm, "a"), units)
    grey = Image.fromarray((units // 2700).astype(np.uint8))
    np.testing.assert_array_equal(decode_indices(encode(grey), "a"), units // 2700)
    with pytest.raises(DataError, match="one channel of 16 bits"):
        decode_u16(encode(grey), "a")
    with pytest.raises(DataError, match="palette or grey"):
        decode_indices(encode(Image.new("RGB", (6, 4))), "a")


def test_a_claimed_size_allocates_nothing():
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    for side in (9000, 12_000, 60_000):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000)))
        tracemalloc.start()
        try:
            with pytest.raises(DataError, match="claims"):
                decode_rgb(bomb + chunk(b"IEND", b""), "bomb.png")
            assert tracemalloc.get_traced_memory()[1] < 10_000_000
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_cut_pictures_are_refused(kind: str):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    whole = encode(Image.fromarray(noise), kind)
    for length in range(0, len(whole) - 20, 37):
        with pytest.raises(DataError, match=r"^a\.img: "):
            decode_rgb(whole[:length], "a.img")


def test_other_formats_are_refused():
    for kind in ("GIF", "BMP", "TIFF"):
        with pytest.raises(DataError, match="no JPEG or PNG"):
            decode_rgb(encode(Image.new("RGB", (6, 4)), kind), "a")
    with pytest.raises(DataError, match="no JPEG picture"):
        decode_rgb(encode(Image.new("RGB", (6, 4))), "a", formats=("JPEG",))


def test_real_oddities(shared: Path):
    for path in sorted((shared / "images").glob("*.*")):
        picture = read_rgb(path)
        assert picture.dtype == np.uint8
        assert picture.std() > 0


def test_real_damage_is_refused(shared: Path):
    paths = sorted((shared / "images" / "damaged_jpeg").glob("*.jpg"))
    assert len(paths) == 5
    for path in paths:
        with pytest.raises(DataError, match=path.name):
            read_rgb(path)


def test_every_chunk_of_a_png_is_checked():
    """PIL looks at some of the checksums only."""
    noise = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    whole = encode(Image.fromarray(noise))
    for position in range(8, len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 4
        with pytest.raises(DataError):
            decode_rgb(bytes(damaged), "a")
