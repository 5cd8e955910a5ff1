"""A `meta.mat` written here from the format's description, and one by SciPy where it is there."""

import contextlib
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probe_datasets.formats.files import DataError
from probe_datasets.formats.imagenet_devkit import read_devkit_order

# Classes in an order of their own, then ids of inner nodes that no picture has.
ORDER = [f"n{(7 * i) % 1000 + 1_000_000:08d}" for i in range(1000)]
FIELDS = ("ILSVRC2012_ID", "WNID", "words", "num_children", "children")


def synsets(num_classes: int = 1000) -> list[tuple[Any, ...]]:
    leaves = [(i + 1, ORDER[i], "caf\u00e9, bar", 0, []) for i in range(num_classes)]
    return [*leaves, (1001, "n00001740", "entity", 3, [5, 6, 7])]


def element(kind: int, body: bytes) -> bytes:
    if 0 < len(body) <= 4:
        return struct.pack("<HH", kind, len(body)) + body.ljust(4, b"\0")
    return struct.pack("<II", kind, len(body)) + body + bytes(-len(body) % 8)


def matrix(kind: int, sides: tuple[int, int], body: bytes, name: bytes = b"") -> bytes:
    flags = element(6, struct.pack("<II", kind, 0))
    return element(14, flags + element(5, struct.pack("<ii", *sides)) + element(1, name) + body)


def value(content: Any) -> bytes:
    if isinstance(content, str):  # as UTF-8 or as 16 bits a character
        if content.isascii():
            return matrix(4, (1, len(content)), element(16, content.encode()))
        return matrix(4, (1, len(content)), element(4, content.encode("utf-16-le")))
    if isinstance(content, list):  # doubles, which MATLAB stores in as few bytes as do
        return matrix(6, (1, len(content)), element(2, bytes(content)))
    return matrix(6, (1, 1), element(4, struct.pack("<H", content)))


def write_meta(path: Path, entries: list[tuple[Any, ...]], *, packed: bool = True) -> Path:
    names = b"".join(name.encode().ljust(32, b"\0") for name in FIELDS)
    body = element(5, struct.pack("<i", 32)) + element(1, names)
    body += b"".join(value(content) for entry in entries for content in entry)
    whole = matrix(2, (len(entries), 1), body, b"synsets")
    other = matrix(6, (1, 1), element(9, struct.pack("<d", 1.0)), b"version")
    if packed:
        content = zlib.compress(whole)
        whole = struct.pack("<II", 15, len(content)) + content
    header = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"
    path.write_bytes(header + other + whole)
    return path


@pytest.mark.parametrize("packed", [True, False])
def test_numbers_follow_the_kit(tmp_path: Path, packed: bool):
    path = write_meta(
        tmp_path / "meta.mat", random.Random(0).sample(synsets(), 1001), packed=packed
    )
    assert list(read_devkit_order(path)) == ORDER


def test_a_file_of_scipy(tmp_path: Path):
    scipy_io = pytest.importorskip("scipy.io")
    entries = synsets()
    array = np.empty((len(entries), 1), dtype=[(name, object) for name in FIELDS])
    for i, entry in enumerate(entries):
        array[i, 0] = tuple(
            float(item) if isinstance(item, int) else np.array(item) for item in entry
        )
    for compressed in (False, True):
        path = tmp_path / f"meta{compressed}.mat"
        scipy_io.savemat(path, {"synsets": array}, do_compression=compressed)
        assert list(read_devkit_order(path)) == ORDER


def test_what_does_not_fit_is_refused(tmp_path: Path):
    path = write_meta(tmp_path / "meta.mat", synsets(999))
    with pytest.raises(DataError, match="has 999 classes"):
        read_devkit_order(path)
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(200))
    with pytest.raises(DataError, match="version 5"):
        read_devkit_order(path)
    bomb = zlib.compress(bytes(1 << 27))
    header = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"
    path.write_bytes(header + struct.pack("<II", 15, len(bomb)) + bomb)
    with pytest.raises(DataError, match="too large"):
        read_devkit_order(path)


def test_damage_is_refused_or_harmless(tmp_path: Path):
    path = write_meta(tmp_path / "meta.mat", synsets())
    whole, chance = path.read_bytes(), random.Random(0)
    for k in range(60):
        content = bytearray(whole)
        if k % 2:
            content = content[: chance.randrange(1, len(whole))]
        else:
            content[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
        with contextlib.suppress(DataError):
            assert list(read_devkit_order(path)) == ORDER  # the packed part has a checksum
