"""Small files that claim or unfold to large ones: each is refused within bounded memory."""

import io
import runpy
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from probe_datasets.formats.davis import read_mask
from probe_datasets.formats.files import DataError
from probe_datasets.formats.imagenet_devkit import read_devkit_order
from probe_datasets.formats.movi_e import MoviExample
from probe_datasets.formats.parquet_pages import check_pages, read_columns
from probe_datasets.formats.rgb16 import decode_rgb16
from probe_datasets.formats.rgbd import read_depth
from probe_datasets.formats.still_images import decode_rgb, read_rgb
from probe_datasets.formats.tapvid import read_point_video
from probe_datasets.formats.tfrecord import record_index
from probe_datasets.formats.waymo_v2 import open_v2

WRITE = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "record_writers.py")))
WAYMO = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "test_formats_waymo.py")))
BOUND = 30_000_000  # bytes
ZEROS = zlib.compress(bytes(50_000_000))


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(side: int, bits: int, colour: int, *more: bytes, data: bytes = ZEROS) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, bits, colour, 0, 0, 0))
    chunks = head + b"".join(more) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def jpeg(side: int) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (16, 16)).save(sink, "JPEG")
    data = bytearray(sink.getvalue())
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", side, side)
    return bytes(data)


def refused(tmp_path: Path, content: bytes, read: Callable[[Path], object]) -> None:
    path = tmp_path / "bomb"
    path.write_bytes(content)
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="bomb"):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < BOUND + len(content)
    finally:
        tracemalloc.stop()
    assert pool.bytes_allocated() <= before


@pytest.mark.parametrize("side", [7_000, 60_000, 1 << 31])
def test_pictures_that_claim_to_be_large(tmp_path: Path, side: int):
    small = zlib.compress(bytes(1000))
    refused(tmp_path, png(side, 8, 2, data=small), read_rgb)
    refused(tmp_path, png(side, 16, 0, data=small), read_depth)
    palette = chunk(b"PLTE", bytes(6))
    refused(tmp_path, png(side, 8, 3, palette, data=small), read_mask)
    refused(tmp_path, f"P5\n{side} {side}\n65535\n".encode() + bytes(100), read_depth)
    if side < 65536:
        refused(tmp_path, jpeg(side), read_rgb)


def test_pictures_that_unfold(tmp_path: Path):
    """What surplus there is of pixels, texts and profiles is not unfolded."""
    wide = png(2, 16, 2)
    refused(tmp_path, wide, lambda p: decode_rgb16(p.read_bytes(), p, size=(2, 2)))
    for kind, head in ((b"zTXt", b"a\0\0"), (b"iCCP", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0")):
        data = png(2, 8, 2, chunk(kind, head + ZEROS), data=zlib.compress(bytes(14)))
        tracemalloc.start()
        try:
            decode_rgb(data, "bomb")
        except DataError:
            pass
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < BOUND


def test_archives_that_unfold(tmp_path: Path):
    arrays = {name: np.zeros((8, 100, 100, 3), np.uint8) for name in ("points", "occluded")}
    np.savez_compressed(tmp_path / "a.npz", video=np.zeros((900, 100, 100, 3), np.uint8), **arrays)
    refused(tmp_path, (tmp_path / "a.npz").read_bytes(), read_point_video)
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:  # a header that claims 10^12 numbers
        for name in ("video", "points", "occluded"):
            part = io.BytesIO()
            header = {"descr": "|u1", "fortran_order": False, "shape": (10**6, 10**6, 1, 3)}
            np.lib.format.write_array_header_1_0(part, header)
            archive.writestr(f"{name}.npy", part.getvalue())
    refused(tmp_path, sink.getvalue(), read_point_video)


def test_matrices_that_unfold(tmp_path: Path):
    packed = zlib.compress(bytes(90_000_000))
    content = b"MATLAB".ljust(124) + b"\x00\x01IM" + struct.pack("<II", 15, len(packed)) + packed
    path = tmp_path / "bomb"
    path.write_bytes(content)
    with pytest.raises(DataError, match="too large"):
        read_devkit_order(path)


def test_records_that_claim_to_be_long(tmp_path: Path):
    length = struct.pack("<Q", 1 << 40)
    refused(tmp_path, length + WRITE.masked_crc(length) + bytes(100), record_index)
    features = WRITE.movi_features()["features"]
    small = WRITE.png(np.zeros((1, 1, 3), np.uint8))
    features["video"] = [small[:16] + struct.pack(">II", 9000, 9000) + small[24:]] * 3
    record = memoryview(WRITE.example(features))
    with pytest.raises(DataError, match="9000 x 9000"):
        MoviExample(record, "here")


# ------------------------------------------------------------------------------------- parquet


def varint(number: int) -> bytes:
    return WRITE.varint(number << 1)


@pytest.mark.parametrize("claim", [1 << 24, 1 << 40])
def test_tables_that_claim_many_rows(tmp_path: Path, claim: int):
    path = WAYMO.write_v2(tmp_path, group=35)["camera_image"]
    content = path.read_bytes()
    size = int.from_bytes(content[-8:-4], "little")
    body, footer = content[: -8 - size], content[-8 - size : -8]
    footer = footer.replace(b"\x16" + varint(35), b"\x16" + varint(claim))
    assert len(footer) > size
    bomb = body + footer + struct.pack("<I", len(footer)) + b"PAR1"
    refused(tmp_path, bomb, lambda p: open_v2(p, None))


def test_pages_that_claim_to_be_large(tmp_path: Path):
    """Arrow would ask for all of it; the claim fits neither the column nor the file."""
    table = pa.table({"a": pa.array(np.random.default_rng(0).integers(0, 1 << 60, 5000))})
    parquet.write_table(table, tmp_path / "a", compression="none", use_dictionary=False)
    content = bytearray((tmp_path / "a").read_bytes())
    with open(tmp_path / "a", "rb") as file:
        ((column,),) = ([*group.values()] for group in read_columns(file))
        check_pages(file, column)
    # A page header begins with the kind, the unpacked and the stored length.
    assert content[4:7] == b"\x15\x00\x15"
    for start in (7, 11):
        damaged = bytearray(content)
        assert damaged[start + 2] < 128  # the last byte of a length
        damaged[start + 2] = 127
        (tmp_path / "damaged").write_bytes(damaged)
        with (
            open(tmp_path / "damaged", "rb") as file,
            pytest.raises(ValueError, match="a page at byte 4"),
        ):
            check_pages(file, column)
