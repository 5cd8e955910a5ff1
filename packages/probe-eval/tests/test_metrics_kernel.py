"""The kernel distance against loops over pairs and torchmetrics."""

import math
import warnings

import numpy as np
import pytest
import torch

from probe_eval.metrics.features import FeatureState
from probe_eval.metrics.kernel import block_kernel_distance, kernel_distance, squared_mmd


def draw(seed: int, count: int, dim: int = 6, *, shift: float = 0.0) -> FeatureState:
    rng = np.random.default_rng(seed)
    features = torch.from_numpy(rng.normal(size=(count, dim)) + shift)
    return FeatureState.of([f"{number:05d}" for number in range(count)], features)


def reference(x: np.ndarray, y: np.ndarray, degree: int) -> float:
    """Gretton et al. 2012, eq. 3, pair by pair."""

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (float(a @ b) / len(a) + 1) ** degree

    def within(z: np.ndarray) -> float:
        pairs = [kernel(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]
        return sum(pairs) / len(pairs)

    across = [kernel(a, b) for a in x for b in y]
    return within(x) + within(y) - 2 * sum(across) / len(across)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("degree", [1, 2, 3])
def test_it_is_the_loop_over_pairs(seed: int, degree: int) -> None:
    rng = np.random.default_rng(seed)
    m, n, d = rng.integers(2, 9, size=3)
    x, y = rng.normal(size=(m, d)), rng.normal(size=(n, d)) + 0.5
    found = squared_mmd(torch.from_numpy(x), torch.from_numpy(y), degree=degree)
    assert found == pytest.approx(reference(x, y, degree), rel=1e-10, abs=1e-12)


def test_a_known_value() -> None:
    """Kernels of 1 x 1: 8 within each set; (1 - 1)^3 = 0 across."""
    ones = torch.ones(3, 2, dtype=torch.float64)
    assert squared_mmd(ones, -ones) == 16
    assert squared_mmd(ones, ones) == 0


def test_subsets_of_everything_are_the_estimate_itself() -> None:
    first, second = draw(0, 20), draw(1, 20, shift=0.4)
    found = kernel_distance(first, second, subset_size=20, num_subsets=3)
    expected = squared_mmd(first.features, second.features)
    assert found.value == pytest.approx(expected, rel=1e-12)
    assert found.deviation == pytest.approx(0, abs=1e-12)
    assert len(found.estimates) == 3


def test_there_is_no_bias_whatever_the_number_of_samples() -> None:
    """Each set is of the same distribution; 4 standard errors."""
    for count in (10, 100):
        pairs = [(draw(2 * seed, count), draw(2 * seed + 1, count)) for seed in range(100)]
        values = np.array([squared_mmd(a.features, b.features) for a, b in pairs])
        assert abs(values.mean()) < 4 * values.std() / math.sqrt(len(values))
        assert (values < 0).any()


def test_the_error_of_blocks_is_that_of_sampling() -> None:
    """Distances of new samples scatter as blocks say they do, and not as subsets do."""
    values, claimed = [], []
    for seed in range(40):
        first, second = draw(2 * seed, 400), draw(2 * seed + 1, 400, shift=0.3)
        found = block_kernel_distance(first, second, block_size=20)
        values.append(found.value)
        claimed.append(found.standard_error)
    scatter = float(np.std(values, ddof=1))
    # 35 %: the error of a deviation from 40 values is 11 %.
    assert np.mean(claimed) == pytest.approx(scatter, rel=0.35)
    subsets = kernel_distance(first, second, subset_size=200, num_subsets=20)
    assert subsets.standard_error < scatter / 2


def test_blocks_share_no_sample() -> None:
    first, second = draw(0, 25), draw(1, 40, shift=0.2)
    found = block_kernel_distance(first, second, block_size=6)
    assert len(found.estimates) == 4
    assert found.value == pytest.approx(np.mean(found.estimates))
    assert found.deviation == pytest.approx(np.std(found.estimates, ddof=1))
    assert found.standard_error == pytest.approx(found.deviation / 2)


@pytest.mark.parametrize("distance", [kernel_distance, block_kernel_distance])
def test_the_seed_decides_and_the_order_of_samples_does_not(distance) -> None:
    first, second = draw(0, 60), draw(1, 50, shift=0.2)
    options = {"subset_size": 10, "num_subsets": 9}
    if distance is block_kernel_distance:
        options = {"block_size": 10}
    found = distance(first, second, **options)
    assert distance(first, second, **options) == found
    assert distance(first, second, **options, seed=1).value != found.value
    parts = [
        FeatureState.of(first.sample_ids[rows], first.features[rows])
        for rows in (slice(40, 60), slice(0, 40))
    ]
    assert distance(parts[0].merge(parts[1]), second, **options) == found


def test_one_subset_has_no_error() -> None:
    found = kernel_distance(draw(0, 9), draw(1, 9), subset_size=5, num_subsets=1)
    assert math.isfinite(found.value)
    assert math.isnan(found.deviation)
    assert math.isnan(found.standard_error)


def test_it_is_that_of_torchmetrics() -> None:
    """With the same subsets: all samples, in another order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchmetrics.image.kid import KernelInceptionDistance

        metric = KernelInceptionDistance(Flat(), subsets=2, subset_size=12, normalize=True)
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.rand(2, 12, 3, 4, 4, generator=generator)
    fake = fake**2
    metric.update(real, real=True)
    metric.update(fake, real=False)
    expected, _ = metric.compute()
    ids = [str(number) for number in range(12)]
    states = [FeatureState.of(ids, Flat()(part)) for part in (real, fake)]
    found = kernel_distance(*states, subset_size=12, num_subsets=2)
    # 1e-4: torchmetrics sums in float32.
    assert found.value == pytest.approx(float(expected), rel=1e-4)


class Flat(torch.nn.Module):
    """Pixels as features."""

    num_features = 48

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)


def test_what_is_refused() -> None:
    first, second = draw(0, 12), draw(1, 9)
    for size in (1, 10):
        with pytest.raises(ValueError, match=rf"subset_size {size} .* 12 and 9 .* 2 to 9"):
            kernel_distance(first, second, subset_size=size)
    with pytest.raises(ValueError, match="num_subsets must be at least 1, got 0"):
        kernel_distance(first, second, subset_size=4, num_subsets=0)
    with pytest.raises(ValueError, match="fewer than 2 blocks of 5"):
        block_kernel_distance(first, second, block_size=5)
    with pytest.raises(ValueError, match="6 and of 4 dimensions"):
        kernel_distance(first, draw(1, 9, 4), subset_size=4)
