"""Layers of the denoiser.

Axes: b batch, t h w latent grid, n tokens of a window, m heads, d width.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from walt_core.ops.attention import attention
from walt_core.ops.window import Window, merge, partition


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
        self.proj_in = nn.Linear(256, width)
        self.proj_out = nn.Linear(width, width)

    def forward(self, timestep: Int[Tensor, " b"]) -> Float[Tensor, "b d"]:
        x = sinusoid(timestep).to(self.proj_in.weight.dtype)
        return self.proj_out(F.silu(self.proj_in(x)))


class PositionEmbedding(nn.Module):
    """Learned space and time tables, summed; other grid sizes interpolate them.

    The model that holds it draws its values.

    Reference: WALT, Sec. 3.2; an image uses time slot 0.
    """

    def __init__(self, latent_size: Window, width: int) -> None:
        super().__init__()
        self.latent_size = latent_size
        t, h, w = latent_size
        self.space = nn.Parameter(torch.zeros(h * w, width))
        self.time = nn.Parameter(torch.zeros(t, width))

    def forward(self, grid: Window) -> Float[Tensor, "t h w d"]:
        """Embedding of every position of a grid (t, h, w)."""
        t, h, w = self.latent_size
        space = rearrange(self.space, "(h w) d -> 1 d h w", h=h)
        if grid[1:] != (h, w):
            space = F.interpolate(space, grid[1:], mode="bicubic", align_corners=False)
        time = self.time
        if grid[0] == 1:
            time = time[:1]
        elif grid[0] != t:
            time = F.interpolate(
                rearrange(time, "t d -> 1 d t"), grid[0], mode="linear", align_corners=True
            )
            time = rearrange(time, "1 d t -> t d")
        return rearrange(time, "t d -> t 1 1 d") + rearrange(space, "1 d h w -> 1 h w d")


class RelativePositionBias(nn.Module):
    """Learned logit bias for every offset (t, h, w) between two tokens of a window.

    Reference: Swin Transformer (Liu et al., 2021), Sec. 3.2, extended to time; the joint table
        reproduces the rank sweep of WALT, Table 2.
    """

    index: Tensor

    def __init__(self, window: Window, num_heads: int) -> None:
        super().__init__()
        spans = [2 * size - 1 for size in window]
        self.table = nn.Parameter(torch.zeros(math.prod(spans), num_heads))
        # On the CPU also where the model is built on the meta device: it is no weight to be loaded.
        axes = torch.meshgrid(*(torch.arange(size, device="cpu") for size in window), indexing="ij")
        position = torch.stack([rearrange(axis, "t h w -> (t h w)") for axis in axes])
        offset = position[:, :, None] - position[:, None, :]
        offset = offset + torch.tensor([size - 1 for size in window], device="cpu")[:, None, None]
        index = (offset[0] * spans[1] + offset[1]) * spans[2] + offset[2]
        self.register_buffer("index", index, persistent=False)

    def forward(self) -> Float[Tensor, "m n n"]:
        return rearrange(self.table[self.index], "n s m -> m n s")


class Attention(nn.Module):
    """Multi-head self-attention inside windows, with QK-norm and relative position bias.

    Reference: WALT, Sec. 3.2. For an image inside spatio-temporal windows every token attends
        to itself alone, so the output is its value projection (the identity rule).
    """

    def __init__(self, width: int, num_heads: int, window: Window, impl: str) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window = window
        self.impl = impl
        self.qkv = nn.Linear(width, 3 * width)
        self.norm_q = nn.LayerNorm(width // num_heads, eps=1e-6, bias=False)
        self.norm_k = nn.LayerNorm(width // num_heads, eps=1e-6, bias=False)
        self.bias = RelativePositionBias(window, num_heads)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b t h w d"]) -> Float[Tensor, "b t h w d"]:
        grid = (x.shape[1], x.shape[2], x.shape[3])
        if grid[0] == 1 and self.window[0] > 1:
            weight, bias = (p.chunk(3)[2] for p in (self.qkv.weight, self.qkv.bias))
            return self.proj(F.linear(x, weight, bias))
        qkv = self.qkv(partition(x, self.window))
        q, k, v = rearrange(qkv, "b n (three m k) -> three b m n k", three=3, m=self.num_heads)
        out = attention(self.norm_q(q), self.norm_k(k), v, self.bias(), impl=self.impl)
        return merge(self.proj(rearrange(out, "b m n k -> b n (m k)")), self.window, grid)


class MLP(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        return self.down(F.gelu(self.up(x)))


class LowRankModulation(nn.Module):
    """A layer's own, low-rank part of the modulation, starting at zero.

    Reference: WALT, Sec. 3.3, Eq. 3 (AdaLN-LoRA).
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, 6 * width, bias=False)

    def forward(self, condition: Float[Tensor, "b d"]) -> Float[Tensor, "b e"]:
        return self.up(self.down(condition))
