"""Data sets as runs use them: opened from a configuration, cut to a limit."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from probe_datasets import (
    DATASETS,
    ClipConfig,
    ClipDataset,
    Coverage,
    FolderDataset,
    open_dataset,
)
from probe_eval.config import DataConfig


class FirstClips:
    """The first clips of a data set."""

    def __init__(self, dataset: ClipDataset, limit: int) -> None:
        self.dataset, self.limit = dataset, min(limit, len(dataset))

    def __len__(self) -> int:
        return self.limit

    def __getitem__(self, index: int) -> Any:
        return self.clip(index)

    def clip(self, index: int, draw: int = 0) -> Any:
        """One of the first clips."""
        if not 0 <= index < self.limit:
            raise IndexError(f"clip {index} is outside the first {self.limit}")
        return self.dataset.clip(index, draw)

    @property
    def classes(self) -> Mapping[str, tuple[str, ...]]:
        """The classes of the whole data set."""
        return self.dataset.classes

    @property
    def fingerprint(self) -> str:
        """Of the whole data set, and the limit."""
        return f"{self.dataset.fingerprint}/first-{self.limit}"

    @property
    def coverage(self) -> Coverage:
        """A limit was asked for, so what lies beyond it is not missing."""
        return Coverage(expected=self.limit, found=self.limit)

    def sample_id(self, index: int) -> str:
        """Name of a clip."""
        return self.dataset.sample_id(index)


class ManyClips:
    """Several random clips of each video of a folder."""

    def __init__(self, dataset: FolderDataset, clips_per_video: int) -> None:
        self.dataset, self.clips_per_video = dataset, clips_per_video

    def __len__(self) -> int:
        return len(self.dataset) * self.clips_per_video

    def __getitem__(self, index: int) -> Any:
        return self.clip(index)

    def clip(self, index: int, draw: int = 0) -> Any:
        """One of the clips; `draw` counts on from the clips of the draw before."""
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} is outside the {len(self)} clips")
        video, number = divmod(index, self.clips_per_video)
        example = self.dataset.clip(video, draw * self.clips_per_video + number)
        example["sample_id"] = self.sample_id(index)
        return example

    @property
    def classes(self) -> Mapping[str, tuple[str, ...]]:
        """The classes of the folder."""
        return self.dataset.classes

    @property
    def fingerprint(self) -> str:
        """Of the folder, and the number of clips."""
        return f"{self.dataset.fingerprint}/{self.clips_per_video}-clips"

    @property
    def coverage(self) -> Coverage:
        """Counts clips."""
        videos, each = self.dataset.coverage, self.clips_per_video
        return dataclasses.replace(
            videos,
            expected=videos.expected * each,
            found=videos.found * each,
            missing=videos.missing * each,
            failed=videos.failed * each,
        )

    def sample_id(self, index: int) -> str:
        """Name of the video and number of the clip."""
        video, draw = divmod(index, self.clips_per_video)
        return f"{self.dataset.sample_id(video)}#{draw}"


def clip_config(config: DataConfig) -> ClipConfig:
    """The clips of a configuration."""
    return ClipConfig(num_frames=config.num_frames, stride=config.stride, size=config.size)


def open_split(config: DataConfig, split: str) -> ClipDataset:
    """One split of the data.

    Raises:
        ValueError: for an unknown data set or split, an empty one, or settings it refuses.
    """
    if config.limit < 0 or config.clips_per_video < 1:
        raise ValueError(
            f"limit {config.limit} must be 0 (all clips) or positive, and clips_per_video "
            f"{config.clips_per_video} at least 1"
        )
    of_files = config.dataset in DATASETS and DATASETS[config.dataset].needs_root
    dataset = open_dataset(
        config.dataset,
        config.root or None,
        split,
        clip=clip_config(config),
        seed=config.seed,
        **({"on_error": config.on_error} if of_files else {}),
    )
    if isinstance(dataset, FolderDataset):
        dataset = ManyClips(dataset, config.clips_per_video)
    elif config.clips_per_video > 1:
        raise ValueError(
            f"data set {config.dataset!r} has one clip a sample; clips_per_video is for folders "
            "of videos"
        )
    if not len(dataset):
        raise ValueError(f"split {split!r} of data set {config.dataset!r} is empty")
    return FirstClips(dataset, config.limit) if config.limit else dataset
