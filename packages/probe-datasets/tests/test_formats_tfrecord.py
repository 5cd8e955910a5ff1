import runpy
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from probe_datasets.formats.crc32c import _EXPONENTS, crc32c
from probe_datasets.formats.files import DataError
from probe_datasets.formats.tfrecord import masked_crc32c, read_prefix, read_record, record_index

WRITE = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "record_writers.py")))


@pytest.fixture
def records() -> list[bytes]:
    rng = np.random.default_rng(0)
    return [rng.bytes(n) for n in (100, 1, 0, 5000, 64)]


@pytest.fixture
def path(tmp_path: Path, records: list[bytes]) -> Path:
    return WRITE.write_tfrecord(tmp_path / "a.tfrecord", records)


def test_crc_gives_the_published_values():
    """RFC 3720, appendix B.4, and the usual check value."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"") == 0


def test_crc_folds_by_a_multiple_of_its_polynomial():
    powers = {}
    remainder = 1
    for exponent in range(max(_EXPONENTS) + 1):
        powers[exponent] = remainder
        remainder = remainder << 1 ^ (0x11EDC6F41 if remainder >> 31 else 0)
    first, second, third = (powers[e] for e in _EXPONENTS)
    assert first ^ second ^ third ^ powers[0] == 0


@pytest.mark.parametrize("size", [1, 63, 64, 65, 42240, 42241, 50000, 2_800_003])
def test_crc_of_any_length_is_that_of_the_definition(size: int):
    """Messages too short to fold, and such as are folded once at every scale."""
    data = np.random.default_rng(size).bytes(size)
    assert struct.pack("<I", masked_crc32c(data)) == WRITE.masked_crc(data)
    assert crc32c(memoryview(data)) == crc32c(data)


def test_records_are_found_and_read(path: Path, records: list[bytes]):
    index = record_index(path)
    assert index[:, 1].tolist() == [len(r) for r in records]
    for (offset, length), record in zip(index.tolist(), records, strict=True):
        assert read_record(path, offset, length) == record
        assert read_prefix(path, offset, min(length, 7)) == record[:7]


def test_the_index_reads_no_data(path: Path, records: list[bytes]):
    """Data that are all wrong leave the index as it was; reading them shows it."""
    index = record_index(path)
    content = bytearray(path.read_bytes())
    for offset, length in index.tolist():
        content[offset + 12 : offset + 12 + length] = bytes(length)
    path.write_bytes(content)
    assert np.array_equal(record_index(path), index)
    with pytest.raises(DataError, match="does not match its checksum"):
        read_record(path, *index[0].tolist())
    assert read_record(path, *index[0].tolist(), verify=False) == bytes(100)


@pytest.mark.slow
def test_every_flipped_bit_is_found(path: Path, records: list[bytes]):
    """In headers by the index; in data and their checksums by reading."""
    index, content = record_index(path), path.read_bytes()
    rng = np.random.default_rng(1)
    headers = {offset + i for offset, _ in index.tolist() for i in range(12)}
    for position in [*sorted(headers), *rng.integers(0, len(content), 800).tolist()]:
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        if position in headers:
            with pytest.raises(DataError, match=r"a\.tfrecord"):
                record_index(path)
        else:
            assert np.array_equal(record_index(path), index)
        rank = int(np.searchsorted(index[:, 0], position, side="right")) - 1
        for i, (offset, length) in enumerate(index.tolist()):
            if i == rank:
                with pytest.raises(DataError, match=f"byte {offset}|no TFRecord"):
                    read_record(path, offset, length)
            else:
                assert read_record(path, offset, length) == records[i]


def test_every_cut_is_found(path: Path):
    """Between two records a cut leaves a whole, shorter file, which is for the reader's count."""
    index, content = record_index(path), path.read_bytes()
    whole = set(index[:, 0].tolist())
    for size in np.random.default_rng(2).integers(1, len(content), 200).tolist():
        path.write_bytes(content[:size])
        if size in whole:
            assert len(record_index(path)) == sorted(whole).index(size)
        else:
            with pytest.raises(DataError, match=r"cut short|ends inside"):
                record_index(path)


def test_a_length_beyond_the_file_allocates_nothing(tmp_path: Path):
    length = struct.pack("<Q", 1 << 62)
    path = tmp_path / "huge.tfrecord"
    path.write_bytes(length + WRITE.masked_crc(length) + bytes(100))
    with pytest.raises(DataError, match="cut short"):
        record_index(path)
    with pytest.raises(DataError, match="cut short"):
        read_record(path, 0, 1 << 62)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\x1f\x8b\x08\x00" + bytes(60), "is compressed"),
        (b"\x78\x9c" + bytes(60), "is compressed"),
        (b"some text that is long enough", "is no TFRecord file"),
        (b"short", "ends inside the header"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        record_index(path)


def test_a_wrong_place_is_refused(path: Path):
    with pytest.raises(DataError, match="no such file"):
        record_index(path.with_name("none"))
    offset, length = record_index(path)[1].tolist()
    with pytest.raises(DataError, match="another length"):
        read_record(path, offset, length + 1)
    with pytest.raises(DataError, match="damaged in the header"):
        read_record(path, offset + 1, length)
    with pytest.raises(DataError, match="ends inside the header"):
        read_record(path, 1 << 40, length)
