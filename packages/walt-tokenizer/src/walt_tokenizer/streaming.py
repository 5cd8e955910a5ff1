"""Clips in pieces: what the causal convolutions have to remember from one to the next.

Every layer of the tokenizer works on frames by themselves, except that its convolutions also see a
few earlier frames. Those frames are the whole state: a clip encodes in chunks of frames, with a
`Cache` passed from chunk to chunk, to the same latents as in one piece. GroupNorm needs a whole
frame, so a frame cannot be cut into tiles that know nothing of each other; instead every
convolution works through the frame in strips of rows that see their true neighbours.
"""

import dataclasses
import functools
import logging
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# What one activation of the widest grid may take before a clip is worked on in pieces.
ACTIVATION_BYTES = 1 << 28
# Frames of the longest chunk: longer ones are no faster.
MAX_CHUNK = 32


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Streaming:
    """How a clip is cut up. The result does not depend on it, but for rounding.

    Raises:
        ValueError: if a number is negative.
    """

    frames: int = 0
    """Frames in a chunk, a multiple of the time stride (the first chunk has one more); 0: all of a
    clip, and 32 of a stream, whose length is not known."""
    rows: int = 0
    """Output rows that a convolution works on at a time; 0: all."""
    cache_device: str = ""
    """Device that keeps the remembered frames, such as `cpu`; empty: where they were computed."""

    def __post_init__(self) -> None:
        if self.frames < 0 or self.rows < 0:
            raise ValueError(f"frames {self.frames} and rows {self.rows} must be 0 (all) or more")


WHOLE = Streaming()


@dataclasses.dataclass(frozen=True, slots=True)
class Cache:
    """What one chunk leaves to the next: the last inputs of every causal convolution."""

    frames: tuple[Tensor, ...]
    """One tensor a convolution, in the order in which they run; empty tensors for those of one
    frame."""

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        return sum(frames.numel() * frames.element_size() for frames in self.frames)


class Pass:
    """One chunk on its way through a network: hands out what was remembered, collects anew."""

    def __init__(self, cache: Cache | None, streaming: Streaming) -> None:
        self.streaming = streaming
        self.first = cache is None
        self._past = iter(() if cache is None else cache.frames)
        self._present: list[Tensor] = []

    def past(self, shape: tuple[int, ...]) -> Tensor:
        """What the next convolution remembers.

        Args:
            shape: what it must have.

        Raises:
            ValueError: if the cache is of another network or of clips of another size.
        """
        frames = next(self._past, None)
        if frames is None or tuple(frames.shape) != shape:
            found = "nothing more" if frames is None else f"frames of shape {tuple(frames.shape)}"
            raise ValueError(
                f"the cache is of another network or of clips of another size: it holds {found} "
                f"where {shape} is expected; pass the one that the previous chunk returned"
            )
        return frames

    def keep(self, frames: Tensor) -> None:
        """Remembers the last inputs of a convolution."""
        self._present.append(frames.to(self.streaming.cache_device or frames.device))

    def strips(self, height: int) -> Iterator[tuple[int, int]]:
        """First row, and row after the last, of each strip of `height` rows."""
        rows = self.streaming.rows or height
        for low in range(0, height, rows):
            yield low, min(low + rows, height)

    def cache(self) -> Cache:
        """What the next chunk needs.

        Raises:
            ValueError: if a convolution has not asked for what the cache before held for it.
        """
        if next(self._past, None) is not None:
            raise ValueError(
                f"the cache is of another network, of more than {len(self._present)} convolutions; "
                "pass the one that the previous chunk returned"
            )
        return Cache(tuple(self._present))


@functools.lru_cache(maxsize=256)
def choose_streaming(
    num_frames: int | None,
    height: int,
    width: int,
    *,
    channels: int,
    itemsize: int,
    stride: int,
) -> Streaming:
    """All at once where an activation of full resolution fits `ACTIVATION_BYTES`, else pieces.

    The choice is logged, once for each kind of clip.

    Args:
        num_frames: frames of the clip; None where they are not known beforehand.
        height: rows of a frame.
        width: columns of a frame.
        channels: channels of an activation at full resolution.
        itemsize: bytes of a number.
        stride: frames per latent; a chunk has a multiple of it.
    """
    frame_bytes = height * width * channels * itemsize
    if num_frames is not None and num_frames * frame_bytes <= ACTIVATION_BYTES:
        return WHOLE
    frames = min(MAX_CHUNK, ACTIVATION_BYTES // frame_bytes) // stride * stride or stride
    row_bytes = frames * width * channels * itemsize
    rows = 0 if frames * frame_bytes <= ACTIVATION_BYTES else max(1, ACTIVATION_BYTES // row_bytes)
    logger.info(
        "clips of %d x %d pixels are worked on %d frames%s at a time",
        height,
        width,
        frames,
        f" and {rows} rows" if rows else "",
    )
    return Streaming(frames=frames, rows=rows)


def rechunk(pieces: Iterable[Tensor], first: int, then: int) -> Iterator[Tensor]:
    """Pieces of any length along axis 2, as one of `first`, then ones of `then`, then the rest."""
    waiting: list[Tensor] = []
    wanted = first
    for piece in pieces:
        waiting.append(piece)
        while sum(part.shape[2] for part in waiting) >= wanted:
            joined = join(waiting)
            yield joined[:, :, :wanted]
            waiting, wanted = [joined[:, :, wanted:]], then
    if waiting and (rest := join(waiting)).shape[2]:
        yield rest


def join(pieces: list[Tensor]) -> Tensor:
    """Pieces along axis 2 as one; a single one, which can be a whole long clip, is not copied."""
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)
