"""Layers of the causal tokenizer.

Axes: b batch, c channels, T H W pixels, t h w any feature grid.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


class CausalConv3d(nn.Module):
    """Convolution whose output at a time depends on no later input.

    Pads time by kernel - 1 in front only and space on both sides, always with the edge value.

    Reference: MAGVIT-v2, Sec. 3.2 (causal 3D CNN).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        *,
        stride: tuple[int, int, int] = (1, 1, 1),
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, stride=stride, bias=bias)
        space = (kernel - 1) // 2
        self.padding = (space, space, space, space, kernel - 1, 0)

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b o t2 h2 w2"]:
        if any(self.padding):
            x = F.pad(x, self.padding, mode="replicate")
        return self.conv(x)


class FrameGroupNorm(nn.Module):
    """GroupNorm with statistics per frame, so that no frame sees another.

    Reference: MAGVIT-v2, Sec. 3.2 (causality); statistics over time would break it.
    """

    def __init__(self, groups: int, channels: int, *, affine: bool = True) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6, affine=affine)

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        frames = self.norm(rearrange(x, "b c t h w -> (b t) c h w"))
        return rearrange(frames, "(b t) c h w -> b c t h w", b=x.shape[0])


class AdaptiveGroupNorm(nn.Module):
    """Per-frame GroupNorm whose scale and shift at each position come from the latent there.

    Reference: MAGVIT-v2, Sec. 3.2 and figure (adaptive GroupNorm in the decoder).
    """

    def __init__(self, groups: int, channels: int, latent_channels: int) -> None:
        super().__init__()
        self.norm = FrameGroupNorm(groups, channels, affine=False)
        self.modulation = nn.Linear(latent_channels, 2 * channels)

    def forward(
        self, x: Float[Tensor, "b c t h w"], latents: Float[Tensor, "b z t0 h0 w0"]
    ) -> Float[Tensor, "b c t h w"]:
        """Normalises `x`, modulated by `latents` up-sampled to the grid of `x` by repetition."""
        modulation = rearrange(
            self.modulation(rearrange(latents, "b z t h w -> b t h w z")), "b t h w c -> b c t h w"
        )
        repeat_space = x.shape[-1] // latents.shape[-1]
        repeat_time = (x.shape[2] - 1) // max(latents.shape[2] - 1, 1) or 1
        modulation = F.interpolate(
            modulation, scale_factor=(repeat_time, repeat_space, repeat_space), mode="nearest"
        )[:, :, -x.shape[2] :]
        scale, shift = modulation.chunk(2, dim=1)
        return self.norm(x) * (1 + scale) + shift


class ResidualBlock(nn.Module):
    """Twice (GroupNorm, Swish, causal 3^3 convolution), added to the input.

    Reference: MAGVIT-v2, Sec. 3.2; no attention and no bias anywhere in the block.
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = FrameGroupNorm(groups, in_channels)
        self.conv1 = CausalConv3d(in_channels, out_channels, bias=False)
        self.norm2 = FrameGroupNorm(groups, out_channels)
        self.conv2 = CausalConv3d(out_channels, out_channels, bias=False)
        self.skip: nn.Module = (
            nn.Identity()
            if in_channels == out_channels
            else CausalConv3d(in_channels, out_channels, 1, bias=False)
        )

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b o t h w"]:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.skip(x) + h


class Downsample(nn.Module):
    """Strided causal convolution that halves space and, with `time_stride` 2, time."""

    def __init__(self, channels: int, time_stride: int, kernel: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, channels, kernel, stride=(time_stride, 2, 2))

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t2 h2 w2"]:
        return self.conv(x)


class Upsample(nn.Module):
    """Causal convolution and depth-to-space; drops the first time_stride - 1 frames.

    Reference: MAGVIT-v2, Sec. 3.2 (the first frame stays a frame of its own).
    """

    def __init__(self, channels: int, time_stride: int) -> None:
        super().__init__()
        self.time_stride = time_stride
        self.conv = CausalConv3d(channels, channels * time_stride * 4)

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t2 h2 w2"]:
        x = rearrange(
            self.conv(x),
            "b (c st sh sw) t h w -> b c (t st) (h sh) (w sw)",
            st=self.time_stride,
            sh=2,
            sw=2,
        )
        return x[:, :, self.time_stride - 1 :]


@torch.no_grad()
def init_weights(module: nn.Module) -> None:
    """Initialises a module whose children have been: for `nn.Module.apply`.

    Weights are normal with variance 1 / fan-in and biases zero; residual branches start at a tenth
    of that and modulations by the latent at zero, so that a new network is close to a linear one.
    """
    if isinstance(module, nn.Conv3d | nn.Linear):
        fan_in = module.weight[0].numel()
        nn.init.normal_(module.weight, std=fan_in**-0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, AdaptiveGroupNorm):
        nn.init.zeros_(module.modulation.weight)
    elif isinstance(module, ResidualBlock):
        module.conv2.conv.weight.mul_(0.1)


def assert_finite_pixels(video: Tensor) -> None:
    """Checks that there are pixels, finite and in [-1, 1].

    Raises:
        ValueError: if there are none, or one is not finite, or outside [-1, 1] by over 1e-3.
    """
    if not video.numel():
        raise ValueError(f"video of shape {tuple(video.shape)} is empty; pass at least one clip")
    low, high = torch.aminmax(video.detach())
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise ValueError(
            "video holds NaN or infinite pixels; expected finite values in [-1, 1]: "
            "drop or repair the clip"
        )
    if low < -1.001 or high > 1.001:
        raise ValueError(
            f"video values span [{low.item():.3g}, {high.item():.3g}]; expected [-1, 1]: "
            "rescale uint8 frames with x / 127.5 - 1"
        )
