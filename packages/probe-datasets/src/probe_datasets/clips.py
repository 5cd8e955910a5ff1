"""Which frames of a video make a clip: pure index arithmetic."""

from dataclasses import dataclass

import torch

__all__ = ["SHORT", "STARTS", "ClipConfig", "clip_indices", "clip_span"]

SHORT = ("error", "clamp", "loop")
STARTS = ("auto", "random", "centre", "first")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipConfig:
    """Which frames of a video make a clip, and how large they are.

    Raises:
        ValueError: for a value out of its range.
    """

    num_frames: int = 17
    """Frames in a clip. A data set of single pictures shows each in all of them."""
    stride: int = 1
    """Distance between neighbouring frames of a clip, in frames of the video."""
    size: int = 256
    """Height and width of a clip in pixels."""
    start: str = "auto"
    """First frame: "first", "centre", "random", or "auto" for what the data set's task does: chance
    in training, a fixed frame in evaluation."""
    short: str = "error"
    """Where a video ends before its clip: "error" counts it as failed; "clamp" repeats its last
    frame; "loop" goes on from its first."""

    def __post_init__(self) -> None:
        clip_span(self.num_frames, self.stride)
        if self.size < 1:
            raise ValueError(f"size {self.size} must be at least 1 pixel")
        for name, known in (("start", STARTS), ("short", SHORT)):
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"{name} {value!r} must be one of {', '.join(known)}")

    @property
    def span(self) -> int:
        """Frames of the video from the first to the last of a clip, both counted."""
        return clip_span(self.num_frames, self.stride)


def clip_span(num_frames: int, stride: int) -> int:
    """Frames from the first to the last of a clip, both counted.

    Args:
        num_frames: frames in the clip, at least 1.
        stride: distance between neighbouring frames of the clip, at least 1.

    Raises:
        ValueError: either is below 1.
    """
    for name, value in (("num_frames", num_frames), ("stride", stride)):
        if value < 1:
            raise ValueError(f"{name} {value} must be at least 1")
    return (num_frames - 1) * stride + 1


def clip_indices(
    num_available: int,
    *,
    num_frames: int = 17,
    stride: int = 1,
    start: int | str = 0,
    short: str = "error",
    generator: torch.Generator | None = None,
) -> list[int]:
    """Indices of the frames of one clip.

    Args:
        num_available: frames that the video has.
        num_frames: frames in the clip.
        stride: distance between neighbouring frames of the clip.
        start: index of the first frame, or "first" for 0; or "centre", which leaves as many frames
            before the clip as after it, one fewer when they are odd; or "random", every possible
            start being equally likely. A video that is too short is begun at frame 0 by all.
        short: what to do where the video ends before the clip: "error"; "clamp" repeats the last
            frame; "loop" goes on from frame 0.
        generator: source of chance for `start="random"`, which requires it.

    Returns:
        `num_frames` indices, each from 0 to `num_available - 1`.

    Raises:
        ValueError: the video is too short under "error", or an argument is out of range.
    """
    span = clip_span(num_frames, stride)
    if short not in SHORT:
        raise ValueError(f"short {short!r} must be one of {', '.join(SHORT)}")
    if num_available < 1:
        raise ValueError(f"num_available {num_available} must be at least 1")
    first = _first(num_available, span, start, generator)
    indices = [first + k * stride for k in range(num_frames)]
    if short == "clamp":
        return [min(i, num_available - 1) for i in indices]
    if short == "loop":
        return [i % num_available for i in indices]
    if indices[-1] >= num_available:
        raise ValueError(
            f"a clip of {num_frames} frames at stride {stride} from frame {first} needs "
            f"{first + span} frames, but the video has {num_available}; use fewer frames, a "
            "smaller stride, or short='clamp' or 'loop'"
        )
    return indices


def _first(
    num_available: int, span: int, start: int | str, generator: torch.Generator | None
) -> int:
    spare = max(num_available - span, 0)
    if start == "first":
        return 0
    if start == "centre":
        return spare // 2
    if start == "random":
        if generator is None:
            raise ValueError("start='random' needs a generator; pass a seeded torch.Generator")
        return int(torch.randint(spare + 1, (), generator=generator))
    if isinstance(start, str):
        raise ValueError(f"start {start!r} must be a frame index, 'random' or 'centre'")
    if not 0 <= start < num_available:
        raise ValueError(f"start {start} must be a frame index from 0 to {num_available - 1}")
    return start
