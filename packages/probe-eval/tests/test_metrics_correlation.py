"""Correlations against SciPy's, one by one."""

import math

import numpy as np
import pytest
import scipy.stats

from probe_eval.metrics.correlation import correlate, pearson, spearman


def draw(seed: int, count: int, *, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=count)
    y = 0.6 * x + rng.normal(size=count)
    if ties:
        x, y = np.round(x), np.round(y)
        x[:2], y[:2] = (0, 9), (9, 0)  # never constant
    return x, y


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_it_is_scipys(seed: int, ties: bool) -> None:
    x, y = draw(seed, 3 + 5 * seed, ties=ties)
    found = correlate(x, y, num_resamples=10)
    assert found.pearson == pytest.approx(scipy.stats.pearsonr(x, y).statistic, abs=1e-12)
    assert found.spearman == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-12)
    assert found.samples == len(x)


def test_rows_are_correlated_one_by_one() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, size=(2, 6, 12)).astype(float)
    expected = [scipy.stats.pearsonr(*rows).statistic for rows in zip(x, y, strict=True)]
    np.testing.assert_allclose(pearson(x, y), expected, rtol=0, atol=1e-12)
    expected = [scipy.stats.spearmanr(*rows).statistic for rows in zip(x, y, strict=True)]
    np.testing.assert_allclose(spearman(x, y), expected, rtol=0, atol=1e-12)


def test_intervals_are_quantiles_over_resampled_pairs() -> None:
    x, y = draw(0, 15)
    picked = np.random.default_rng(7).integers(0, 15, size=(200, 15))
    found = correlate(x, y, num_resamples=200, confidence=0.9, seed=7)
    for interval, value, function in (
        (found.pearson_interval, found.pearson, scipy.stats.pearsonr),
        (found.spearman_interval, found.spearman, scipy.stats.spearmanr),
    ):
        values = [function(x[rows], y[rows]).statistic for rows in picked]
        np.testing.assert_allclose(interval, np.quantile(values, [0.05, 0.95]), atol=1e-12)
        assert interval[0] < value < interval[1]


def test_intervals_agree_with_scipys_bootstrap() -> None:
    x, y = draw(1, 40)
    found = correlate(x, y, num_resamples=4000)
    expected = scipy.stats.bootstrap(
        (x, y), pearson, paired=True, n_resamples=4000, method="percentile", random_state=0
    ).confidence_interval
    # 0.02: the error of a quantile from 4000 resamples, several times over.
    np.testing.assert_allclose(found.pearson_interval, expected, atol=0.02)


def test_lines_and_monotone_curves() -> None:
    x = np.linspace(0.1, 3, 9)
    line = correlate(x, 5 - 2 * x, num_resamples=50)
    assert line.pearson == pytest.approx(-1)
    assert line.pearson_interval == pytest.approx((-1, -1))
    curve = correlate(x, np.exp(5 * x), num_resamples=50)
    assert curve.spearman == pytest.approx(1)
    assert curve.pearson < 0.8


def test_the_seed_decides() -> None:
    x, y = draw(2, 12)
    assert correlate(x, y, seed=1) == correlate(x, y, seed=1)
    other = correlate(x, y, seed=2)
    assert other.pearson_interval != correlate(x, y, seed=1).pearson_interval
    assert other.pearson == correlate(x, y, seed=1).pearson


def test_more_pairs_and_less_confidence_narrow_the_interval() -> None:
    def width(count: int, confidence: float = 0.95) -> float:
        found = correlate(*draw(3, count), num_resamples=1000, confidence=confidence)
        low, high = found.spearman_interval
        return high - low

    assert width(400) < width(40) < width(10)
    assert width(40, 0.5) < width(40)


def test_resamples_without_a_correlation_are_counted_and_left_out() -> None:
    """Of three pairs, 1 in 9 resamples has one of them three times."""
    found = correlate([1.0, 2.0, 4.0], [3.0, 1.0, 2.0])
    assert found.resamples + found.degenerate == 10_000
    assert found.degenerate == pytest.approx(10_000 / 9, rel=0.1)
    assert all(map(math.isfinite, (*found.pearson_interval, *found.spearman_interval)))
    one_differs = correlate([1.0, 1.0, 1.0, 1.0, 2.0], [3.0, 1.0, 2.0, 5.0, 4.0])
    assert one_differs.degenerate == pytest.approx(10_000 * 0.8**5, rel=0.1)


def test_resamples_are_drawn_in_parts() -> None:
    """So that memory stays bounded; equal numbers repeat in all of them."""
    x, y = draw(4, 3000)
    found = correlate(x, y, num_resamples=900)
    assert found.resamples == 900
    assert found.pearson_interval[0] < found.pearson < found.pearson_interval[1]


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1.0, 2.0], [1.0, 2.0], r"x has shape \(2,\); .* at least 3"),
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0], "x has 3 numbers and y 4"),
        ([1.0, 2.0, 3.0], [1.0, math.nan, math.inf], r"y has 2 numbers .* position 1;"),
        ([2.0, 2.0, 2.0], [1.0, 2.0, 3.0], "all numbers of x are equal"),
        ([1.0, 2.0, 3.0], [0.1 + 0.2, 0.3, 0.3], "all numbers of y are equal"),
    ],
)
def test_what_has_no_correlation_is_refused(x: list[float], y: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        correlate(x, y)


def test_settings_out_of_range_are_refused() -> None:
    x, y = draw(0, 5)
    for confidence in (0.0, 1.0, 95.0, math.nan):
        with pytest.raises(ValueError, match=r"confidence .* must be in"):
            correlate(x, y, confidence=confidence)
    with pytest.raises(ValueError, match="num_resamples 0 positive"):
        correlate(x, y, num_resamples=0)
    seeds = range(100)  # 1 in 9 resamples of 3 pairs is degenerate
    with pytest.raises(ValueError, match="none of 1 resamples has a correlation"):
        [correlate([1.0, 2.0, 4.0], [3.0, 1.0, 2.0], num_resamples=1, seed=seed) for seed in seeds]
