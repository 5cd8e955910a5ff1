"""What `walt.py` compares the denoiser with: itself in plain PyTorch, and VideoMAE.

Axes: b batch, t h w latent grid, n tokens of a window, s text tokens, m heads, d width.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from walt_core import Conditions, Walt
from walt_core.blocks import WindowBlock
from walt_core.layers import CrossAttention, SelfAttention
from walt_core.ops.window import merge, partition


class PlainAttention(nn.Module):
    """Multi-head attention as one would first write it, with the weights of ours."""

    def __init__(self, ours: SelfAttention | CrossAttention) -> None:
        super().__init__()
        self.heads, self.window = ours.num_heads, ours.window
        width = ours.proj.in_features
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))
        state = zip(*(p.detach().chunk(3) for p in (ours.qkv.weight, ours.qkv.bias)), strict=True)
        state = [*state, (ours.proj.weight.detach(), ours.proj.bias.detach())]
        for layer, values in zip((self.q, self.k, self.v, self.proj), state, strict=True):
            layer.weight, layer.bias = (nn.Parameter(value.clone()) for value in values)
        self.norm_q, self.norm_k = ours.norm_q, ours.norm_k
        self.norm, self.table = getattr(ours, "norm", None), None
        if isinstance(ours, SelfAttention):
            self.table = ours.bias.table
            count = torch.arange(len(self.table), dtype=torch.float64)[:, None]
            ours.bias.table = nn.Parameter(count)  # read the order of the entries off
            index = ours.bias(self.window)[0].long()
            ours.bias.table = self.table
            self.register_buffer("index", index)

    def forward(self, x: Tensor, text: Tensor | None = None) -> Tensor:
        grid = tuple(x.shape[1:4])
        window = tuple(min(pair) for pair in zip(grid, self.window, strict=True))
        x = partition(x if self.norm is None else self.norm(x), window)
        keys = x
        if text is not None:
            keys = torch.cat([x, repeat(text, "b s d -> (b w) s d", w=len(x) // len(text))], dim=1)
        split = functools.partial(rearrange, pattern="b n (m k) -> b m n k", m=self.heads)
        q, k, v = split(self.q(x)), split(self.k(keys)), split(self.v(keys))
        logits = self.norm_q(q) @ self.norm_k(k).transpose(2, 3) * q.shape[-1] ** -0.5
        if self.table is not None:
            logits = logits + self.table[self.index].permute(2, 0, 1)
        out = self.proj(rearrange(logits.softmax(dim=-1) @ v, "b m n k -> b n (m k)"))
        return merge(out, window, grid)


class PlainBlock(nn.Module):
    """A layer as one would first write it."""

    def __init__(self, ours: WindowBlock) -> None:
        super().__init__()
        self.modulation = ours.modulation
        self.attention = PlainAttention(ours.attention)
        self.norm1, self.norm2 = ours.norm_attention, ours.norm_mlp
        cross, up, down = ours.cross_attention, ours.mlp.up, ours.mlp.down
        self.cross = None if cross is None else PlainAttention(cross)
        self.up, self.down = (nn.Linear(p.in_features, p.out_features) for p in (up, down))
        for plain, layer in ((self.up, up), (self.down, down)):
            plain.weight, plain.bias = layer.weight, layer.bias

    def forward(self, x: Tensor, condition: Tensor, shared: Tensor, text: Tensor | None) -> Tensor:
        parts = (shared + self.modulation(condition))[:, None, None, None].chunk(6, dim=-1)
        scale1, shift1, gate1, scale2, shift2, gate2 = parts
        x = x + gate1 * self.attention(self.norm1(x) * (1 + scale1) + shift1)
        if self.cross is not None:
            x = x + self.cross(x, text)
        h = self.norm2(x) * (1 + scale2) + shift2
        return x + gate2 * self.down(F.gelu(self.up(h)))


class Plain(nn.Module):
    """The model as one would first write it, on the weights of ours, without conditions."""

    def __init__(self, ours: Walt) -> None:
        super().__init__()
        self.ours = ours
        self.blocks = nn.ModuleList(PlainBlock(block) for block in ours.blocks)

    def forward(self, latents: Tensor, timestep: Tensor, depth: int | None = None) -> Tensor:
        ours = self.ours
        x = ours.embed(latents, Conditions(), None)
        condition = ours.condition(timestep, Conditions())
        shared, text = ours.modulation(F.silu(condition)), None
        if ours.text is not None:
            text = ours.text(x.new_zeros(len(x), 1, ours.config.text_width))
        for block in self.blocks[:depth]:
            x = block(x, condition, shared, text)
        modulation = ours.modulation_out(F.silu(condition))[:, None, None, None]
        scale, shift = modulation.chunk(2, dim=-1)
        v = ours.proj_out(ours.norm_out(x) * (1 + scale) + shift)
        return rearrange(v, "b t h w c -> b c t h w")


def video_mae(width: int, depth: int, frames: int, size: int) -> Any:
    """VideoMAE of our width, or None where transformers is not installed."""
    try:
        from transformers import VideoMAEConfig, VideoMAEModel
    except ImportError as error:
        print(f"transformers is left out: {error}")
        return None
    config = VideoMAEConfig(
        image_size=size,
        num_frames=frames,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=16,
        intermediate_size=4 * width,
    )
    return VideoMAEModel(config).eval()


def video_mae_flops(config: Any) -> float:
    """FLOPs of its products for one clip: PyTorch's counter leaves out SDPA on a CPU."""
    d, patch = config.hidden_size, config.patch_size
    tokens = config.num_frames // config.tubelet_size * (config.image_size // patch) ** 2
    layer = tokens * d * (4 * d + 2 * config.intermediate_size) + 2 * tokens**2 * d
    return 2.0 * (
        config.num_hidden_layers * layer + tokens * d * 3 * config.tubelet_size * patch**2
    )
