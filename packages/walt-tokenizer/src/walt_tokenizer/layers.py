"""Layers of the causal tokenizer.

Axes: b batch, c o channels, t h w any feature grid, z latent channels. In memory, channels last.

Every layer has one definition for training, in plain differentiable operations, and takes a shorter
way to the same numbers where no gradient is asked for: normalisation, Swish and padding in one
write, a faster convolution, and, in a `Pass`, chunks of frames and strips of rows.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from walt_tokenizer.losses import widen
from walt_tokenizer.ops.conv import conv3d
from walt_tokenizer.streaming import WHOLE, Pass

# Numbers whose statistics are taken at once: few enough for a cache, many enough for one call.
STATISTICS_BLOCK = 1 << 20


def grouped_mean(frames: Float[Tensor, "n p c"], groups: int) -> Float[Tensor, "n 1 c"]:
    """Mean of each frame over positions and over the channels of a group, for every channel."""
    means = rearrange(frames.mean(dim=1), "n (g c) -> n g c", g=groups).mean(dim=2)
    return means.repeat_interleave(frames.shape[2] // groups, dim=1)[:, None]


class FrameGroupNorm(nn.Module):
    """GroupNorm with statistics per frame, so that no frame sees another; 0 groups change nothing.

    Reference: MAGVIT-v2, Sec. 3.2 (causality); statistics over time would break it.
    """

    def __init__(self, groups: int, channels: int, *, affine: bool = True) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6, affine=affine) if groups else None

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        if self.norm is None:
            return x
        frames = self.norm(rearrange(x, "b c t h w -> (b t) c h w"))
        return rearrange(frames, "(b t) c h w -> b c t h w", b=x.shape[0])

    def scale_and_shift(
        self, x: Float[Tensor, "b c t h w"]
    ) -> tuple[Float[Tensor, "b c t 1 1"], Float[Tensor, "b c t 1 1"]]:
        """The normalisation of `x` as a product and a sum, in fp32 or fp64."""
        if self.norm is None:
            one = widen(x.new_ones(*x.shape[:3], 1, 1))
            return one, torch.zeros_like(one)
        # Means over rows of contiguous channels: `torch.var_mean` over groups is far slower.
        frames = rearrange(x, "b c t h w -> (b t) (h w) c")
        means, variances = [], []
        for part in frames.split(max(1, STATISTICS_BLOCK // frames[0].numel())):
            part = widen(part)
            mean = grouped_mean(part, self.norm.num_groups)
            means.append(mean)
            variances.append(grouped_mean((part - mean).square_(), self.norm.num_groups))
        mean, variance = (
            rearrange(torch.cat(v), "(b t) 1 c -> b c t 1 1", b=x.shape[0])
            for v in (means, variances)
        )
        scale = (variance + self.norm.eps).rsqrt()
        shift = -mean * scale
        if self.norm.affine:
            weight, bias = (
                rearrange(widen(p), "c -> 1 c 1 1 1") for p in (self.norm.weight, self.norm.bias)
            )
            scale, shift = scale * weight, shift * weight + bias
        return scale, shift


class CausalConv3d(nn.Module):
    """Convolution whose output at a time depends on no later input.

    Pads time by kernel - 1 in front only and space on both sides, always with the edge value; in a
    later chunk of a clip the front is what the chunk before ended with.

    Reference: MAGVIT-v2, Sec. 3.2 (causal 3D CNN).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, int, int] = (3, 3, 3),
        *,
        stride: tuple[int, int, int] = (1, 1, 1),
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, stride=stride, bias=bias)
        self.kernel, self.stride = kernel, stride
        self.edge = (kernel[1] - 1) // 2

    def forward(
        self,
        x: Float[Tensor, "b c t h w"],
        chunk: Pass | None = None,
        *,
        norm: FrameGroupNorm | None = None,
    ) -> Float[Tensor, "b o t2 h2 w2"]:
        """Convolves `x`, or with `norm` the Swish of the normalised `x`."""
        if chunk is not None or not torch.is_grad_enabled():
            return self.infer(x, chunk or Pass(None, WHOLE), norm)
        if norm is not None:
            x = F.silu(norm(x))
        time, edge = self.kernel[0] - 1, self.edge
        if time or edge:
            x = F.pad(x, (edge, edge, edge, edge, time, 0), mode="replicate")
        return self.conv(x)

    def infer(
        self, x: Float[Tensor, "b c t h w"], chunk: Pass, norm: FrameGroupNorm | None
    ) -> Float[Tensor, "b o t2 h2 w2"]:
        """The same without a gradient, after the frames that `chunk` remembers, strip by strip."""
        height, width, edge = x.shape[3], x.shape[4], self.edge
        remembered = self.kernel[0] - self.stride[0]
        past = None
        if not chunk.first:
            past = chunk.past((*x.shape[:2], remembered, height, width)).to(x.device)
        affine = None if norm is None else norm.scale_and_shift(x)
        out_height = (height + 2 * edge - self.kernel[1]) // self.stride[1] + 1
        out, last = None, x.new_empty(*x.shape[:2], remembered, height, width)
        for low, high in chunk.strips(out_height):
            top = low * self.stride[1] - edge
            bottom = (high - 1) * self.stride[1] - edge + self.kernel[1]
            padded = self.pad(x, past, affine, top, bottom)
            strip = conv3d(padded, self.conv.weight, self.conv.bias, self.stride)
            # The input rows that belong to this strip and to no other.
            own_low, own_high = low * self.stride[1], high * self.stride[1]
            if high == out_height:
                own_high = height
            last[..., own_low:own_high, :] = padded[
                :, :, padded.shape[2] - remembered :, own_low - top : own_high - top, edge:
            ][..., :width]
            if low == 0 and high == out_height:
                out = strip
                break
            if out is None:
                shape = (*strip.shape[:3], out_height, strip.shape[4])
                out = empty_channels_last(strip, shape)
            out[..., low:high, :] = strip
        chunk.keep(last)
        assert out is not None  # there is at least one strip
        return out

    def pad(
        self,
        x: Float[Tensor, "b c t h w"],
        past: Float[Tensor, "b c r h w"] | None,
        affine: tuple[Tensor, Tensor] | None,
        top: int,
        bottom: int,
    ) -> Float[Tensor, "b c t2 h2 w2"]:
        """Rows `top` to `bottom` of the activated input, with `past` in front and edges around.

        Args:
            x: input.
            past: remembered inputs, already activated; without them the first frame is repeated.
            affine: scale and shift before the Swish; None for no activation.
            top: first row; negative rows lie above the frame.
            bottom: row after the last one.
        """
        frames, height, width = x.shape[2:]
        edge, time = self.edge, self.kernel[0] - 1 if past is None else past.shape[2]
        shape = (*x.shape[:2], time + frames, bottom - top, width + 2 * edge)
        padded = empty_channels_last(x, shape)
        low, high = max(top, 0), min(bottom, height)
        middle = padded[..., low - top : high - top, edge : edge + width]
        inner, window = middle[:, :, time:], x[..., low:high, :]
        if affine is None:
            inner.copy_(window)
        elif x.dtype == affine[0].dtype:
            F.silu(torch.addcmul(affine[1], window, affine[0], out=inner), inplace=True)
        else:
            inner.copy_(F.silu(torch.addcmul(affine[1], widen(window), affine[0])))
        if time:
            middle[:, :, :time] = inner[:, :, :1] if past is None else past[..., low:high, :]
        padded[..., : low - top, :] = padded[..., low - top, None, :]
        padded[..., high - top :, :] = padded[..., high - top - 1, None, :]
        padded[..., :edge] = padded[..., edge, None]
        padded[..., edge + width :] = padded[..., edge + width - 1, None]
        return padded


def empty_channels_last(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Memory for an activation, of the type and on the device of `like`."""
    return torch.empty(
        shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last_3d
    )


class AdaptiveGroupNorm(nn.Module):
    """Per-frame GroupNorm whose scale and shift at each position come from the latent there.

    Args:
        groups: groups of the norm.
        channels: channels of the activation.
        latent_channels: channels of the latent.
        repeat: frames, and pixels along each side, of the activation per latent.

    Reference: MAGVIT-v2, Sec. 3.2 and figure (adaptive GroupNorm in the decoder).
    """

    def __init__(
        self, groups: int, channels: int, latent_channels: int, repeat: tuple[int, int]
    ) -> None:
        super().__init__()
        self.norm = FrameGroupNorm(groups, channels, affine=False)
        self.modulation = nn.Linear(latent_channels, 2 * channels)
        self.repeat = repeat

    def forward(
        self,
        x: Float[Tensor, "b c t h w"],
        latents: Float[Tensor, "b z t0 h0 w0"],
        chunk: Pass | None = None,
    ) -> Float[Tensor, "b c t h w"]:
        """Normalises `x`, modulated by the latents that its positions come from."""
        times, side = self.repeat
        # The first latent of a clip holds one frame; each other one holds `times`.
        lead = times - 1 if chunk is None or chunk.first else 0
        frame = (torch.arange(x.shape[2], device=x.device) + lead) // times
        modulation = self.modulation(rearrange(latents, "b z t h w -> b t h w z"))
        scale, shift = rearrange(
            modulation[:, frame], "b t h w (two c) -> two b c t h 1 w 1", two=2
        )
        scale = 1 + scale
        if torch.is_grad_enabled() and chunk is None:
            x = self.norm(x)
        else:
            gain, offset = (v[..., None, None] for v in self.norm.scale_and_shift(x))
            scale, shift = gain * scale, torch.addcmul(shift, offset, scale)
        grid = rearrange(x, "b c t (h r) (w s) -> b c t h r w s", r=side, s=side)
        grid = torch.addcmul(shift, grid, scale).to(x.dtype)
        return rearrange(grid, "b c t h r w s -> b c t (h r) (w s)")


class ResidualBlock(nn.Module):
    """Twice (GroupNorm, Swish, causal 3^3 convolution), added to the input.

    Reference: MAGVIT-v2, Sec. 3.2; no attention and no bias anywhere in the block.
    """

    def __init__(
        self, in_channels: int, out_channels: int, groups: int, kernel: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.norm1 = FrameGroupNorm(groups, in_channels)
        self.conv1 = CausalConv3d(in_channels, out_channels, kernel, bias=False)
        self.norm2 = FrameGroupNorm(groups, out_channels)
        self.conv2 = CausalConv3d(out_channels, out_channels, kernel, bias=False)
        self.skip = (
            None
            if in_channels == out_channels
            else CausalConv3d(in_channels, out_channels, (1, 1, 1), bias=False)
        )

    def forward(
        self, x: Float[Tensor, "b c t h w"], chunk: Pass | None = None
    ) -> Float[Tensor, "b o t h w"]:
        h = self.conv1(x, chunk, norm=self.norm1)
        h = self.conv2(h, chunk, norm=self.norm2)
        x = x if self.skip is None else self.skip(x, chunk)
        return x + h if torch.is_grad_enabled() else h.add_(x)


class Stage(nn.ModuleList):
    """Residual blocks one after the other.

    With `gradient_checkpointing` their activations are computed again in the backward pass instead
    of being kept.
    """

    gradient_checkpointing: bool = False

    def forward(
        self, x: Float[Tensor, "b c t h w"], chunk: Pass | None = None
    ) -> Float[Tensor, "b o t h w"]:
        for block in self:
            if self.gradient_checkpointing and torch.is_grad_enabled() and chunk is None:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x, chunk)
        return x


class Downsample(nn.Module):
    """Strided causal convolution that halves space and, with `time_stride` 2, time."""

    def __init__(self, channels: int, time_stride: int, kernel: tuple[int, int, int]) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, channels, kernel, stride=(time_stride, 2, 2))

    def forward(
        self, x: Float[Tensor, "b c t h w"], chunk: Pass | None = None
    ) -> Float[Tensor, "b c t2 h2 w2"]:
        return self.conv(x, chunk)


class Upsample(nn.Module):
    """Causal convolution and depth-to-space; drops the first time_stride - 1 frames of a clip.

    Reference: MAGVIT-v2, Sec. 3.2 (the first frame stays a frame of its own).
    """

    def __init__(self, channels: int, time_stride: int, kernel: tuple[int, int, int]) -> None:
        super().__init__()
        self.time_stride = time_stride
        self.conv = CausalConv3d(channels, channels * time_stride * 4, kernel)

    def forward(
        self, x: Float[Tensor, "b c t h w"], chunk: Pass | None = None
    ) -> Float[Tensor, "b c t2 h2 w2"]:
        video = rearrange(
            rearrange(self.conv(x, chunk), "b c t h w -> b t h w c"),
            "b t h w (c st sh sw) -> b (t st) (h sh) (w sw) c",
            st=self.time_stride,
            sh=2,
            sw=2,
        )
        video = rearrange(video, "b t h w c -> b c t h w")
        return video[:, :, self.time_stride - 1 :] if chunk is None or chunk.first else video


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
