"""The tokenizer in bf16, and under autocast."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from walt_tokenizer import TOKENIZERS, TokenizerConfig, VideoTokenizer, reconstruction_loss

BASE = TokenizerConfig(base_channels=8, num_res_blocks=1, norm_groups=4, latent_channels=4)
CONFIGS = {
    "tiny": TOKENIZERS["tiny"],
    "kernel-4": dataclasses.replace(BASE, down_kernel=4),
    "image": dataclasses.replace(BASE, temporal_strides=(1, 1, 1), time_kernel=1),
}


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference over that of what was expected."""
    difference = (actual.double() - expected.double()).square().mean().sqrt()
    return (difference / expected.double().square().mean().sqrt()).item()


def near(found: Tensor, expected: Tensor) -> bool:
    """Within 3 %: the thirty layers round by up to 0.4 % each, at random."""
    assert found.dtype == torch.bfloat16
    return bool(found.isfinite().all()) and relative_error(found.detach(), expected) < 0.03


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", ["tiny", "kernel-4", "image"])
def test_bf16_is_near_fp32(
    build: Callable[..., VideoTokenizer], pixels: Callable[..., Tensor], name: str, grad: bool
) -> None:
    model, video = build(CONFIGS[name]), pixels(2, 3, 5, 16, 16)
    with torch.no_grad():
        latents = model.encode(video)
        clips = model.decode(latents)
    model = model.bfloat16()
    with torch.set_grad_enabled(grad):
        assert near(model.encode(video.bfloat16()), latents)
        assert near(model.decode(latents.bfloat16()), clips)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", ["tiny", "kernel-4", "image"])
def test_autocast_is_near_fp32(
    build: Callable[..., VideoTokenizer], pixels: Callable[..., Tensor], name: str, grad: bool
) -> None:
    model, video = build(CONFIGS[name]), pixels(2, 3, 5, 16, 16)
    with torch.no_grad():
        latents = model.encode(video)
        clips = model.decode(latents)
    with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16):
        assert near(model.encode(video), latents)
        assert near(model.decode(latents), clips)


def test_chunks_under_autocast(
    build: Callable[..., VideoTokenizer], pixels: Callable[..., Tensor]
) -> None:
    model, video = build(BASE), pixels(1, 3, 9, 16, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        whole = model.encode(video)
        part, cache = model.encode_chunk(video[:, :, :5])
        # All but the pixels.
        assert {frames.dtype for frames in cache.frames[1:]} == {torch.bfloat16}
        rest, _ = model.encode_chunk(video[:, :, 5:], cache)
    assert relative_error(torch.cat([part, rest], dim=2), whole) < 0.01


def test_training_under_autocast_gives_fp32_gradients(
    build: Callable[..., VideoTokenizer], pixels: Callable[..., Tensor]
) -> None:
    model, video = build(BASE), pixels(1, 3, 5, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = reconstruction_loss(model(video), video)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32, name
        assert parameter.grad.isfinite().all(), name
