"""Scores by sample: merged in any way they are NumPy's mean over the distinct samples."""

import itertools
import math

import numpy as np
import pytest

from probe_eval.metrics.state import SampleScores

IDS = [f"clip/{number}" for number in range(23)]
VALUES = np.random.default_rng(0).normal(size=23)


def part(*indices: int) -> SampleScores:
    return SampleScores.of([IDS[i] for i in indices], [float(VALUES[i]) for i in indices])


A, B, C = part(0, 1, 2, 3), part(3, 4, 5), part(5, 0, 9)


def test_merging_is_associative_commutative_and_idempotent() -> None:
    assert A.merge(B).merge(C).scores == A.merge(B.merge(C)).scores
    assert A.merge(B).scores == B.merge(A).scores
    assert A.merge(A).scores == A.scores
    assert SampleScores().merge(A).scores == A.merge(SampleScores()).scores == A.scores


def test_the_result_is_the_mean_in_any_order_to_the_bit() -> None:
    results = set()
    for first, second, third in itertools.permutations((A, B, C)):
        merged = first.merge(second).merge(third)
        results.add(merged.compute())
    seen = sorted({0, 1, 2, 3, 4, 5, 9})
    assert results == {math.fsum(VALUES[seen]) / len(seen)}
    # 1e-12: NumPy sums in another order.
    np.testing.assert_allclose(results.pop(), VALUES[seen].mean(), rtol=1e-12)


@pytest.mark.parametrize("world", [1, 2, 3, 5, 8])
def test_samples_that_pad_the_last_batch_count_once(world: int) -> None:
    """As a distributed sampler does, the last rank wraps around to the first samples."""
    padded = [i % len(IDS) for i in range(math.ceil(len(IDS) / world) * world)]
    merged = SampleScores()
    for rank in range(world):
        merged = merged.merge(part(*padded[rank::world]))
    assert len(merged.scores) == len(IDS)
    assert merged.compute() == part(*range(len(IDS))).compute()


def test_two_scores_of_one_sample_are_an_error() -> None:
    other = SampleScores.of([IDS[1]], [0.125])
    with pytest.raises(ValueError, match=r"sample clip/1 was scored .* and 0\.125"):
        A.merge(other)
    with pytest.raises(ValueError, match="sample clip/1 has two scores"):
        SampleScores.of([IDS[1], IDS[2], IDS[1]], [0.0, 1.0, 1.0])


def test_a_sample_may_come_twice_in_a_batch() -> None:
    assert SampleScores.of(["a", "b", "a"], [1.0, 0.0, 1.0]).scores == {"a": 1.0, "b": 0.0}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_named(bad: float) -> None:
    with pytest.raises(ValueError, match=r"score of b \(1 in all\) is not finite"):
        SampleScores.of(["a", "b"], [0.0, bad])


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="shorter"):
        SampleScores.of(["a", "b"], [0.0])


def test_nothing_has_no_mean() -> None:
    with pytest.raises(ValueError, match="no sample"):
        SampleScores().compute()
    with pytest.raises(ValueError, match="no sample"):
        SampleScores.of([], []).compute()
