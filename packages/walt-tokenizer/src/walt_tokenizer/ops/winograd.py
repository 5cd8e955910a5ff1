"""Winograd's minimal filtering for 3 x 3 x 3 convolutions, F(4 x 4, 3 x 3) in each frame.

Every 4 x 4 block of outputs takes 36 products a channel pair where a direct convolution takes 144;
the three taps in time are summed after the transform.

Axes: b batch, c channels in, o channels out, t h w input grid, p q r output grid, n tiles, k the 36
places of a transformed tile.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

TILE = 4
# Bytes of transformed input that are worked on at once: small enough for a last-level cache.
BLOCK_BYTES = 4 * 2**20

# Points of interpolation 0, 3/4, -3/4, 3/2, -3/2 and infinity: half the rounding error of the usual
# 0, 1, -1, 2, -2 and infinity.
INPUT = (
    (81 / 64, 0, -45 / 16, 0, 1, 0),
    (0, -27 / 16, -9 / 4, 3 / 4, 1, 0),
    (0, 27 / 16, -9 / 4, -3 / 4, 1, 0),
    (0, -27 / 32, -9 / 16, 3 / 2, 1, 0),
    (0, 27 / 32, -9 / 16, -3 / 2, 1, 0),
    (0, 81 / 64, 0, -45 / 16, 0, 1),
)
KERNEL = (
    (64 / 81, 0, 0),
    (-128 / 243, -32 / 81, -8 / 27),
    (-128 / 243, 32 / 81, -8 / 27),
    (32 / 243, 16 / 81, 8 / 27),
    (32 / 243, -16 / 81, 8 / 27),
    (0, 0, 1),
)
OUTPUT = (
    (1, 1, 1, 1, 1, 0),
    (0, 3 / 4, -3 / 4, 3 / 2, -3 / 2, 0),
    (0, 9 / 16, 9 / 16, 9 / 4, 9 / 4, 0),
    (0, 27 / 64, -27 / 64, 27 / 8, -27 / 8, 1),
)


def both_axes(rows: tuple[tuple[int | float, ...], ...]) -> Tensor:
    """The matrix of a transform applied along height and width."""
    matrix = torch.tensor(rows, dtype=torch.float64)
    return torch.kron(matrix, matrix).float()


@torch.no_grad()
def winograd_conv3d(
    x: Float[Tensor, "b c t h w"], weight: Float[Tensor, "o c 3 3 3"]
) -> Float[Tensor, "b o p q r"]:
    """Convolution of stride 1 without padding; rounds 3 to 5 times as much as a direct one.

    Reference: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (CVPR 2016), Sec.
        4.3, with other points.
    """
    transform, untransform = both_axes(INPUT), both_axes(OUTPUT)
    kernels = both_axes(KERNEL) @ rearrange(weight, "o c kt kh kw -> (kh kw) (kt c o)")
    kernels = rearrange(kernels, "k (kt c o) -> kt k c o", kt=3, c=weight.shape[1]).contiguous()
    video = rearrange(x, "b c t h w -> b t h w c")
    batch, frames, height, width, channels = video.shape
    out = video.new_empty(batch, frames - 2, height - 2, width - 2, weight.shape[0])
    tile_row_bytes = 36 * channels * 4 * frames * tiles_across(width - 2)
    rows = TILE * max(1, BLOCK_BYTES // tile_row_bytes)
    for clip, result in zip(video, out, strict=True):
        for top in range(0, height - 2, rows):
            tiles = transform_input(clip[:, top : top + rows + 2], transform)
            size = tiles.shape[1] // frames
            products = torch.bmm(tiles[:, : -2 * size], kernels[0])
            products.baddbmm_(tiles[:, size:-size], kernels[1])
            products.baddbmm_(tiles[:, 2 * size :], kernels[2])
            write_output(products, untransform, result[:, top : top + rows])
    return rearrange(out, "b t h w o -> b o t h w")


def tiles_across(size: int) -> int:
    """Number of tiles that cover `size` outputs."""
    return -(-size // TILE)


def transform_input(
    band: Float[Tensor, "t h w c"], transform: Float[Tensor, "36 36"]
) -> Float[Tensor, "36 n c"]:
    """Overlapping 6 x 6 tiles of every frame, transformed; the last are filled up with zeros."""
    frames, height, width, channels = band.shape
    down, across = tiles_across(height - 2), tiles_across(width - 2)
    if (height - 2) % TILE or (width - 2) % TILE:
        whole = band.new_zeros(frames, TILE * down + 2, TILE * across + 2, channels)
        whole[:, :height, :width] = band
        band = whole
    step, row, column, channel = band.stride()
    tiles = band.as_strided(
        (6, 6, frames, down, across, channels),
        (row, column, step, TILE * row, TILE * column, channel),
    )
    flat = rearrange(tiles, "i j t n m c -> (i j) (t n m c)")
    return rearrange(transform @ flat, "k (n c) -> k n c", c=channels)


def write_output(
    products: Float[Tensor, "36 n o"],
    untransform: Float[Tensor, "16 36"],
    out: Float[Tensor, "p q r o"],
) -> None:
    """Turns products into 4 x 4 blocks of outputs and puts them in their places."""
    frames, height, width = out.shape[:3]
    down, across = tiles_across(height), tiles_across(width)
    blocks = untransform @ rearrange(products, "k n o -> k (n o)")
    image = rearrange(
        blocks,
        "(i j) (t n m o) -> t (n i) (m j) o",
        i=TILE,
        t=frames,
        n=down,
        m=across,
    )
    out.copy_(image[:, :height, :width])
