"""How two numbers of the same things go together, as performance and loss of checkpoints.

Axes: n pairs, r resamples.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

_RESAMPLED = 1 << 20  # numbers held at a time
_ROUNDING = 1e-13  # a spread so much smaller than the values themselves is none


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Correlation:
    """Correlations in [-1, 1], each with an interval."""

    pearson: float
    """Of the numbers; 1 or -1 where they lie on a line."""
    pearson_interval: tuple[float, float]
    spearman: float
    """Of their ranks, equal numbers sharing a rank; 1 or -1 where one always grows with the other
    or always falls."""
    spearman_interval: tuple[float, float]
    samples: int
    """Pairs."""
    confidence: float
    """Share of repetitions of the whole study whose interval should cover the truth. With few
    pairs, intervals are too narrow."""
    resamples: int
    """From how many the intervals are."""
    degenerate: int
    """Further resamples, left out because all their numbers of one side were equal, and a
    correlation has no value."""


def correlate(
    x: Sequence[float] | Float[ndarray, " n"],
    y: Sequence[float] | Float[ndarray, " n"],
    *,
    num_resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Correlation:
    """Pearson's and Spearman's correlation with percentile intervals of a bootstrap over pairs.

    Reference: From Image to Video, Tables 1 and 2; Efron and Tibshirani, An Introduction to the
        Bootstrap (1993), Ch. 13 (percentile intervals).

    Args:
        x: one number of each thing.
        y: the other, in the same order.
        num_resamples: how many times as many pairs are drawn, with replacement.
        confidence: of the intervals, in (0, 1).
        seed: decides the resamples.

    Raises:
        ValueError: if there are fewer than 3 pairs, lengths differ, a number is not finite, all
            numbers of one side are equal, or no resample has a correlation.
    """
    first, second = (checked(values, name) for values, name in ((x, "x"), (y, "y")))
    if len(first) != len(second):
        raise ValueError(f"x has {len(first)} numbers and y {len(second)}; give pairs")
    if not 0 < confidence < 1 or num_resamples < 1:
        raise ValueError(
            f"confidence {confidence} must be in (0, 1) and num_resamples {num_resamples} positive"
        )
    generator = np.random.default_rng(seed)
    found: list[ndarray] = []
    left, at_once = num_resamples, max(1, _RESAMPLED // len(first))
    while left:
        picked = generator.integers(0, len(first), size=(min(left, at_once), len(first)))
        left -= len(picked)
        a, b = first[picked], second[picked]
        kept = varied(a) & varied(b)
        a, b = a[kept], b[kept]
        found.append(np.stack([pearson(a, b), spearman(a, b)]))
    values = np.concatenate(found, axis=1)
    resamples = values.shape[1]
    if not resamples:
        raise ValueError(
            f"none of {num_resamples} resamples has a correlation, because numbers repeat; raise "
            "num_resamples"
        )
    tail = (1 - confidence) / 2
    bounds = np.quantile(values, [tail, 1 - tail], axis=1)
    return Correlation(
        pearson=float(pearson(first, second)),
        pearson_interval=(float(bounds[0, 0]), float(bounds[1, 0])),
        spearman=float(spearman(first, second)),
        spearman_interval=(float(bounds[0, 1]), float(bounds[1, 1])),
        samples=len(first),
        confidence=confidence,
        resamples=resamples,
        degenerate=num_resamples - resamples,
    )


def pearson(x: Float[ndarray, "*r n"], y: Float[ndarray, "*r n"]) -> Float[ndarray, "*r"]:
    """Pearson's correlation along the last axis; neither side may be constant."""
    a, b = (values - values.mean(axis=-1, keepdims=True) for values in (x, y))
    a, b = (values / np.linalg.norm(values, axis=-1, keepdims=True) for values in (a, b))
    return np.asarray(np.clip((a * b).sum(axis=-1), -1, 1))


def spearman(x: Float[ndarray, "*r n"], y: Float[ndarray, "*r n"]) -> Float[ndarray, "*r"]:
    """Spearman's correlation along the last axis: Pearson's of ranks, shared by equal numbers."""
    from scipy.stats import rankdata

    return pearson(rankdata(x, axis=-1), rankdata(y, axis=-1))


def varied(values: Float[ndarray, "*r n"]) -> Bool[ndarray, "*r"]:
    """Whether numbers along the last axis differ by more than rounding."""
    return np.asarray(np.ptp(values, axis=-1) > _ROUNDING * np.abs(values).max(axis=-1))


def checked(values: Sequence[float] | Float[ndarray, " n"], name: str) -> Float[ndarray, " n"]:
    """The numbers in float64.

    Raises:
        ValueError: if they are fewer than 3, not finite or all equal.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or len(numbers) < 3:
        raise ValueError(
            f"{name} has shape {numbers.shape}; a correlation needs at least 3 pairs of numbers"
        )
    bad = np.flatnonzero(~np.isfinite(numbers))
    if len(bad):
        raise ValueError(
            f"{name} has {len(bad)} numbers that are not finite, the first at position {bad[0]}; "
            "leave these pairs out"
        )
    if not varied(numbers):
        raise ValueError(f"all numbers of {name} are equal, so that it has no correlation")
    return numbers
