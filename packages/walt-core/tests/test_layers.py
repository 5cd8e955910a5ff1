"""Layers: windowed attention against dense masked attention, positions, timesteps."""

import math

import pytest
import torch
from torch import Tensor

from walt_core.blocks import WindowBlock
from walt_core.layers import Attention, PositionEmbedding, TimestepEmbedding, sinusoid
from walt_core.ops.window import Window

WIDTH, HEADS = 16, 4


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def build(window: Window, impl: str = "math") -> Attention:
    """Attention in double precision in which every parameter is random."""
    torch.manual_seed(0)
    layer = Attention(WIDTH, HEADS, window, impl).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return layer


def dense(layer: Attention, x: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Attention of every token to every token, masked to the windows, one pair at a time.

    `allowed` replaces the window mask.
    """
    _, t, h, w, _ = x.shape
    places = [(i, j, k) for i in range(t) for j in range(h) for k in range(w)]
    span_t, span_h, span_w = (2 * size - 1 for size in layer.window)
    bias = torch.full((HEADS, len(places), len(places)), -math.inf, dtype=x.dtype)
    for a, query in enumerate(places):
        for b, key in enumerate(places):
            same = all(q // s == k // s for q, k, s in zip(query, key, layer.window, strict=True))
            if allowed is None and same:
                dt, dh, dw = (
                    q - k + s - 1 for q, k, s in zip(query, key, layer.window, strict=True)
                )
                assert 0 <= dt < span_t
                bias[:, a, b] = layer.bias.table[(dt * span_h + dh) * span_w + dw]
            elif allowed is not None and allowed[a, b]:
                bias[:, a, b] = 0
    tokens = x.flatten(1, 3)
    q, k, v = layer.qkv(tokens).chunk(3, dim=-1)
    q, k, v = (z.unflatten(-1, (HEADS, -1)).transpose(1, 2) for z in (q, k, v))

    def normalise(z: Tensor, scale: Tensor) -> Tensor:
        z = z - z.mean(dim=-1, keepdim=True)
        return z / (z.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * scale

    q, k = normalise(q, layer.norm_q.weight), normalise(k, layer.norm_k.weight)
    logits = q @ k.transpose(-1, -2) / math.sqrt(WIDTH // HEADS) + bias
    out = (logits.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
    return layer.proj(out).unflatten(1, (t, h, w))


@pytest.mark.parametrize("window", [(1, 4, 4), (5, 2, 2), (5, 4, 4), (1, 2, 2), (1, 2, 4)])
@pytest.mark.parametrize("impl", ["math", "sdpa"])
def test_windowed_equals_dense_masked_attention(window: Window, impl: str) -> None:
    layer = build(window, impl)
    x = random(2, 5, 4, 4, WIDTH)
    torch.testing.assert_close(layer(x), dense(layer, x), atol=1e-10, rtol=1e-10)


def test_windows_repeat_over_larger_grids() -> None:
    layer = build((5, 2, 2))
    x = random(1, 5, 4, 6, WIDTH)
    torch.testing.assert_close(layer(x), dense(layer, x), atol=1e-10, rtol=1e-10)


def test_an_image_in_a_spatiotemporal_window_attends_to_itself_alone() -> None:
    layer = build((5, 2, 2))
    x = random(2, 1, 4, 4, WIDTH)
    identity = torch.eye(16, dtype=torch.bool)
    torch.testing.assert_close(layer(x), dense(layer, x, identity), atol=1e-10, rtol=1e-10)
    value = x @ layer.qkv.weight[2 * WIDTH :].T + layer.qkv.bias[2 * WIDTH :]
    torch.testing.assert_close(layer(x), layer.proj(value), atol=1e-10, rtol=1e-10)


def test_an_image_in_a_spatial_window_is_attended_as_a_frame() -> None:
    layer = build((1, 4, 4))
    x = random(2, 5, 4, 4, WIDTH)
    torch.testing.assert_close(layer(x[:, :1]), layer(x)[:, :1], atol=1e-12, rtol=1e-12)


def test_window_must_divide_the_grid() -> None:
    with pytest.raises(ValueError, match=r"window \(5, 2, 2\) must divide the latent grid"):
        build((5, 2, 2))(random(1, 5, 3, 4, WIDTH))


def test_a_new_block_is_the_identity_when_the_shared_modulation_is_zero() -> None:
    torch.manual_seed(0)
    block = WindowBlock(WIDTH, HEADS, 4, (1, 4, 4), 2, "math").double()
    torch.nn.init.zeros_(block.modulation.up.weight)
    x = random(2, 5, 4, 4, WIDTH)
    shared = torch.zeros(2, 6 * WIDTH).double()
    assert torch.equal(block(x, random(2, WIDTH, seed=1), shared), x)


def test_block_is_the_published_formula() -> None:
    torch.manual_seed(0)
    block = WindowBlock(WIDTH, HEADS, 4, (1, 4, 4), 2, "math").double()
    x, condition, shared = random(2, 5, 4, 4, WIDTH), random(2, WIDTH), random(2, 6 * WIDTH)
    low_rank = condition @ block.modulation.down.weight.T @ block.modulation.up.weight.T
    parts = (shared + low_rank)[:, None, None, None].chunk(6, dim=-1)

    def norm(z: Tensor) -> Tensor:
        z = z - z.mean(dim=-1, keepdim=True)
        return z / (z.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()

    y = x + parts[2] * block.attention(norm(x) * (1 + parts[0]) + parts[1])
    y = y + parts[5] * block.mlp(norm(y) * (1 + parts[3]) + parts[4])
    torch.testing.assert_close(block(x, condition, shared), y)


def tables() -> PositionEmbedding:
    """Positions with random tables; a new module's are zero."""
    positions = PositionEmbedding((5, 4, 6), WIDTH)
    with torch.no_grad():
        positions.space.copy_(random(24, WIDTH))
        positions.time.copy_(random(5, WIDTH, seed=1))
    return positions


def test_positions_are_space_plus_time() -> None:
    positions = tables()
    grid = positions((5, 4, 6))
    for t, h, w in [(0, 0, 0), (4, 3, 5), (2, 1, 4)]:
        assert torch.equal(grid[t, h, w], positions.time[t] + positions.space[6 * h + w])


def test_an_image_takes_the_first_time_slot() -> None:
    positions = tables()
    assert torch.equal(positions((1, 4, 6)), positions((5, 4, 6))[:1])


@pytest.mark.parametrize("grid", [(5, 8, 12), (3, 4, 6), (9, 8, 8), (1, 2, 3)])
def test_other_grids_interpolate_the_tables(grid: Window) -> None:
    positions = PositionEmbedding((5, 4, 6), WIDTH)
    assert positions(grid).shape == (*grid, WIDTH)
    with torch.no_grad():
        positions.space.fill_(0.5)
        positions.time.fill_(0.25)
    torch.testing.assert_close(positions(grid), torch.full((*grid, WIDTH), 0.75))


def test_sinusoid_has_the_published_frequencies() -> None:
    timestep = torch.tensor([0, 1, 200, 999])
    embedding = sinusoid(timestep)
    assert embedding.dtype == torch.float32
    frequencies = torch.tensor([10_000 ** (-i / 128) for i in range(128)], dtype=torch.float64)
    angles = timestep[:, None] * frequencies
    expected = torch.cat([angles.cos(), angles.sin()], dim=-1)
    # 1e-4: angles up to 999 in float32.
    torch.testing.assert_close(embedding.double(), expected, atol=1e-4, rtol=0)


def test_a_bfloat16_model_keeps_the_frequencies_in_float32() -> None:
    """Rounded frequencies would turn angles near 999 by whole radians."""
    torch.manual_seed(0)
    embedding = TimestepEmbedding(64)
    timestep = torch.tensor([101, 555, 999])
    expected = embedding(timestep)
    low = embedding.bfloat16()(timestep).float()
    # 0.03: bfloat16 keeps 8 bits of weights and sums.
    torch.testing.assert_close(low, expected, atol=0.03, rtol=0.03)
