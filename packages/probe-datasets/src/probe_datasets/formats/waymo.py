"""Waymo Open segments in their two native forms: TFRecords of Frame messages, and parquet tables.

Opening a segment reads headers or key columns; a frame's picture is read when it is asked for.

Reference:
    Sun et al. 2020, "Scalability in perception for autonomous driving: Waymo Open Dataset"; its
    dataset.proto and label.proto (v1) and the component schemas of its v2 release.
"""

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Bool, Int64

from probe_datasets.formats.files import FETCH_AGAIN, data_error
from probe_datasets.formats.protobuf import ProtobufError, fields, read_varint
from probe_datasets.formats.tfrecord import HEADER_SIZE, read_prefix, read_record, record_index
from probe_datasets.formats.waymo_boxes import WaymoBoxes, corners

__all__ = ["CAMERAS", "WaymoFrame", "WaymoV1Segment", "labelled_frames", "open_v1", "parse_frame"]

CAMERAS = {"FRONT": 1, "FRONT_LEFT": 2, "FRONT_RIGHT": 3, "SIDE_LEFT": 4, "SIDE_RIGHT": 5}
"""Numbers of the cameras."""

_PREFIX = 1 << 16  # bytes; the context, which precedes the time, has about a tenth of that
_WINDOW, _LONGEST_HEAD = 1 << 14, 20  # bytes
_MAX_PIXEL, _MAX_LABELS = 1e5, 10_000
_UNEVEN = 0.3  # of the usual step; what moves a frame to another place in time moves it by more
_WHAT = "a frame of Waymo Open"


@dataclass(frozen=True, kw_only=True, slots=True)
class WaymoFrame:
    """One picture of one camera."""

    context: str
    """Name of the segment."""
    timestamp_micros: int
    """Time of the frame."""
    image: bytes
    """JPEG."""
    labels: WaymoBoxes | None
    """2-D labels; None where the camera was not labelled, which differs from no objects."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WaymoV1Segment:
    """A segment as a TFRecord file."""

    path: Path
    """The file."""
    camera: str
    """Name of the camera."""
    timestamps: Int64[np.ndarray, " n"]
    """Microseconds of each frame, ascending."""
    index: Int64[np.ndarray, "n 2"]
    """Offset and length of each frame's record, in the order of time."""

    def frames(self, ranks: Sequence[int]) -> list[WaymoFrame]:
        """Frames by their rank in time; reads those alone.

        Args:
            ranks: from 0 to the number of frames less one.

        Raises:
            DataError: a record is damaged, is not the one that was indexed, or lacks the camera.
        """
        found = []
        for rank in ranks:
            offset, length = self.index[rank].tolist()
            source = f"{self.path} (record at byte {offset})"
            frame = parse_frame(read_record(self.path, offset, length), source, self.camera)
            if frame.timestamp_micros != self.timestamps[rank]:
                problem = f"has the time {frame.timestamp_micros}"
                expected = f"{self.timestamps[rank]}, as indexed"
                raise data_error(source, problem, expected, "index it again")
            found.append(frame)
        return found


def open_v1(path: str | os.PathLike[str], camera: str = "FRONT") -> WaymoV1Segment:
    """Index a TFRecord segment; reads the beginning of each record, none of the pictures.

    No checksum covers a beginning alone, so where the times are not evenly spaced, as damage makes
    them, the whole records are read and compared with their checksums.

    Args:
        path: a `segment-*.tfrecord` file.
        camera: one of `CAMERAS`.

    Raises:
        DataError: the file is missing, damaged in a header, or holds no frames of a segment.
        ValueError: unknown camera.
    """
    check_camera(camera)
    index = record_index(path)
    times = np.array([_time(path, *record) for record in index.tolist()], np.int64)
    steps = np.diff(np.sort(times)).astype(np.float64)
    usual = float(np.median(steps)) if len(steps) else 0.0
    if (np.abs(steps - usual) > _UNEVEN * usual).any():
        times = np.array([_time(path, *record, verify=True) for record in index.tolist()], np.int64)
    timestamps, order = ascending(times, path)
    return WaymoV1Segment(path=Path(path), camera=camera, timestamps=timestamps, index=index[order])


def labelled_frames(segment: WaymoV1Segment) -> tuple[str, Bool[np.ndarray, " n"]]:
    """Name of a segment, and in which of its frames the camera was labelled, objects or none.

    Steps from field to field of each record, so that pictures and lasers are not read. A record
    without labels is read and compared with its checksum, for damage can look like that.

    Args:
        segment: the segment.

    Raises:
        DataError: a record is damaged or has no name, or two have different names.
    """
    contexts: set[str] = set()
    labelled = np.zeros(len(segment.index), bool)
    try:
        with open(segment.path, "rb", buffering=0) as file:
            for rank, (offset, length) in enumerate(segment.index.tolist()):
                start = offset + HEADER_SIZE
                for number, value in _skimmed(file, start, start + length):
                    if number == 1:
                        contexts.add(_text(value, 1))
                    elif _number(value, 1) == CAMERAS[segment.camera]:
                        labelled[rank] = True
                if not labelled[rank]:
                    read_record(segment.path, offset, length)
    except ProtobufError as error:
        raise data_error(segment.path, f"is malformed ({error})", _WHAT, FETCH_AGAIN) from error
    except OSError as error:
        problem = f"cannot be read ({error.strerror or error})"
        raise data_error(segment.path, problem, _WHAT, "see to its permissions") from error
    if len(contexts) != 1 or "" in contexts:
        problem = f"has frames of {len(contexts - {''})} segments"
        raise data_error(segment.path, problem, "the frames of one", FETCH_AGAIN)
    return contexts.pop(), labelled


def _skimmed(file: BinaryIO, start: int, end: int) -> Iterator[tuple[int, memoryview]]:
    """Contexts and labels of cameras in the record that lies between two places of a file."""
    window, begins = b"", start
    while start < end:
        if start + _LONGEST_HEAD > begins + len(window):
            file.seek(start)
            window, begins = file.read(min(_WINDOW, end - start)), start
        head = memoryview(window)[start - begins :]
        key, position = read_varint(head, 0)
        number, wire = key >> 3, key & 7
        if wire == 0:
            start += read_varint(head, position)[1]
            continue
        if wire not in (1, 2, 5):
            raise ProtobufError(f"wire type {wire} is not in use")
        length = 8 if wire == 1 else 4
        if wire == 2:
            length, position = read_varint(head, position)
        start += position
        if not number or length > end - start:
            raise ProtobufError(f"field {number} claims {length} bytes, but {end - start} are left")
        if wire == 2 and number in (1, 8):
            file.seek(start)
            yield number, memoryview(file.read(length))
        start += length


def check_camera(camera: str) -> None:
    """Raise unless a camera is known.

    Args:
        camera: a name.

    Raises:
        ValueError: unknown camera.
    """
    if camera not in CAMERAS:
        raise ValueError(f"unknown camera {camera!r}; known: {', '.join(CAMERAS)}")


def check_context(context: str, source: str | os.PathLike[str]) -> None:
    """Raise unless the name of a segment is one part of a path, as files are named by it.

    Args:
        context: the name.
        source: where it comes from, for the message.

    Raises:
        DataError: it is none.
    """
    if context.startswith(".") or any(c in context for c in "/\\\0"):
        problem = f"names a segment {context[:60]!r}"
        raise data_error(source, problem, "a plain name", FETCH_AGAIN)


def ascending(
    times: Int64[np.ndarray, " n"], path: str | os.PathLike[str]
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Times in ascending order, and the order that makes them so.

    Args:
        times: microseconds of each frame.
        path: the file, for the message.

    Raises:
        DataError: two frames have the same time.
    """
    order = np.argsort(times, kind="stable")
    if (np.diff(times[order]) == 0).any():
        raise data_error(path, "has two frames of one time", "one of each", FETCH_AGAIN)
    return times[order], order.astype(np.int64)


def parse_frame(record: memoryview, source: str, camera: str = "FRONT") -> WaymoFrame:
    """One camera of a Frame message; the others and the lasers are stepped over.

    Args:
        record: the serialised message.
        source: where it comes from, for messages.
        camera: one of `CAMERAS`.

    Raises:
        DataError: the message is malformed or has no picture of the camera.
        ValueError: unknown camera.
    """
    check_camera(camera)
    context, time, image, labels = "", None, None, None
    try:
        for number, _, value in fields(record):
            if number == 2 and isinstance(value, int):
                time = _signed(value)
            elif isinstance(value, int):
                continue
            elif number == 1:
                context = _text(value, 1)
            elif number == 4 and _number(value, 1) == CAMERAS[camera]:
                image = b"".join(_parts(value, 2))
            elif number == 8 and _number(value, 1) == CAMERAS[camera]:
                labels = _labels(list(islice(_parts(value, 2), _MAX_LABELS + 1)), source)
    except ProtobufError as error:
        raise data_error(source, f"is malformed ({error})", _WHAT, FETCH_AGAIN) from error
    if not context or time is None or not image:
        missing = "name" if not context else "time" if time is None else f"picture of {camera}"
        raise data_error(source, f"has no {missing}", _WHAT, FETCH_AGAIN)
    check_context(context, source)
    return WaymoFrame(context=context, timestamp_micros=time, image=image, labels=labels)


def checked_boxes(
    centres: np.ndarray, sizes: np.ndarray, types: list[int], ids: list[str], source: str
) -> WaymoBoxes:
    """Labels of one picture, once they are known to be possible.

    Args:
        centres: (n, 2) xy in pixels.
        sizes: (n, 2) xy in pixels.
        types: number of each type.
        ids: identity of each object.
        source: where they come from, for messages.

    Raises:
        DataError: a number is impossible, or an identity is missing or occurs twice.
    """
    if (
        not (np.abs(centres) <= _MAX_PIXEL).all()
        or not ((sizes >= 0) & (sizes <= _MAX_PIXEL)).all()
    ):
        raise data_error(source, "has a box that cannot be", "pixels", FETCH_AGAIN)
    if any(not 0 <= t <= 4 for t in types):
        raise data_error(source, "has a box of an unknown type", "types 0 to 4", FETCH_AGAIN)
    if "" in ids or len(set(ids)) != len(ids):
        problem = "has a box without an identity of its own"
        raise data_error(source, problem, "each object once", FETCH_AGAIN)
    boxes = corners(centres[:, 0], centres[:, 1], sizes[:, 0], sizes[:, 1])
    return WaymoBoxes(boxes=boxes, types=np.array(types, np.int64), ids=tuple(ids))


def _labels(messages: list[memoryview], source: str) -> WaymoBoxes:
    """The Label messages of one camera; a 2-D box has its extent in x as `length`."""
    if len(messages) > _MAX_LABELS:
        problem = "has more labels than one camera can see"
        raise data_error(source, problem, f"at most {_MAX_LABELS}", FETCH_AGAIN)
    numbers, types, ids = np.zeros((len(messages), 4)), [], []
    for i, message in enumerate(messages):
        for box in _parts(message, 1):
            for number, _, value in fields(box):
                if number in (1, 2, 4, 5) and not isinstance(value, int) and len(value) == 8:
                    column = {1: 0, 2: 1, 5: 2, 4: 3}[number]
                    numbers[i, column] = struct.unpack("<d", value)[0]
        types.append(_number(message, 3))
        ids.append(_text(message, 4))
    return checked_boxes(numbers[:, :2], numbers[:, 2:], types, ids, source)


def _time(path: str | os.PathLike[str], offset: int, length: int, *, verify: bool = False) -> int:
    """Microseconds of a record, from its beginning if that holds them and will do."""
    source = f"{os.fspath(path)} (record at byte {offset})"
    if length > _PREFIX and not verify:
        with suppress(ProtobufError):  # where the prefix ends
            for number, _, value in fields(read_prefix(path, offset, _PREFIX)):
                if number == 2 and isinstance(value, int):
                    return _signed(value)
    try:
        for number, _, value in fields(read_record(path, offset, length)):
            if number == 2 and isinstance(value, int):
                return _signed(value)
    except ProtobufError as error:
        raise data_error(source, f"is malformed ({error})", _WHAT, FETCH_AGAIN) from error
    raise data_error(source, "has no time", _WHAT, "check that it is a Waymo segment")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _parts(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """Values of a field that have a length."""
    for number, _, value in fields(message):
        if number == wanted and not isinstance(value, int):
            yield value


def _number(message: memoryview, wanted: int) -> int:
    """The last value of a varint field, 0 where it is left out."""
    found = 0
    for number, _, value in fields(message):
        if number == wanted and isinstance(value, int):
            found = value
    return found


def _text(message: memoryview, wanted: int) -> str:
    """The last value of a text field, empty where it is left out."""
    found = b""
    for part in _parts(message, wanted):
        found = bytes(part)
    return found.decode("utf-8", "backslashreplace")
