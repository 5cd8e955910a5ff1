"""Clips of a data set, chosen or repeated: data sets like any other."""

import dataclasses
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from probe_datasets import ClipDataset, Coverage
from probe_datasets.indexed import IndexedDataset


class View(ABC):
    """Clips of a data set, chosen or repeated; a data set like any other.

    Args:
        dataset: whose clips they are.
    """

    def __init__(self, dataset: ClipDataset) -> None:
        self.dataset = dataset

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def place(self, index: int, draw: int) -> tuple[int, int]:
        """Index and draw, in the data set, of one clip of the view and one of its draws."""

    @abstractmethod
    def places(self) -> Int[np.ndarray, " n"]:
        """Indices in the data set of all clips of the view."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Of the data set, and of what makes the view."""

    @property
    @abstractmethod
    def coverage(self) -> Coverage:
        """How much of what the view should hold is there."""

    def __getitem__(self, index: int) -> Any:
        return self.clip(index)

    def clip(self, index: int, draw: int = 0) -> Any:
        """One of the clips."""
        self.check(index)
        example = self.dataset.clip(*self.place(index, draw))
        return {**example, "sample_id": self.sample_id(index)}

    def sample_id(self, index: int) -> str:
        """Name of a clip."""
        return self.dataset.sample_id(self.place(index, 0)[0])

    @property
    def classes(self) -> Mapping[str, tuple[str, ...]]:
        """The classes of the data set."""
        return self.dataset.classes

    def check(self, index: int) -> None:
        """Raises IndexError unless there is such a clip."""
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} is outside the {len(self)} clips")


class FirstClips(View):
    """The first clips of a data set."""

    def __init__(self, dataset: ClipDataset, limit: int) -> None:
        super().__init__(dataset)
        self.limit = min(limit, len(dataset))

    def __len__(self) -> int:
        return self.limit

    def place(self, index: int, draw: int) -> tuple[int, int]:
        """The same clip."""
        return index, draw

    def places(self) -> Int[np.ndarray, " n"]:
        """The first ones."""
        return np.arange(self.limit)

    @property
    def fingerprint(self) -> str:
        """Of the whole data set, and the limit."""
        return f"{self.dataset.fingerprint}/first-{self.limit}"

    @property
    def coverage(self) -> Coverage:
        """A limit was asked for, so what lies beyond it is not missing."""
        return Coverage(expected=self.limit, found=self.limit)


class Part(View):
    """Some clips of a data set, in its order.

    Args:
        dataset: whose clips they are.
        members: their indices, ascending.
        name: what distinguishes this part from others of the data set.
        whole: whether what the data set lacks is counted as missing from this part.
    """

    def __init__(
        self, dataset: ClipDataset, members: Sequence[int], name: str, *, whole: bool
    ) -> None:
        super().__init__(dataset)
        self.members, self.name, self.whole = np.asarray(members, np.int64), name, whole

    def __len__(self) -> int:
        return len(self.members)

    def place(self, index: int, draw: int) -> tuple[int, int]:
        """The clip's place among all."""
        return int(self.members[index]), draw

    def places(self) -> Int[np.ndarray, " n"]:
        """The members."""
        return self.members

    @property
    def fingerprint(self) -> str:
        """Of the whole data set, and the part."""
        return f"{self.dataset.fingerprint}/{self.name}"

    @property
    def coverage(self) -> Coverage:
        """Its own clips, and with `whole` what the data set lacks."""
        if not self.whole:
            return Coverage(expected=len(self), found=len(self))
        data = self.dataset.coverage
        lacking = data.missing + data.failed
        return dataclasses.replace(data, expected=len(self) + lacking, found=len(self))


class Copies(View):
    """Each clip of a data set several times, each time with the chance of another draw.

    Args:
        dataset: whose clips they are.
        count: how often each comes.
        what: word for that in the fingerprint.
    """

    def __init__(self, dataset: ClipDataset, count: int, what: str) -> None:
        super().__init__(dataset)
        self.count, self.what = count, what

    def __len__(self) -> int:
        return len(self.dataset) * self.count

    def place(self, index: int, draw: int) -> tuple[int, int]:
        """The clip, and a draw that counts on from the copies of the draw before."""
        clip, copy = divmod(index, self.count)
        return clip, draw * self.count + copy

    def places(self) -> Int[np.ndarray, " n"]:
        """Every clip as often as it comes."""
        return np.repeat(np.arange(len(self.dataset)), self.count)

    @property
    def fingerprint(self) -> str:
        """Of the data set, and the number of copies."""
        return f"{self.dataset.fingerprint}/{self.count}-{self.what}"

    @property
    def coverage(self) -> Coverage:
        """Counts copies."""
        clips, each = self.dataset.coverage, self.count
        return dataclasses.replace(
            clips,
            expected=clips.expected * each,
            found=clips.found * each,
            missing=clips.missing * each,
            failed=clips.failed * each,
        )

    def sample_id(self, index: int) -> str:
        """Name of the clip and number of the copy."""
        clip, copy = divmod(index, self.count)
        return f"{self.dataset.sample_id(clip)}#{copy}"


class ManyClips(Copies):
    """Several random clips of each video of a folder."""

    def __init__(self, dataset: ClipDataset, clips_per_video: int) -> None:
        super().__init__(dataset, clips_per_video, "clips")


class Draws(Copies):
    """Several random crops of each training clip."""

    def __init__(self, dataset: ClipDataset, draws: int) -> None:
        super().__init__(dataset, draws, "draws")


def source(dataset: ClipDataset) -> ClipDataset:
    """The data set below all views."""
    while isinstance(dataset, View):
        dataset = dataset.dataset
    return dataset


def sample_ids(dataset: ClipDataset) -> Iterable[str]:
    """The names of all clips in order; from the index at once, where there is one."""
    if isinstance(dataset, IndexedDataset):
        names = dataset.index.column("sample_id").take(dataset.row_numbers)
        return map(os.fsdecode, names.to_pylist())
    if isinstance(dataset, Copies):
        names = sample_ids(dataset.dataset)
        return (f"{name}#{copy}" for name in names for copy in range(dataset.count))
    if isinstance(dataset, View):
        names = list(sample_ids(dataset.dataset))
        return (names[place] for place in dataset.places())
    return (dataset.sample_id(index) for index in range(len(dataset)))


def label_indices(dataset: ClipDataset, label: str) -> Int[np.ndarray, " n"] | None:
    """Class index of every clip where that is known without reading clips, else None."""
    if isinstance(dataset, View):
        below = label_indices(dataset.dataset, label)
        return None if below is None else below[dataset.places()]
    if isinstance(dataset, IndexedDataset):
        if "label" not in dataset.listed.names:
            return None
        return dataset.index.column("label").to_numpy()[dataset.row_numbers]
    labels = getattr(dataset, "labels", None)
    if not callable(labels):
        return None
    return np.array([labels(index)[label] for index in range(len(dataset))])
