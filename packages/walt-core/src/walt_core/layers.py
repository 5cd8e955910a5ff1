"""Layers of the denoiser.

Axes: b batch, t h w latent grid, n tokens of a window, s text tokens, m heads, k head width,
d width.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from walt_core.ops.attention import attention
from walt_core.ops.linear import Linear, linear
from walt_core.ops.window import Window, fit_window, merge, partition
from walt_core.positions import AxialPositionBias, JointPositionBias


def sinusoid(timestep: Int[Tensor, " b"], width: int = 256) -> Float[Tensor, "b {width}"]:
    """Sinusoidal embedding of the timestep, always in fp32.

    Reference: DDPM (Ho et al., 2020), App. B.

    Args:
        timestep: integer timestep, 0 = clean.
        width: size of the embedding, even.
    """
    half = width // 2
    frequencies = torch.exp(
        -math.log(10_000) * torch.arange(half, device=timestep.device, dtype=torch.float32) / half
    )
    angles = timestep.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimestepEmbedding(nn.Module):
    """Sinusoid of the timestep, then Linear, SiLU, Linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj_in = Linear(256, width)
        self.proj_out = Linear(width, width)

    def forward(self, timestep: Int[Tensor, " b"]) -> Float[Tensor, "b d"]:
        x = sinusoid(timestep).to(self.proj_in.weight.dtype)
        return self.proj_out(F.silu(self.proj_in(x)))


class SelfAttention(nn.Module):
    """Multi-head self-attention inside windows, with QK-norm and relative position bias.

    Windows are cut to grids that are smaller. For an image inside spatio-temporal windows every
    token attends to itself alone, so the output is its value projection (the identity rule).

    Reference: WALT, Sec. 3.2.
    """

    def __init__(
        self, width: int, num_heads: int, window: Window, position_bias: str, impl: str
    ) -> None:
        super().__init__()
        self.num_heads, self.window, self.impl = num_heads, window, impl
        self.qkv = Linear(width, 3 * width)
        self.norm_q = nn.LayerNorm(width // num_heads, eps=1e-6, bias=False)
        self.norm_k = nn.LayerNorm(width // num_heads, eps=1e-6, bias=False)
        kind = AxialPositionBias if position_bias == "axial" else JointPositionBias
        self.bias = kind(window, num_heads)
        self.proj = Linear(width, width)

    def forward(self, x: Float[Tensor, "b t h w d"]) -> Float[Tensor, "b t h w d"]:
        grid = (x.shape[1], x.shape[2], x.shape[3])
        if grid[0] == 1 and self.window[0] > 1:
            weight, bias = (p.chunk(3)[2] for p in (self.qkv.weight, self.qkv.bias))
            return self.proj(linear(x, weight, bias))
        window = fit_window(grid, self.window)
        qkv = self.qkv(partition(x, window))
        q, k, v = rearrange(qkv, "b n (three m k) -> three b m n k", three=3, m=self.num_heads)
        out = self.attend(self.norm_q(q), self.norm_k(k), v, window)
        return merge(self.proj(rearrange(out, "b m n k -> b n (m k)")), window, grid)

    def attend(
        self,
        q: Float[Tensor, "b m n k"],
        k: Float[Tensor, "b m n k"],
        v: Float[Tensor, "b m n k"],
        window: Window,
    ) -> Float[Tensor, "b m n k"]:
        """Attention with the position bias, in the form that the kernel takes."""
        if self.impl != "flash":
            return attention(q, k, v, self.bias(window), impl=self.impl)
        assert isinstance(self.bias, AxialPositionBias)
        width = v.shape[-1]
        q, k, v = self.bias.fold(q * width**-0.5, k, v, window)
        return attention(q, k, v, impl=self.impl, scale=1.0)[..., :width]


class CrossAttention(nn.Module):
    """Attention of the tokens of a window to that window and to the text.

    Reference: WALT, Sec. 3.3: keys and values are those of window and text, one after the other.
    """

    def __init__(self, width: int, num_heads: int, window: Window, impl: str) -> None:
        super().__init__()
        self.num_heads, self.window, self.impl = num_heads, window, impl
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.qkv = Linear(width, 3 * width)
        self.norm_q = nn.LayerNorm(width // num_heads, eps=1e-6, bias=False)
        self.norm_k = nn.LayerNorm(width // num_heads, eps=1e-6, bias=False)
        self.proj = Linear(width, width)

    def forward(
        self,
        x: Float[Tensor, "b t h w d"],
        text: Float[Tensor, "b s d"],
        valid: Bool[Tensor, "b s"] | None,
    ) -> Float[Tensor, "b t h w d"]:
        """Attention output for every token.

        Args:
            x: residual stream.
            text: projected text states.
            valid: which of them count; None: all.
        """
        grid = (x.shape[1], x.shape[2], x.shape[3])
        window = fit_window(grid, self.window)
        tokens = partition(self.norm(x), window)
        windows, n = tokens.shape[0] // x.shape[0], tokens.shape[1]
        heads = {"m": self.num_heads}
        q, k, v = rearrange(self.qkv(tokens), "b n (c m k) -> c b m n k", c=3, **heads)
        width = self.proj.in_features
        weight, bias = self.qkv.weight[width:], self.qkv.bias[width:]
        text_k, text_v = rearrange(
            linear(text, weight, bias), "b s (c m k) -> c b m s k", c=2, **heads
        )
        spread = "b m s k -> (b windows) m s k"
        k = torch.cat([self.norm_k(k), repeat(self.norm_k(text_k), spread, windows=windows)], dim=2)
        v = torch.cat([v, repeat(text_v, spread, windows=windows)], dim=2)
        impl = self.impl
        if valid is not None:
            valid = repeat(valid, "b s -> (b windows) s", windows=windows)
            valid = F.pad(valid, (n, 0), value=True)
            impl = "sdpa" if impl == "flash" else impl  # flash takes no mask
        out = attention(self.norm_q(q), k, v, valid=valid, impl=impl)
        return merge(self.proj(rearrange(out, "b m n k -> b n (m k)")), window, grid)


class MLP(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = Linear(width, hidden)
        self.down = Linear(hidden, width)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        return self.down(F.gelu(self.up(x)))


class LowRankModulation(nn.Module):
    """A layer's own, low-rank part of the modulation, starting at zero.

    Reference: WALT, Sec. 3.3, Eq. 3 (AdaLN-LoRA).
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = Linear(width, rank, bias=False)
        self.up = Linear(rank, 6 * width, bias=False)

    def forward(self, condition: Float[Tensor, "b d"]) -> Float[Tensor, "b e"]:
        return self.up(self.down(condition))
