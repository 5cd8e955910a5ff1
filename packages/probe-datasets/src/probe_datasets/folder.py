"""Every video or every picture below a folder, as a dataset of clips."""

import hashlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Unpack

import pyarrow as pa
import torch

from probe_datasets.clips import ClipConfig
from probe_datasets.containers import VIDEO_CONTAINERS
from probe_datasets.formats.files import data_error, walk_folder
from probe_datasets.index import Listing
from probe_datasets.indexed import OpenOptions
from probe_datasets.picture_files import still_clip
from probe_datasets.scan import Row, Scan
from probe_datasets.schema import VideoExample
from probe_datasets.spec import DatasetSpec
from probe_datasets.video_files import VIDEO_COLUMNS, VideoFiles, scan_file, scan_file_fully

__all__ = ["SPEC", "FolderDataset"]

_VALIDATION_SHARE = 0.1
MEDIA = {"videos": VIDEO_CONTAINERS, "images": ("jpg", "jpeg", "png")}
"""What is looked for -> extensions."""

SPEC = DatasetSpec(
    name="folder",
    summary="every mp4, mov, webm and mkv video, or every picture, below a folder",
    builder="probe_datasets.folder:FolderDataset",
    task="videos",
    splits=("train", "validation", "all"),
    clip=ClipConfig(size=64),
    layouts=("files at any depth; with labels='folders' the first folder is the class",),
)


class FolderDataset(VideoFiles):
    """Square clips of every video, or of every picture, below a folder, one item per file.

    Files are found by extension in any case, in sorted order; names that begin with a dot are
    passed over, and so are other files, which are counted. A tenth of the files, by a hash of the
    path below `root`, is the validation split; a file keeps its split when others come and go.
    Only where that would leave train or validation empty, one file is moved over by its hash.

    The first frame is random in train and all, and in the middle in validation.

    Args:
        root: the folder.
        split: "train", "validation" or "all".
        media: "videos", or "images", each of which is a clip that stands still.
        labels: "none"; or "folders", by which the first folder below `root` names the class.
        verify: decode every video once to find corrupt frames: about a full decode of the data,
            done again only for files that changed.
        common: see `IndexedDataset`; starts are random in train and all.

    Raises:
        DataError: a file is bad under "raise", none can be used, or there are none.
        ValueError: the split is empty, or an argument is out of range.
        ImportError: PyAV is not installed.
    """

    spec: ClassVar[DatasetSpec] = SPEC
    evaluation_start = "centre"
    training_splits = ("train", "all")

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str = "train",
        *,
        media: str = "videos",
        labels: str = "none",
        verify: bool = True,
        **common: Unpack[OpenOptions],
    ) -> None:
        if media not in MEDIA:
            raise ValueError(f"media {media!r} must be one of {', '.join(MEDIA)}")
        if labels not in ("none", "folders"):
            raise ValueError(f"labels {labels!r} must be 'none' or 'folders'")
        self.media, self.labels, self.verify = media, labels, verify
        self.listed = pa.schema([("label", pa.int32())] if labels == "folders" else [])
        self.scanned = VIDEO_COLUMNS if media == "videos" else pa.schema([])
        super().__init__(root, split, **common)

    def scan(self) -> Scan | None:
        """Counts a video's frames, and with `verify` decodes them all."""
        if self.media == "images":
            return None
        return scan_file_fully if self.verify else scan_file

    def listing_options(self) -> Mapping[str, Any]:
        """What is looked for, and how thoroughly."""
        return {"media": self.media, "labels": self.labels, "verify": self.verify}

    def list_samples(self) -> Listing:
        """Every file of the split.

        Raises:
            DataError: there is none in the folder.
            ValueError: the split is empty.
        """
        found, ignored = _find(self.root, MEDIA[self.media])
        members = _members(found, self.split, self.root)
        if self.labels == "none":
            rows: list[Row] = [{"sample_id": name, "path": name} for name in members]
            return Listing(
                layout=f"a folder of {self.media}",
                rows=rows,
                classes={},
                total=len(rows),
                ignored=ignored,
            )
        loose = [name for name in found if "/" not in name]
        if loose:
            problem = f"holds {loose[0]!r}, which is in no class folder"
            fix = "move it into one, or use labels='none'"
            raise data_error(self.root, problem, "a folder for each class", fix)
        classes = tuple(sorted({name.split("/")[0] for name in found}))
        rank = {name: i for i, name in enumerate(classes)}
        return Listing(
            layout=f"a folder of {self.media} for each class",
            rows=(
                {"sample_id": name, "path": name, "label": rank[name.split("/")[0]]}
                for name in members
            ),
            classes={"class": classes},
            total=len(members),
            ignored=ignored,
        )

    def read(self, row: Row, chance: torch.Generator) -> VideoExample:
        """The clip of a video, or of a picture.

        Args:
            row: its row.
            chance: decides the first frame.
        """
        if self.media == "videos":
            return super().read(row, chance)
        video = still_clip(self.root / row["path"], self.config, None)
        return self.example(row, video)


def _find(root: Path, extensions: tuple[str, ...]) -> tuple[list[str], int]:
    """Sorted paths of such files below a folder, and how many others there are."""
    found: list[str] = []
    ignored = 0
    for below, names in walk_folder(root):
        for name in names:
            if os.path.splitext(name)[1][1:].lower() in extensions:
                found.append(f"{below}{name}")
            else:
                ignored += 1
    if not found:
        endings = " ".join(f".{name}" for name in extensions)
        problem = f"holds none of the files looked for, but {ignored} others"
        fix = "convert other videos with ffmpeg; media='images' looks for pictures"
        raise data_error(root, problem, f"files that end in {endings} at any depth", fix)
    return sorted(found), ignored


def _members(found: list[str], split: str, root: Path) -> list[str]:
    """The files of one split."""
    if split == "all":
        return found
    share = {name: _unit_hash(name) for name in found}
    validation = {name for name in found if share[name] < _VALIDATION_SHARE}
    if not validation and len(found) > 1:
        validation = {min(found, key=share.__getitem__)}
    if len(validation) == len(found) > 1:
        validation.remove(max(found, key=share.__getitem__))
    members = [name for name in found if (name in validation) == (split == "validation")]
    if not members:
        raise ValueError(
            f"split {split!r} of root {str(root)!r} is empty, because one file cannot be divided; "
            "add files or use split='all'"
        )
    return members


def _unit_hash(text: str) -> float:
    """A number in [0, 1) that depends on a text alone."""
    return int.from_bytes(hashlib.sha256(os.fsencode(text)).digest()[:6]) / math.pow(2, 48)
