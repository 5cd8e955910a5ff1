"""Frames to latents and back: pure arithmetic of the causal tokenizer.

The first frame has a latent of its own and every further group of `stride` frames one more, so
1 + stride * k frames become 1 + k latents (17 frames become 5 at stride 4).
"""


def num_latents(num_frames: int, stride: int) -> int:
    """Number of latent frames that hold `num_frames` video frames.

    Reference: MAGVIT-v2, Sec. 3.2.

    Args:
        num_frames: number of video frames, 1 + stride * k.
        stride: frames per latent after the first.

    Raises:
        ValueError: if `num_frames` is not 1 + stride * k for a whole k >= 0.
    """
    if num_frames < 1 or (num_frames - 1) % stride:
        below = max(1, num_frames - (num_frames - 1) % stride)
        raise ValueError(
            f"a clip of {num_frames} frames has no whole latent: expected 1 + {stride} * k frames "
            f"(1, {1 + stride}, {1 + 2 * stride}, ...); cut the clip to {below} frames or extend "
            f"it to {below + stride}"
        )
    return 1 + (num_frames - 1) // stride


def num_frames(num_latents: int, stride: int) -> int:
    """Number of video frames that `num_latents` latent frames decode to.

    Raises:
        ValueError: if `num_latents` is below 1.
    """
    if num_latents < 1:
        raise ValueError(f"expected at least one latent frame, got {num_latents}")
    return 1 + stride * (num_latents - 1)


def latent_size(height: int, width: int, stride: int) -> tuple[int, int]:
    """Latent grid of a frame.

    Raises:
        ValueError: if `height` or `width` is not a positive multiple of `stride`.
    """
    for name, value in (("height", height), ("width", width)):
        if value < stride or value % stride:
            nearest = max(stride, stride * round(value / stride))
            raise ValueError(
                f"frame {name} {value} must be a positive multiple of {stride}; "
                f"resize or crop to {nearest}"
            )
    return height // stride, width // stride
