"""Reading protocol buffers off the wire without their schema, and `tf.Example` in particular.

A message is walked field by field over a view of its bytes: what is not asked for is stepped over
by its length and never copied or decoded. Every length is checked against the bytes that are there.

Reference:
    Protocol Buffers documentation, "Encoding".
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

__all__ = [
    "Feature",
    "ProtobufError",
    "fields",
    "floats",
    "parse_example",
    "read_varint",
    "varints",
]

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types."""

_FIXED = {FIXED64: 8, FIXED32: 4}
_KINDS = {1: "bytes", 2: "float", 3: "int64"}
_MAX_VARINT = 10
_MAX_FEATURES = 10_000


class ProtobufError(ValueError):
    """Bytes that are no such message; says where, and not in which file."""


def read_varint(data: memoryview, position: int) -> tuple[int, int]:
    """One variable-length integer as an unsigned number of at most 64 bits.

    Args:
        data: the bytes.
        position: where it begins.

    Returns:
        The number, and the position behind it.

    Raises:
        ProtobufError: it runs past the end, or has more than 64 bits.
    """
    value = 0
    for i, byte in enumerate(data[position : position + _MAX_VARINT]):
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            if value >> 64:
                break
            return value, position + i + 1
    ends = position + _MAX_VARINT > len(data)
    problem = "ends inside" if ends else "has more than 64 bits in"
    raise ProtobufError(f"the message {problem} the varint at byte {position}")


def fields(message: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """The fields of a message in the order in which they were written.

    Args:
        message: the bytes of the message.

    Yields:
        Number, wire type, and value: an unsigned number for a varint, else a view of its bytes.

    Raises:
        ProtobufError: the bytes are no message.
    """
    position = 0
    while position < len(message):
        key, after = read_varint(message, position)
        number, wire = key >> 3, key & 7
        if not 1 <= number < 1 << 29:
            raise ProtobufError(f"field number {number} at byte {position} does not exist")
        if wire == VARINT:
            value, position = read_varint(message, after)
            yield number, wire, value
            continue
        if wire == BYTES:
            length, after = read_varint(message, after)
        elif wire in _FIXED:
            length = _FIXED[wire]
        else:
            raise ProtobufError(f"wire type {wire} at byte {position} is not in use")
        if length > (left := len(message) - after):
            raise ProtobufError(
                f"field {number} at byte {position} claims {length} bytes, but {left} are left"
            )
        position = after + length
        yield number, wire, message[after:position]


def varints(packed: memoryview) -> Int64[np.ndarray, " n"]:
    """All integers of a packed list, as signed numbers of 64 bits.

    Args:
        packed: the bytes of the list.

    Raises:
        ProtobufError: the last number is cut, or one has more than 64 bits.
    """
    data = np.frombuffer(packed, np.uint8)
    last = np.flatnonzero(data < 0x80)
    if len(data) and (not len(last) or last[-1] != len(data) - 1):
        raise ProtobufError("a packed list ends inside a number")
    first = np.concatenate([np.zeros(min(1, len(last)), np.int64), last[:-1] + 1])
    lengths = last - first + 1
    longest = int(lengths.max(initial=0))
    if longest > _MAX_VARINT or (longest == _MAX_VARINT and data[last[lengths == 10]].max() > 1):
        raise ProtobufError("a packed list has a number of more than 64 bits")
    values = np.zeros(len(last), np.uint64)
    for i in range(longest):
        more = np.flatnonzero(lengths > i) if i else slice(None)
        values[more] |= (data[first[more] + i] & np.uint64(0x7F)) << np.uint64(7 * i)
    return values.view(np.int64)


def floats(packed: memoryview) -> Float32[np.ndarray, " n"]:
    """All 32-bit numbers of a packed list.

    Args:
        packed: the bytes of the list.

    Raises:
        ProtobufError: the last number is cut.
    """
    if len(packed) % 4:
        raise ProtobufError(f"a packed list of floats has {len(packed)} bytes, no multiple of 4")
    return np.frombuffer(packed, "<f4").astype(np.float32)


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature of a `tf.Example`: a list that is decoded when it is asked for."""

    kind: str
    """"bytes", "float", "int64", or "none" when it was written without a list."""
    data: memoryview
    """The list, still encoded."""

    def bytes_list(self, limit: int = 1 << 16) -> list[memoryview]:
        """Views of the byte strings.

        Args:
            limit: how many there may be; a view takes more memory than a short string.

        Raises:
            ProtobufError: it is a list of numbers, too long, or malformed.
        """
        found: list[memoryview] = []
        for _, value in self._values("bytes", BYTES):
            if len(found) == limit:
                raise ProtobufError(f"a list has more than {limit} strings")
            if isinstance(value, memoryview):
                found.append(value)
        return found

    def floats(self) -> Float32[np.ndarray, " n"]:
        """The numbers of a float list.

        Raises:
            ProtobufError: it is another list, or malformed.
        """
        parts = [floats(v) for _, v in self._values("float", FIXED32) if isinstance(v, memoryview)]
        return parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, np.float32), *parts])

    def ints(self) -> Int64[np.ndarray, " n"]:
        """The numbers of an integer list.

        Raises:
            ProtobufError: it is another list, or malformed.
        """
        parts, single = [], array("Q")
        for _, value in self._values("int64", VARINT):
            if isinstance(value, int):
                single.append(value)
                continue
            parts += [np.array(single, np.uint64).view(np.int64), varints(value)]
            single = array("Q")
        parts.append(np.array(single, np.uint64).view(np.int64))
        return np.concatenate(parts)

    def _values(self, kind: str, unpacked: int) -> Iterator[tuple[int, int | memoryview]]:
        """Wire type and value of the entries, packed or one by one."""
        if self.kind != kind:
            raise ProtobufError(f"a feature is a list of {self.kind}, not of {kind}")
        for number, wire, value in fields(self.data):
            if number != 1:
                continue
            if wire not in (unpacked, BYTES):
                raise ProtobufError(f"a list of {kind} has an entry of wire type {wire}")
            yield wire, value


def parse_example(record: memoryview) -> dict[str, Feature]:
    """The features of a `tf.Example` by name, none of them decoded.

    Args:
        record: the bytes of the example.

    Raises:
        ProtobufError: the bytes are no `tf.Example`.
    """
    found: dict[str, Feature] = {}
    for features in _messages(record, 1):
        for entry in _messages(features, 1):
            name, value = b"", memoryview(b"")
            for number, wire, part in fields(entry):
                if wire == BYTES and isinstance(part, memoryview):
                    name, value = (bytes(part), value) if number == 1 else (name, part)
            kind, data = "none", memoryview(b"")
            for number, wire, part in fields(value):
                if wire == BYTES and isinstance(part, memoryview) and number in _KINDS:
                    kind, data = _KINDS[number], part
            found[name.decode("utf-8", "backslashreplace")] = Feature(kind, data)
            if len(found) > _MAX_FEATURES:
                raise ProtobufError(f"the record has more than {_MAX_FEATURES} features")
    if not found:
        raise ProtobufError("the record holds no features, so it is no tf.Example")
    return found


def _messages(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """The submessages of one field number."""
    for number, wire, value in fields(message):
        if number == wanted:
            if wire != BYTES or not isinstance(value, memoryview):
                raise ProtobufError(f"field {number} has wire type {wire}, not a message")
            yield value
