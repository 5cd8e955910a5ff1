"""The discriminator of adversarial training: clips to one logit each, all in fp32.

Axes: b batch, c channels, T H W pixels, t h w any feature grid.
"""

import dataclasses
import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

SLOPE = 0.2
# What the blur takes from the amplitude of features is given back at initialisation. It depends on
# the clips: measured on new networks, 1.03 to 1.25 a block after the first, and more in the first.
BLUR_GAIN = 1.25


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DiscriminatorConfig:
    """Structure of the discriminator and the one clip size that it takes.

    Any positive number of frames, height and width will do, 1 frame for images; each residual
    block halves the axes, rounding up, so that an axis never vanishes.

    Reference: MAGVIT-v2 (Yu et al., ICLR 2024, arXiv 2310.05737), appendix.

    Raises:
        ValueError: if a field is not a positive whole number, or there are no residual blocks.
    """

    base_channels: int = 128
    """Width of the first convolution."""
    channel_multipliers: tuple[int, ...] = (2, 4, 4, 4, 4)
    """Width of each residual block, as a multiple of `base_channels`."""
    num_frames: int = 17
    """Frames of a clip."""
    height: int = 128
    """Pixels of a frame from top to bottom."""
    width: int = 128
    """Pixels of a frame from left to right."""

    def __post_init__(self) -> None:
        for name in ("base_channels", "num_frames", "height", "width"):
            value = getattr(self, name)
            if not _is_positive(value):
                raise ValueError(f"{name} {value!r} must be a positive whole number")
        if not self.channel_multipliers or not all(map(_is_positive, self.channel_multipliers)):
            raise ValueError(
                f"channel_multipliers {self.channel_multipliers} must hold one positive whole "
                "number for each residual block, and at least one"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels after the first convolution and after each residual block."""
        return tuple(
            self.base_channels * multiplier for multiplier in (1, *self.channel_multipliers)
        )

    @property
    def grids(self) -> tuple[tuple[int, int, int], ...]:
        """Frames, height and width, as clips and after each residual block."""
        return tuple(
            (-(-self.num_frames // factor), -(-self.height // factor), -(-self.width // factor))
            for factor in (2**i for i in range(len(self.channel_multipliers) + 1))
        )


class Discriminator(nn.Module):
    """Convolutional network, without normalisation and not causal, from clips to logits.

    Computes in the precision of its weights, fp32 unless they were made double, whatever the
    dtype of the clips and also under autocast: in bf16 the losses of public runs turned NaN.

    Reference: MAGVIT-v2, appendix; the residual block with its blur is that of StyleGAN2
        (Karras et al., CVPR 2020, arXiv 1912.04958), here in three dimensions.
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.conv_in = nn.Conv3d(3, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(DownBlock(a, b) for a, b in pairwise(widths))
        self.conv_out = nn.Conv3d(widths[-1], widths[-1], 3, padding=1)
        self.hidden = nn.Linear(widths[-1] * math.prod(config.grids[-1]), widths[-1])
        self.logit = nn.Linear(widths[-1], 1)
        self._init_weights()

    def forward(self, video: Float[Tensor, "b 3 T H W"]) -> Float[Tensor, " b"]:
        """Logits of a batch of clips: high where a clip looks real.

        Args:
            video: pixels in [-1, 1], of the size in the configuration.

        Raises:
            ValueError: if the clips have another size, or the weights less precision than fp32.
        """
        expected = (3, *self.config.grids[0])
        if tuple(video.shape[1:]) != expected:
            raise ValueError(
                f"clips of shape {tuple(video.shape)} do not fit a discriminator of (b, 3, T, H, "
                f"W) = (b, {', '.join(map(str, expected))}): cut or resize them, or give "
                "DiscriminatorConfig their num_frames, height and width"
            )
        dtype = self.logit.weight.dtype
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"the discriminator's weights are {dtype}, expected float32: keep it in float() "
                "and run the rest of the training under autocast"
            )
        with torch.autocast(video.device.type, enabled=False):
            x = F.leaky_relu(self.conv_in(video.to(dtype)), SLOPE)
            for block in self.blocks:
                x = block(x)
            x = F.leaky_relu(self.conv_out(x), SLOPE)
            x = F.leaky_relu(self.hidden(rearrange(x, "b c t h w -> b (c t h w)")), SLOPE)
            return rearrange(self.logit(x), "b 1 -> b")

    def _init_weights(self) -> None:
        """Weights that keep the amplitude of features through the network, and zero biases.

        Reference: Delving Deep into Rectifiers (He et al., ICCV 2015), Sec. 2.2, here with the
            share of a kernel that the zero padding leaves, which is small on small grids, and
            with what the blur takes.
        """
        gain = nn.init.calculate_gain("leaky_relu", SLOPE)
        grids = self.config.grids
        _init_layer(self.conv_in, gain, grids[0])
        for block, (before, after) in zip(self.blocks, pairwise(grids), strict=True):
            assert isinstance(block, DownBlock)
            _init_layer(block.conv1, gain, before)
            _init_layer(block.conv2, gain * BLUR_GAIN, after)
            _init_layer(block.skip, BLUR_GAIN)
        _init_layer(self.conv_out, gain, grids[-1])
        _init_layer(self.hidden, gain)
        _init_layer(self.logit, 1.0)


class DownBlock(nn.Module):
    """Residual block that halves time, height and width.

    Reference: MAGVIT-v2, appendix; StyleGAN2, Sec. 4.1 (residual discriminator).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, in_channels, 3, padding=1)
        self.conv2 = nn.Conv3d(in_channels, out_channels, 3, padding=1)
        self.skip = nn.Conv3d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b o t2 h2 w2"]:
        h = blur_pool(F.leaky_relu(self.conv1(x), SLOPE))
        h = F.leaky_relu(self.conv2(h), SLOPE)
        return (h + self.skip(blur_pool(x))) / math.sqrt(2)


def blur_pool(x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t2 h2 w2"]:
    """Low-pass filter [1, 2, 1] / 4 and stride 2 along each of time, height and width.

    Edge values repeat beyond the border. n positions become ceil(n / 2), and an axis of one
    position stays as it is.

    Reference: Making Convolutional Networks Shift-Invariant Again (Zhang, ICML 2019,
        arXiv 1904.11486), Sec. 3 (BlurPool).
    """
    # Slices and sums: a depthwise convolution takes longer on the CPU, above all in the second
    # derivative that R1 needs.
    for axis in (2, 3, 4):
        size = x.shape[axis]
        if size == 1:
            continue
        odd = x.narrow(axis, 1, size - 1)[_every_second(axis)]
        left = torch.cat([x.narrow(axis, 0, 1), odd], axis)
        right = odd if size % 2 == 0 else torch.cat([odd, x.narrow(axis, size - 1, 1)], axis)
        left = left.narrow(axis, 0, right.shape[axis])
        x = x[_every_second(axis)] / 2 + (left + right) / 4
    return x


def _every_second(axis: int) -> tuple[slice, ...]:
    return (*(slice(None),) * axis, slice(None, None, 2))


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _init_layer(
    layer: nn.Conv3d | nn.Linear, gain: float, grid: tuple[int, int, int] | None = None
) -> None:
    fan_in = layer.weight[0].numel()
    for size in grid or ():
        fan_in *= (3 * size - 2) / (3 * size)
    nn.init.normal_(layer.weight, std=gain * fan_in**-0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
