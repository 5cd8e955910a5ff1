"""The synthetic world as a data set: everything about a clip at once, from (seed, split, index).

Axes: T frames, H W pixels, m instances that have boxes, p points.
"""

import hashlib
from dataclasses import astuple
from typing import ClassVar

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from probe_datasets.schema import Coverage, LabelledVideoExample
from probe_datasets.synthetic.actions import ACTIONS
from probe_datasets.synthetic.config import SHAPES, TEXTURES, WorldConfig
from probe_datasets.synthetic.render import render
from probe_datasets.synthetic.scene import Scene, draw_scene
from probe_datasets.synthetic.truth import masks_and_boxes, tracks

NUM_CLIPS = {"train": 12960, "validation": 1296, "test": 1296}
DEFAULT = WorldConfig()


class WorldExample(LabelledVideoExample):
    """One clip of the synthetic world with everything that is known about it."""

    depth: Float[Tensor, "T H W"]
    """z-depth at pixel centres, in metres."""
    depth_valid: Bool[Tensor, "T H W"]
    """Whether the depth counts; it always does."""
    poses: Float[Tensor, "T 3 4"]
    """World-to-camera poses [R | t], OpenCV axes, metres."""
    intrinsics: Float[Tensor, "4"]
    """fx, fy, cx, cy by width and height."""
    segments: UInt8[Tensor, "T H W"]
    """0 for room and pillars, k for instance k - 1 of the boxes."""
    boxes: Float[Tensor, "m T 4"]
    """Boxes xyxy in [0, 1] round the visible pixels of instances, most visible first."""
    boxes_valid: Bool[Tensor, "m T"]
    """Whether an instance is visible; its box counts where it is."""
    points: Float[Tensor, "p T 2"]
    """Positions xy of tracked points, in [0, 1] where inside the image."""
    points_visible: Bool[Tensor, "p T"]
    """Whether a point can be seen."""
    points_world: Float[Tensor, "p T 3"]
    """The same points in the world, in metres, visible or not."""
    query_frames: Int[Tensor, " p"]
    """First frame in which each point is visible; it is queried there."""


class SyntheticWorld:
    """Clips of textured solids that share one action, seen by a moving camera.

    Labels are balanced over every combination of action, shape and texture; none of them says
    anything about colours. Actions come in pairs that differ in the direction of time alone, and
    no single frame tells any of them.

    Args:
        split: `train`, `validation` or `test`; their clips differ for every seed.
        num_frames: frames per clip.
        stride: time steps between frames.
        size: pixels of each side, or (height, width).
        seed: seed of the whole data set.
        num_clips: clips in the split; the split's own number when None.
        config: how hard the world is.

    Raises:
        ValueError: for an unknown split or a number out of range.
    """

    classes: ClassVar[dict[str, tuple[str, ...]]] = {
        "action": ACTIONS,
        "shape": SHAPES,
        "texture": TEXTURES,
    }

    def __init__(
        self,
        *,
        split: str,
        num_frames: int = 17,
        stride: int = 1,
        size: int | tuple[int, int] = 64,
        seed: int = 0,
        num_clips: int | None = None,
        config: WorldConfig = DEFAULT,
    ) -> None:
        if split not in NUM_CLIPS:
            raise ValueError(f"unknown split {split!r}; known: {', '.join(NUM_CLIPS)}")
        self.num_clips = NUM_CLIPS[split] if num_clips is None else num_clips
        numbers = {"num_frames": num_frames, "stride": stride, "num_clips": self.num_clips}
        for name, value in numbers.items():
            if value < 1:
                raise ValueError(f"{name} {value} must be at least 1")
        self.height, self.width = (size, size) if isinstance(size, int) else size
        if min(self.height, self.width) < 8:
            raise ValueError(f"size {size} must be at least 8 pixels, or nothing can be seen")
        self.split, self.seed, self.config = split, seed, config
        self.num_frames, self.stride = num_frames, stride

    def __len__(self) -> int:
        return self.num_clips

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides the pixels and labels of this split."""
        identity = (
            "synthetic/1",
            self.split,
            self.num_clips,
            self.num_frames,
            self.stride,
            self.height,
            self.width,
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
        return np.arange(self.num_frames) * (self.stride / self.config.frames_per_second)

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
            ValueError: if more than 255 instances come into sight, in a very long clip.
        """
        scene, rng = self.scene(index)
        frames = render(scene, self.times, height=self.height, width=self.width)
        segments, boxes, boxes_valid = masks_and_boxes(frames, self.config.max_instances)
        followed = tracks(scene, frames, rng, self.config)
        return {
            "video": torch.from_numpy(frames.video),
            "labels": self.labels(index),
            "sample_id": self.sample_id(index),
            "depth": torch.from_numpy(frames.depth),
            "depth_valid": torch.ones(frames.depth.shape, dtype=torch.bool),
            "poses": _single(frames.view.poses),
            "intrinsics": _single(frames.view.camera),
            "segments": torch.from_numpy(segments),
            "boxes": torch.from_numpy(boxes),
            "boxes_valid": torch.from_numpy(boxes_valid),
            "points": _single(followed.image),
            "points_visible": torch.from_numpy(followed.visible),
            "points_world": _single(followed.world),
            "query_frames": torch.from_numpy(followed.query_frames),
        }


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
