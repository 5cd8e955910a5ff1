"""Pure transforms of frames. The last two axes are `H W` pixels; whatever precedes them is kept."""

import torch
from einops import pack, rearrange, unpack
from jaxtyping import Float, Num, Shaped, UInt8
from torch import Tensor
from torch.nn import functional

from probe_datasets.windows import Window

__all__ = [
    "centre_crop",
    "crop_nearest",
    "crop_resize",
    "crop_resize_bytes",
    "flip",
    "resize_short_side",
    "to_float",
]


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


def crop_resize(
    frames: UInt8[Tensor, "T 3 H W"], window: Window, size: int | tuple[int, int]
) -> Float[Tensor, "3 T h w"]:
    """Cut a window out of every frame and resize it, as pixels in [-1, 1]; see `crop_resize_bytes`.

    Args:
        frames: pixels, 0 to 255.
        window: what is cut out.
        size: rows and columns afterwards; one number for a square.

    Returns:
        Pixels in [-1, 1], contiguous.

    Raises:
        ValueError: the window is of frames of another size, or `size` is below 1.
    """
    small = crop_resize_bytes(frames, window, size)
    return to_float(rearrange(small, "T c h w -> c T h w").contiguous())


def crop_resize_bytes(
    frames: UInt8[Tensor, "T 3 H W"], window: Window, size: int | tuple[int, int]
) -> UInt8[Tensor, "T 3 h w"]:
    """Cut a window out of every frame and resize it, by antialiased bilinear filtering.

    Pixels outside the window have no part in the result. Bytes are filtered and rounded to bytes,
    within 1 of what float32 would give, in about a quarter of the time; faster still where the
    channels of a pixel are adjacent in memory, as decoders of pictures leave them.

    Args:
        frames: pixels, 0 to 255.
        window: what is cut out.
        size: rows and columns afterwards; one number for a square. Their ratio may differ from the
            window's.

    Returns:
        Pixels, 0 to 255.

    Raises:
        ValueError: the window is of frames of another size, or `size` is below 1.
    """
    target = _target(size)
    height, width = frames.shape[-2:]
    if (height, width) != (window.frame_height, window.frame_width):
        raise ValueError(
            f"frames of {height} x {width} cannot be cut by a window of frames of "
            f"{window.frame_height} x {window.frame_width}; choose it for the frames as decoded"
        )
    rows = slice(window.top, window.top + window.height)
    columns = slice(window.left, window.left + window.width)
    cut = frames[..., rows, columns]
    # Planes must be contiguous to be filtered fast; one frame at a time needs the least memory.
    adjacent = cut.stride(1) == 1
    pieces = [cut] if adjacent else (frame.contiguous() for frame in cut.split(1))
    return torch.cat([_filter_bytes(piece, target) for piece in pieces])


def crop_nearest(
    maps: Shaped[Tensor, "*n H W"], window: Window, size: int | tuple[int, int]
) -> Shaped[Tensor, "*n h w"]:
    """Cut a window out of label maps and resize it, each pixel taking the value at its centre.

    Values are never blended: of depth that would invent surfaces, most of all where some pixels are
    invalid, and of instance masks identities. Depth along the camera's z axis stays as it is, since
    the camera does. Take depth and its validity through the same call or the same window.

    Args:
        maps: depth, validity or identities, of the same view as the frames of `window`. They may be
            of another size than those, such as ScanNet's depth beside its colour.
        window: what is cut out.
        size: rows and columns afterwards; one number for a square.

    Returns:
        The value of the pixel in which the centre of each new pixel lies; on the border between
        two, of the lower or right one.

    Raises:
        ValueError: `size` is below 1.
    """
    height, width = _target(size)
    rows = _nearest(window.top, window.height, window.frame_height, maps.shape[-2], height)
    columns = _nearest(window.left, window.width, window.frame_width, maps.shape[-1], width)
    return maps[..., rows[:, None], columns]


def flip(frames: Shaped[Tensor, "*n H W"]) -> Shaped[Tensor, "*n H W"]:
    """Mirror frames, left to right.

    For the training on classes of images alone. Something-Something-v2 tells left from right in its
    labels, and tasks of geometry, which are depth, poses, points and boxes, would need their labels
    mirrored too and a camera that does not exist: none of these is ever flipped.

    Args:
        frames: pixels in any range.
    """
    return frames.flip(-1)


def _filter_bytes(frames: Tensor, target: tuple[int, int]) -> Tensor:
    if target[1] == 1:  # torch 2.13 filters bytes to a single column wrongly, or fails
        wide = functional.interpolate(frames.float(), target, mode="bilinear", antialias=True)
        return wide.round().to(torch.uint8)
    return functional.interpolate(frames, target, mode="bilinear", antialias=True)


def _target(size: int | tuple[int, int]) -> tuple[int, int]:
    target = (size, size) if isinstance(size, int) else size
    if min(target) < 1:
        raise ValueError(f"size {size} must be at least 1 pixel")
    return target


def _nearest(first: int, length: int, frame: int, available: int, target: int) -> Tensor:
    """Ranks in a side of `available` pixels that lie under the centres of `target` pixels.

    Those cover `length` of the side's `frame` pixels from `first` on. Whole numbers are exact.
    """
    twice = 2 * target * first + (2 * torch.arange(target) + 1) * length  # centre * 2 target
    return twice * available // (2 * target * frame)
