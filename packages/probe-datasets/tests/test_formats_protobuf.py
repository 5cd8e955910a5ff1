import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from probe_datasets.formats.protobuf import (
    ProtobufError,
    fields,
    floats,
    parse_example,
    read_varint,
    varints,
)

WRITE = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "record_writers.py")))
NUMBERS = [0, 1, 127, 128, 300, 65535, 2**31, 2**62, -1, -(2**63), 2**63 - 1]


def test_fields_come_in_order_with_their_wire_types():
    message = (
        WRITE.field(1, 150)
        + WRITE.field(2, b"testing")
        + WRITE.field(3, 2.5)
        + WRITE.varint(4 << 3 | 5)
        + b"abcd"
        + WRITE.field(536870911, -1)
    )
    found = list(fields(memoryview(message)))
    assert [(number, wire) for number, wire, _ in found] == [
        (1, 0),
        (2, 2),
        (3, 1),
        (4, 5),
        (536870911, 0),
    ]
    assert found[0][2] == 150
    assert found[1][2] == b"testing"
    assert found[2][2] == np.float64(2.5).tobytes()
    assert found[3][2] == b"abcd"
    assert found[4][2] == 2**64 - 1


def test_varints_of_every_length():
    data = b"".join(WRITE.varint(n) for n in NUMBERS)
    assert varints(memoryview(data)).tolist() == NUMBERS
    position, found = 0, []
    while position < len(data):
        value, position = read_varint(memoryview(data), position)
        found.append(value - 2**64 if value >> 63 else value)
    assert found == NUMBERS
    assert varints(memoryview(b"")).tolist() == []


@pytest.mark.parametrize("packed", [True, False])
def test_an_example_packed_or_not(packed: bool):
    features = {
        "pictures": [b"one", b"", b"three"],
        "integers": NUMBERS,
        "numbers": [0.0, -1.5, 3.25],
        "name": [b"x"],
    }
    found = parse_example(memoryview(WRITE.example(features, packed=packed)))
    assert list(found) == list(features)
    assert found["pictures"].bytes_list() == features["pictures"]
    assert found["integers"].ints().tolist() == NUMBERS
    assert found["numbers"].floats().tolist() == features["numbers"]


def test_lists_that_are_packed_in_parts():
    data = (
        WRITE.field(1, b"\x01\x02")
        + WRITE.field(1, 3)
        + WRITE.field(1, 4)
        + WRITE.field(1, b"\x05")
    )
    entry = WRITE.field(1, "a") + WRITE.field(2, WRITE.field(3, data))
    found = parse_example(memoryview(WRITE.field(1, WRITE.field(1, entry))))
    assert found["a"].ints().tolist() == [1, 2, 3, 4, 5]


def test_empty_and_absent_lists():
    empty = WRITE.field(1, "a") + WRITE.field(2, WRITE.field(3, b""))
    absent = WRITE.field(1, "b") + WRITE.field(2, b"")
    found = parse_example(
        memoryview(WRITE.field(1, WRITE.field(1, empty) + WRITE.field(1, absent)))
    )
    assert found["a"].ints().tolist() == []
    with pytest.raises(ProtobufError, match="a list of none"):
        found["b"].floats()
    with pytest.raises(ProtobufError, match="a list of int64, not of bytes"):
        found["a"].bytes_list()


def test_what_is_not_asked_for_is_not_decoded():
    """A list that is broken inside does not keep the others from being read."""
    broken = WRITE.field(1, "flow") + WRITE.field(2, WRITE.field(3, WRITE.field(1, b"\xff" * 30)))
    good = WRITE.field(1, "good") + WRITE.field(2, WRITE.feature([7]))
    found = parse_example(memoryview(WRITE.field(1, WRITE.field(1, broken) + WRITE.field(1, good))))
    assert found["good"].ints().tolist() == [7]
    with pytest.raises(ProtobufError, match="ends inside a number"):
        found["flow"].ints()


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (b"\x0a\xff\xff\xff\xff\x7f", "claims 34359738367 bytes, but 0 are left"),
        (b"\x0a", "ends inside"),
        (b"\xff" * 11, "more than 64 bits"),
        (b"\x08" + b"\xff" * 9 + b"\x7f", "more than 64 bits"),
        (b"\x00\x01", "field number 0"),
        (b"\x0b", "wire type 3"),
        (b"\x0d\x00", "claims 4 bytes, but 1 are left"),
    ],
)
def test_malformed_messages_are_refused(message: bytes, problem: str):
    with pytest.raises(ProtobufError, match=problem):
        list(fields(memoryview(message)))


def test_malformed_lists_are_refused():
    with pytest.raises(ProtobufError, match="no multiple of 4"):
        floats(memoryview(b"abc"))
    with pytest.raises(ProtobufError, match="more than 64 bits"):
        varints(memoryview(b"\xff" * 9 + b"\x02"))
    with pytest.raises(ProtobufError, match="more than 64 bits"):
        varints(memoryview(b"\xff" * 10 + b"\x01"))
    strings = parse_example(memoryview(WRITE.example({"a": [b"x", b"y", b"z"]})))["a"]
    assert len(strings.bytes_list(3)) == 3
    with pytest.raises(ProtobufError, match="more than 2 strings"):
        strings.bytes_list(2)
    with pytest.raises(ProtobufError, match="no features"):
        parse_example(memoryview(b""))


def test_random_bytes_are_read_or_refused():
    rng = np.random.default_rng(0)
    good = WRITE.example({"a": [1, 2, 300], "b": [b"xyz"], "c": [1.0, 2.0]})
    for _ in range(1000):
        data = bytearray(good)
        for position in rng.integers(0, len(data), 3).tolist():
            data[position] = int(rng.integers(256))
        try:
            for feature in parse_example(
                memoryview(bytes(data[: rng.integers(len(data) + 1)]))
            ).values():
                for read in (feature.ints, feature.floats, feature.bytes_list):
                    read()
        except ProtobufError:
            continue
