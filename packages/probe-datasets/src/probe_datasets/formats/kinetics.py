"""Kinetics-400, -600 and -700: tables of clips, and the files that people have of them.

Axes: `N` rows of a table. A file is named `{youtube id}_{start:06d}_{end:06d}.mp4`, in folders by
class or flat. Ids have 11 characters, may begin with "-" and hold "_", so they are cut by length.
Of each table some videos are gone for good: what counts is the rows whose file is there.
"""

import csv
import os
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int32, Shaped
from numpy import ndarray

from probe_datasets.formats.class_names import folder_files
from probe_datasets.formats.files import FETCH_AGAIN, data_error, read_lines

__all__ = ["ClipFiles", "KineticsTable", "find_clips", "find_table", "read_table"]

_WHAT = "a Kinetics table of label,youtube_id,time_start,time_end,split"
_ID = re.compile(r"[0-9A-Za-z_-]{11}")
_ID_BYTES = 11
_EXTENSIONS = ("mp4", "webm", "mkv", "mov")
_STEM = re.compile(r"([0-9A-Za-z_-]{11})(?:_([0-9]{6})_([0-9]{6})|_.*)?")
_NAMES = {"train": ("train",), "val": ("val", "validation", "validate"), "test": ("test",)}
_MAX_CLASSES = 10_000
_MAX_SECONDS = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class KineticsTable:
    """Rows of a table by column: 23 bytes each."""

    classes: tuple[str, ...]
    """Class names in the order of their indices."""
    ids: Shaped[ndarray, " N"]
    """YouTube ids, 11 bytes each."""
    labels: Int32[ndarray, " N"]
    """Class indices; -1 in a table without labels."""
    starts: Int32[ndarray, " N"]
    """First second of each clip."""
    ends: Int32[ndarray, " N"]
    """Last second of each clip."""

    def __len__(self) -> int:
        return len(self.ids)

    def times(self, row: int) -> tuple[int, int]:
        """First and last second of a row.

        Args:
            row: which row, from 0.
        """
        return int(self.starts[row]), int(self.ends[row])

    def stem(self, row: int) -> str:
        """Name of the file of a row, without its extension.

        Args:
            row: which row, from 0.
        """
        start, end = self.times(row)
        return f"{self.ids[row].decode()}_{start:06d}_{end:06d}"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ClipFiles:
    """The files of a table's rows."""

    paths: Sequence[str | None]
    """Paths below the root; None where there is no file."""
    elsewhere: Bool[ndarray, " N"]
    """Rows without a file of whose video another part is there, or one of unknown times."""


def read_table(path: str | os.PathLike[str]) -> KineticsTable:
    """A table `train.csv`, `val.csv` or `test.csv`, read line by line.

    Args:
        path: the file, with a header that names its columns.

    Returns:
        Its rows. Classes are the sorted names of this table, which are all of them in a table that
        holds every class.

    Raises:
        DataError: missing, no such table, or a row that does not fit.
    """
    lines = read_lines(path, _WHAT)
    _, header = next(lines)
    columns = [name.strip().strip('"').lower() for name in header.split(",")]
    missing = {"youtube_id", "time_start", "time_end"} - set(columns)
    if missing or len(columns) > 32:
        problem = f"has no column {', '.join(sorted(missing))} in its header {header[:80]!r}"
        raise data_error(path, problem, _WHAT, "pass the table as it was published")
    id_column, start_column, end_column = (
        columns.index(name) for name in ("youtube_id", "time_start", "time_end")
    )
    label_column = columns.index("label") if "label" in columns else -1
    known: dict[str, int] = {}
    ids, labels, starts, ends = bytearray(), array("i"), array("i"), array("i")
    for number, text in lines:
        try:
            fields = text.split(",") if '"' not in text else next(csv.reader([text], strict=True))
            if len(fields) != len(columns):
                raise ValueError(f"{len(fields)} columns instead of {len(columns)}")
            identity = fields[id_column].strip()
            if _ID.fullmatch(identity) is None:
                raise ValueError(f"{identity[:40]!r}, which is no YouTube id,")
            start, end = float(fields[start_column]), float(fields[end_column])
            if not 0 <= start < end < _MAX_SECONDS:
                raise ValueError(f"a clip from {start} s to {end} s")
            label = -1
            if label_column >= 0:
                name = fields[label_column].strip().strip('"')
                label = known.get(name, -1)
                if label < 0:
                    if not name or len(known) >= _MAX_CLASSES:
                        raise ValueError("no class" if not name else "too many classes")
                    label = known[name] = len(known)
        except (ValueError, csv.Error) as error:
            problem = f"has {error} in line {number}"
            raise data_error(path, problem, _WHAT, FETCH_AGAIN) from error
        ids += identity.encode()
        labels.append(label)
        starts.append(int(start))
        ends.append(int(end))
    if not starts:
        raise data_error(path, "holds no rows", _WHAT, FETCH_AGAIN)
    names, found = tuple(sorted(known)), np.array(labels, np.int32)
    if known:  # from the order of appearance to the order of names
        rank = {name: i for i, name in enumerate(names)}
        found = np.array([rank[name] for name in known], np.int32)[found]
    return KineticsTable(
        classes=names,
        ids=np.frombuffer(bytes(ids), f"S{_ID_BYTES}"),
        labels=found,
        starts=np.array(starts, np.int32),
        ends=np.array(ends, np.int32),
    )


def find_table(root: str | os.PathLike[str], split: str) -> Path | None:
    """The table of a split, under any of its published names; None where there is none.

    Args:
        root: the folder of the data set.
        split: "train", "val" or "test".
    """
    for folder in ("annotations", ""):
        for name in _NAMES[split]:
            for pattern in ("{}.csv", "kinetics_{}.csv"):
                path = Path(root, folder, pattern.format(name))
                if path.is_file():
                    return path
    return None


def find_clips(root: str | os.PathLike[str], split: str, table: KineticsTable) -> ClipFiles:
    """The file of each row, wherever it lies below the folder of its split.

    The folder is `<split>`, `<split>_256` or `videos_<split>`, or the root where there is none of
    these; `val` is also found as `validation` or `validate`. A file in `replacement/` comes before
    all others of its id, as it was made because another one is corrupt.

    A file belongs to the row whose id and times its name spells. One whose name spells no times, as
    `<id>.mp4`, belongs to the row of its id if that has but one; so does a replacement.

    Args:
        root: the folder of the data set.
        split: "train", "val" or "test".
        table: its rows.

    Raises:
        DataError: the root does not exist, or holds no file with such a name.
    """
    if not os.path.isdir(root):
        raise data_error(root, "is no folder", "the folder of Kinetics", "check the path")
    candidates = [p.format(n) for n in _NAMES[split] for p in ("{}", "{}_256", "videos_{}")]
    folder = next((name for name in candidates if Path(root, name).is_dir()), "")
    order = np.argsort(table.ids, kind="stable")
    ids = table.ids[order]
    paths: list[str | None] = [None] * len(table)
    rank = bytearray(len(table))  # how well the file found so far fits
    elsewhere = np.zeros(len(table), bool)
    named = 0
    for where, bonus in ((folder, 0), ("replacement", 2)):
        for relative, stem in folder_files(Path(root, where), _EXTENSIONS):
            match = _STEM.fullmatch(stem)
            if match is None or (not bonus and relative.startswith("replacement/")):
                continue
            named += 1
            identity, first, last = match.groups()
            begin, end = (ids.searchsorted(identity.encode(), side) for side in ("left", "right"))
            for row in order[begin:end].tolist():
                exact = first is not None and (int(first), int(last)) == table.times(row)
                # Other times are another part of the video, perhaps of another class.
                if exact or ((first is None or bonus) and end - begin == 1):
                    fit = 1 + exact + bonus
                    if fit > rank[row]:
                        rank[row] = fit
                        paths[row] = f"{where}/{relative}" if where else relative
                else:
                    elsewhere[row] = True
    if not named:
        expected = "files such as abcdefghijk_000012_000022.mp4, flat or in class folders"
        problem = f"holds no videos of split {split!r} in {folder or 'the root'}"
        fix = f"name them so, in one of {', '.join(candidates)} or the root"
        raise data_error(root, problem, expected, fix)
    elsewhere &= np.frombuffer(rank, np.uint8) == 0
    return ClipFiles(paths=paths, elsewhere=elsewhere)
