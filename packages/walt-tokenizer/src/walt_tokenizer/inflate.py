"""A video tokenizer that begins as an image tokenizer."""

import dataclasses

import torch
from einops import rearrange, repeat
from torch import Tensor

from walt_tokenizer.config import TokenizerConfig
from walt_tokenizer.model import VideoTokenizer
from walt_tokenizer.pretrained import mismatches


@torch.no_grad()
def inflate(image: VideoTokenizer, config: TokenizerConfig) -> VideoTokenizer:
    """A video tokenizer with the weights of an image tokenizer.

    The kernels go into the last slice of time and the earlier slices are zero, so a new frame is
    coded as the image tokenizer codes it and the past is ignored until training finds use for it.
    Where the decoder makes several frames of one, it makes equal ones.

    Reference: MAGVIT-v2 (Yu et al., ICLR 2024), App. A (inflation from a 2D tokenizer).

    Args:
        image: tokenizer whose configuration has `time_kernel` 1.
        config: of the video tokenizer; equal to the image tokenizer's but for time.

    Returns:
        The video tokenizer, with the image tokenizer's latent statistics.

    Raises:
        ValueError: if `image` is no image tokenizer, or the two configurations differ in more than
            time; the fields and the tensors that do not fit are named.
    """
    if image.config.time_kernel != 1:
        raise ValueError(
            f"a tokenizer with time_kernel {image.config.time_kernel} is no image tokenizer; pass "
            "one with time_kernel 1, such as magvit2-128-image"
        )
    video = VideoTokenizer(config).to(image.latent_mean)
    wanted = video.state_dict()
    inflated = {
        name: inflate_tensor(name, value, wanted[name]) if name in wanted else value
        for name, value in image.state_dict().items()
    }
    problems = [
        f"{field.name} is {getattr(image.config, field.name)}, not {getattr(config, field.name)}"
        for field in dataclasses.fields(config)
        if field.name not in ("time_kernel", "temporal_strides")
        and getattr(image.config, field.name) != getattr(config, field.name)
    ]
    problems += mismatches(wanted, inflated)
    if problems:
        raise ValueError(
            f"an image tokenizer of {image.config} does not inflate to {config}: "
            f"{'; '.join(problems)}; the two must differ in time_kernel and temporal_strides only"
        )
    video.load_state_dict(inflated)
    return video


def inflate_tensor(name: str, weight: Tensor, like: Tensor) -> Tensor:
    """`weight` in the last time slice of one like `like`, or as it is where it does not fit."""
    if name.startswith("decoder.ups."):
        weight = spread_outputs(weight, like.shape[0])
    if like.ndim != 5 or weight.shape != like[:, :, -1:].shape:
        return weight
    kernel = torch.zeros_like(like)
    kernel[:, :, -1:] = weight
    return kernel


def spread_outputs(weight: Tensor, outputs: int) -> Tensor:
    """Repeats the outputs (c st sh sw) of an up-sampling for every frame that it makes."""
    times = outputs // weight.shape[0]
    if times < 2 or outputs % weight.shape[0] or weight.shape[0] % 4:
        return weight
    groups = rearrange(weight, "(c s) ... -> c s ...", s=4)
    return rearrange(
        repeat(groups, "c s ... -> c times s ...", times=times), "c times s ... -> (c times s) ..."
    )
