"""The synthetic world as a data set: everything about a clip at once, from (seed, split, index).

Axes: T frames, H W pixels, m instances that have boxes, p points.
"""

import hashlib
from dataclasses import astuple
from typing import ClassVar

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from probe_datasets.clips import ClipConfig
from probe_datasets.schema import (
    BoxTrackExample,
    Coverage,
    DepthExample,
    LabelledVideoExample,
    PointTrackExample,
    SegmentationExample,
)
from probe_datasets.spec import DatasetSpec
from probe_datasets.synthetic.actions import ACTIONS
from probe_datasets.synthetic.config import SHAPES, TEXTURES, WorldConfig
from probe_datasets.synthetic.render import render
from probe_datasets.synthetic.scene import Scene, draw_scene
from probe_datasets.synthetic.truth import masks_and_boxes, tracks

NUM_CLIPS = {"train": 12960, "validation": 1296, "test": 1296}
DEFAULT = WorldConfig()
SMALLEST_SIZE = 8

SPEC = DatasetSpec(
    name="synthetic",
    summary="rendered solids that move in a room, with every label; nothing to download",
    builder="probe_datasets.synthetic:SyntheticWorld",
    task="all",
    splits=tuple(NUM_CLIPS),
    needs_root=False,
    clip=ClipConfig(size=64),
    expected=NUM_CLIPS,
    labels=("action", "shape", "texture"),
    num_classes={"action": len(ACTIONS), "shape": len(SHAPES), "texture": len(TEXTURES)},
)


class WorldExample(
    LabelledVideoExample, DepthExample, PointTrackExample, BoxTrackExample, SegmentationExample
):
    """One clip of the synthetic world with everything that is known about it.

    Everything but the boxes always counts. Boxes are round the visible pixels of instances, most
    visible first; `segments` has k for instance k - 1 of them, and 0 for room and pillars.
    """

    points_world: Float[Tensor, "p T 3"]
    """The tracked points in the world, in metres, visible or not."""


class SyntheticWorld:
    """Clips of textured solids that share one action, seen by a moving camera.

    Labels are balanced over every combination of action, shape and texture; none of them says
    anything about colours. Actions come in pairs that differ in the direction of time alone, and
    no single frame tells any of them.

    Args:
        split: `train`, `validation` or `test`; their clips differ for every seed.
        clip: frames of each clip and their size. A clip is generated from its first frame on and
            is never too short, so `start` is "auto" or "first", and `short` has no effect.
        seed: seed of the whole data set.
        num_clips: clips in the split; the split's own number when None.
        config: how hard the world is.

    Raises:
        ValueError: for an unknown split, another start, or a number out of range.
    """

    classes: ClassVar[dict[str, tuple[str, ...]]] = {
        "action": ACTIONS,
        "shape": SHAPES,
        "texture": TEXTURES,
    }

    def __init__(
        self,
        split: str = "train",
        *,
        clip: ClipConfig = SPEC.clip,
        seed: int = 0,
        num_clips: int | None = None,
        config: WorldConfig = DEFAULT,
    ) -> None:
        if split not in NUM_CLIPS:
            raise ValueError(f"split {split!r} must be one of {', '.join(NUM_CLIPS)}")
        self.num_clips = NUM_CLIPS[split] if num_clips is None else num_clips
        if self.num_clips < 1:
            raise ValueError(f"num_clips {self.num_clips} must be at least 1")
        if clip.size < SMALLEST_SIZE:
            raise ValueError(
                f"size {clip.size} must be at least {SMALLEST_SIZE} pixels, or nothing can be seen"
            )
        if clip.start not in ("auto", "first"):
            raise ValueError(
                f"start {clip.start!r} must be auto or first; a generated clip has no other frames"
            )
        self.split, self.shown, self.seed, self.config = split, clip, seed, config

    def __len__(self) -> int:
        return self.num_clips

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides the pixels and labels of this split."""
        identity = (
            "synthetic/2",
            self.split,
            self.num_clips,
            self.shown.num_frames,
            self.shown.stride,
            self.shown.size,
            self.seed,
            astuple(self.config),
        )
        return hashlib.sha256(repr(identity).encode()).hexdigest()[:16]

    @property
    def coverage(self) -> Coverage:
        """All clips exist by construction."""
        return Coverage(expected=len(self), found=len(self))

    @property
    def times(self) -> Float[np.ndarray, " T"]:
        """Seconds of each frame; the first is at 0."""
        return np.arange(self.shown.num_frames) * (
            self.shown.stride / self.config.frames_per_second
        )

    def sample_id(self, index: int) -> str:
        """Name of a clip, unique over splits and seeds."""
        return f"synthetic/{self.seed}/{self.split}/{index}"

    def labels(self, index: int) -> dict[str, int]:
        """Class indices of a clip, without rendering it."""
        rest, action = divmod(index, len(ACTIONS))
        rest, shape = divmod(rest, len(SHAPES))
        return {"action": action, "shape": shape, "texture": (rest + shape) % len(TEXTURES)}

    def scene(self, index: int) -> tuple[Scene, np.random.Generator]:
        """The scene of a clip, and the generator that then draws its points.

        Raises:
            IndexError: if `index` is outside the split.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} is outside the split of {len(self)} clips")
        labels = self.labels(index)
        digest = hashlib.blake2b(self.sample_id(index).encode(), digest_size=16).digest()
        rng = np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))
        names = {name: self.classes[name][label] for name, label in labels.items()}
        return draw_scene(rng, **names, config=self.config), rng

    def __getitem__(self, index: int) -> WorldExample:
        """Renders one clip.

        Raises:
            IndexError: if `index` is outside the split.
            ValueError: if more than 254 instances come into sight, in a very long clip.
        """
        scene, rng = self.scene(index)
        size, num_frames = self.shown.size, self.shown.num_frames
        frames = render(scene, self.times, height=size, width=size)
        segments, boxes, boxes_valid = masks_and_boxes(frames, self.config.max_instances)
        followed = tracks(scene, frames, rng, self.config)
        return {
            "video": torch.from_numpy(frames.video),
            "labels": self.labels(index),
            "sample_id": self.sample_id(index),
            "depth": torch.from_numpy(frames.depth),
            "depth_valid": torch.ones(frames.depth.shape, dtype=torch.bool),
            "poses": _single(frames.view.poses),
            "poses_valid": torch.ones(num_frames, dtype=torch.bool),
            "intrinsics": _single(np.tile(frames.view.camera, (num_frames, 1))),
            "segments": torch.from_numpy(segments),
            "boxes": torch.from_numpy(boxes),
            "boxes_valid": torch.from_numpy(boxes_valid),
            "points": _single(followed.image),
            "points_visible": torch.from_numpy(followed.visible),
            "points_valid": torch.ones(len(followed.image), dtype=torch.bool),
            "points_world": _single(followed.world),
            "query_frames": torch.from_numpy(followed.query_frames),
        }

    def clip(self, index: int, draw: int = 0) -> WorldExample:
        """Renders one clip, which has no chance: every draw is the same.

        Raises:
            IndexError: if `index` is outside the split.
            ValueError: if more than 254 instances come into sight, in a very long clip.
        """
        return self[index]


def _single(numbers: Float[np.ndarray, "*n"]) -> Float[Tensor, "*n"]:
    return torch.from_numpy(numbers.astype(np.float32))


def instance_masks(segments: UInt8[Tensor, "T H W"], num_instances: int) -> Bool[Tensor, "m T H W"]:
    """Mask of each instance, true where it is what the pixel shows.

    Args:
        segments: 0 for background, k for instance k - 1.
        num_instances: masks to make.
    """
    index = torch.arange(1, num_instances + 1, dtype=torch.uint8)
    return segments == rearrange(index, "m -> m 1 1 1")
