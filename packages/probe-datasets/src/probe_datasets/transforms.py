"""Pure transforms of frames. The last two axes are `H W` pixels; whatever precedes them is kept."""

import torch
from einops import pack, rearrange, unpack
from jaxtyping import Float, Num, UInt8
from torch import Tensor
from torch.nn import functional

__all__ = ["centre_crop", "resize_short_side", "to_float"]


def to_float(frames: UInt8[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Bytes 0 to 255 as float32 in [-1, 1].

    Args:
        frames: pixels, 0 to 255.

    Returns:
        Pixels, -1 for 0 and 1 for 255.
    """
    return frames.to(torch.float32) / 127.5 - 1.0


def resize_short_side(frames: Num[Tensor, "*n H W"], size: int) -> Num[Tensor, "*n h w"]:
    """Scale frames, by antialiased bilinear filtering, until the shorter side has `size` pixels.

    Args:
        frames: pixels in any range; bytes are filtered as float32 and rounded.
        size: pixels of the shorter side afterwards. The longer side keeps the aspect ratio to the
            nearest pixel.

    Returns:
        The scaled frames, of the dtype of `frames`.

    Raises:
        ValueError: `size` is below 1.
    """
    if size < 1:
        raise ValueError(f"size {size} must be at least 1 pixel")
    height, width = frames.shape[-2:]
    scale = size / min(height, width)
    target = (max(size, round(height * scale)), max(size, round(width * scale)))
    if target == (height, width):
        return frames
    flat, leading = pack([frames], "* H W")
    wide = flat if flat.dtype in (torch.float32, torch.float64) else flat.to(torch.float32)
    scaled = functional.interpolate(
        rearrange(wide, "n H W -> n 1 H W"), target, mode="bilinear", antialias=True
    )
    if not frames.dtype.is_floating_point:
        scaled = scaled.round()
    (result,) = unpack(rearrange(scaled, "n 1 h w -> n h w"), leading, "* h w")
    return result.to(frames.dtype)


def centre_crop(frames: Num[Tensor, "*n H W"], size: int) -> Num[Tensor, "*n h w"]:
    """The central square of frames.

    Args:
        frames: pixels in any range, at least `size` on both sides.
        size: pixels of each side afterwards. Where the margin is odd, the smaller part of it is cut
            from the top or left.

    Returns:
        A view of the frames.

    Raises:
        ValueError: `size` is below 1 or above a side of the frames.
    """
    height, width = frames.shape[-2:]
    if not 1 <= size <= min(height, width):
        raise ValueError(
            f"size {size} must be from 1 to {min(height, width)} for frames of {height} x {width}; "
            "use resize_short_side first"
        )
    top, left = (height - size) // 2, (width - size) // 2
    return frames[..., top : top + size, left : left + size]
