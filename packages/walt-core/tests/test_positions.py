"""Positions: tables of places, and relative bias against a loop over pairs of places."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from walt_core.ops.attention import attention
from walt_core.ops.window import Window
from walt_core.positions import (
    AxialPositionBias,
    JointPositionBias,
    PositionEmbedding,
    offsets,
)

Random = Callable[..., Tensor]
Pairs = Callable[[nn.Module, Window], np.ndarray]
WIDTH, HEADS = 6, 2
BIASES = [JointPositionBias, AxialPositionBias]


@pytest.fixture
def positions(random: Random) -> PositionEmbedding:
    """Positions with random tables; a new module's are zero."""
    positions = PositionEmbedding((5, 4, 6), WIDTH).double()
    with torch.no_grad():
        positions.space.copy_(random(24, WIDTH))
        positions.time.copy_(random(5, WIDTH, seed=1))
    return positions


def filled(
    kind: type[JointPositionBias] | type[AxialPositionBias], window: Window
) -> JointPositionBias | AxialPositionBias:
    """A bias in double precision with random tables."""
    bias = kind(window, HEADS).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for table in bias.parameters():
            table.copy_(torch.randn(table.shape, generator=generator, dtype=torch.float64))
    return bias


# --- Tables of places ----------------------------------------------------------------------------


def test_positions_are_space_plus_time(positions: PositionEmbedding) -> None:
    grid = positions((5, 4, 6))
    for t, h, w in itertools.product(range(5), range(4), range(6)):
        assert torch.equal(grid[t, h, w], positions.time[t] + positions.space[6 * h + w])


def test_an_image_takes_the_first_time_slot(positions: PositionEmbedding) -> None:
    assert torch.equal(positions((1, 4, 6)), positions((5, 4, 6))[:1])
    assert torch.equal(positions((1, 8, 3)), positions((5, 8, 3))[:1])


@pytest.mark.parametrize("frames", [2, 3, 9])
def test_other_lengths_interpolate_time_between_its_ends(
    positions: PositionEmbedding, frames: int
) -> None:
    with torch.no_grad():
        positions.space.zero_()
    time = positions.time.detach().numpy()
    places = np.linspace(0, 4, frames)
    expected = [np.interp(places, np.arange(5), time[:, d]) for d in range(WIDTH)]
    np.testing.assert_allclose(
        positions((frames, 4, 6))[:, 2, 3].detach().numpy(), np.stack(expected, axis=1)
    )


def cubic(size: int, new: int) -> np.ndarray:
    """Matrix (new, size) of Keys' cubic convolution (a = -0.75) between pixel centres."""

    def kernel(x: float) -> float:
        x = abs(x)
        if x <= 1:
            return 1.25 * x**3 - 2.25 * x**2 + 1
        return -0.75 * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    matrix = np.zeros((new, size))
    for row in range(new):
        centre = (row + 0.5) * size / new - 0.5
        for place in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            # Beyond the edge the last value goes on.
            matrix[row, min(max(place, 0), size - 1)] += kernel(centre - place)
    return matrix


@pytest.mark.parametrize("area", [(8, 12), (2, 3), (6, 6)])
def test_other_areas_interpolate_space_between_pixel_centres(
    positions: PositionEmbedding, area: tuple[int, int]
) -> None:
    space = positions.space.detach().numpy().reshape(4, 6, WIDTH)
    expected = np.einsum("ih,jw,hwd->ijd", cubic(4, area[0]), cubic(6, area[1]), space)
    found = positions((5, *area))[3] - positions.time[3]
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("grid", [(5, 8, 12), (3, 4, 6), (9, 8, 8), (1, 2, 3)])
def test_other_grids_keep_constant_tables(positions: PositionEmbedding, grid: Window) -> None:
    with torch.no_grad():
        positions.space.fill_(0.5)
        positions.time.fill_(0.25)
    expected = torch.full((*grid, WIDTH), 0.75, dtype=torch.float64)
    torch.testing.assert_close(positions(grid), expected)


# --- Relative bias -------------------------------------------------------------------------------


def test_offsets_are_query_minus_key() -> None:
    expected = [[2, 1, 0], [3, 2, 1], [4, 3, 2]]
    assert offsets(3, torch.device("cpu")).tolist() == expected


@pytest.mark.parametrize("kind", BIASES)
@pytest.mark.parametrize(
    "window",
    # Its own, smaller and larger on each axis, one frame, and a single place.
    [(3, 2, 4), (1, 2, 4), (2, 2, 3), (3, 4, 8), (5, 3, 2), (1, 1, 1)],
)
def test_bias_is_that_of_every_pair(kind: type, window: Window, bias_of_pairs: Pairs) -> None:
    bias = filled(kind, (3, 2, 4))
    np.testing.assert_allclose(
        bias(window).detach().numpy(), bias_of_pairs(bias, window), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("kind", BIASES)
def test_entries_of_the_table_are_used_as_they_are(kind: type) -> None:
    """Nothing is interpolated, not even by a factor of one, where the window is the table's."""
    bias = filled(kind, (3, 2, 4))
    values = bias((3, 2, 4))
    if isinstance(bias, JointPositionBias):
        assert torch.isin(values[0], bias.table[:, 0]).all()
        assert values[0].unique().numel() == 5 * 3 * 7
    else:
        of_time = bias.tables[0][:, 0] + bias.tables[1][1, 0] + bias.tables[2][3, 0]
        places = torch.arange(0, 24, 8)
        torch.testing.assert_close(values[0, places, 0], of_time[2:], rtol=0, atol=0)


@pytest.mark.parametrize("kind", BIASES)
@pytest.mark.parametrize("window", [(3, 2, 4), (2, 5, 3), (1, 1, 2)])
def test_a_place_and_itself_keep_their_bias(kind: type, window: Window) -> None:
    """The offset 0 is the middle of the table at every size."""
    bias = filled(kind, (3, 2, 4))
    if isinstance(bias, JointPositionBias):
        centre = bias.table[bias.table.shape[0] // 2]
    else:
        centre = torch.stack([table[table.shape[0] // 2] for table in bias.tables]).sum(dim=0)
    diagonal = bias(window).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(diagonal, centre[:, None].expand_as(diagonal))


@pytest.mark.parametrize("head_width", [8, 5])
@pytest.mark.parametrize("window", [(3, 2, 2), (1, 4, 3), (2, 3, 1)])
def test_folding_equals_the_additive_bias(random: Random, head_width: int, window: Window) -> None:
    """In values and gradients, also where zeros have to fill up to a multiple of 8."""
    bias = filled(AxialPositionBias, (3, 2, 2))
    assert isinstance(bias, AxialPositionBias)
    n = window[0] * window[1] * window[2]
    q, k, v, weight = (random(3, HEADS, n, head_width, seed=seed) for seed in range(4))
    for x in (q, k, v):
        x.requires_grad_()
    leaves = [q, k, v, *bias.parameters()]
    scale = head_width**-0.5

    expected = attention(q, k, v, bias(window))
    long_q, long_k, long_v = bias.fold(q * scale, k, v, window)
    assert long_q.shape[-1] == long_k.shape[-1] == long_v.shape[-1]
    assert long_q.shape[-1] % 8 == 0
    assert long_q.shape[-1] < head_width + sum(window) + 8
    ours = attention(long_q, long_k, long_v, scale=1.0)
    assert not ours[..., head_width:].any()
    ours = ours[..., :head_width]

    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    gradients = zip(
        torch.autograd.grad((ours * weight).sum(), leaves),
        torch.autograd.grad((expected * weight).sum(), leaves),
        strict=True,
    )
    for found, reference in gradients:
        torch.testing.assert_close(found, reference, rtol=1e-11, atol=1e-12)
