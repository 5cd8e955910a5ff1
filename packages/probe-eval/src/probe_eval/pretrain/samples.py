"""What a tokenizer is trained on: stretches of clips, and of real videos held in memory.

Axes: T H W pixels.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from probe_datasets import (
    ClipDataset,
    FolderDataset,
    central_window,
    crop_resize_bytes,
    read_frames,
    scan_video,
    to_float,
)
from probe_eval.config import DataConfig
from probe_eval.data import clip_config
from probe_eval.harness import Batch, stream
from probe_eval.progress import track

CLIPS_AT_ONCE = 16
PIXELS_AT_ONCE = 1 << 20  # of all frames that a tokenizer sees at once outside of training
FRAMES_AT_ONCE = 32  # of a video, while it is made small
GIGABYTE = 1e9


class Stretches(Dataset[Batch]):
    """One stretch of consecutive frames of every clip, at a place that depends on the clip."""

    def __init__(self, dataset: ClipDataset, num_frames: int, seed: int) -> None:
        self.dataset, self.num_frames, self.seed = dataset, num_frames, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Batch:
        video = read_clip(self.dataset, index)["video"]
        generator = stream(self.seed, "stretch", index)
        last = video.shape[1] - self.num_frames
        start = int(torch.randint(last + 1, (1,), generator=generator))
        return {"video": video[:, start : start + self.num_frames]}


class VideoStretches(Dataset[Batch]):
    """Stretches of videos, the videos in turn, at places that depend on the index.

    Args:
        videos: frames as bytes.
        number: how many stretches there are.
        num_frames: frames in a stretch.
        stride: frames of the video from one frame of a stretch to the next.
        seed: seed of the places.
    """

    def __init__(
        self,
        videos: Sequence[UInt8[Tensor, "_ 3 H W"]],
        number: int,
        *,
        num_frames: int,
        stride: int,
        seed: int,
    ) -> None:
        self.videos, self.number, self.seed = videos, number, seed
        self.num_frames, self.stride = num_frames, stride

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> Batch:
        video = self.videos[index % len(self.videos)]
        span = (self.num_frames - 1) * self.stride + 1
        generator = stream(self.seed, "video", index)
        start = int(torch.randint(len(video) - span + 1, (1,), generator=generator))
        frames = to_float(video[start : start + span : self.stride])
        return {"video": rearrange(frames, "T c H W -> c T H W").contiguous()}


def number_of_shares(others: int, share: float) -> int:
    """How many samples beside `others` make up a share of all, at least one."""
    return max(1, round(others * share / (1 - share)))


def open_videos(config: DataConfig, folder: str, split: str) -> FolderDataset:
    """The videos of a folder, as clips like those of the data.

    Raises:
        ValueError: if there is no such folder, or nothing in it that can be used.
    """
    return FolderDataset(
        folder,
        split,
        clip=clip_config(config),
        seed=config.seed,
        on_error=config.on_error,
    )


def load_frames(dataset: FolderDataset, memory_gb: float) -> list[UInt8[Tensor, "_ 3 H W"]]:
    """Every frame of every video of a folder, made small, decoded once.

    Raises:
        ValueError: if they need more memory than `memory_gb`; nothing has been decoded then.
    """
    size = dataset.config.size
    paths = [dataset.root / dataset.sample_id(index) for index in range(len(dataset))]
    lengths = [scan_video(path, verify=False).num_frames for path in paths]
    needed = sum(lengths) * 3 * size * size / GIGABYTE
    if needed > memory_gb:
        raise ValueError(
            f"{sum(lengths)} frames of {len(paths)} videos in {dataset.root} need {needed:.1f} GB "
            f"at {size} x {size} pixels, more than videos_memory_gb {memory_gb:g}; raise it, or "
            "use fewer or shorter videos"
        )
    return [
        small_frames(path, length, size)
        for path, length in track(
            zip(paths, lengths, strict=True), "videos into memory", len(paths)
        )
    ]


def small_frames(path: Path, length: int, size: int) -> UInt8[Tensor, "T 3 H W"]:
    """All frames of a video, scaled and cropped to a square; bounded in memory."""
    parts = []
    for start in range(0, length, FRAMES_AT_ONCE):
        frames = read_frames(path, range(start, min(start + FRAMES_AT_ONCE, length)))
        window = central_window(*frames.shape[-2:])
        parts.append(crop_resize_bytes(frames, window, size).contiguous())
    return torch.cat(parts)


def load_clips(dataset: ClipDataset, indices: Sequence[int]) -> Float[Tensor, "b 3 T H W"]:
    """A batch of clips."""
    return torch.stack([read_clip(dataset, index)["video"] for index in indices])


def read_clip(dataset: ClipDataset, index: int) -> Any:
    """One clip, each of which counts in pretraining.

    Raises:
        ValueError: it cannot be read, even where the data set only says so.
    """
    example = dataset[index]
    if "video" not in example:
        raise ValueError(f"{example['problem']}; pretraining needs every clip: remove it")
    return example


def clips_at_once(shape: Sequence[int]) -> int:
    """How many clips of T x H x W a tokenizer is given at once, outside of training."""
    return max(1, min(CLIPS_AT_ONCE, PIXELS_AT_ONCE // math.prod(shape)))
