"""Layers: causal convolution, per-frame normalisation, and the grids they keep."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from walt_tokenizer.layers import (
    AdaptiveGroupNorm,
    CausalConv3d,
    Downsample,
    FrameGroupNorm,
    ResidualBlock,
    Upsample,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_convolution_repeats_the_edge_in_front_of_time_and_around_space() -> None:
    conv = CausalConv3d(2, 3)
    x = random(1, 2, 4, 5, 6)
    before = x[:, :, :1].expand(-1, -1, 2, -1, -1)
    padded = torch.cat([before, x], dim=2)
    padded = torch.cat([padded[:, :, :, :1], padded, padded[:, :, :, -1:]], dim=3)
    padded = torch.cat([padded[..., :1], padded, padded[..., -1:]], dim=4)
    expected = F.conv3d(padded, conv.conv.weight, conv.conv.bias)
    torch.testing.assert_close(conv(x), expected)


def test_convolution_of_a_constant_is_constant() -> None:
    """Zero padding would show at the borders and in the first frames."""
    conv = CausalConv3d(2, 3)
    y = conv(torch.full((1, 2, 4, 5, 6), 0.7))
    torch.testing.assert_close(y, y[:, :, :1, :1, :1].expand_as(y))


@pytest.mark.parametrize(
    "layer",
    [
        CausalConv3d(4, 4),
        CausalConv3d(4, 4, 1),
        Downsample(4, 1, 3),
        Downsample(4, 2, 3),
        Downsample(4, 2, 4),
        Upsample(4, 1),
        Upsample(4, 2),
        FrameGroupNorm(2, 4),
        ResidualBlock(4, 8, 2),
    ],
    ids=str,
)
def test_no_output_depends_on_a_later_frame(layer: nn.Module) -> None:
    x = random(1, 4, 5, 8, 8).requires_grad_()
    y = layer(x)
    # The first frame of input and output stand alone; the others pair up at the layer's stride.
    for i in range(y.shape[2]):
        last = i * (x.shape[2] - 1) // (y.shape[2] - 1)
        last += bool(i * (x.shape[2] - 1) % (y.shape[2] - 1))
        (gradient,) = torch.autograd.grad(
            (y[:, :, i] * random(*y[:, :, i].shape, seed=1)).sum(), x, retain_graph=True
        )
        seen = gradient.abs().amax(dim=(0, 1, 3, 4)) > 0
        assert seen[last], f"output {i} does not see frame {last}"
        assert not seen[last + 1 :].any(), f"output {i} sees frames after {last}"


@pytest.mark.parametrize(("time_stride", "frames"), [(1, 9), (2, 5)])
@pytest.mark.parametrize("kernel", [3, 4])
def test_down_sampling_keeps_the_first_frame_alone(
    time_stride: int, frames: int, kernel: int
) -> None:
    down = Downsample(4, time_stride, kernel)
    assert down(random(1, 4, 9, 8, 12)).shape == (1, 4, frames, 4, 6)
    assert down(random(1, 4, 1, 8, 12)).shape == (1, 4, 1, 4, 6)


@pytest.mark.parametrize(("time_stride", "frames"), [(1, 5), (2, 9)])
def test_up_sampling_keeps_the_first_frame_alone(time_stride: int, frames: int) -> None:
    up = Upsample(4, time_stride)
    assert up(random(1, 4, 5, 4, 6)).shape == (1, 4, frames, 8, 12)
    assert up(random(1, 4, 1, 4, 6)).shape == (1, 4, 1, 8, 12)


def test_group_norm_statistics_are_per_frame() -> None:
    norm = FrameGroupNorm(2, 4)
    nn.init.normal_(norm.norm.weight)
    nn.init.normal_(norm.norm.bias)
    x = random(2, 4, 3, 5, 6)
    y = norm(x)
    for i in range(3):
        group = x[:, :, i].unflatten(1, (2, 2))
        mean = group.mean(dim=(2, 3, 4), keepdim=True)
        var = group.var(dim=(2, 3, 4), keepdim=True, correction=0)
        expected = ((group - mean) / (var + 1e-6).sqrt()).flatten(1, 2)
        expected = expected * norm.norm.weight[:, None, None] + norm.norm.bias[:, None, None]
        torch.testing.assert_close(y[:, :, i], expected)
    louder = x.clone()
    louder[:, :, 2] *= 1000
    assert torch.equal(norm(louder)[:, :, :2], y[:, :, :2])


@pytest.mark.parametrize(
    ("frames", "sources"),
    [(3, [0, 1, 2]), (5, [0, 1, 1, 2, 2]), (9, [0, 1, 1, 1, 1, 2, 2, 2, 2])],
)
def test_adaptive_norm_takes_the_latent_of_each_frame(frames: int, sources: list[int]) -> None:
    norm = AdaptiveGroupNorm(2, 4, 3)
    x, latents = random(2, 4, frames, 8, 12), random(2, 3, 3, 4, 6, seed=1)
    up = latents[:, :, sources].repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
    scale, shift = norm.modulation(up.movedim(1, -1)).movedim(-1, 1).chunk(2, dim=1)
    torch.testing.assert_close(norm(x, latents), norm.norm(x) * (1 + scale) + shift)


def test_adaptive_norm_of_an_image() -> None:
    norm = AdaptiveGroupNorm(2, 4, 3)
    x, latents = random(1, 4, 1, 8, 8), random(1, 3, 1, 1, 1, seed=1)
    scale, shift = norm.modulation(latents[:, :, 0, 0, 0]).unflatten(1, (8, 1, 1, 1)).chunk(2, 1)
    torch.testing.assert_close(norm(x, latents), norm.norm(x) * (1 + scale) + shift)
