"""Clips beside their reconstructions, as pictures and as videos.

Axes: b clips, T frames, H W pixels.
"""

from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from probe_eval.report.video import VideoWriter
from probe_eval.runs import replacing

GAP = 4  # pixels between original and reconstruction
GAP_LEVEL = 128  # grey, which differs from both black bars and white walls
SAMPLE_FRAMES = 8  # columns of a strip, at most


def to_bytes(pixels: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """Pixels in [-1, 1], clamped to it, as bytes 0 to 255: the inverse of `to_float`."""
    return ((pixels.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def side_by_side(
    clip: Float[Tensor, "3 T H W"], reconstruction: Float[Tensor, "3 T H W"]
) -> UInt8[Tensor, "T 3 H W2"]:
    """Frames with the original on the left and the reconstruction on the right of a thin gap.

    Args:
        clip: pixels in [-1, 1].
        reconstruction: clamped to [-1, 1].
    """
    left, right = (
        rearrange(to_bytes(pixels), "c T H W -> T c H W") for pixels in (clip, reconstruction)
    )
    gap = torch.full((*left.shape[:3], GAP), GAP_LEVEL, dtype=torch.uint8, device=left.device)
    return torch.cat([left, gap, right], dim=3)


def strip(
    clips: Float[Tensor, "b 3 T H W"], reconstructions: Float[Tensor, "b 3 T H W"]
) -> UInt8[Tensor, "3 H2 W2"]:
    """One picture: a row of evenly spaced frames per clip, and below it one of its reconstruction.

    Args:
        clips: pixels in [-1, 1].
        reconstructions: clamped to [-1, 1].
    """
    pairs = torch.stack([clips, reconstructions], dim=1)
    return frame_rows(rearrange(pairs, "b two c T H W -> (b two) c T H W"))


def frame_rows(clips: Float[Tensor, "b 3 T H W"]) -> UInt8[Tensor, "3 H2 W2"]:
    """One picture: a row of evenly spaced frames for each clip.

    Args:
        clips: pixels in [-1, 1].
    """
    frames = clips.shape[2]
    places = torch.linspace(0, frames - 1, min(frames, SAMPLE_FRAMES)).round().long()
    picked = to_bytes(clips.index_select(2, places.to(clips.device)))
    bordered = functional.pad(picked, (0, GAP, 0, GAP), value=GAP_LEVEL)
    picture = rearrange(bordered, "b c T H W -> c (b H) (T W)")
    return picture[:, :-GAP, :-GAP]


def write_samples(
    folder: str | Path,
    name: str,
    clips: Float[Tensor, "b 3 T H W"],
    reconstructions: Float[Tensor, "b 3 T H W"],
    *,
    fps: float | int = 8,
) -> tuple[Path, Path]:
    """Writes `<name>.png`, a strip, and `<name>.mp4`, the clips below one another.

    Args:
        folder: where to; made if need be.
        name: of both files, without extension.
        clips: pixels in [-1, 1].
        reconstructions: clamped to [-1, 1].
        fps: frames per second of the video.

    Returns:
        The PNG and the MP4; each is there whole or not at all.

    Raises:
        ValueError: if the shapes differ, or there are no clips.
    """
    if clips.shape != reconstructions.shape or not clips.numel():
        raise ValueError(
            f"clips of shape {tuple(clips.shape)} and reconstructions of shape "
            f"{tuple(reconstructions.shape)} make no samples; expected equal shapes with no "
            "empty axis"
        )
    folder = Path(folder)
    png, mp4 = folder / f"{name}.png", folder / f"{name}.mp4"
    write_png(strip(clips, reconstructions), png)
    with VideoWriter(mp4, fps) as writer:
        rows = [side_by_side(*pair) for pair in zip(clips, reconstructions, strict=True)]
        writer.write(torch.cat(rows, dim=2))
    return png, mp4


def write_png(picture: UInt8[Tensor, "3 H W"], path: Path) -> None:
    """Writes a picture, pixel by pixel, so that the file is there whole or not at all."""
    from matplotlib.image import imsave

    with replacing(path) as partial:
        imsave(partial, rearrange(picture.cpu(), "c H W -> H W c").numpy(), format="png")
