"""The window block; spatial and spatio-temporal blocks differ only in the window.

Axes: b batch, t h w latent grid, s text tokens, d width.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from walt_core.config import WaltConfig
from walt_core.layers import MLP, CrossAttention, LowRankModulation, SelfAttention


def modulate(
    x: Float[Tensor, "b t h w d"], scale: Float[Tensor, "b d"], shift: Float[Tensor, "b d"]
) -> Float[Tensor, "b t h w d"]:
    """`x * (1 + scale) + shift` with one scale and shift per sample."""
    scale, shift = (rearrange(m, "b d -> b 1 1 1 d") for m in (scale, shift))
    return torch.addcmul(shift, x, 1 + scale)


class WindowBlock(nn.Module):
    """Self-attention in windows, attention to the text where there is one, and an MLP.

    Self-attention and MLP are modulated by timestep and class. The window of the attention to the
    text is spatial in every layer.

    Reference: WALT, Sec. 3.2 and 3.3; DiT (Peebles and Xie, 2023), Sec. 3.2 (adaLN-Zero).
    """

    def __init__(self, config: WaltConfig, layer: int, impl: str) -> None:
        super().__init__()
        width, heads = config.width, config.num_heads
        self.modulation = LowRankModulation(width, config.adaln_rank)
        self.norm_attention = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attention = SelfAttention(
            width, heads, config.window(layer), config.position_bias, impl
        )
        self.cross_attention = None
        if config.text_width:
            self.cross_attention = CrossAttention(width, heads, config.spatial_window, impl)
        self.norm_mlp = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.mlp = MLP(width, config.mlp_ratio * width)

    def forward(
        self,
        x: Float[Tensor, "b t h w d"],
        condition: Float[Tensor, "b d"],
        shared: Float[Tensor, "b e"],
        text: Float[Tensor, "b s d"] | None = None,
        text_valid: Bool[Tensor, "b s"] | None = None,
    ) -> Float[Tensor, "b t h w d"]:
        """One layer.

        Args:
            x: residual stream.
            condition: embedding of timestep and class.
            shared: the modulation that all layers share, six vectors of `width`.
            text: projected text states, for a layer that attends to text.
            text_valid: which of them count; None: all.
        """
        scale1, shift1, gate1, scale2, shift2, gate2 = (shared + self.modulation(condition)).chunk(
            6, dim=-1
        )
        gate1, gate2 = (rearrange(g, "b d -> b 1 1 1 d") for g in (gate1, gate2))
        x = torch.addcmul(
            x, gate1, self.attention(modulate(self.norm_attention(x), scale1, shift1))
        )
        if self.cross_attention is not None:
            assert text is not None
            x = x + self.cross_attention(x, text, text_valid)
        return torch.addcmul(x, gate2, self.mlp(modulate(self.norm_mlp(x), scale2, shift2)))
