"""The causal video tokenizer: pixels to continuous latents and back.

Axes: b batch, c channels, T H W pixels, t h w latent grid.
"""

from collections.abc import Iterable
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from walt_tokenizer import geometry
from walt_tokenizer.config import TokenizerConfig
from walt_tokenizer.layers import (
    AdaptiveGroupNorm,
    CausalConv3d,
    Downsample,
    FrameGroupNorm,
    ResidualBlock,
    Upsample,
    assert_finite_pixels,
    init_weights,
)

# Channels last in memory: `tiny` encodes 1.26 times faster on two AVX2 cores, decodes and trains as
# fast as with contiguous memory; see benchmarks/tokenizer_layout.py.
LAYOUT = torch.channels_last_3d


def res_blocks(in_channels: int, out_channels: int, config: TokenizerConfig) -> nn.Sequential:
    """One stage: `num_res_blocks` residual blocks, the first of which changes the width."""
    widths = [in_channels] + [out_channels] * config.num_res_blocks
    return nn.Sequential(*(ResidualBlock(a, b, config.norm_groups) for a, b in pairwise(widths)))


class Encoder(nn.Module):
    """Causal 3D CNN from pixels to latents.

    Reference: MAGVIT-v2, Sec. 3.2 and figure.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = CausalConv3d(3, widths[0], bias=False)
        self.stages = nn.ModuleList()
        self.downs = nn.ModuleList()
        for i, width in enumerate(widths):
            self.stages.append(res_blocks(widths[max(i - 1, 0)], width, config))
            if i < len(config.temporal_strides):
                self.downs.append(Downsample(width, config.temporal_strides[i], config.down_kernel))
        self.middle = res_blocks(widths[-1], widths[-1], config)
        self.norm_out = FrameGroupNorm(config.norm_groups, widths[-1])
        self.conv_out = CausalConv3d(widths[-1], config.latent_channels, 1)

    def forward(self, video: Float[Tensor, "b 3 T H W"]) -> Float[Tensor, "b c t h w"]:
        x = self.conv_in(video)
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i < len(self.downs):
                x = self.downs[i](x)
        return self.conv_out(F.silu(self.norm_out(self.middle(x))))


class Decoder(nn.Module):
    """Causal 3D CNN from latents to pixels, modulated at every stage by the latents.

    Reference: MAGVIT-v2, Sec. 3.2 and figure.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        widths = config.widths[::-1]
        self.conv_in = CausalConv3d(config.latent_channels, widths[0])
        self.middle = res_blocks(widths[0], widths[0], config)
        self.norms = nn.ModuleList()
        self.stages = nn.ModuleList()
        self.ups = nn.ModuleList()
        for i, width in enumerate(widths):
            entry = widths[max(i - 1, 0)]
            self.norms.append(AdaptiveGroupNorm(config.norm_groups, entry, config.latent_channels))
            self.stages.append(res_blocks(entry, width, config))
            if i < len(config.temporal_strides):
                self.ups.append(Upsample(width, config.temporal_strides[-1 - i]))
        self.norm_out = FrameGroupNorm(config.norm_groups, widths[-1])
        self.conv_out = CausalConv3d(widths[-1], 3)

    def forward(self, latents: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b 3 T H W"]:
        x = self.middle(self.conv_in(latents))
        for i, (norm, stage) in enumerate(zip(self.norms, self.stages, strict=True)):
            x = stage(norm(x, latents))
            if i < len(self.ups):
                x = self.ups[i](x)
        return self.conv_out(F.silu(self.norm_out(x)))


class VideoTokenizer(nn.Module):
    """Encodes clips to continuous latents and decodes them.

    The first frame has a latent of its own, so an image is a video of one frame; no latent
    depends on a later frame. Latent statistics (per-channel mean and standard deviation) are
    part of the weights; until `fit_latent_statistics` has run they are 0 and 1.

    Reference: MAGVIT-v2 (Yu et al., ICLR 2024), Sec. 3.2; continuous latents and their
        normalisation as in WALT (Gupta et al., ECCV 2024), Sec. 3.1.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.register_buffer("latent_mean", torch.zeros(config.latent_channels))
        self.register_buffer("latent_std", torch.ones(config.latent_channels))
        self.apply(init_weights)

    def encode(
        self, video: Float[Tensor, "b 3 T H W"], *, normalize: bool = False
    ) -> Float[Tensor, "b c t h w"]:
        """Latents of a batch of clips or, with T = 1, of images.

        Args:
            video: pixels in [-1, 1]; 1 + `config.temporal_stride` * k frames, height and width
                multiples of `config.spatial_stride`.
            normalize: subtract the stored mean and divide by the stored standard deviation of
                each latent channel, as the denoiser expects.

        Returns:
            One latent for the first frame and one for each further group of
            `config.temporal_stride` frames.

        Raises:
            ValueError: for an invalid frame count or size (the valid ones are named), or pixels
                that are not finite or not in [-1, 1].
        """
        geometry.num_latents(video.shape[2], self.config.temporal_stride)
        geometry.latent_size(video.shape[3], video.shape[4], self.config.spatial_stride)
        assert_finite_pixels(video)
        latents = self.encoder(video.contiguous(memory_format=LAYOUT))
        return self.normalize(latents) if normalize else latents

    def decode(
        self, latents: Float[Tensor, "b c t h w"], *, denormalize: bool = False
    ) -> Float[Tensor, "b 3 T H W"]:
        """Clips from latents; values can overshoot [-1, 1] slightly and are not clamped.

        Args:
            latents: as returned by `encode`.
            denormalize: undo `encode(..., normalize=True)` first.

        Raises:
            ValueError: for the wrong number of channels or an empty grid.
        """
        if latents.shape[1] != self.config.latent_channels or not latents.numel():
            raise ValueError(
                f"latents of shape {tuple(latents.shape)} must be (b, "
                f"{self.config.latent_channels}, t, h, w) with no empty axis"
            )
        latents = self.denormalize(latents) if denormalize else latents
        return self.decoder(latents.contiguous(memory_format=LAYOUT))

    def forward(self, video: Float[Tensor, "b 3 T H W"]) -> Float[Tensor, "b 3 T H W"]:
        """Reconstruction of the clips: `decode(encode(video))`."""
        return self.decode(self.encode(video))

    def normalize(self, latents: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        """Latents with zero mean and unit standard deviation per channel."""
        mean, std = (
            rearrange(s, "c -> 1 c 1 1 1").to(latents) for s in (self.latent_mean, self.latent_std)
        )
        return (latents - mean) / std

    def denormalize(self, latents: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        """The inverse of `normalize`."""
        mean, std = (
            rearrange(s, "c -> 1 c 1 1 1").to(latents) for s in (self.latent_mean, self.latent_std)
        )
        return latents * std + mean

    @torch.inference_mode()
    def fit_latent_statistics(self, clips: Iterable[Float[Tensor, "b 3 T H W"]]) -> None:
        """Measures mean and standard deviation of each latent channel in one streaming pass.

        Args:
            clips: batches of clips as for `encode`.

        Raises:
            ValueError: if there are no clips, or a channel does not vary.
        """
        count = 0
        total = torch.zeros(self.config.latent_channels, dtype=torch.float64)
        squares = torch.zeros_like(total)
        for video in clips:
            latents = rearrange(self.encode(video), "b c t h w -> c (b t h w)").double().cpu()
            count += latents.shape[1]
            total += latents.sum(dim=1)
            squares += latents.square().sum(dim=1)
        if not count:
            raise ValueError("no clips to measure latent statistics on; pass at least one batch")
        mean = total / count
        std = (squares / count - mean.square()).clamp(min=0).sqrt()
        if not bool((std > 1e-6).all()):
            flat = (std <= 1e-6).nonzero().flatten().tolist()
            raise ValueError(
                f"latent channels {flat} do not vary over the {count} measured positions; "
                "train the tokenizer, or measure on clips that differ"
            )
        self.latent_mean.copy_(mean)
        self.latent_std.copy_(std)
