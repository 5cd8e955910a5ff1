"""Waymo Open segments as parquet: the pictures and the 2-D boxes of one camera, joined.

`<split>/camera_image/<context>.parquet` and `<split>/camera_box/<context>.parquet` share the keys
segment, time and camera; the camera is a number or its name. A picture without boxes is real.

Checksums of pages are optional in parquet. Where a table has them, damage to its pages is found;
where not, a changed number that is possible cannot be told from the right one.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from probe_datasets.formats.files import FETCH_AGAIN, DataError, data_error, file_size
from probe_datasets.formats.parquet_pages import check_pages, read_columns
from probe_datasets.formats.waymo import (
    CAMERAS,
    WaymoFrame,
    ascending,
    check_camera,
    check_context,
    checked_boxes,
)
from probe_datasets.formats.waymo_boxes import NO_BOXES, WaymoBoxes

__all__ = ["WaymoV2Segment", "open_v2", "read_boxes"]

_CONTEXT, _TIME, _CAMERA = (
    "key.segment_context_name",
    "key.frame_timestamp_micros",
    "key.camera_name",
)
_OBJECT = "key.camera_object_id"
_IMAGE = "[CameraImageComponent].image"
_BOX = "[CameraBoxComponent]"
_CENTRE_X, _CENTRE_Y = f"{_BOX}.box.center.x", f"{_BOX}.box.center.y"
_SIZE_X, _SIZE_Y, _TYPE = f"{_BOX}.box.size.x", f"{_BOX}.box.size.y", f"{_BOX}.type"
_MAX_ROWS = 1_000_000  # a segment has 995 pictures and some 20,000 boxes
_BATCH, _BUFFER = 16, 1 << 20  # rows, bytes
_INSTALL = "pip install pyarrow"
_WHAT = "a parquet file of Waymo Open"


@dataclass(frozen=True, kw_only=True, slots=True)
class WaymoV2Segment:
    """A segment as parquet tables."""

    path: Path
    """The table of pictures."""
    context: str
    """Name of the segment."""
    timestamps: Int64[np.ndarray, " n"]
    """Microseconds of each frame, ascending."""
    rows: Int64[np.ndarray, "n 2"]
    """Row group, and row in it, of each picture, in the order of time."""
    labels: tuple[WaymoBoxes | None, ...]
    """Boxes of each picture, in the order of time; None where the camera was not labelled."""

    def frames(self, ranks: Sequence[int]) -> list[WaymoFrame]:
        """Frames by their rank in time; reads their row groups up to the last of them.

        Args:
            ranks: from 0 to the number of frames less one.

        Raises:
            DataError: the table is damaged or is not the one that was indexed.
            ImportError: pyarrow is not installed.
        """
        wanted: dict[int, dict[int, int]] = {}
        for rank in ranks:
            group, row = self.rows[rank].tolist()
            wanted.setdefault(group, {})[row] = int(self.timestamps[rank])
        found: dict[int, bytes] = {}
        with _Table(self.path) as table:
            for group, rows in wanted.items():
                for row, cells in table.rows([_TIME, _IMAGE], group, set(rows)):
                    time, image = cells[_TIME], cells[_IMAGE]
                    if time != rows[row]:
                        problem = f"has time {time} in the place of {rows[row]}"
                        raise data_error(self.path, problem, "what was indexed", "index it again")
                    if not isinstance(image, bytes) or not image:
                        problem = f"has no picture at time {time}"
                        raise data_error(self.path, problem, "a JPEG", FETCH_AGAIN)
                    found[time] = image
        return [
            WaymoFrame(
                context=self.context,
                timestamp_micros=int(self.timestamps[rank]),
                image=found[int(self.timestamps[rank])],
                labels=self.labels[rank],
            )
            for rank in ranks
        ]


def open_v2(
    images: str | os.PathLike[str],
    boxes: str | os.PathLike[str] | None,
    camera: str = "FRONT",
) -> WaymoV2Segment:
    """Index a segment; reads the keys of its pictures and all of its boxes.

    Args:
        images: a `camera_image` table.
        boxes: the `camera_box` table of the same segment; None where there is none. A table without
            any box of the camera counts as a camera that was not labelled.
        camera: one of `CAMERAS`.

    Raises:
        DataError: a table is missing, damaged or of another segment, or has no such camera.
        ValueError: unknown camera.
        ImportError: pyarrow is not installed.
    """
    check_camera(camera)
    times: list[int] = []
    rows: list[tuple[int, int]] = []
    contexts: set[object] = set()
    with _Table(images) as table:
        for group in range(table.num_groups):
            keys = table.read([_CONTEXT, _TIME, _CAMERA], group)
            for row in _of_camera(keys[_CAMERA], camera, images):
                rows.append((group, row))
                times.append(keys[_TIME][row].as_py())
                contexts.add(keys[_CONTEXT][row].as_py())
    context = next(iter(contexts), None)
    if len(contexts) != 1 or not isinstance(context, str) or None in times:
        problem = f"has {len(times)} pictures of {camera} in {len(contexts)} segments"
        raise data_error(images, problem, "pictures of one segment", FETCH_AGAIN)
    check_context(context, images)
    timestamps, order = ascending(np.array(times, np.int64), images)
    labels = None if boxes is None else read_boxes(boxes, camera, context, set(times))
    return WaymoV2Segment(
        path=Path(images),
        context=context,
        timestamps=timestamps,
        rows=np.array(rows, np.int64)[order],
        labels=tuple(
            None if labels is None else labels.get(t, NO_BOXES) for t in timestamps.tolist()
        ),
    )


def read_boxes(
    path: str | os.PathLike[str],
    camera: str,
    context: str,
    times: set[int],
    wanted: set[int] | None = None,
) -> dict[int, WaymoBoxes] | None:
    """Boxes of one camera by the time of their picture; none of pictures without boxes.

    Args:
        path: a `camera_box` table.
        camera: one of `CAMERAS`.
        context: name of the segment.
        times: of all pictures of the segment.
        wanted: of the pictures whose boxes are wanted; all by default.

    Returns:
        The boxes; None where the table has none of the camera at all, which was not labelled then.

    Raises:
        DataError: the table is missing, damaged or of another segment.
        ImportError: pyarrow is not installed.
    """
    numbers = (_CENTRE_X, _CENTRE_Y, _SIZE_X, _SIZE_Y)
    by_time: dict[int, list[tuple[Any, ...]]] = {}
    labelled = False
    with _Table(path) as table:
        for group in range(table.num_groups):
            columns = table.read([_CONTEXT, _TIME, _CAMERA, _OBJECT, _TYPE, *numbers], group)
            rows = _of_camera(columns[_CAMERA], camera, path)
            labelled = labelled or bool(rows)
            owners, clock = (_picked(columns[name], rows) for name in (_CONTEXT, _TIME))
            for owner, time in zip(owners, clock, strict=True):
                if owner != context or time not in times:
                    problem = f"has a box of segment {owner!r} at time {time}"
                    expected = f"boxes of the pictures of {context!r}"
                    raise data_error(path, problem, expected, "pass the table of the same segment")
            if wanted is not None:
                rows = [row for row, time in zip(rows, clock, strict=True) if time in wanted]
                clock = [time for time in clock if time in wanted]
            cells = [_picked(columns[name], rows) for name in (*numbers, _TYPE, _OBJECT)]
            for time, *entry in zip(clock, *cells, strict=True):
                kinds = (*(float | int,) * 4, int, str)
                if not all(isinstance(v, kind) for v, kind in zip(entry, kinds, strict=True)):
                    problem = f"has a box with a missing number at time {time}"
                    raise data_error(path, problem, "a centre, size, type and id", FETCH_AGAIN)
                by_time.setdefault(time, []).append(tuple(entry))
    found = {
        time: checked_boxes(
            np.array([e[:2] for e in entries], np.float64),
            np.array([e[2:4] for e in entries], np.float64),
            [e[4] for e in entries],
            [e[5] for e in entries],
            f"{os.fspath(path)} (time {time})",
        )
        for time, entries in by_time.items()
    }
    return found if labelled else None


def _picked(column: Any, rows: list[int]) -> list[Any]:
    """Some values of a column."""
    return [column[row].as_py() for row in rows]


def _of_camera(column: Any, camera: str, path: str | os.PathLike[str]) -> list[int]:
    """Rows of a camera, named by its number or its name."""
    known = {*CAMERAS, *CAMERAS.values()}
    values = column.to_pylist()
    if strange := {v for v in values if v not in known}:
        problem = f"has the camera {next(iter(strange))!r}"
        raise data_error(path, problem, f"one of {', '.join(CAMERAS)} or 1 to 5", FETCH_AGAIN)
    return [i for i, v in enumerate(values) if v in (camera, CAMERAS[camera])]


class _Table:
    """A parquet file whose every failure is a DataError."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError as error:
            raise ImportError(f"pyarrow is not installed: {_INSTALL}") from error
        self._path = path
        self._errors = (
            pyarrow.ArrowException,
            OSError,
            ValueError,
            KeyError,
            MemoryError,
            OverflowError,
            NotImplementedError,
        )
        self._size = file_size(path, _WHAT)
        try:
            with open(path, "rb") as file:
                self._columns = read_columns(file)
            self._file = parquet.ParquetFile(
                os.fspath(path),
                page_checksum_verification=True,
                pre_buffer=False,
                buffer_size=_BUFFER,
            )
            metadata = self._file.metadata
            self.num_groups = metadata.num_row_groups
            self._rows = [metadata.row_group(i).num_rows for i in range(self.num_groups)]
            self._names = set(self._file.schema_arrow.names)
        except self._errors as error:
            raise self._damaged(error) from error
        if not 0 <= sum(self._rows) <= _MAX_ROWS or min(self._rows, default=0) < 0:
            problem = f"claims {sum(self._rows)} rows"
            raise data_error(path, problem, f"at most {_MAX_ROWS}", FETCH_AGAIN)

    def __enter__(self) -> "_Table":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, names: list[str], group: int) -> dict[str, Any]:
        """Columns of one row group by name."""
        self._check(names, group)
        try:
            table = self._file.read_row_group(group, columns=names, use_threads=False)
            table.validate(full=True)
            columns = {name: table.column(name).combine_chunks() for name in names}
        except self._errors as error:
            raise self._damaged(error) from error
        if table.num_rows != self._rows[group]:
            problem = f"has {table.num_rows} of {self._rows[group]} rows"
            raise data_error(self._path, problem, "a complete table", FETCH_AGAIN)
        return columns

    def rows(
        self, names: list[str], group: int, wanted: set[int]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Some rows of a row group; holds few of the others at a time, and stops at the last."""
        count = self._rows[group] if group < self.num_groups else 0
        if max(wanted) >= count:
            problem = f"has {count} rows in row group {group}"
            expected = f"more than {max(wanted)}, as indexed"
            raise data_error(self._path, problem, expected, "index it again")
        self._check(names, group)
        start, left = 0, set(wanted)
        try:
            batches = self._file.iter_batches(
                _BATCH, row_groups=[group], columns=names, use_threads=False
            )
            for batch in batches:
                batch.validate(full=True)
                for row in sorted(i for i in left if i < start + batch.num_rows):
                    yield row, {name: batch.column(name)[row - start].as_py() for name in names}
                    left.remove(row)
                start += batch.num_rows
                if not left:
                    return
        except DataError:
            raise
        except self._errors as error:
            raise self._damaged(error) from error
        raise data_error(self._path, f"ends after {start} rows", "a complete table", FETCH_AGAIN)

    def _check(self, names: list[str], group: int) -> None:
        """Refuse a table without these columns, or with pages that claim too much of them."""
        if missing := [name for name in names if name not in self._names]:
            problem = f"has no column {missing[0]!r}"
            raise data_error(self._path, problem, _WHAT, "check that it is the right table")
        try:
            with open(self._path, "rb") as file:
                for name, column in self._columns[group].items():
                    if name in names:
                        check_pages(file, column)
        except self._errors as error:
            raise self._damaged(error) from error

    def _damaged(self, error: BaseException) -> DataError:
        text = str(error).strip().split("\n")[0][:200]
        return data_error(self._path, f"cannot be read ({text})", _WHAT, FETCH_AGAIN)
