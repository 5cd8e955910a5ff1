"""Clips beside one another, as a picture and as a video.

Axes: b clips, T frames, H W pixels.
"""

import math
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from probe_eval.report.reconstructions import GAP, GAP_LEVEL, frame_rows, to_bytes, write_png
from probe_eval.report.video import VideoWriter

FPS = 8


def grid(clips: Float[Tensor, "b 3 T H W"]) -> UInt8[Tensor, "T 3 H2 W2"]:
    """Frames in which all clips stand beside one another, in rows of about as many as there are.

    Args:
        clips: pixels in [-1, 1].
    """
    columns = math.ceil(math.sqrt(len(clips)))
    rows = math.ceil(len(clips) / columns)
    tiles = functional.pad(to_bytes(clips), (0, GAP, 0, GAP), value=GAP_LEVEL)
    empty = torch.full_like(tiles[:1], GAP_LEVEL).expand(rows * columns - len(clips), *[-1] * 4)
    picture = rearrange(
        torch.cat([tiles, empty]), "(r k) c T H W -> T c (r H) (k W)", r=rows, k=columns
    )
    return picture[:, :, :-GAP, :-GAP]


def write_clips(
    folder: str | Path, name: str, clips: Float[Tensor, "b 3 T H W"], *, fps: float | int = FPS
) -> list[Path]:
    """Writes `<name>.png`, a row of frames for each clip, and `<name>.mp4`, the clips in a grid.

    Of images (T = 1) there is only the picture, a grid.

    Args:
        folder: where to; made if need be.
        name: of both files, without extension.
        clips: pixels in [-1, 1].
        fps: frames per second of the video.

    Returns:
        The files; each is there whole or not at all.

    Raises:
        ValueError: if there are no clips.
    """
    if not clips.numel():
        raise ValueError(f"clips of shape {tuple(clips.shape)} make no picture")
    png, mp4 = Path(folder) / f"{name}.png", Path(folder) / f"{name}.mp4"
    if clips.shape[2] == 1:
        write_png(grid(clips)[0], png)
        return [png]
    write_png(frame_rows(clips), png)
    with VideoWriter(mp4, fps) as writer:
        writer.write(grid(clips))
    return [png, mp4]
