"""JPEGs whose data ends too early or too late, which their decoder would paint over."""

import io

import numpy as np
import pytest
from PIL import Image

from probe_datasets.formats.files import DataError
from probe_datasets.formats.jpeg_scan import jpeg_stream
from probe_datasets.formats.still_images import decode_rgb


def photograph(**options: object) -> bytes:
    y, x = np.mgrid[0:90, 0:120]
    noise = np.random.default_rng(0).integers(0, 60, (90, 120, 3))
    pixels = np.clip(np.stack([2 * x, 2 * y, x + y], -1) + noise, 0, 255).astype(np.uint8)
    picture = Image.fromarray(pixels).convert(str(options.pop("mode", "RGB")))
    sink = io.BytesIO()
    picture.save(sink, "JPEG", **{"quality": 90, **options})
    return sink.getvalue()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mode": "L"},
        {"mode": "CMYK"},
        {"optimize": True},
        {"progressive": True},
        {"restart_marker_blocks": 3},
        {"subsampling": 0, "quality": 30},
    ],
)
@pytest.mark.parametrize("behind", [b"", b"\0" * 100, b"\xff\xd8thumbnail\xff\xd9"])
def test_sound_pictures_are_decoded_as_ever(options: dict[str, object], behind: bytes):
    data = photograph(**options) + behind
    with Image.open(io.BytesIO(data)) as picture:
        expected = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(decode_rgb(data, "a.jpg"), expected)
    assert (jpeg_stream(data) is None) == ("progressive" in options)


def test_a_few_bytes_before_the_end_are_forgiven():
    data = photograph()
    assert data.endswith(b"\xff\xd9")
    found = decode_rgb(data[:-2] + b"\0\0\0\xff\xd9", "a.jpg")
    np.testing.assert_array_equal(found, decode_rgb(data, "a.jpg"))


@pytest.mark.parametrize(
    ("start", "stop", "put"),
    [
        (3000, 3400, b""),  # lost: the decoder would repeat the last colour
        (3000, 3000, b"\x35" * 400),  # too much: it would throw the rest away
        (3000, -2, b""),  # cut, with an end put behind
        (3000, None, b"\0" * 4000),  # cut, and filled up as an interrupted download is
        (3000, 3002, b"\xff\xd9"),  # an end in the middle
        (3000, 3002, b"\xff\xe1"),  # another marker in the middle
    ],
)
def test_missing_and_surplus_data_are_refused(start: int, stop: int | None, put: bytes):
    whole = photograph()
    rest = b"" if stop is None else whole[stop:]
    damaged = whole[:start] + put + rest
    with Image.open(io.BytesIO(damaged)) as picture:
        assert picture.size == (120, 90)
    with pytest.raises(DataError, match=r"^a\.jpg: "):
        decode_rgb(damaged, "a.jpg")


def test_restarts_in_another_order_are_refused():
    data = photograph(restart_marker_blocks=3)
    assert data.count(b"\xff\xd3") > 1
    with pytest.raises(DataError, match="restart marker 3 is out of order"):
        decode_rgb(data.replace(b"\xff\xd3", b"\xff\xd5", 1), "a.jpg")
