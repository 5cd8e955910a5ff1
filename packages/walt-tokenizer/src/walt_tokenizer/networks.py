"""Encoder and decoder: the two causal 3D CNNs of the tokenizer.

Axes: b batch, c latent channels, T H W pixels, t h w latent grid.
"""

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from walt_tokenizer.config import TokenizerConfig
from walt_tokenizer.layers import (
    AdaptiveGroupNorm,
    CausalConv3d,
    Downsample,
    FrameGroupNorm,
    ResidualBlock,
    Stage,
    Upsample,
)
from walt_tokenizer.streaming import Pass


def create_stage(in_channels: int, out_channels: int, config: TokenizerConfig) -> Stage:
    """`num_res_blocks` residual blocks, the first of which changes the width."""
    widths = [in_channels] + [out_channels] * config.num_res_blocks
    return Stage(
        ResidualBlock(a, b, config.norm_groups, config.kernel) for a, b in pairwise(widths)
    )


class Encoder(nn.Module):
    """Causal 3D CNN from pixels to latents.

    Reference: MAGVIT-v2, Sec. 3.2 and figure.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = CausalConv3d(3, widths[0], config.kernel, bias=False)
        self.stages = nn.ModuleList()
        self.downs = nn.ModuleList()
        for i, width in enumerate(widths):
            self.stages.append(create_stage(widths[max(i - 1, 0)], width, config))
            if i < len(config.temporal_strides):
                self.downs.append(
                    Downsample(width, config.temporal_strides[i], config.down_kernel_size)
                )
        self.middle = create_stage(widths[-1], widths[-1], config)
        self.norm_out = FrameGroupNorm(config.norm_groups, widths[-1])
        self.conv_out = CausalConv3d(widths[-1], config.latent_channels, (1, 1, 1))

    def forward(
        self, video: Float[Tensor, "b 3 T H W"], chunk: Pass | None = None
    ) -> Float[Tensor, "b c t h w"]:
        x = self.conv_in(video, chunk)
        for i, stage in enumerate(self.stages):
            x = stage(x, chunk)
            if i < len(self.downs):
                x = self.downs[i](x, chunk)
        return self.conv_out(self.middle(x, chunk), chunk, norm=self.norm_out)


class Decoder(nn.Module):
    """Causal 3D CNN from latents to pixels, modulated at every stage by the latents.

    Reference: MAGVIT-v2, Sec. 3.2 and figure.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        widths = config.widths[::-1]
        strides = config.temporal_strides[::-1]
        self.conv_in = CausalConv3d(config.latent_channels, widths[0], config.kernel)
        self.middle = create_stage(widths[0], widths[0], config)
        self.norms = nn.ModuleList()
        self.stages = nn.ModuleList()
        self.ups = nn.ModuleList()
        frames, side = 1, 1
        for i, width in enumerate(widths):
            entry = widths[max(i - 1, 0)]
            self.norms.append(
                AdaptiveGroupNorm(config.norm_groups, entry, config.latent_channels, (frames, side))
            )
            self.stages.append(create_stage(entry, width, config))
            if i < len(strides):
                self.ups.append(Upsample(width, strides[i], config.kernel))
                frames, side = frames * strides[i], side * 2
        self.norm_out = FrameGroupNorm(config.norm_groups, widths[-1])
        self.conv_out = CausalConv3d(widths[-1], 3, config.kernel)

    def forward(
        self, latents: Float[Tensor, "b c t h w"], chunk: Pass | None = None
    ) -> Float[Tensor, "b 3 T H W"]:
        x = self.middle(self.conv_in(latents, chunk), chunk)
        for i, (norm, stage) in enumerate(zip(self.norms, self.stages, strict=True)):
            x = stage(norm(x, latents, chunk), chunk)
            if i < len(self.ups):
                x = self.ups[i](x, chunk)
        return self.conv_out(x, chunk, norm=self.norm_out)
