"""Windows of a latent grid; they do not overlap, so they fold into the batch and need no mask.

Axes: b batch, t h w latent grid, n tokens of a window, d width.
"""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

Window = tuple[int, int, int]


def fit_window(grid: Window, window: Window) -> Window:
    """A window cut to a grid that is smaller on some axes."""
    t, h, w = (min(pair) for pair in zip(grid, window, strict=True))
    return t, h, w


def check_window(grid: Window, window: Window) -> None:
    """Checks that windows tile the grid.

    Raises:
        ValueError: if a window side does not divide the grid side.
    """
    if any(size < 1 or size % part for size, part in zip(grid, window, strict=True)):
        steps = " x ".join(str(part) for part in window)
        raise ValueError(
            f"window {window} must divide the latent grid (t, h, w)={grid}; resize the clip so "
            f"that its latent grid is a multiple of {steps}"
        )


def partition(x: Float[Tensor, "b t h w d"], window: Window) -> Float[Tensor, "b2 n d"]:
    """Cuts a grid into windows, each a sequence of its own.

    Reference: WALT, Sec. 3.2 (window attention).

    Raises:
        ValueError: if `window` does not divide the grid.
    """
    check_window((x.shape[1], x.shape[2], x.shape[3]), window)
    return rearrange(
        x,
        "b (nt t) (nh h) (nw w) d -> (b nt nh nw) (t h w) d",
        t=window[0],
        h=window[1],
        w=window[2],
    )


def merge(x: Float[Tensor, "b2 n d"], window: Window, grid: Window) -> Float[Tensor, "b t h w d"]:
    """The inverse of `partition` for a grid of size `grid`."""
    return rearrange(
        x,
        "(b nt nh nw) (t h w) d -> b (nt t) (nh h) (nw w) d",
        nt=grid[0] // window[0],
        nh=grid[1] // window[1],
        nw=grid[2] // window[2],
        t=window[0],
        h=window[1],
        w=window[2],
    )
