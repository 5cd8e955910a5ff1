"""Pictures whose metadata is damaged, or stands where their colours are described."""

import io
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from probe_datasets.formats.files import DataError
from probe_datasets.formats.jpeg_header import without_metadata
from probe_datasets.formats.still_images import decode_rgb


def encode(mode: str = "RGB", **options: object) -> bytes:
    pixels = np.mgrid[0:24, 0:32].sum(0)[..., None] * 4 % 256 * [1, 0, 0] + [0, 60, 200]
    stream = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(stream, "JPEG", **options)
    return stream.getvalue()


def segment(kind: int, body: bytes) -> bytes:
    return bytes([0xFF, kind]) + (len(body) + 2).to_bytes(2) + body


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "L"])
def test_pixels_are_the_same_without_metadata(mode: str):
    plain = encode(mode)
    fields = [segment(0xE1, b"Exif\0\0junk"), segment(0xE2, b"MPF\0junk"), segment(0xFE, b"hello")]
    other = plain[:2] + b"".join(fields) + plain[2:]
    for data in (plain, other):
        left = without_metadata(data)
        assert all(field not in left for field in fields)
        assert without_metadata(left) == left
        assert (decode_rgb(data, "a.jpg") == decode_rgb(plain, "a.jpg")).all()
    assert (b"Adobe" in without_metadata(other)) == (mode == "CMYK")


def test_damaged_exif_neither_warns_nor_fails():
    """Warnings are errors in these tests, and PIL warns of damaged EXIF."""
    exif = Image.Exif()
    exif[271], exif[274], exif[282], exif[296] = "maker", 6, 72.0, 2
    whole, chance = exif.tobytes(), random.Random(0)
    pixels = decode_rgb(encode(), "a.jpg")
    for k in range(60):
        content = bytearray(whole)
        for _ in range(k % 6):
            content[chance.randrange(6, len(content))] = chance.randrange(256)
        if k % 2:
            content = content[: chance.randrange(8, len(content))]
        # The camera's orientation is not applied, as in the published results on these data sets.
        assert (decode_rgb(encode(exif=bytes(content)), "a.jpg") == pixels).all()


def test_a_header_that_cannot_be_followed_stays():
    whole = encode(comment=b"x" * 50)
    for data in (b"\xff\xd8", whole[:30], b"\xff\xd8\xff\xfe\x00\x01ab", b"\xff\xd8junk"):
        assert without_metadata(data) == data
        with pytest.raises(DataError):
            decode_rgb(data, Path("a.jpg"))
