"""Sums by sample: merged in any way they are NumPy's mean over the distinct samples' terms."""

import itertools
import math
from functools import reduce

import numpy as np
import pytest

from probe_eval.metrics.functional.sums import Measured, Sums
from probe_eval.metrics.state import PooledSums, ReadoutState

IDS = [f"clip/{number}" for number in range(23)]
RNG = np.random.default_rng(0)
VALUES, TERMS = RNG.normal(size=23), RNG.integers(0, 5, size=23)


def part(*indices: int) -> PooledSums:
    sums = [float(VALUES[i]) for i in indices]
    return PooledSums.of([IDS[i] for i in indices], sums, [int(TERMS[i]) for i in indices])


A, B, C = part(0, 1, 2, 3), part(3, 4, 5), part(5, 0, 9)


def test_merging_is_associative_commutative_and_idempotent() -> None:
    assert A.merge(B).merge(C) == A.merge(B.merge(C)) == A.merge(B, C)
    assert A.merge(B) == B.merge(A)
    assert A.merge(A) == A == A.merge()
    assert PooledSums().merge(A) == A.merge(PooledSums()) == A


def test_the_result_is_the_mean_in_any_order_to_the_bit() -> None:
    results = set()
    for first, *others in itertools.permutations((A, B, C)):
        results |= {
            first.merge(*others).compute(),
            reduce(PooledSums.merge, others, first).compute(),
        }
    seen = sorted({0, 1, 2, 3, 4, 5, 9})
    assert results == {math.fsum(VALUES[seen]) / int(TERMS[seen].sum())}
    # 1e-12: NumPy sums in another order.
    np.testing.assert_allclose(results.pop(), VALUES[seen].sum() / TERMS[seen].sum(), rtol=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_any_partition_with_duplicates_is_the_same_to_the_bit(seed: int) -> None:
    """As distributed samplers do, the last process wraps around to the first samples."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 40))
    ids = [f"s{number}" for number in rng.permutation(count)]
    numbers = {
        name: (rng.normal(size=count) * 10.0 ** rng.integers(-9, 9, size=count)).tolist()
        for name in ("one", "two")
    }
    terms = rng.integers(1, 9, size=count).tolist()

    def measure(rows: list[int]) -> ReadoutState:
        sums = {
            name: Sums([values[row] for row in rows], [terms[row] for row in rows])
            for name, values in numbers.items()
        }
        return ReadoutState.of([ids[row] for row in rows], Measured("plain", sums))

    whole = measure(list(range(count)))
    for world in (1, 2, 3, 7):
        padded = [row % count for row in range(-(-count // world) * world)]
        size = int(rng.integers(1, count + 2))
        states = [
            measure(rows[start : start + size])
            for rows in (padded[rank::world] for rank in range(world))
            for start in range(0, len(rows), size)
        ]
        shuffled = [states[place] for place in rng.permutation(len(states))]
        assert ReadoutState().merge(*shuffled) == whole
        assert ReadoutState().merge(*shuffled).compute() == whole.compute()  # to the bit
        assert reduce(ReadoutState.merge, shuffled) == whole


class Counted(dict):
    """A mapping that notes how many of its items were read."""

    read = 0

    def items(self):
        Counted.read += len(self)
        return super().items()


def test_many_states_are_merged_in_time_in_proportion_to_their_samples() -> None:
    ids = [f"clip/{number}" for number in range(100_000)]
    states = [
        PooledSums(Counted({name: (1.0, 1) for name in ids[start : start + 32]}))
        for start in range(0, len(ids), 32)
    ]
    Counted.read = 0
    assert PooledSums().merge(*states).compute() == 1.0
    assert Counted.read == len(ids)


def test_two_results_of_one_sample_are_an_error() -> None:
    other = PooledSums.of([IDS[1]], [0.125], 3)
    with pytest.raises(ValueError, match=r"sample clip/1 was measured twice .* and \(0\.125, 3\)"):
        A.merge(B, other)
    with pytest.raises(ValueError, match="sample b was measured twice with different results"):
        PooledSums.of("bab", [1.0, 1.0, 1.0], [1, 1, 2])


def test_a_sample_may_come_twice_in_a_batch() -> None:
    assert PooledSums.of("aba", [1.0, 0.0, 1.0], 2).sums == {"a": (1.0, 2), "b": (0.0, 2)}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_sums_that_are_not_finite_are_named(bad: float) -> None:
    with pytest.raises(ValueError, match="PooledSums of b is not finite"):
        PooledSums.of("ab", [0.0, bad], 1)


@pytest.mark.parametrize(("sums", "terms"), [([0.0], 1), ([0.0, 1.0], [1])])
def test_lengths_must_agree(sums: list[float], terms: int | list[int]) -> None:
    with pytest.raises(ValueError, match="shorter"):
        PooledSums.of("ab", sums, terms)


def test_nothing_has_no_mean() -> None:
    for nothing in (PooledSums(), PooledSums.of([], [], 1), PooledSums().merge(PooledSums())):
        with pytest.raises(ValueError, match="no sample was measured"):
            nothing.compute()
    with pytest.raises(ValueError, match="nothing counts in any of the 2 samples"):
        PooledSums.of("ab", [0.0, 0.0], 0).compute()
    assert ReadoutState().merge(ReadoutState()) == ReadoutState()
