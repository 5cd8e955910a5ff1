"""Which frames of a video make a clip: pure index arithmetic."""

import torch

__all__ = ["SHORT", "clip_indices", "clip_span"]

SHORT = ("error", "clamp", "loop")


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
        start: index of the first frame; or "centre", which leaves as many frames before the clip as
            after it, one fewer when they are odd; or "random", every possible start being equally
            likely. A video that is too short is begun at frame 0 by both.
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
