"""What every dataset of files shares: an index, a policy for bad samples, chance, a fingerprint."""

import hashlib
import json
import operator
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypedDict

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Int64

from probe_datasets.clips import ClipConfig, clip_indices
from probe_datasets.formats.files import DataError, data_error
from probe_datasets.index import MAX_REASONS, IndexRequest, Listing, open_index
from probe_datasets.scan import Progress, Row, Scan
from probe_datasets.schema import Coverage, FailedExample, VideoExample
from probe_datasets.spec import DatasetSpec

__all__ = ["EmptySplitError", "IndexedDataset", "OpenOptions"]


class OpenOptions(TypedDict, total=False):
    """What every dataset of files takes beside root and split; see `IndexedDataset`."""

    clip: ClipConfig | None
    seed: int
    augment: bool | None
    on_error: str
    workers: int | None
    progress: Progress | None


class EmptySplitError(DataError):
    """No sample of a split can be used.

    Args:
        root: the folder of the data.
        split: name of the split.
        layout: the layout that was recognised.
        coverage: counts and reasons.
    """

    def __init__(self, root: Path, split: str, layout: str, coverage: Coverage) -> None:
        self.layout, self.coverage = layout, coverage
        counts = f"{coverage.missing} are missing and {coverage.failed} unreadable"
        why = "".join(f", the first: {why}" for _, why in coverage.reasons[:1])
        problem = f"gives no sample of split {split!r}: {counts}{why}"
        super().__init__(str(data_error(root, problem, layout, "check root and split")))


class IndexedDataset(ABC):
    """A split whose samples are files of the user's.

    A subclass says what its split consists of (`list_samples`), what the index needs to know of
    each file (`scan`, with the columns that it fills in `scanned`), and how an example is read from
    a row (`read`). What subclasses take beside the arguments below, they set before they call this.

    A sample is read when it is asked for. One that cannot be read is never replaced by another.

    Args:
        root: the folder of the data.
        split: one of the splits in `spec`.
        clip: which frames, and how large; the data set's own choice where it is None.
        seed: decides whatever is random.
        augment: whether starts, crops and flips are random, as far as the task has them; by default
            in the training split.
        on_error: "raise" on the first sample that cannot be read; or "skip", by which samples that
            the index knows to be bad are left out, those that turn out bad when they are read come
            as a `FailedExample`, and `coverage` counts them.
        workers: processes that scan files; by default one for each core, eight at most.
        progress: called with (files scanned, files in all) while the index is made.

    Raises:
        DataError: the folder is not as expected, or a sample is bad under "raise".
        ValueError: an argument is out of range.
    """

    spec: ClassVar[DatasetSpec]
    """The dataset's record."""
    evaluation_start: ClassVar[str] = "first"
    """Where clips begin without chance."""
    training_splits: ClassVar[tuple[str, ...]] = ("train",)
    """Splits whose examples have chance in them by default."""
    listed: pa.Schema = pa.schema([])
    """Columns that the listing fills."""
    scanned: pa.Schema = pa.schema([])
    """Columns that the scan fills."""

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str,
        *,
        clip: ClipConfig | None = None,
        seed: int = 0,
        augment: bool | None = None,
        on_error: str = "raise",
        workers: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        name, splits = self.spec.name, self.spec.splits
        if split not in splits:
            raise ValueError(f"split {split!r} of {name!r} must be one of {', '.join(splits)}")
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error {on_error!r} must be 'raise' or 'skip'")
        self.root, self.split, self.seed, self.on_error = Path(root), split, seed, on_error
        self.config = self.spec.clip if clip is None else clip
        self.augment = split in self.training_splits if augment is None else augment
        if not self.root.is_dir():
            what = "is not a folder" if self.root.exists() else "does not exist"
            fix = "pass the folder that holds the data"
            raise data_error(self.root, what, f"the folder of {name!r}", fix)
        request = IndexRequest(
            dataset=name,
            root=self.root,
            split=split,
            options=self.listing_options(),
            watched=self.watched(),
            listed=self.listed,
            scanned=self.scanned,
            scan=self.scan(),
            workers=workers,
            progress=progress,
        )
        self.index = open_index(request, self.list_samples)
        self.row_numbers, self._coverage = self._choose()

    @abstractmethod
    def list_samples(self) -> Listing:
        """What the split consists of.

        Raises:
            DataError: the folder is in no layout that is known; says what was looked for.
        """

    @abstractmethod
    def read(self, row: Row, chance: torch.Generator) -> VideoExample:
        """The example of a row.

        Args:
            row: its row of the index.
            chance: the source of all chance.

        Raises:
            DataError: a file is damaged.
        """

    def scan(self) -> Scan | None:
        """What is done with every file once; a function that other processes can import."""
        return None

    def listing_options(self) -> Mapping[str, Any]:
        """Plain values, beside the split, that decide what the rows are."""
        return {}

    def example_options(self) -> Mapping[str, Any]:
        """Plain values, beside clip and seed, that decide what an example is."""
        return {}

    def watched(self) -> tuple[Path, ...]:
        """Files, and folders with all below them, that decide what the rows are."""
        return (self.root,)

    @property
    def classes(self) -> Mapping[str, tuple[str, ...]]:
        """Label name -> class names in the order of their indices; empty when unlabelled."""
        return self.index.classes

    @property
    def coverage(self) -> Coverage:
        """How much of the split is there, as far as the index knows."""
        return self._coverage

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the samples' names, sizes and labels, and what decides their examples."""
        settings = {
            "dataset": f"{self.spec.name}/2",
            "split": self.split,
            "clip": {name: getattr(self.config, name) for name in self.config.__slots__},
            "seed": self.seed,
            "augment": self.augment,
            "options": [dict(self.listing_options()), dict(self.example_options())],
            "samples": [len(self), self.index.fingerprint],
        }
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.row_numbers)

    def __getitem__(self, index: int) -> Any:
        return self.clip(index)

    def sample_id(self, index: int) -> str:
        """Name of a sample, without reading it.

        Args:
            index: which sample.
        """
        return self.row(index)["sample_id"]

    def row(self, index: int) -> Row:
        """What the index holds of a sample.

        Args:
            index: which sample.

        Raises:
            IndexError: there is no such sample.
        """
        i = operator.index(index)
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} is outside the split of {len(self)} samples")
        return self.index.row(int(self.row_numbers[i]))

    def clip(self, index: int, draw: int = 0) -> Any:
        """One example of a sample.

        Args:
            index: which sample.
            draw: which of the random examples, any integer, such as the epoch. All chance is a pure
                function of seed, draw and `sample_id`.

        Returns:
            The example; or why it could not be read, under `on_error="skip"`.

        Raises:
            IndexError: there is no such sample.
            DataError: it cannot be read, under `on_error="raise"`.
        """
        row = self.row(index)
        try:
            self._check_unchanged(row)
            return self.read(row, _generator(self.seed, draw, row["sample_id"]))
        except DataError as error:
            if self.on_error == "raise":
                raise
            return FailedExample(sample_id=row["sample_id"], problem=str(error))

    def start(self) -> str:
        """Where the clips of this split begin: a value of `clip_indices`."""
        if self.config.start != "auto":
            return self.config.start
        return "random" if self.augment else self.evaluation_start

    def clip_frames(self, num_frames: int, chance: torch.Generator) -> list[int]:
        """Which frames of a video make the clip.

        Args:
            num_frames: frames that the video has; `frames_needed` at the least.
            chance: decides the first one, where it is random.
        """
        return clip_indices(
            num_frames,
            num_frames=self.config.num_frames,
            stride=self.config.stride,
            start=self.start(),
            short=self.config.short,
            generator=chance,
        )

    def _check_unchanged(self, row: Row) -> None:
        path = self.root / row["path"]
        try:
            status = os.stat(path)
        except OSError as error:
            problem = f"cannot be read any more ({error.strerror})"
            raise data_error(path, problem, "the file that was indexed", "check it") from error
        if (status.st_size, status.st_mtime_ns) != (row["size"], row["changed"]):
            fix = "open the dataset again"
            raise data_error(path, "changed since it was indexed", "the same file", fix)

    def frames_needed(self) -> int:
        """Frames that a video must have for a clip; one with fewer is counted as failed."""
        return self.config.span if self.config.short == "error" else 1

    def _choose(self) -> tuple[np.ndarray, Coverage]:
        """Rows of the samples that serve, and the coverage of the split."""
        usable = self.index.usable()
        missing, absent = self.index.unusable(missing=True)
        failed, bad = self.index.unusable(missing=False)
        short, too_short = self._too_short(usable)
        usable, failed, bad = usable[~short], failed + int(short.sum()), [*bad, *too_short]
        if failed and self.on_error == "raise":
            raise DataError(
                f"{failed} of {len(self.index)} samples of split {self.split!r} cannot be used, "
                f"the first: {bad[0][1]} (on_error='skip' leaves them out and counts them)"
            )
        listed = len(usable) + missing + failed
        unlisted = max(self.index.expected - listed, 0)
        coverage = Coverage(
            expected=listed + unlisted,
            found=len(usable),
            missing=missing + unlisted,
            failed=failed,
            ignored=self.index.ignored,
            reasons=(*absent, *bad),
        )
        if not len(usable):
            raise EmptySplitError(self.root, self.split, self.index.layout, coverage)
        return usable, coverage

    def _too_short(
        self, usable: Int64[np.ndarray, " n"]
    ) -> tuple[Bool[np.ndarray, " n"], list[tuple[str, str]]]:
        """Which of the usable rows are of videos that are too short, and why of some."""
        if "num_frames" not in self.scanned.names or not len(usable):
            return np.zeros(len(usable), bool), []
        frames = self.index.column("num_frames").to_numpy()[usable]
        short = frames < self.frames_needed()
        names = [self.index.row(int(row))["sample_id"] for row in usable[short][:MAX_REASONS]]
        fix = "use fewer frames, a smaller stride, or short='clamp' or 'loop'"
        return short, [
            (name, f"{name}: has {int(have)} frames, a clip spans {self.frames_needed()}; {fix}")
            for name, have in zip(names, frames[short], strict=False)
        ]


def _generator(seed: int, draw: int, name: str) -> torch.Generator:
    key = hashlib.sha256(f"{seed}/{draw}/".encode() + os.fsencode(name)).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:7]))
