"""Videos as H.264 in MP4, written while frames arrive.

Axes: T frames, H W pixels.
"""

import math
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from einops import rearrange
from jaxtyping import UInt8
from torch import Tensor

QUALITY = "16"  # libx264's crf: 0 is lossless, 18 is said to look it, 23 is the default
_BT709 = 1  # the code of ITU-R BT.709 for colour space, primaries and transfer alike


class VideoWriter:
    """An MP4 of the frames that are written within the `with` block.

    The file is written beside its place and moved there when the block ends. An exception leaves
    no file, and an older file as it was. 4:2:0 colour needs even sizes: a frame of odd height or
    width gets its last row or column twice. Memory does not grow with the length.

    Args:
        path: the MP4; its folder is made if need be.
        fps: frames per second.

    Raises:
        ValueError: if `fps` is not a positive number, frames differ in size, or no frame was
            written by the end.
    """

    def __init__(self, path: str | Path, fps: float | int) -> None:
        if not (math.isfinite(fps) and 0 < fps <= 1000):
            raise ValueError(f"fps {fps} must be above 0 and at most 1000")
        self.path = Path(path)
        self.partial = self.path.with_name(f".{self.path.name}.partial")
        self.fps = Fraction(fps).limit_denominator(1001)  # 30000/1001 is the usual 29.97
        self.size: tuple[int, int] | None = None
        self.container: Any = None

    def __enter__(self) -> "VideoWriter":
        import av

        self.path.parent.mkdir(parents=True, exist_ok=True)
        # The index goes first, so that a browser can begin before it has all.
        self.container = av.open(
            str(self.partial.absolute()), "w", format="mp4", options={"movflags": "+faststart"}
        )
        return self

    def write(self, frames: UInt8[Tensor, "T 3 H W"]) -> None:
        """Appends frames.

        Raises:
            ValueError: if their size is not that of the first frame, or they have no pixels.
        """
        if not frames.numel():
            raise ValueError(f"frames of shape {tuple(frames.shape)} are empty")
        size = (frames.shape[2], frames.shape[3])
        if self.size is None:
            self._open_stream(size)
        if size != self.size:
            raise ValueError(
                f"frames of {size[0]} x {size[1]} in a video of {self.size}; expected one size"
            )
        import av

        pixels = rearrange(even(frames.cpu()), "T c H W -> T H W c").contiguous().numpy()
        for picture in pixels:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame = frame.reformat(
                format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
            )
            self.container.mux(self.stream.encode(frame))

    def _open_stream(self, size: tuple[int, int]) -> None:
        self.size = size
        self.stream = self.container.add_stream(
            "libx264", rate=self.fps, options={"crf": QUALITY, "preset": "fast"}
        )
        self.stream.height, self.stream.width = (side + side % 2 for side in size)
        self.stream.pix_fmt = "yuv420p"
        # Players guess what a file does not say, some by its size.
        context = self.stream.codec_context
        context.color_range = 1  # 16 to 235
        context.colorspace = context.color_primaries = context.color_trc = _BT709

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                if self.size is None:
                    raise ValueError(f"no frame was written to {self.path}")
                self.container.mux(self.stream.encode(None))
                self.container.close()
                self.partial.replace(self.path)
        finally:
            self.container.close()
            self.partial.unlink(missing_ok=True)


def even(frames: UInt8[Tensor, "T 3 H W"]) -> UInt8[Tensor, "T 3 h w"]:
    """Frames of even height and width: the last row or column twice where it is odd."""
    if frames.shape[2] % 2:
        frames = torch.cat([frames, frames[:, :, -1:]], dim=2)
    if frames.shape[3] % 2:
        frames = torch.cat([frames, frames[..., -1:]], dim=3)
    return frames
