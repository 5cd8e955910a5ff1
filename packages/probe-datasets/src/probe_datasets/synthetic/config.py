"""How hard a world is, and what its classes are called."""

import math
from dataclasses import dataclass

SHAPES = ("sphere", "box", "cylinder", "cone", "capsule", "octahedron")
TEXTURES = ("checker", "stripes", "dots", "grid", "sectors", "mosaic")


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldConfig:
    """Difficulty of the synthetic world; a frozen record of plain values.

    Raises:
        ValueError: for a value out of its range.
    """

    num_objects: int = 8
    """Moving objects in the world, 1 to 64; about two thirds of them are in sight at a time."""
    num_occluders: int = 1
    """Pillars between floor and ceiling that hide what is behind them, 0 to 16."""
    texture_contrast: float = 0.8
    """Difference of the two colours of a texture, on objects and walls: 0 none, 1 full."""
    object_speed: float = 1.0
    """Factor on the speed of the action: 1 is 0.9 to 1.5 m/s, or 1.6 to 3.2 rad/s."""
    camera_speed: float = 0.3
    """Peak speed of the camera in m/s; 0 is a camera that stands still and does not turn."""
    ambient: float = 0.45
    """Share of the light that comes from everywhere: 1 is flat, 0 is one lamp alone."""
    light_variation: float = 0.3
    """How far brightness and tint of the lamp differ from clip to clip, 0 to 1."""
    shadows: bool = False
    """Whether objects and pillars cast ray-traced shadows."""
    frames_per_second: float = 12.0
    """Time steps in a second; a clip of stride s shows every s-th."""
    num_points: int = 64
    """Point tracks of a clip."""
    late_points: float = 0.25
    """Share of the points that are drawn from any frame, so that many start late; the others are
    drawn from the first frame."""
    max_instances: int = 16
    """Instances of a clip that have boxes: those with the most visible pixels."""

    def __post_init__(self) -> None:
        ranges = {
            "num_objects": (1, 64),
            "num_occluders": (0, 16),
            "texture_contrast": (0, 1),
            "object_speed": (0, 10),
            "camera_speed": (0, 2),
            "ambient": (0, 1),
            "light_variation": (0, 1),
            "frames_per_second": (0.1, 1000),
            "num_points": (0, 4096),
            "late_points": (0, 1),
            "max_instances": (1, 254),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and low <= value <= high):
                raise ValueError(f"{name} {value} must be from {low} to {high}")
