"""What the objects of a clip do: nine pairs of actions that differ in the direction of time alone.

All objects of a clip share one motion, with the world's axes: x right, y down, z away from the
camera. Whatever an action changes is uniform on a closed orbit (a position on a torus, an
orientation among all, the phase of a pulse), and every action draws all of these. So any single
frame has the same distribution under every action, and only the change between frames tells.

Axes: T frames, n objects.
"""

import math
from dataclasses import dataclass

import numpy as np
from einops import rearrange
from jaxtyping import Float

ACTIONS = (
    "left",
    "right",
    "rise",
    "fall",
    "approach",
    "recede",
    "circle_cw",
    "circle_ccw",
    "orbit_left",
    "orbit_right",
    "turn_left",
    "turn_right",
    "tumble_away",
    "tumble_towards",
    "roll_cw",
    "roll_ccw",
    "grow",
    "shrink",
)
TRANSLATIONS = {"left": (0, -1), "rise": (1, -1), "approach": (2, -1)}
CIRCLES = {"circle_cw": (0, 1), "orbit_left": (2, 0)}
ROTATIONS = {"turn_left": (1, 1), "tumble_away": (0, -1), "roll_cw": (2, 1)}
CIRCLE_RADIUS = 0.3
COLLAPSE = 0.2
SMALLEST = 0.6


@dataclass(frozen=True, kw_only=True, slots=True)
class Motion:
    """What every object of a clip does, as functions of time."""

    action: str
    """One of `ACTIONS`."""
    speed: float
    """Metres per second."""
    turning: float
    """Radians per second, of rotations."""
    angle: float
    """Angle on the circle or of the rotation at time 0, in radians."""
    pulses: Float[np.ndarray, " n"]
    """Phase of each object's size at time 0, 0 to 1."""


def opposite(action: str) -> str:
    """The action that this one becomes when time runs backwards.

    Raises:
        ValueError: for an unknown action.
    """
    if action not in ACTIONS:
        raise ValueError(f"unknown action {action!r}; known: {', '.join(ACTIONS)}")
    return ACTIONS[ACTIONS.index(action) ^ 1]


def _direction(action: str) -> tuple[str, float]:
    """The first action of the pair, and 1 or -1 for the direction of time."""
    index = ACTIONS.index(action)
    return ACTIONS[index & ~1], 1.0 - 2.0 * (index & 1)


def shift(motion: Motion, times: Float[np.ndarray, " T"]) -> Float[np.ndarray, "T 3"]:
    """Displacement xyz of every object, in metres.

    Args:
        motion: what the objects do.
        times: seconds.
    """
    name, sign = _direction(motion.action)
    moved = np.zeros((len(times), 3))
    if name in TRANSLATIONS:
        axis, towards = TRANSLATIONS[name]
        moved[:, axis] = towards * sign * motion.speed * times
    elif name in CIRCLES:
        first, second = CIRCLES[name]
        angle = motion.angle + sign * motion.speed / CIRCLE_RADIUS * times
        moved[:, first] = CIRCLE_RADIUS * np.cos(angle)
        moved[:, second] = CIRCLE_RADIUS * np.sin(angle)
    return moved


def rotation(motion: Motion, times: Float[np.ndarray, " T"]) -> Float[np.ndarray, "T 3 3"]:
    """Rotation of every object in the world's axes, to be applied after its own orientation.

    Args:
        motion: what the objects do.
        times: seconds.
    """
    name, sign = _direction(motion.action)
    if name not in ROTATIONS:
        return rearrange(np.eye(3), "i j -> 1 i j").repeat(len(times), axis=0)
    axis, towards = ROTATIONS[name]
    return about_axis(axis, motion.angle + towards * sign * motion.turning * times)


def about_axis(axis: int, angle: Float[np.ndarray, " T"]) -> Float[np.ndarray, "T 3 3"]:
    """Rotations about x (0), y (1) or z (2) that take the next axis to the one after it.

    Args:
        axis: 0 to 2.
        angle: radians.
    """
    first, second = (axis + 1) % 3, (axis + 2) % 3
    result = np.zeros((len(angle), 3, 3))
    result[:, axis, axis] = 1
    result[:, first, first] = result[:, second, second] = np.cos(angle)
    result[:, second, first] = np.sin(angle)
    result[:, first, second] = -result[:, second, first]
    return result


def growth(motion: Motion, times: Float[np.ndarray, " T"]) -> Float[np.ndarray, "n T"]:
    """Factor on the size of each object, `SMALLEST` to 1.

    The size is a saw tooth in time that rises slowly and falls quickly under `grow`, and the same
    backwards under `shrink`. Under the other actions it stays where it is.

    Args:
        motion: what the objects do.
        times: seconds.
    """
    name, sign = _direction(motion.action)
    rate = sign * motion.turning / (1.5 * math.pi) if name == "grow" else 0.0
    phase = np.remainder(motion.pulses[:, None] + rate * times, 1.0)
    slow, quick = phase / (1 - COLLAPSE), (1 - phase) / COLLAPSE
    return SMALLEST + (1 - SMALLEST) * np.minimum(slow, quick)
