"""What is cut out of a frame, and the labels that move with it.

A `Window` is cut out of every frame of a clip and then resized; `transforms.crop_resize` does so to
pixels, `transforms.crop_nearest` to depth and masks, and the functions here to coordinates. All
labels are fractions of the frame, so that the resize itself, which may change the aspect, leaves
them alone. Camera poses do not change: the camera stays where it is, and only its intrinsics say
that it now sees a part.

Axes: `*n` any leading axes, such as tracks and frames. Points are xy and boxes xyxy, in [0, 1] of
the frame, x from the left and y from the top; the centre of pixel i of n is (i + 0.5) / n.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = [
    "Window",
    "central_window",
    "inception_window",
    "move_boxes",
    "move_intrinsics",
    "move_points",
    "track_window",
    "whole_window",
]

_TRIES = 10
_SLIVER = 0.01
"""Pixels of the frame; in float32, boxes that only touch a window reach into it by less."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A rectangle of whole pixels in a frame.

    Raises:
        ValueError: it is empty or not within the frame.
    """

    top: int
    """Rows above it."""
    left: int
    """Columns to the left of it."""
    height: int
    """Its rows."""
    width: int
    """Its columns."""
    frame_height: int
    """Rows of the frame."""
    frame_width: int
    """Columns of the frame."""

    def __post_init__(self) -> None:
        _check_frame(self.frame_height, self.frame_width)
        for side, first, length, available in (
            ("rows", self.top, self.height, self.frame_height),
            ("columns", self.left, self.width, self.frame_width),
        ):
            if first < 0 or length < 1 or first + length > available:
                raise ValueError(
                    f"a window of {length} {side} from {first} does not fit a frame of {available} "
                    f"{side}; it must have at least 1 and lie within the frame"
                )


def whole_window(height: int, width: int) -> Window:
    """All of a frame.

    Args:
        height: rows of the frame.
        width: columns of the frame.

    Raises:
        ValueError: a side is below 1.
    """
    return Window(top=0, left=0, height=height, width=width, frame_height=height, frame_width=width)


def central_window(height: int, width: int) -> Window:
    """The largest central square of a frame.

    Resized, it is what scaling the shorter side and cutting the central square gives. So it also is
    Waymo's window: frames of 1280 x 1920 scaled to 256 x 384, of which the central 256 x 256 stay.

    Args:
        height: rows of the frame.
        width: columns of the frame.

    Returns:
        The square. Where the margin is odd, the smaller part of it is above or to the left.

    Raises:
        ValueError: a side is below 1.
    """
    side = min(height, width)
    return _central(side, side, height, width)


def inception_window(
    height: int,
    width: int,
    generator: torch.Generator,
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> Window:
    """A window of random area, aspect and place, as classifiers of images are trained with.

    Area is uniform and the logarithm of the aspect is uniform. A pair that does not fit the frame
    is drawn anew, up to ten pairs; after that it is the largest central window of an allowed
    aspect, whatever its area. The place is uniform over all that fit.

    Reference:
        Szegedy et al., Going Deeper with Convolutions, section 6.

    Args:
        height: rows of the frame.
        width: columns of the frame.
        generator: source of chance, on the CPU.
        area: least and greatest area as a part of the frame's, in (0, 1].
        aspect: least and greatest width over height, in pixels.

    Returns:
        The window; rounding to whole pixels may take it out of the ranges by as much.

    Raises:
        ValueError: a side is below 1, or a range is empty or not one of positive numbers.
    """
    _check_frame(height, width)
    for name, (low, high), limit in (("area", area, 1.0), ("aspect", aspect, math.inf)):
        if not (0 < low <= high <= limit and math.isfinite(high)):
            bound = f" that do not exceed {limit:g}" if math.isfinite(limit) else ""
            raise ValueError(
                f"{name} ({low}, {high}) must be two ascending positive numbers{bound}"
            )
    log_low, log_high = math.log(aspect[0]), math.log(aspect[1])
    for _ in range(_TRIES):
        first, second = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        pixels = height * width * (area[0] + (area[1] - area[0]) * first)
        ratio = math.exp(log_low + (log_high - log_low) * second)
        rows, columns = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
        if 1 <= rows <= height and 1 <= columns <= width:
            return Window(
                top=int(torch.randint(height - rows + 1, (), generator=generator)),
                left=int(torch.randint(width - columns + 1, (), generator=generator)),
                height=rows,
                width=columns,
                frame_height=height,
                frame_width=width,
            )
    ratio = min(max(width / height, aspect[0]), aspect[1])
    rows = max(1, min(height, round(width / ratio)))
    return _central(rows, max(1, min(width, round(height * ratio))), height, width)


def track_window(height: int, width: int, generator: torch.Generator) -> Window:
    """A random window for the training of point tracks: much of the frame, in a changed aspect.

    Resized to a square, it stretches the frame by up to 2 along one axis. Draws are those of
    `inception_window` with areas from 0.3 to 1 and aspects from 0.5 to 2.

    Args:
        height: rows of the frame.
        width: columns of the frame.
        generator: source of chance, on the CPU.

    Raises:
        ValueError: a side is below 1.
    """
    return inception_window(height, width, generator, area=(0.3, 1.0), aspect=(0.5, 2.0))


def move_points(
    points: Float[Tensor, "*n 2"], visible: Bool[Tensor, "*n"], window: Window
) -> tuple[Float[Tensor, "*n 2"], Bool[Tensor, "*n"]]:
    """Points of a frame as points of a window.

    Args:
        points: xy in the frame, finite; of points that are not visible too, where zeros will do.
        visible: whether each can be seen in the frame.
        window: what is kept of the frame.

    Returns:
        xy in the window, beyond [0, 1] where outside it; and whether each can be seen there, which
        is never so outside. Points on the very edge are inside.

    Raises:
        ValueError: a coordinate is not finite.
    """
    _check_finite("points", points)
    scale, offset = _affine(window, points)
    moved = points * scale - offset
    inside = ((moved >= 0) & (moved <= 1)).all(dim=-1)
    return moved, visible & inside


def move_boxes(
    boxes: Float[Tensor, "*n 4"], valid: Bool[Tensor, "*n"], window: Window
) -> tuple[Float[Tensor, "*n 4"], Bool[Tensor, "*n"]]:
    """Boxes of a frame as boxes of a window.

    A box that is partly inside is cut at the window's edge and stays valid, however little is left;
    a least size is for the caller to ask for, of the box as it is then. One that is outside or has
    no area, to a hundredth of a pixel of the frame, is invalid.

    Args:
        boxes: xyxy in the frame, finite; of invalid ones too, where zeros will do.
        valid: whether each counts.
        window: what is kept of the frame.

    Returns:
        xyxy in the window, in [0, 1] and zeros where invalid; and whether each still counts.

    Raises:
        ValueError: a coordinate is not finite, or a valid box ends before it begins.
    """
    _check_finite("boxes", boxes)
    ascending = (boxes[..., 2:] >= boxes[..., :2]).all(dim=-1)
    if (valid & ~ascending).any():
        first = boxes[valid & ~ascending][0].tolist()
        raise ValueError(
            f"boxes must be xyxy with the left and top edges first, but a valid one is {first}; "
            "convert boxes that are stored as centre and size"
        )
    scale, offset = _affine(window, boxes)
    moved = (boxes * scale.repeat(2) - offset.repeat(2)).clamp(0, 1)
    least = moved.new_tensor([_SLIVER / window.width, _SLIVER / window.height])
    left = valid & (moved[..., 2:] - moved[..., :2] > least).all(dim=-1)
    return torch.where(left[..., None], moved, 0.0), left


def move_intrinsics(intrinsics: Float[Tensor, "*n 4"], window: Window) -> Float[Tensor, "*n 4"]:
    """Intrinsics of the camera that sees a window alone.

    They hold for the window resized to any height and width. A point (x, y, z) in the camera's axes
    is seen at (fx x / z + cx, fy y / z + cy) of the picture, in [0, 1] where inside it.

    Args:
        intrinsics: (fx, fy, cx, cy) of the frame, by its width and height.
        window: what is kept of the frame.

    Returns:
        (fx, fy, cx, cy) by the window's width and height.

    Raises:
        ValueError: one is not finite.
    """
    _check_finite("intrinsics", intrinsics)
    scale, offset = _affine(window, intrinsics)
    focal, centre = intrinsics[..., :2], intrinsics[..., 2:]
    return torch.cat([focal * scale, centre * scale - offset], dim=-1)


def _central(rows: int, columns: int, height: int, width: int) -> Window:
    _check_frame(height, width)
    return Window(
        top=(height - rows) // 2,
        left=(width - columns) // 2,
        height=rows,
        width=columns,
        frame_height=height,
        frame_width=width,
    )


def _affine(window: Window, like: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and offset of xy: fractions of the window are fractions of the frame * scale - offset.

    Both are exact for the whole frame, 1 and 0.
    """
    scale = [window.frame_width / window.width, window.frame_height / window.height]
    offset = [window.left / window.width, window.top / window.height]
    return like.new_tensor(scale), like.new_tensor(offset)


def _check_frame(height: int, width: int) -> None:
    if height < 1 or width < 1:
        raise ValueError(f"a frame of {height} x {width} pixels must have at least 1 x 1")


def _check_finite(name: str, values: Tensor) -> None:
    if not values.isfinite().all():
        bad = int((~values.isfinite()).sum())
        raise ValueError(
            f"{name} hold {bad} numbers that are not finite; put zeros where something is unknown, "
            "and say so in the mask"
        )
