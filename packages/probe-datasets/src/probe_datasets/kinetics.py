"""Kinetics-400 and Kinetics-700: actions of people in clips of ten seconds."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Unpack

import numpy as np
import pyarrow as pa

from probe_datasets.clips import ClipConfig
from probe_datasets.formats.files import data_error
from probe_datasets.formats.kinetics import (
    ClipFiles,
    KineticsTable,
    find_clips,
    find_table,
    read_table,
)
from probe_datasets.index import Listing
from probe_datasets.indexed import OpenOptions
from probe_datasets.scan import Row
from probe_datasets.spec import DatasetSpec
from probe_datasets.video_files import VideoFiles

__all__ = ["SPEC_400", "SPEC_700", "Kinetics400", "Kinetics700"]

_TABLES = {"train": "train", "validation": "val", "test": "test"}
_ELSEWHERE = "there is no file of these seconds, though there is one of the video"
_LAYOUTS = (
    "{train,val,test}/<id>_<start>_<end>.mp4 or deeper, such as in class folders; also "
    "{train,val,test}_256, videos_{train,val,test} or all below the root; files in replacement/ "
    "come first; with {train,val,test}.csv there or in annotations/",
    "the same with validation or validate for val, and with kinetics_{train,val,test}.csv",
)
_LICENCE = "lists CC BY 4.0 (Google LLC); the videos belong to those who uploaded them"

SPEC_400 = DatasetSpec(
    name="kinetics400",
    summary="Kinetics-400: actions of people, ten seconds each",
    builder="probe_datasets.kinetics:Kinetics400",
    task="actions",
    splits=("train", "validation", "test"),
    clip=ClipConfig(num_frames=17, stride=1, size=256),
    expected={"train": 246_534, "validation": 19_906, "test": 39_805},
    labels=("action",),
    num_classes={"action": 400},
    layouts=_LAYOUTS,
    obtain="lists and videos with the scripts at https://github.com/cvdfoundation/kinetics-dataset;"
    " some videos of the lists are gone for good",
    licence=_LICENCE,
    citation="Kay et al., The Kinetics Human Action Video Dataset, 2017",
)
SPEC_700 = DatasetSpec(
    name="kinetics700",
    summary="Kinetics-700, the list of 2019: actions of people, ten seconds each",
    builder="probe_datasets.kinetics:Kinetics700",
    task="actions",
    splits=("train", "validation", "test"),
    clip=ClipConfig(num_frames=17, stride=1, size=256),
    expected={"train": 545_317, "validation": 35_000},
    labels=("action",),
    num_classes={"action": 700},
    layouts=_LAYOUTS,
    obtain="the list of 2019 from DeepMind, and those of its videos that the scripts at "
    "https://github.com/cvdfoundation/kinetics-dataset give as Kinetics-700-2020, which is another "
    "list; some are gone for good",
    licence=_LICENCE,
    citation="Carreira et al., A Short Note on the Kinetics-700 Human Action Dataset, 2019",
)


class Kinetics400(VideoFiles):
    """Clips of 17 neighbouring frames of the rows of a table whose files are there.

    Classes are the sorted names of the table. Where it lacks some of the 400, or 700, those of the
    other splits' tables beside it count too, so that an index means the same class in all splits.
    More classes than that are another dataset's, and are refused.

    A row whose file is not there is missing, and never an error: of each list, many videos cannot
    be had any more. A row that the list repeats is the same clip under another name, `<name>#2`.

    Reference: From Image to Video, App. D.2.

    Args:
        root: the folder of the data.
        split: "train", "validation" or "test"; the last where its table has labels.
        annotations: the table of the split, where it is not in a place that is looked into.
        common: see `IndexedDataset`.

    Raises:
        DataError: the folder is not as expected, or a sample is bad under "raise".
        ValueError: an argument is out of range.
    """

    spec: ClassVar[DatasetSpec] = SPEC_400
    evaluation_start = "centre"
    listed = pa.schema([("label", pa.int32())])

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str,
        *,
        annotations: str | os.PathLike[str] | None = None,
        **common: Unpack[OpenOptions],
    ) -> None:
        self.annotations = None if annotations is None else Path(annotations)
        super().__init__(root, split, **common)

    def watched(self) -> tuple[Path, ...]:
        """The folder, and a table outside of it with those beside it."""
        if self.annotations is None:
            return (self.root,)
        beside = (find_table(self.annotations.parent, name) for name in _TABLES.values())
        return (self.root, self.annotations, *(path for path in beside if path is not None))

    def listing_options(self) -> Mapping[str, Any]:
        """Whether the table was named: the rows of another table are other rows."""
        return {"annotations": None if self.annotations is None else self.annotations.name}

    def list_samples(self) -> Listing:
        """Every row of the split's table, whether its file is there or not.

        Raises:
            DataError: there is no table, or it is damaged or without labels; or no file at all is
                named as those of Kinetics are.
        """
        name = _TABLES[self.split]
        path = self.annotations or find_table(self.root, name)
        if path is None:
            expected = f"{name}.csv there or in annotations/"
            fix = "copy it there or pass annotations='.../table.csv'"
            raise data_error(self.root, f"holds no table of split {self.split!r}", expected, fix)
        table = read_table(path)
        if not table.classes:
            fix = "take a split whose table has them"
            raise data_error(path, "has no column 'label'", "a class for each row", fix)
        classes, labels = self._classes(path, table)
        files = find_clips(self.root, name, table)
        return Listing(
            layout=f"files by id and times, rows of {path.name}",
            rows=_rows(table, labels, files),
            classes={"action": classes},
            total=len(table),
        )

    def _classes(self, path: Path, table: KineticsTable) -> tuple[tuple[str, ...], np.ndarray]:
        """Names of the classes, and the class of each row by them."""
        names, number = set(table.classes), self.spec.num_classes["action"]
        if len(names) < number:
            beside = (find_table(path.parent, other) for other in _TABLES.values())
            for other in beside:
                if other is not None and other != path:
                    names.update(read_table(other).classes)
        if len(names) > number:
            problem = f"names {len(names)} classes, with the tables beside it"
            fix = "take the tables of this dataset, or open the other by its name"
            raise data_error(path, problem, f"the {number} of {self.spec.name}", fix)
        classes = tuple(sorted(names))
        rank = {name: i for i, name in enumerate(classes)}
        return classes, np.array([rank[name] for name in table.classes], np.int32)[table.labels]


class Kinetics700(Kinetics400):
    """As `Kinetics400`, with the 700 classes of 2019.

    The list of 2020 is another one. With its videos, the table of 2019 chooses those in both.
    """

    spec: ClassVar[DatasetSpec] = SPEC_700


def _rows(table: KineticsTable, labels: np.ndarray, files: ClipFiles) -> Iterator[Row]:
    """One row of the index for each row of a table, made when it is asked for."""
    order = np.lexsort((table.ends, table.starts, table.ids))
    same = np.ones(len(order) - 1, bool)
    for column in (table.ids, table.starts, table.ends):
        same &= column[order[1:]] == column[order[:-1]]
    repeats: dict[int, int] = {}
    for k in np.flatnonzero(same).tolist():
        repeats[int(order[k + 1])] = repeats.get(int(order[k]), 1) + 1
    for row, path in enumerate(files.paths):
        name = table.stem(row)
        if row in repeats:
            name = f"{name}#{repeats[row]}"
        problem = _ELSEWHERE if files.elsewhere[row] else None
        yield {"sample_id": name, "path": path, "label": int(labels[row]), "problem": problem}
