"""Resizing features in time, from the latent frames of a backbone to the frames of a readout.

Axes: `b` batch, `t h w` latent frames, rows, columns, `c` feature channels.
"""

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

TIME_METHODS = ("paper", "causal", "nearest")

_KEYS_A = -0.5


def resize_time(
    features: Float[Tensor, "b t h w c"], num_frames: int, method: str = "paper"
) -> Float[Tensor, "b {num_frames} h w c"]:
    """Resize features in time by one fixed matrix.

    Args:
        features: features on the latent grid.
        num_frames: frames wanted.
        method: "paper", "causal" or "nearest", see `temporal_matrix`.

    Returns:
        Features with `num_frames` frames, in the dtype and on the device of the input.

    Raises:
        ValueError: a method or number of frames that `temporal_matrix` refuses.
    """
    matrix = temporal_matrix(features.shape[1], num_frames, method).to(features)
    return einsum(matrix, features, "s t, b t h w c -> b s h w c")


def temporal_matrix(
    num_in: int, num_out: int, method: str = "paper"
) -> Float[Tensor, "{num_out} {num_in}"]:
    """Compute the weights that frames out put on frames in; every row sums to 1.

    * "paper": cubic kernel of Keys with a = -0.5 at half-pixel centres. Weights that fall outside
      the clip are dropped and the rest renormalised. When frames are removed, the kernel is
      stretched by num_in / num_out, so that every frame in counts.
    * "causal": the frames that a causal tokenizer put into each latent. Latent 0 holds frame 0
      alone and latent k holds frames s(k-1)+1 .. sk, with s = (num_out - 1) / (num_in - 1); for
      5 latents of 17 frames, s = 4 and these are frames 4k-3 .. 4k.
    * "nearest": the frame in whose interval the centre of the frame out lies.

    Reference:
        Keys, Cubic Convolution Interpolation (1981), Eq. 15; Velez et al., From Image to Video
        (2025), App. D.5 and D.6 (features are interpolated in time to match the video's frames).
        PyTorch's own bicubic has a = -0.75 and gives other numbers.

    Args:
        num_in: frames in, at least 1.
        num_out: frames out, at least 1.
        method: "paper", "causal" or "nearest".

    Returns:
        Weights in float64, frames out by frames in.

    Raises:
        ValueError: an unknown method, no frames, or, for "causal", a number of frames out that is
            not 1 + s * (num_in - 1) for a whole s.
    """
    if num_in < 1 or num_out < 1:
        raise ValueError(f"num_in {num_in} and num_out {num_out} must be at least 1")
    if method == "paper":
        return _cubic_matrix(num_in, num_out)
    if method == "causal":
        sources = _causal_sources(num_in, num_out)
    elif method == "nearest":
        sources = [(2 * frame + 1) * num_in // (2 * num_out) for frame in range(num_out)]
    else:
        raise ValueError(f"unknown method {method!r}; choose 'paper', 'causal' or 'nearest'")
    return torch.eye(num_in, dtype=torch.float64)[sources]


def _cubic_matrix(num_in: int, num_out: int) -> Tensor:
    """Compute the renormalised weights of the Keys kernel."""
    centres = (torch.arange(num_out, dtype=torch.float64) + 0.5) * num_in / num_out - 0.5
    distance = (centres[:, None] - torch.arange(num_in, dtype=torch.float64)).abs()
    x = distance / max(num_in / num_out, 1.0)
    near = ((_KEYS_A + 2.0) * x - (_KEYS_A + 3.0)) * x * x + 1.0
    far = ((_KEYS_A * x - 5.0 * _KEYS_A) * x + 8.0 * _KEYS_A) * x - 4.0 * _KEYS_A
    weights = torch.where(x < 1.0, near, torch.where(x < 2.0, far, 0.0))
    return weights / weights.sum(dim=1, keepdim=True)


def _causal_sources(num_in: int, num_out: int) -> list[int]:
    """List, for every frame out, the latent that holds it."""
    if num_in == 1:
        if num_out != 1:
            raise ValueError(
                f"one latent holds one frame, not {num_out}; ask for 1 frame, or use 'paper' or "
                "'nearest', which repeat it"
            )
        return [0]
    stride, rest = divmod(num_out - 1, num_in - 1)
    if rest or stride < 1:
        valid = [1 + s * (num_in - 1) for s in range(1, 5)]
        raise ValueError(
            f"{num_in} causal latents cannot hold {num_out} frames; valid counts are 1 + s * "
            f"{num_in - 1} for a whole s: {valid} ..."
        )
    return [(frame + stride - 1) // stride for frame in range(num_out)]
