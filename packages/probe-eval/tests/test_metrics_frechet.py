"""The Frechet distance against its closed form and an independent matrix root."""

import dataclasses
import math
import warnings
from fractions import Fraction
from functools import reduce
from itertools import permutations

import numpy as np
import pytest
import scipy.linalg
import torch

from probe_eval.metrics.frechet import FrechetState, frechet_distance


def draw(seed: int, count: int, dim: int, shift: float = 0.0) -> torch.Tensor:
    """Correlated features."""
    generator = np.random.default_rng(seed)
    mix = generator.normal(size=(dim, dim)) / math.sqrt(dim)
    return torch.from_numpy(generator.normal(size=(count, dim)) @ mix + shift)


def with_moments(mean: list[float], std: list[float], turn: torch.Tensor) -> FrechetState:
    """A state with exactly this mean and the covariance turn diag(std^2) turn^T."""
    covariance = turn @ torch.diag(torch.tensor(std, dtype=torch.float64).square()) @ turn.T
    return FrechetState(
        count=101, mean=torch.tensor(mean, dtype=torch.float64), scatter=covariance * 100
    )


def reference(first: torch.Tensor, second: torch.Tensor) -> float:
    """Heusel et al. 2017, by a root of the product of the covariances."""
    a, b = (np.cov(features.numpy(), rowvar=False) for features in (first, second))
    root = scipy.linalg.sqrtm(a @ b)
    shift = (first.mean(dim=0) - second.mean(dim=0)).square().sum()
    return float(shift + np.trace(a) + np.trace(b) - 2 * np.trace(root.real))


def test_gaussians_with_common_axes_have_a_closed_form() -> None:
    turn = torch.linalg.qr(draw(5, 3, 3))[0]
    first = with_moments([0.0, 1.0, 2.0], [1.0, 2.0, 0.5], turn)
    second = with_moments([1.0, 1.0, 0.0], [3.0, 0.1, 0.5], turn)
    expected = 1 + 4 + (1 - 3) ** 2 + (2 - 0.1) ** 2
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-12)


def test_one_dimension() -> None:
    first, second = (
        with_moments([3.0], [2.0], torch.eye(1).double()),
        FrechetState.of(torch.tensor([[0.0], [2.0]])),
    )
    assert frechet_distance(first, second) == pytest.approx((3 - 1) ** 2 + (2 - math.sqrt(2)) ** 2)


@pytest.mark.parametrize("dim", [2, 16, 100])
def test_it_is_the_formula_with_a_matrix_root(dim: int) -> None:
    first, second = draw(0, 4 * dim, dim), draw(1, 3 * dim, dim, shift=0.3)
    states = FrechetState.of(first), FrechetState.of(second)
    expected = reference(first, second)
    assert frechet_distance(*states) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(*states[::-1]) == pytest.approx(expected, rel=1e-8)


def test_equal_sets_have_distance_zero() -> None:
    for count in (5, 300):  # without and with full rank
        features = draw(0, count, 40, shift=100.0)
        state = FrechetState.of(features)
        assert frechet_distance(state, state) < 1e-9 * float(state.covariance.trace())
        again = FrechetState.of(features.flip(0))
        assert frechet_distance(state, again) < 1e-9 * float(state.covariance.trace())


def test_fewer_samples_than_dimensions_are_exact_but_marked() -> None:
    first, second = draw(0, 10, 40), draw(1, 12, 40)
    states = [FrechetState.of(features) for features in (first, second)]
    assert all(state.rank_deficient for state in states)
    # With X X^T and Y Y^T as covariances, the trace is the nuclear norm of X^T Y: no root needed.
    x, y = ((f - f.mean(dim=0)).T / math.sqrt(len(f) - 1) for f in (first, second))
    expected = (first.mean(dim=0) - second.mean(dim=0)).square().sum()
    expected += x.square().sum() + y.square().sum() - 2 * torch.linalg.svdvals(x.T @ y).sum()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert frechet_distance(*states) == pytest.approx(float(expected), rel=1e-9)
    assert not FrechetState.of(draw(0, 41, 40)).rank_deficient
    assert FrechetState.of(draw(0, 40, 40)).rank_deficient


def test_all_samples_equal() -> None:
    flat = FrechetState.of(torch.ones(4, 3))
    assert frechet_distance(flat, flat) == 0
    assert frechet_distance(flat, FrechetState.of(torch.ones(4, 3) * 3)) == pytest.approx(12)


def test_batches_merge_in_any_order_to_the_whole() -> None:
    features = draw(0, 60, 8, shift=5.0)
    parts = [FrechetState.of(part) for part in features.split([1, 9, 20, 30])]
    whole = FrechetState.of(features)
    for order in permutations([FrechetState(), *parts]):
        merged = reduce(FrechetState.merge, order)
        assert merged.count == 60
        torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(merged.scatter, whole.scatter, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        whole.covariance, torch.from_numpy(np.cov(features.numpy(), rowvar=False))
    )


def test_features_far_from_the_origin_keep_their_covariance() -> None:
    features = draw(0, 200, 6)
    near = FrechetState.of(features)
    far = reduce(FrechetState.merge, map(FrechetState.of, (features + 1e7).split(10)))
    # Adding 1e7 rounds the features to about 1e-9; sums about the origin would be off by 0.01.
    torch.testing.assert_close(far.covariance, near.covariance, rtol=1e-6, atol=1e-7)


def test_half_precision_features_are_summed_in_double() -> None:
    features = draw(0, 30, 4).to(torch.bfloat16)
    state = FrechetState.of(features)
    assert state.scatter.dtype == torch.float64
    expected = np.cov(features.double().numpy(), rowvar=False)
    torch.testing.assert_close(state.covariance, torch.from_numpy(expected))


def test_what_is_refused() -> None:
    two = FrechetState.of(draw(0, 2, 3))
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        frechet_distance(two, FrechetState.of(draw(0, 1, 3)))
    with pytest.raises(ValueError, match="no features"):
        frechet_distance(FrechetState(), two)
    with pytest.raises(ValueError, match="3 and of 4 dimensions"):
        frechet_distance(two, FrechetState.of(draw(0, 2, 4)))
    with pytest.raises(ValueError, match="3 and of 4 dimensions"):
        two.merge(FrechetState.of(draw(0, 2, 4)))
    with pytest.raises(ValueError, match="not finite"):
        FrechetState.of(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(ValueError, match="empty"):
        FrechetState.of(torch.zeros(0, 3))


def in_blocks(blocks: list[tuple[float, float, float]]) -> torch.Tensor:
    """Covariance with blocks [[a, b], [b, c]] on the diagonal."""
    return torch.block_diag(*(torch.tensor([[a, b], [b, c]]).double() for a, b, c in blocks))


def trace_of_root(first: torch.Tensor, second: torch.Tensor) -> float:
    """Of the product of two such covariances: sqrt(tr + 2 sqrt(det)) of each block, exactly."""
    total = 0.0
    for start in range(0, len(first), 2):
        rows = slice(start, start + 2)
        one, two = (
            [[Fraction(value) for value in row] for row in matrix[rows, rows].tolist()]
            for matrix in (first, second)
        )
        trace = sum(one[i][j] * two[j][i] for i in (0, 1) for j in (0, 1))
        det = [m[0][0] * m[1][1] - m[0][1] * m[1][0] for m in (one, two)]
        assert min(det) >= 0
        total += math.sqrt(float(trace) + 2 * math.sqrt(float(det[0] * det[1])))
    return total


@pytest.mark.parametrize("decades", [2, 6, 12])
def test_ill_conditioned_covariances(decades: int) -> None:
    """Blocks from 1 down to 10^-decades, which do not commute; some of them of rank 1."""
    rng = np.random.default_rng(decades)
    states, matrices = [], []
    for _ in range(2):
        blocks = []
        for scale in np.logspace(0, -decades, 20):
            a, c = scale * rng.uniform(0.5, 2, size=2)
            blocks.append((a, rng.uniform(-0.99, 0.99) * math.sqrt(a * c), c))
        blocks[3], blocks[7] = (1.0, 1.0, 1.0), (4.0, 2.0, 1.0)
        matrices.append(in_blocks(blocks))
        zeros = torch.zeros(40, dtype=torch.float64)
        states.append(FrechetState(count=2, mean=zeros, scatter=matrices[-1]))
    expected = sum(float(m.trace()) for m in matrices) - 2 * trace_of_root(*matrices)
    found = frechet_distance(*states)
    # 1e-9 of the traces: the rounding of an eigenvalue, 1e-16, has a root of 1e-8, against another.
    assert found == pytest.approx(expected, abs=1e-9 * float(matrices[0].trace()))
    turn = torch.linalg.qr(draw(1, 40, 40))[0]
    turned = [dataclasses.replace(state, scatter=turn @ state.scatter @ turn.T) for state in states]
    assert frechet_distance(*turned) == pytest.approx(
        expected, abs=1e-7 * float(matrices[0].trace())
    )


@pytest.mark.parametrize("seed", range(6))
def test_random_shapes_and_ranks(seed: int) -> None:
    """SciPy's root of a singular product is good to 1e-5 or so, and may be complex."""
    rng = np.random.default_rng(seed)
    dim = int(rng.integers(1, 30))
    first, second = (draw(10 * seed + i, int(rng.integers(2, 60)), dim, i) for i in (0, 1))
    found = frechet_distance(FrechetState.of(first), FrechetState.of(second))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SciPy says that the product is singular
        expected = reference(first, second)
    assert found == pytest.approx(expected, rel=1e-4)


def test_it_is_that_of_torchmetrics() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchmetrics.image.fid import FrechetInceptionDistance

        metric = FrechetInceptionDistance(Channels(), normalize=True)
    metric.set_dtype(torch.float64)
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.rand(2, 50, 3, 4, 4, generator=generator, dtype=torch.float64)
    fake = fake**2
    metric.update(real, real=True)
    metric.update(fake, real=False)
    found = frechet_distance(*(FrechetState.of(Channels()(part)) for part in (real, fake)))
    # 1e-9: torchmetrics sums outer products about the origin.
    assert found == pytest.approx(float(metric.compute()), rel=1e-9)


class Channels(torch.nn.Module):
    """Mean of each channel and of its square."""

    num_features = 6

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        flat = images.flatten(2)
        return torch.cat([flat.mean(dim=2), flat.square().mean(dim=2)], dim=1)
