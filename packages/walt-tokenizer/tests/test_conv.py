"""The convolution seam: every way to compute it against fp64, and what chooses the way."""

import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from walt_tokenizer.ops import conv, winograd
from walt_tokenizer.ops.conv import conv3d

ONES = (1, 1, 1)


def create_inputs(
    batch: int, channels: int, outputs: int, *size: int, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Input in the layout of the tokenizer, weight and bias."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, channels, *size, generator=generator)
    weight = torch.randn(outputs, channels, 3, 3, 3, generator=generator)
    weight *= (27 * channels) ** -0.5
    bias = torch.randn(outputs, generator=generator)
    return x.contiguous(memory_format=torch.channels_last_3d), weight, bias


def root_mean_square(x: Tensor) -> float:
    return x.double().square().mean().sqrt().item()


def random_shape(seed: int) -> tuple[int, int, int, int, int, int]:
    choices = random.Random(seed)
    batch, channels, outputs = choices.randint(1, 3), choices.randint(1, 40), choices.randint(1, 40)
    frames, height, width = choices.randint(3, 6), choices.randint(3, 15), choices.randint(3, 15)
    return batch, channels, outputs, frames, height, width


@pytest.mark.parametrize("seed", range(25))
def test_winograd_is_the_convolution(seed: int) -> None:
    x, weight, bias = create_inputs(*random_shape(seed), seed=seed)
    expected = F.conv3d(x.double(), weight.double(), bias.double())
    found = conv3d(x, weight, bias, ONES, "winograd")
    assert found.dtype == torch.float32
    # 1e-5: numbers near 1 in fp32, which the transforms sum with factors up to 8.
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    without = conv3d(x, weight, None, ONES, "winograd")
    torch.testing.assert_close(without + bias[:, None, None, None], found)


@pytest.mark.parametrize("size", [(3, 3, 3), (3, 6, 6), (4, 7, 18), (3, 18, 7), (5, 10, 10)])
def test_winograd_in_another_layout(size: tuple[int, int, int]) -> None:
    x, weight, bias = create_inputs(2, 4, 5, *size)
    expected = F.conv3d(x.double(), weight.double(), bias.double()).float()
    for layout in (x.contiguous(), x.transpose(3, 4).contiguous().transpose(3, 4)):
        found = conv3d(layout, weight, bias, ONES, "winograd")
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_winograd_in_more_than_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = create_inputs(1, 8, 8, 3, 31, 22)
    whole = conv3d(x, weight, bias, ONES, "winograd")
    monkeypatch.setattr(winograd, "BLOCK_BYTES", 1)
    torch.testing.assert_close(
        conv3d(x, weight, bias, ONES, "winograd"), whole, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(("channels", "most"), [(16, 3), (64, 4), (128, 5)])
def test_winograd_rounds_a_few_times_as_much_as_a_direct_convolution(
    channels: int, most: float
) -> None:
    x, weight, _ = create_inputs(1, channels, channels, 4, 18, 18)
    expected = F.conv3d(x.double(), weight.double())
    direct = root_mean_square(conv3d(x, weight, None, ONES, "direct") - expected)
    found = root_mean_square(conv3d(x, weight, None, ONES, "winograd") - expected)
    assert found <= most * direct
    assert found <= 2e-6 * root_mean_square(expected)


def test_winograd_never_mixes_frames_or_clips() -> None:
    """A changed frame changes the three outputs that see it, to the bit."""
    x, weight, bias = create_inputs(2, 6, 7, 8, 10, 11)
    before = conv3d(x, weight, bias, ONES, "winograd")
    x[1, :, 5] *= -3
    after = conv3d(x, weight, bias, ONES, "winograd")
    changed = (before != after).flatten(3).any(dim=3).any(dim=1)
    assert changed.tolist() == [[False] * 6, [False, False, False, True, True, True]]


@pytest.mark.parametrize(
    ("kernel", "stride"), [((1, 3, 3), ONES), ((4, 4, 4), ONES), ((3, 3, 3), (1, 2, 2))]
)
def test_winograd_is_refused_where_it_is_impossible(
    kernel: tuple[int, int, int], stride: tuple[int, int, int]
) -> None:
    x, weight = torch.randn(1, 2, 5, 8, 8), torch.randn(3, 2, *kernel)
    with pytest.raises(ValueError, match=r"winograd computes 3 x 3 x 3 .* use 'auto' or 'direct'"):
        conv3d(x, weight, None, stride, "winograd")
    assert torch.equal(conv3d(x, weight, None, stride), F.conv3d(x, weight, stride=stride))


@pytest.mark.usefixtures("_unchecked")
def test_unknown_convolution_names_the_known_ones() -> None:
    x, weight, bias = create_inputs(1, 2, 2, 3, 4, 4)
    with pytest.raises(ValueError, match="'fft'; known: auto, direct, winograd"):
        conv3d(x, weight, bias, ONES, "fft")


@pytest.mark.parametrize(
    ("channels", "outputs", "size", "dtype", "expected"),
    [
        (64, 64, 34, torch.float32, 1),
        (64, 64, 33, torch.float32, 0),
        (63, 64, 34, torch.float32, 0),
        (64, 63, 34, torch.float32, 0),
        (64, 64, 34, torch.float64, 0),
    ],
)
def test_auto_takes_winograd_for_wide_fp32_only(
    channels: int,
    outputs: int,
    size: int,
    dtype: torch.dtype,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """4 x 32 x 32 = 4096 positions are enough, 4 x 31 x 31 are not."""
    calls = []

    def spy(x: Tensor, weight: Tensor) -> Tensor:
        calls.append(x.shape)
        return F.conv3d(x, weight)

    monkeypatch.setattr(winograd, "winograd_conv3d", spy)
    x, weight, bias = create_inputs(1, channels, outputs, 6, size, size)
    conv3d(x.to(dtype), weight.to(dtype), bias.to(dtype), ONES)
    assert len(calls) == expected


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("impl", ["auto", "direct", "winograd"])
def test_bf16_in_bf16_out(
    impl: conv.ConvImpl, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conv, "cpu_has_bf16", lambda: native)
    monkeypatch.setattr(conv, "WINOGRAD_CHANNELS", 16)
    monkeypatch.setattr(conv, "WINOGRAD_POSITIONS", 1)
    x, weight, bias = (v.bfloat16() for v in create_inputs(2, 16, 16, 4, 18, 18))
    found = conv3d(x, weight, bias, ONES, impl)
    assert found.dtype == torch.bfloat16
    expected = F.conv3d(x.float(), weight.float(), bias.float())
    # 2^-7: the result is rounded to the 8 bits of bf16, and so may be the sum before the bias.
    torch.testing.assert_close(found.float(), expected, atol=2**-7, rtol=2**-7)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("impl", ["auto", "direct", "winograd"])
def test_autocast_rounds_the_inputs_and_nothing_within(
    impl: conv.ConvImpl, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The matrix products of the transforms would lose half their digits in bf16."""
    monkeypatch.setattr(conv, "cpu_has_bf16", lambda: native)
    monkeypatch.setattr(conv, "WINOGRAD_CHANNELS", 16)
    monkeypatch.setattr(conv, "WINOGRAD_POSITIONS", 1)
    x, weight, bias = create_inputs(1, 16, 16, 4, 18, 18)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = F.conv3d(x, weight, bias)
        found = conv3d(x, weight, bias, ONES, impl)
        assert torch.is_autocast_enabled("cpu")
    assert found.dtype == plain.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), plain.float(), atol=2**-7, rtol=2**-7)
    rounded = (v.bfloat16().float() for v in (x, weight, bias))
    expected = F.conv3d(*rounded)
    # 2^-8 is half a step of bf16: only the result is rounded, but for rare ties.
    error = root_mean_square(found - expected) / root_mean_square(expected)
    assert error < 2**-8


def test_shapes_without_numbers() -> None:
    x, weight, bias = (v.to("meta") for v in create_inputs(2, 64, 64, 6, 40, 40))
    assert conv3d(x, weight, bias, ONES).shape == (2, 64, 4, 38, 38)


def test_autocast_leaves_fp64_alone() -> None:
    x, weight, bias = (v.double() for v in create_inputs(1, 4, 4, 3, 8, 8))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = conv3d(x, weight, bias, ONES)
    torch.testing.assert_close(found, F.conv3d(x, weight, bias))
