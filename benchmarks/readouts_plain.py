"""What `readouts.py` compares the heads with: their formulas written down, with the same weights.

Features are resized in time first; keys and values are made where they are used, frame by frame
inside the recurrence, and so are the outputs.

Axes: b batch, t frames, n tokens of a frame, m heads, d head width, q queries, c channels.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from probe_readouts import (
    AttentiveReadout,
    DepthReadout,
    PoseReadout,
    Tracks,
    fourier_features,
    resize_time,
)
from probe_readouts.attention import MLP, CrossAttentionBlock
from probe_readouts.tracking import TrackReadout


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """LayerNorm with the weights of a module."""
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def rms_norm(x: Tensor, scale: Tensor) -> Tensor:
    """RMSNorm, eps 1e-6."""
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-6) * scale


def mlp(x: Tensor, layers: MLP) -> Tensor:
    """Two layers with the tanh form of GELU between them."""
    return layers.project(F.gelu(layers.expand(x), approximate="tanh"))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of every query to every token of its frame."""
    weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1)
    return rearrange(weights @ v, "b m q d -> b q (m d)")


def cross_attention_block(block: CrossAttentionBlock, x: Tensor, tokens: Tensor) -> Tensor:
    """One block of depth and track readouts."""

    def heads(y: Tensor) -> Tensor:
        return rearrange(y, "b n (m d) -> b m n d", m=block.num_heads)

    q = rms_norm(heads(block.query(layer_norm(x, block.query_norm))), block.query_scale)
    k = rms_norm(heads(block.key(tokens)), block.key_scale)
    x = x + block.output(attend(q, k, heads(block.value(tokens))))
    return x + mlp(layer_norm(x, block.mlp_norm), block.mlp)


def tracks(readout: TrackReadout, features: Tensor, queries: Tensor, num_frames: int) -> Tracks:
    """Tracks of a point or box readout."""
    features = rearrange(resize_time(features, num_frames), "b t h w c -> t b (h w) c")
    step = readout.step
    state = mlp(fourier_features(queries), readout.initializer)
    frames = []
    for tokens in features:
        x = step.input(state)
        for block in step.blocks:
            x = cross_attention_block(block, x, tokens)
        corrected = state + step.output(layer_norm(x, step.norm))
        state = layer_norm(corrected + mlp(corrected, step.predictor), step.state_norm)
        values = mlp(corrected, readout.value_head).sigmoid()
        frames.append((values, mlp(corrected, readout.logit_head), state))
    return Tracks(*(torch.stack(parts, dim=1) for parts in zip(*frames, strict=True)))


def depth(readout: DepthReadout, features: Tensor, coordinates: Tensor, num_frames: int) -> Tensor:
    """Depth at the places `y x u` of a grid."""
    frames = rearrange(resize_time(features, num_frames), "b t h w c -> (b t) (h w) c")
    position = fourier_features(rearrange(coordinates, "y x u -> (y x) u"))
    position = position.expand(len(frames), -1, -1)
    x = torch.cat([position.new_zeros(*position.shape[:2], readout.feature_dim), position], dim=-1)
    for block in readout.blocks:
        x = cross_attention_block(block, x, frames)
    values = readout.output(layer_norm(x, readout.norm))
    rows = coordinates.shape[0]
    return rearrange(values, "(b t) (y x) 1 -> b t y x", b=len(features), y=rows)


def attentive(readout: AttentiveReadout, features: Tensor, num_frames: int) -> Tensor:
    """Outputs of the attentive readout."""
    tokens = layer_norm(resize_time(features, num_frames), readout.feature_norm)
    tokens = tokens + readout.time_embedding[:num_frames, None, None]
    tokens = rearrange(tokens, "b t h w c -> b (t h w) c")
    pooling, m = readout.pooling, readout.pooling.num_heads
    q = rearrange(pooling.query, "(m d) -> 1 m 1 d", m=m)
    k = rearrange(pooling.key(tokens), "b n (m d) -> b m n d", m=m)
    v = rearrange(pooling.value(tokens), "b n (m d) -> b m n d", m=m)
    token = pooling.query + readout.attention_output(attend(q, k, v)[:, 0])
    return readout.output(token + mlp(layer_norm(token, readout.mlp_norm), readout.mlp))


def pose(readout: PoseReadout, features: Tensor, num_frames: int) -> Tensor:
    """Pose matrix from first and last frame."""
    resized = resize_time(features, num_frames)
    ends = torch.cat([resized[:, :1], resized[:, -1:]], dim=-1)
    return rearrange(attentive(readout.attentive, ends, 1), "b (row column) -> b row column", row=3)
