"""The window block; spatial and spatio-temporal blocks differ only in the window.

Axes: b batch, t h w latent grid, d width.
"""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from walt_core.layers import MLP, Attention, LowRankModulation
from walt_core.ops.window import Window


def modulate(
    x: Float[Tensor, "b t h w d"], scale: Float[Tensor, "b d"], shift: Float[Tensor, "b d"]
) -> Float[Tensor, "b t h w d"]:
    """`x * (1 + scale) + shift` with one scale and shift per sample."""
    scale, shift = (rearrange(m, "b d -> b 1 1 1 d") for m in (scale, shift))
    return x * (1 + scale) + shift


class WindowBlock(nn.Module):
    """Self-attention in windows and an MLP, both modulated by the timestep.

    Reference: WALT, Sec. 3.2 and 3.3; DiT (Peebles and Xie, 2023), Sec. 3.2 (adaLN-Zero).
    """

    def __init__(
        self, width: int, num_heads: int, mlp_ratio: int, window: Window, rank: int, impl: str
    ) -> None:
        super().__init__()
        self.modulation = LowRankModulation(width, rank)
        self.norm_attention = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attention = Attention(width, num_heads, window, impl)
        self.norm_mlp = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.mlp = MLP(width, mlp_ratio * width)

    def forward(
        self,
        x: Float[Tensor, "b t h w d"],
        condition: Float[Tensor, "b d"],
        shared: Float[Tensor, "b e"],
    ) -> Float[Tensor, "b t h w d"]:
        """One layer.

        Args:
            x: residual stream.
            condition: embedding of the timestep.
            shared: the modulation that all layers share, six vectors of `width`.
        """
        scale1, shift1, gate1, scale2, shift2, gate2 = (shared + self.modulation(condition)).chunk(
            6, dim=-1
        )
        gate1, gate2 = (rearrange(g, "b d -> b 1 1 1 d") for g in (gate1, gate2))
        x = x + gate1 * self.attention(modulate(self.norm_attention(x), scale1, shift1))
        return x + gate2 * self.mlp(modulate(self.norm_mlp(x), scale2, shift2))
