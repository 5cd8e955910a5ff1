"""Which tracks of a clip are asked for, and in which frame.

Axes: `n` tracks of a video, `p` tracks of an example, `T` frames of the clip. Points are xy in
[0, 1] of the frame.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["query_tracks"]


def query_tracks(
    points: Float[Tensor, "n T 2"], visible: Bool[Tensor, "n T"], num_points: int
) -> tuple[
    Float[Tensor, "p T 2"],
    Bool[Tensor, "p T"],
    Bool[Tensor, " p"],
    Int[Tensor, " p"],
]:
    """Tracks queried in the first frame in which they are visible, padded to a fixed number.

    Tracks that the clip never shows are left out. Of more than fit, the first in the order of the
    video's tracks are taken: that is no chance, and the same in every run.

    Reference: Doersch et al., TAP-Vid, 2022, section 3 (queries in the first visible frame).

    Args:
        points: xy in each frame of the clip.
        visible: whether each point can be seen.
        num_points: tracks afterwards, at least 1.

    Returns:
        xy, zeros where not visible; visibility; which tracks are no padding; and the frame of each
        query, 0 for padding.

    Raises:
        ValueError: `num_points` is below 1.
    """
    if num_points < 1:
        raise ValueError(f"num_points {num_points} must be at least 1")
    shown = visible.any(dim=1).nonzero()[:num_points, 0]
    found = len(shown)
    xy = points.new_zeros(num_points, points.shape[1], 2)
    seen = visible.new_zeros(num_points, visible.shape[1])
    seen[:found] = visible[shown]
    xy[:found] = torch.where(visible[shown, :, None], points[shown], 0.0)
    # The first of equal maxima is the first visible frame.
    return xy, seen, torch.arange(num_points) < found, seen.int().argmax(dim=1)
