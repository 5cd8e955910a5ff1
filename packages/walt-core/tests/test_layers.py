"""Layers: attention in windows against dense masked attention in NumPy, modulation, timesteps."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from walt_core import WaltConfig
from walt_core.blocks import WindowBlock, modulate
from walt_core.layers import (
    CrossAttention,
    LowRankModulation,
    SelfAttention,
    TimestepEmbedding,
    sinusoid,
)
from walt_core.ops import attention as seam
from walt_core.ops.window import Window, fit_window

Random = Callable[..., Tensor]
Pairs = Callable[[nn.Module, Window], np.ndarray]
Layer = TypeVar("Layer", bound=nn.Module)
WIDTH, HEADS = 16, 2
IMPLS = ["math", "sdpa", "flash"]


@pytest.fixture(autouse=True)
def _flash_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the flash-attn package: takes queries longer than values, and no bias."""

    def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float) -> Tensor:
        assert q.shape[-1] == k.shape[-1] == v.shape[-1]
        assert q.shape[-1] % 8 == 0
        heads = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(*heads, scale=softmax_scale).transpose(1, 2)

    monkeypatch.setattr(seam, "load_flash", lambda: flash_attn_func)


def filled(layer: Layer) -> Layer:
    """The layer in double precision in which every parameter is random."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.double().parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return layer


def self_attention(
    window: Window, position_bias: str = "joint", impl: str = "math"
) -> SelfAttention:
    return filled(SelfAttention(WIDTH, HEADS, window, position_bias, impl))


def normalised(x: np.ndarray, norm: nn.LayerNorm) -> np.ndarray:
    x = x - x.mean(axis=-1, keepdims=True)
    x = x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + 1e-6)
    if norm.weight is not None:
        x = x * norm.weight.detach().numpy()
    return x if norm.bias is None else x + norm.bias.detach().numpy()


def affine(x: np.ndarray, linear: nn.Linear) -> np.ndarray:
    return x @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()


def dense(
    layer: SelfAttention | CrossAttention,
    queries: np.ndarray,
    keys: np.ndarray,
    logit_bias: np.ndarray,
) -> np.ndarray:
    """Attention of every token (b, n, d) to every key (b, s, d), with (b, m, n, s) added."""

    def heads(x: np.ndarray) -> np.ndarray:
        return x.reshape(*x.shape[:2], HEADS, -1).swapaxes(1, 2)

    q = heads(affine(queries, layer.qkv)[..., :WIDTH])
    k = heads(affine(keys, layer.qkv)[..., WIDTH : 2 * WIDTH])
    v = heads(affine(keys, layer.qkv)[..., 2 * WIDTH :])
    q, k = normalised(q, layer.norm_q), normalised(k, layer.norm_k)
    logits = q @ k.swapaxes(-1, -2) / math.sqrt(WIDTH // HEADS) + logit_bias
    weights = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    out = weights @ v
    return affine(out.swapaxes(1, 2).reshape(queries.shape), layer.proj)


def window_bias(grid: Window, window: Window, pairs: np.ndarray) -> np.ndarray:
    """Bias (m, n, n) over a whole grid: that of the window's pairs, -inf from one to another."""
    places = list(np.ndindex(*grid))
    bias = np.full((pairs.shape[0], len(places), len(places)), -np.inf)
    for (i, query), (j, key) in itertools.product(enumerate(places), repeat=2):
        if all(q // s == k // s for q, k, s in zip(query, key, window, strict=True)):
            inside = [
                np.ravel_multi_index([p % s for p, s in zip(place, window, strict=True)], window)
                for place in (query, key)
            ]
            bias[:, i, j] = pairs[:, inside[0], inside[1]]
    return bias


def assert_same(found: Tensor, expected: np.ndarray) -> None:
    # Double precision.
    np.testing.assert_allclose(
        found.detach().numpy().reshape(expected.shape), expected, atol=1e-10, rtol=1e-10
    )


# --- Self-attention ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grid", "window"),
    [
        # A frame each, all time and quarters of space, everything, and axes of their own.
        ((3, 4, 4), (1, 4, 4)),
        ((3, 4, 4), (3, 2, 2)),
        ((3, 2, 4), (3, 2, 4)),
        ((4, 4, 2), (2, 1, 2)),
        # Grids that are smaller than the window on some axes cut it.
        ((2, 4, 4), (3, 2, 2)),
        ((3, 1, 4), (3, 2, 2)),
        ((2, 2, 3), (1, 4, 4)),
    ],
)
@pytest.mark.parametrize(
    ("position_bias", "impl"),
    [
        ("joint", "math"),
        ("joint", "sdpa"),
        ("axial", "math"),
        ("axial", "sdpa"),
        ("axial", "flash"),
    ],
)
def test_windowed_equals_dense_masked_attention(
    random: Random,
    bias_of_pairs: Pairs,
    grid: Window,
    window: Window,
    position_bias: str,
    impl: str,
) -> None:
    layer = self_attention(window, position_bias, impl)
    x = random(2, *grid, WIDTH)
    cut = fit_window(grid, window)
    bias = window_bias(grid, cut, bias_of_pairs(layer.bias, cut))
    tokens = x.flatten(1, 3).numpy()
    assert_same(layer(x), dense(layer, tokens, tokens, bias))


@pytest.mark.parametrize(("position_bias", "impl"), [("joint", "sdpa"), ("axial", "flash")])
def test_implementations_have_the_same_gradients(
    random: Random, position_bias: str, impl: str
) -> None:
    results = []
    for name in ("math", impl):
        layer = self_attention((3, 2, 2), position_bias, name)
        x = random(2, 3, 4, 4, WIDTH).requires_grad_()
        leaves = [x, *layer.parameters()]
        results.append(torch.autograd.grad(layer(x).square().sum(), leaves))
    for expected, found in zip(*results, strict=True):
        # Double precision, relative to sums over all tokens.
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("impl", IMPLS)
def test_an_image_in_a_spatiotemporal_window_attends_to_itself_alone(
    random: Random, impl: str
) -> None:
    """Its attention output is its value projection: the identity rule."""
    layer = self_attention((3, 2, 2), "axial", impl)
    x = random(2, 1, 4, 4, WIDTH)
    tokens = x.flatten(1, 3).numpy()
    itself = np.where(np.eye(16, dtype=bool), 0.0, -np.inf)
    assert_same(layer(x), dense(layer, tokens, tokens, itself))
    value = affine(tokens, layer.qkv)[..., 2 * WIDTH :]
    assert_same(layer(x), affine(value, layer.proj))


def test_an_image_in_a_spatial_window_is_attended_as_a_frame(random: Random) -> None:
    layer = self_attention((1, 4, 4))
    x = random(2, 3, 4, 4, WIDTH)
    for frame in range(3):
        one = slice(frame, frame + 1)
        torch.testing.assert_close(layer(x[:, one]), layer(x)[:, one], atol=1e-12, rtol=1e-12)


# --- Attention to window and text ----------------------------------------------------------------


VALID = torch.tensor([[True, True, True, False], [False, True, False, True]])


@pytest.mark.parametrize(("grid", "window"), [((3, 4, 4), (1, 2, 4)), ((1, 2, 3), (1, 4, 4))])
@pytest.mark.parametrize("valid", [None, VALID])
@pytest.mark.parametrize("impl", ["math", "sdpa"])
def test_text_attention_equals_dense_attention_to_window_and_text(
    random: Random, grid: Window, window: Window, valid: Tensor | None, impl: str
) -> None:
    """Text gets the same projections as the window, but no norm before them and no bias."""
    layer = filled(CrossAttention(WIDTH, HEADS, window, impl))
    x, text = random(2, *grid, WIDTH), random(2, 4, WIDTH, seed=1)
    n, cut = math.prod(grid), fit_window(grid, window)
    to_window = window_bias(grid, cut, np.zeros((HEADS, math.prod(cut), math.prod(cut))))
    counts = np.ones((2, 4), dtype=bool) if valid is None else valid.numpy()
    to_text = np.where(counts, 0.0, -np.inf)[:, None, None].repeat(HEADS, 1).repeat(n, 2)
    bias = np.concatenate([np.stack([to_window] * 2), to_text], axis=-1)
    tokens = normalised(x.flatten(1, 3).numpy(), layer.norm)
    keys = np.concatenate([tokens, text.numpy()], axis=1)
    assert_same(layer(x, text, valid), dense(layer, tokens, keys, bias))


def test_text_attention_without_mask_is_flashs_too(random: Random) -> None:
    x, text = random(2, 3, 4, 4, WIDTH), random(2, 4, WIDTH, seed=1)
    outputs = [
        filled(CrossAttention(WIDTH, HEADS, (1, 2, 2), impl))(x, text, None)
        for impl in ("math", "flash")
    ]
    torch.testing.assert_close(*outputs, atol=1e-12, rtol=1e-12)


# --- Modulation ----------------------------------------------------------------------------------


def test_modulation_is_scale_then_shift(random: Random) -> None:
    x, scale, shift = random(2, 1, 2, 3, WIDTH), random(2, WIDTH, seed=1), random(2, WIDTH, seed=2)
    found = modulate(x, scale, shift)
    for b in range(2):
        torch.testing.assert_close(found[b], x[b] * (1 + scale[b]) + shift[b])


def test_low_rank_modulation_has_its_rank(random: Random) -> None:
    layer = filled(LowRankModulation(WIDTH, 3))
    condition = random(8, WIDTH)
    expected = condition @ layer.down.weight.T @ layer.up.weight.T
    torch.testing.assert_close(layer(condition), expected)
    assert torch.linalg.matrix_rank(layer(condition)) == 3


@pytest.mark.parametrize("text_width", [0, 8])
def test_a_block_is_attention_then_text_then_mlp(
    small: WaltConfig, random: Random, text_width: int
) -> None:
    """Scale and shift before attention and before the MLP, a gate after each, none for text."""
    block = filled(WindowBlock(dataclasses.replace(small, text_width=text_width), 2, "math"))
    x, condition = random(2, 5, 4, 4, WIDTH), random(2, WIDTH, seed=1)
    shared, text = random(2, 6 * WIDTH, seed=2), random(2, 4, WIDTH, seed=3)

    parts = shared + block.modulation(condition)
    rows: Sequence[Tensor] = parts.unflatten(-1, (6, WIDTH)).unbind(dim=1)
    scale1, shift1, gate1, scale2, shift2, gate2 = (row[:, None, None, None] for row in rows)

    def norm(z: Tensor) -> Tensor:
        z = z - z.mean(dim=-1, keepdim=True)
        return z / (z.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()

    y = x + gate1 * block.attention(norm(x) * (1 + scale1) + shift1)
    if text_width:
        assert block.cross_attention is not None
        # In space alone, also in a layer that attends in time.
        assert block.cross_attention.window == (1, 4, 4)
        assert block.attention.window == (5, 2, 2)
        y = y + block.cross_attention(y, text, VALID)
    else:
        assert block.cross_attention is None
    hidden = F.gelu(affine_of(norm(y) * (1 + scale2) + shift2, block.mlp.up))
    y = y + gate2 * affine_of(hidden, block.mlp.down)
    found = block(x, condition, shared, text, VALID) if text_width else block(x, condition, shared)
    torch.testing.assert_close(found, y, atol=1e-10, rtol=1e-10)


def affine_of(x: Tensor, linear: nn.Linear) -> Tensor:
    return x @ linear.weight.T + linear.bias


# --- Timesteps -----------------------------------------------------------------------------------


def test_sinusoid_has_the_published_frequencies() -> None:
    timestep = torch.tensor([0, 1, 200, 999])
    embedding = sinusoid(timestep)
    assert embedding.dtype == torch.float32
    frequencies = torch.tensor([10_000 ** (-i / 128) for i in range(128)], dtype=torch.float64)
    angles = timestep[:, None] * frequencies
    expected = torch.cat([angles.cos(), angles.sin()], dim=-1)
    # 1e-4: angles up to 999 in float32.
    torch.testing.assert_close(embedding.double(), expected, atol=1e-4, rtol=0)


def test_timesteps_go_through_an_mlp() -> None:
    embedding = TimestepEmbedding(WIDTH)
    timestep = torch.tensor([3, 700])
    hidden = F.silu(F.linear(sinusoid(timestep), embedding.proj_in.weight, embedding.proj_in.bias))
    expected = F.linear(hidden, embedding.proj_out.weight, embedding.proj_out.bias)
    torch.testing.assert_close(embedding(timestep), expected)


def test_a_bfloat16_model_keeps_the_frequencies_in_float32() -> None:
    """Rounded frequencies would turn angles near 999 by whole radians."""
    torch.manual_seed(0)
    embedding = TimestepEmbedding(64)
    timestep = torch.arange(1, 1000, 37)
    expected = embedding(timestep)
    low = embedding.bfloat16()(timestep).float()
    frequencies = torch.exp(-math.log(10_000) * torch.arange(128) / 128).bfloat16()
    angles = timestep.bfloat16()[:, None] * frequencies
    rounded = torch.cat([angles.cos(), angles.sin()], dim=-1)
    worse = embedding.proj_out(F.silu(embedding.proj_in(rounded))).float()

    def error(found: Tensor) -> float:
        return ((found - expected).norm() / expected.norm()).item()

    # 8 bits in weights and sums; the frequencies would cost ten times that.
    assert error(low) < 0.015
    assert error(worse) > 0.15
