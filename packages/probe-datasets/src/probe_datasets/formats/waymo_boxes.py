"""What becomes of Waymo's 2-D boxes on their way to an example: pure functions.

Axes: `T` frames; `n` boxes. Boxes are xyxy, in pixels where a function says so and else in [0, 1]
of the picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

__all__ = ["NO_BOXES", "WaymoBoxes", "box_tracks", "corners", "select_boxes", "subsample"]


@dataclass(frozen=True, kw_only=True, slots=True)
class WaymoBoxes:
    """The labelled objects in one picture of one camera."""

    boxes: Float64[np.ndarray, "n 4"]
    """xyxy in pixels, x from the left and y from the top edge of the picture."""
    types: Int64[np.ndarray, " n"]
    """1 vehicle, 2 pedestrian, 3 sign, 4 cyclist, 0 unknown."""
    ids: tuple[str, ...]
    """Identity of each object, the same in all frames of its camera."""


NO_BOXES = WaymoBoxes(boxes=np.zeros((0, 4)), types=np.zeros(0, np.int64), ids=())
"""Of a picture without labelled objects."""


def corners(
    centre_x: Float64[np.ndarray, " n"],
    centre_y: Float64[np.ndarray, " n"],
    size_x: Float64[np.ndarray, " n"],
    size_y: Float64[np.ndarray, " n"],
) -> Float64[np.ndarray, "n 4"]:
    """Corners xyxy of boxes that are stored by centre and size, all in pixels.

    Args:
        centre_x: column of the centre.
        centre_y: row of the centre.
        size_x: width; Waymo's `length`.
        size_y: height; Waymo's `width`.
    """
    half_x, half_y = size_x / 2, size_y / 2
    return np.stack(
        [centre_x - half_x, centre_y - half_y, centre_x + half_x, centre_y + half_y], axis=-1
    )


def subsample(timestamps: Int64[np.ndarray, " n"], step: int = 2) -> Int64[np.ndarray, " m"]:
    """Which frames make a slower video: every `step`-th in the order of their times.

    Args:
        timestamps: time of each frame, in any order.
        step: 2 takes 10 frames a second to 5.

    Returns:
        Ranks in `timestamps`, in the order of time.

    Raises:
        ValueError: two frames have the same time, or `step` is below 1.
    """
    if step < 1:
        raise ValueError(f"step {step} must be at least 1")
    order = np.argsort(timestamps, kind="stable")
    if (np.diff(timestamps[order]) == 0).any():
        raise ValueError("two frames have the same timestamp; every frame must be listed once")
    return order[::step].astype(np.int64)


def box_tracks(
    frames: Sequence[WaymoBoxes], height: int, width: int
) -> tuple[Float64[np.ndarray, "n T 4"], Bool[np.ndarray, "n T"], Int64[np.ndarray, " n"]]:
    """Follow the objects of the first frame through a clip.

    Args:
        frames: the boxes of each frame, in the order of time.
        height: rows of the pictures in pixels.
        width: columns of the pictures in pixels.

    Returns:
        Boxes in [0, 1], zeros in frames without the object; whether it is in the frame; its type.

    Raises:
        ValueError: there is no frame, or an identity occurs twice in one.
    """
    if not frames:
        raise ValueError("frames is empty; a clip has at least one frame")
    rank = {name: i for i, name in enumerate(frames[0].ids)}
    boxes = np.zeros((len(rank), len(frames), 4))
    valid = np.zeros((len(rank), len(frames)), bool)
    for t, frame in enumerate(frames):
        if len(set(frame.ids)) != len(frame.ids):
            raise ValueError(f"an object is labelled twice in frame {t} of the clip")
        for name, box in zip(frame.ids, frame.boxes, strict=True):
            if name in rank:
                boxes[rank[name], t] = box
                valid[rank[name], t] = True
    return boxes / np.array([width, height, width, height]), valid, frames[0].types


def select_boxes(
    first: Float64[np.ndarray, "n 4"],
    valid: Bool[np.ndarray, " n"],
    *,
    min_area: float = 0.005,
    max_boxes: int = 25,
) -> Int64[np.ndarray, " m"]:
    """Which objects to keep, judged by the first frame of a clip.

    Reference:
        From Image to Video, appendix D.6: boxes under 0.5 % of the first frame are dropped, and at
        most 25 are kept. Which ones is not said; here it is the largest.

    Args:
        first: boxes in the first frame, in [0, 1].
        valid: whether each object is in that frame.
        min_area: least part of the frame.
        max_boxes: how many are kept at most.

    Returns:
        Their ranks, ascending.
    """
    area = (first[:, 2] - first[:, 0]) * (first[:, 3] - first[:, 1])
    kept = np.flatnonzero(valid & (area >= min_area))
    largest = kept[np.argsort(-area[kept], kind="stable")[:max_boxes]]
    return np.sort(largest).astype(np.int64)
