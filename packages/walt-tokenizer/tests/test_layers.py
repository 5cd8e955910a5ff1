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
    init_weights,
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
        CausalConv3d(4, 4, (1, 1, 1)),
        CausalConv3d(4, 4, (1, 3, 3)),
        Downsample(4, 1, (3, 3, 3)),
        Downsample(4, 2, (3, 3, 3)),
        Downsample(4, 2, (4, 4, 4)),
        Upsample(4, 1, (3, 3, 3)),
        Upsample(4, 2, (3, 3, 3)),
        FrameGroupNorm(2, 4),
        ResidualBlock(4, 8, 2, (3, 3, 3)),
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
    down = Downsample(4, time_stride, (kernel,) * 3)
    assert down(random(1, 4, 9, 8, 12)).shape == (1, 4, frames, 4, 6)
    assert down(random(1, 4, 1, 8, 12)).shape == (1, 4, 1, 4, 6)


@pytest.mark.parametrize(("time_stride", "frames"), [(1, 5), (2, 9)])
def test_up_sampling_keeps_the_first_frame_alone(time_stride: int, frames: int) -> None:
    up = Upsample(4, time_stride, (3, 3, 3))
    assert up(random(1, 4, 5, 4, 6)).shape == (1, 4, frames, 8, 12)
    assert up(random(1, 4, 1, 4, 6)).shape == (1, 4, 1, 8, 12)


def create_norm(groups: int, channels: int) -> FrameGroupNorm:
    """With a random scale and shift, which in a new tokenizer are 1 and 0."""
    norm = FrameGroupNorm(groups, channels)
    nn.init.normal_(norm.norm.weight)
    nn.init.normal_(norm.norm.bias)
    return norm


@pytest.mark.parametrize(
    ("kernel", "stride"),
    [
        ((1, 1, 1), (1, 1, 1)),
        ((1, 3, 3), (1, 1, 1)),
        ((3, 3, 3), (1, 1, 1)),
        ((1, 3, 3), (1, 2, 2)),
        ((1, 4, 4), (1, 2, 2)),
        ((3, 3, 3), (1, 2, 2)),
        ((3, 3, 3), (2, 2, 2)),
        ((4, 4, 4), (1, 2, 2)),
        ((4, 4, 4), (2, 2, 2)),
    ],
)
@pytest.mark.parametrize("with_norm", [False, True])
def test_convolution_without_a_gradient_is_the_same(
    kernel: tuple[int, int, int], stride: tuple[int, int, int], with_norm: bool
) -> None:
    conv = CausalConv3d(4, 6, kernel, stride=stride).double()
    norm = create_norm(2, 4).double() if with_norm else None
    x = random(2, 4, 5, 8, 12).double()
    expected = conv(x, norm=norm)
    assert expected.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(conv(x, norm=norm), expected.detach())


def test_convolution_without_a_gradient_leaves_its_input_alone() -> None:
    conv, norm, x = CausalConv3d(4, 6), create_norm(2, 4), random(2, 4, 5, 8, 12)
    before = x.clone()
    with torch.no_grad():
        conv(x, norm=norm)
        ResidualBlock(4, 4, 2, (3, 3, 3))(x)
    assert torch.equal(x, before)


def test_group_norm_as_scale_and_shift() -> None:
    norm, x = create_norm(2, 4), random(2, 4, 3, 5, 6) + 3
    scale, shift = norm.scale_and_shift(x)
    torch.testing.assert_close(x * scale + shift, norm(x))
    scale, shift = norm.bfloat16().scale_and_shift(x.bfloat16())
    assert scale.dtype == shift.dtype == torch.float32
    scale, shift = norm.double().scale_and_shift(x.double())
    # The default tolerance of fp64 would show a step in fp32.
    torch.testing.assert_close(x.double() * scale + shift, norm(x.double()))


def test_new_residual_branches_are_small_and_modulations_are_zero() -> None:
    torch.manual_seed(0)
    block = ResidualBlock(32, 32, 4, (3, 3, 3)).apply(init_weights)
    fan_in = 32 * 27
    assert block.conv1.conv.weight.std().item() == pytest.approx(fan_in**-0.5, rel=0.02)
    assert block.conv2.conv.weight.std().item() == pytest.approx(0.1 * fan_in**-0.5, rel=0.02)
    norm = AdaptiveGroupNorm(2, 4, 3, (1, 1)).apply(init_weights)
    assert not norm.modulation.weight.any()
    assert not norm.modulation.bias.any()


def test_group_norm_statistics_are_per_frame() -> None:
    norm = create_norm(2, 4)
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


def create_adaptive_norm(times: int, side: int) -> AdaptiveGroupNorm:
    """With a random modulation, which in a new tokenizer is zero."""
    norm = AdaptiveGroupNorm(2, 4, 3, (times, side))
    nn.init.normal_(norm.modulation.weight)
    nn.init.normal_(norm.modulation.bias)
    return norm


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize(
    ("times", "sources"),
    [(1, [0, 1, 2]), (2, [0, 1, 1, 2, 2]), (4, [0, 1, 1, 1, 1, 2, 2, 2, 2])],
)
def test_adaptive_norm_takes_the_latent_of_each_frame(
    times: int, sources: list[int], grad: bool
) -> None:
    norm = create_adaptive_norm(times, 2)
    x, latents = random(2, 4, len(sources), 8, 12), random(2, 3, 3, 4, 6, seed=1)
    up = latents[:, :, sources].repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
    scale, shift = norm.modulation(up.movedim(1, -1)).movedim(-1, 1).chunk(2, dim=1)
    with torch.set_grad_enabled(grad):
        y = norm(x, latents)
    torch.testing.assert_close(y, norm.norm(x) * (1 + scale) + shift)


def test_adaptive_norm_of_an_image() -> None:
    norm = create_adaptive_norm(4, 8)
    x, latents = random(1, 4, 1, 8, 8), random(1, 3, 1, 1, 1, seed=1)
    scale, shift = norm.modulation(latents[:, :, 0, 0, 0]).unflatten(1, (8, 1, 1, 1)).chunk(2, 1)
    torch.testing.assert_close(norm(x, latents), norm.norm(x) * (1 + scale) + shift)
