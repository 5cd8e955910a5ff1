"""Textured shapes that move over a textured ground: a procedurally rendered data set.

Every clip is a pure function of (seed, split, index). The image class (`shape`) can be read from
any single frame. The action class (`action`) cannot be read from any: objects start anywhere on a
canvas whose edges wrap around, so in every frame of every action their positions have the same
uniform distribution, and only the change between frames tells the actions apart. The objects of a
clip look alike, so that it takes matching in space and time, not following one colour.

Axes: T H W pixels, m objects, xy positions in [0, 1) of the canvas.
"""

import hashlib
import math
from collections.abc import Callable
from typing import ClassVar, Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from probe_datasets.clips import ClipConfig
from probe_datasets.schema import Coverage, LabelledVideoExample
from probe_datasets.spec import DatasetSpec

SHAPES = ("disc", "square", "triangle", "cross", "ring", "bars")
DIRECTIONS = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
    "still": (0.0, 0.0),
}
ACTIONS = tuple(DIRECTIONS)
NUM_CLIPS = {"train": 2400, "validation": 600}

SPEC = DatasetSpec(
    name="moving_shapes",
    summary="rendered shapes that move, labelled by action and shape; nothing to download",
    builder="probe_datasets.moving_shapes:MovingShapes",
    task="actions",
    splits=("train", "validation"),
    needs_root=False,
    clip=ClipConfig(size=64),
    expected=NUM_CLIPS,
    labels=("action", "shape"),
    num_classes={"action": len(ACTIONS), "shape": len(SHAPES)},
)


@runtime_checkable
class Uniform(Protocol):
    """Draws uniform numbers of any shape from the clip's own generator."""

    def __call__(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor: ...


class MovingShapes:
    """Clips of three copies of one object that share one motion.

    Labels are balanced over every combination of shape and action. `left` and `right`, and `up`
    and `down`, differ only in the direction of time.

    Args:
        split: `train` or `validation`; their clips differ for every seed.
        clip: frames in a clip, time steps between them, and pixels of each side.
        seed: seed of the whole data set.
        num_clips: clips in the split; the split's own number when None.
        num_objects: objects in each clip.

    Raises:
        ValueError: for an unknown split or a number out of range.
    """

    classes: ClassVar[dict[str, tuple[str, ...]]] = {"action": ACTIONS, "shape": SHAPES}

    def __init__(
        self,
        split: str = "train",
        *,
        clip: ClipConfig | None = None,
        seed: int = 0,
        num_clips: int | None = None,
        num_objects: int = 3,
    ) -> None:
        if split not in NUM_CLIPS:
            raise ValueError(f"unknown split {split!r}; known: {', '.join(NUM_CLIPS)}")
        config = SPEC.clip if clip is None else clip
        self.num_clips = NUM_CLIPS[split] if num_clips is None else num_clips
        for name, value in {"num_clips": self.num_clips, "num_objects": num_objects}.items():
            if value < 1:
                raise ValueError(f"{name} {value} must be at least 1")
        if config.start != "auto":
            raise ValueError(f"start {config.start!r} must be 'auto': a rendered clip is its video")
        size = config.size
        if size < 16:
            raise ValueError(f"size {size} must be at least 16 pixels, or shapes look alike")
        self.split, self.size, self.seed = split, size, seed
        self.num_frames, self.stride = config.num_frames, config.stride
        self.num_objects = num_objects

    def __len__(self) -> int:
        return self.num_clips

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides the pixels and labels of this split."""
        identity = (
            "moving_shapes/1",
            self.split,
            self.num_clips,
            self.num_frames,
            self.stride,
            self.size,
            self.seed,
            self.num_objects,
        )
        return hashlib.sha256(repr(identity).encode()).hexdigest()[:16]

    @property
    def coverage(self) -> Coverage:
        """All clips exist by construction."""
        return Coverage(expected=len(self), found=len(self), missing=0, failed=0)

    def sample_id(self, index: int) -> str:
        """Name of a clip, unique over splits and seeds."""
        return f"moving_shapes/{self.seed}/{self.split}/{index}"

    def labels(self, index: int) -> dict[str, int]:
        """Class indices of a clip, without rendering it."""
        return {
            "action": index % len(ACTIONS),
            "shape": index // len(ACTIONS) % len(SHAPES),
        }

    def __getitem__(self, index: int) -> LabelledVideoExample:
        return self.clip(index)

    def clip(self, index: int, draw: int = 0) -> LabelledVideoExample:
        """Renders one clip.

        Raises:
            IndexError: if `index` is outside the split.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} is outside the split of {len(self)} clips")
        labels = self.labels(index)
        digest = hashlib.blake2b(self.sample_id(index).encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        time = torch.arange(self.num_frames) * float(self.stride)
        video = render(
            SHAPES[labels["shape"]],
            ACTIONS[labels["action"]],
            time,
            size=self.size,
            num_objects=self.num_objects,
            generator=generator,
        )
        return {"video": video, "labels": labels, "sample_id": self.sample_id(index)}


def render(
    shape: str,
    action: str,
    time: Float[Tensor, " T"],
    *,
    size: int,
    num_objects: int,
    generator: torch.Generator,
) -> Float[Tensor, "3 T H W"]:
    """Draws one clip, pixels in [-1, 1].

    Args:
        shape: one of `SHAPES`.
        action: one of `ACTIONS`.
        time: time of each frame, in steps.
        size: height and width in pixels.
        num_objects: copies of the object, later ones in front.
        generator: source of everything random.
    """

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    axis = (torch.arange(size) + 0.5) / size
    ys, xs = torch.meshgrid(axis, axis, indexing="ij")
    canvas = ground(xs, ys, uniform)
    frames = rearrange(canvas, "c h w -> c 1 h w").expand(3, len(time), size, size)
    offset = motion(action, time, uniform)
    radius = float(uniform(1, low=0.17, high=0.22))
    colours = paint(uniform)
    for position in uniform(num_objects, 2):
        centre = position + offset
        dx = torch.remainder(xs - centre[:, 0, None, None] + 0.5, 1.0) - 0.5
        dy = torch.remainder(ys - centre[:, 1, None, None] + 0.5, 1.0) - 0.5
        alpha = (0.5 - signed_distance(shape, dx, dy, radius) * size).clamp(0, 1)
        colour = colours(dx / radius, dy / radius)
        frames = frames * (1 - alpha) + colour * alpha
    return frames.clamp(-1, 1)


def motion(action: str, time: Float[Tensor, " T"], uniform: Uniform) -> Float[Tensor, "T 2"]:
    """Shift xy of every object at every time, in canvas widths; 2 to 4 % of the canvas a step."""
    speed = uniform(1, low=0.02, high=0.04)
    return time[:, None] * speed * torch.tensor(DIRECTIONS[action])


def ground(
    xs: Float[Tensor, "H W"], ys: Float[Tensor, "H W"], uniform: Uniform
) -> Float[Tensor, "3 H W"]:
    """A dim, smooth, static texture that wraps around."""
    base = uniform(3, low=-0.8, high=-0.3)
    canvas = base[:, None, None].expand(3, *xs.shape)
    for _ in range(3):
        frequency = torch.floor(uniform(2, low=-2.0, high=3.0))
        phase, amplitude = uniform(1, high=2 * math.pi), uniform(3, low=0.03, high=0.12)
        wave = torch.sin(2 * math.pi * (frequency[0] * xs + frequency[1] * ys) + phase)
        canvas = canvas + amplitude[:, None, None] * wave
    return canvas


def paint(uniform: Uniform) -> Callable[[Tensor, Tensor], Tensor]:
    """Draws the colours of an object: soft stripes between two of them.

    Returns:
        A function from coordinates xy in radii, in the object's own frame so that the texture
        moves with it, each `T H W`, to colours `3 T H W`.
    """
    bright, dark = uniform(3, low=0.3, high=1.0), uniform(3, low=-0.2, high=0.5)
    angle, phase = uniform(1, high=math.pi), uniform(1, high=2 * math.pi)
    bright, dark = (rearrange(colour, "c -> c 1 1 1") for colour in (bright, dark))

    def colours(x: Float[Tensor, "T H W"], y: Float[Tensor, "T H W"]) -> Float[Tensor, "3 T H W"]:
        stripes = torch.sin((x * angle.cos() + y * angle.sin()) * math.pi + phase)
        return dark + (bright - dark) * (0.5 + 0.5 * stripes)

    return colours


def signed_distance(
    shape: str, dx: Float[Tensor, "T H W"], dy: Float[Tensor, "T H W"], radius: float
) -> Float[Tensor, "T H W"]:
    """Approximate signed distance to the outline, negative inside; shapes have similar areas.

    Raises:
        ValueError: for an unknown shape.
    """
    ax, ay = dx.abs(), dy.abs()
    if shape == "disc":
        return torch.hypot(dx, dy) - 0.8 * radius
    if shape == "square":
        return torch.maximum(ax, ay) - 0.72 * radius
    if shape == "triangle":
        return torch.maximum(ax * 0.866 + dy * 0.5, -dy) - 0.55 * radius
    if shape == "cross":
        arms = torch.minimum(
            torch.maximum(ax - radius, ay - 0.3 * radius),
            torch.maximum(ay - radius, ax - 0.3 * radius),
        )
        return arms
    if shape == "ring":
        return (torch.hypot(dx, dy) - 0.75 * radius).abs() - 0.22 * radius
    if shape == "bars":
        return torch.maximum((ay - 0.6 * radius).abs() - 0.26 * radius, ax - radius)
    raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")
