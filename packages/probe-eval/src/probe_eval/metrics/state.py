"""Metric states: numbers of each sample, merged by sample, so that nothing counts twice.

Collect the states of batches and processes in a list, and merge them once:
`ReadoutState().merge(*states)` takes time in proportion to their samples.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, repeat
from typing import TypeVar

from probe_eval.metrics.functional.sums import Measured

State = TypeVar("State", bound="PooledSums")
Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True, slots=True)
class PooledSums:
    """Sum and number of terms by sample id; merging in any order and number is the same.

    Padded samplers and several processes may measure a sample more than once: it counts once.
    """

    sums: Mapping[str, tuple[float, int]] = dataclasses.field(default_factory=dict)
    """Sample id -> (sum, how many terms it has)."""

    @classmethod
    def of(
        cls: type[State],
        sample_ids: Iterable[str],
        sums: Iterable[float],
        terms: int | Iterable[int],
    ) -> State:
        """The state of one batch, with the number of terms of each sample or of all.

        Raises:
            ValueError: if a sum is not finite, a sample has two different sums, or the lengths
                differ.
        """
        sample_ids, sums = list(sample_ids), list(sums)
        if isinstance(terms, int):
            terms = repeat(terms, len(sample_ids))
        for sample_id, total in zip(sample_ids, sums, strict=True):
            if not math.isfinite(total):
                raise ValueError(f"{cls.__name__} of {sample_id} is not finite")
        measured = zip(sums, terms, strict=True)
        return cls(merge_samples(zip(sample_ids, measured, strict=True)))

    def merge(self: State, *others: State) -> State:
        """The samples of all states.

        Raises:
            ValueError: if a sample has two different sums.
        """
        samples = chain.from_iterable(state.sums.items() for state in (self, *others))
        return type(self)(merge_samples(samples))

    def compute(self) -> float:
        """Mean over the terms of all samples; their sum is rounded once, so that no order counts.

        Raises:
            ValueError: if there are no samples, or none of them has a term.
        """
        if not self.sums:
            raise ValueError("no sample was measured")
        terms = sum(terms for _, terms in self.sums.values())
        if not terms:
            raise ValueError(f"nothing counts in any of the {len(self.sums)} samples")
        return math.fsum(total for total, _ in self.sums.values()) / terms


@dataclasses.dataclass(frozen=True, slots=True)
class ReadoutState:
    """All numbers of one metric function by name, with what distinguishes them from others."""

    variant: str = ""
    """Belongs in the record; empty where nothing was measured."""
    metrics: Mapping[str, PooledSums] = dataclasses.field(default_factory=dict)
    """Name of a number -> its sums by sample."""

    @classmethod
    def of(cls, sample_ids: Sequence[str], measured: Measured) -> "ReadoutState":
        """The state of one batch.

        Raises:
            ValueError: see `PooledSums.of`.
        """
        metrics = {
            name: PooledSums.of(sample_ids, sums.totals, sums.terms)
            for name, sums in measured.sums.items()
        }
        return cls(measured.variant, metrics)

    def merge(self, *others: "ReadoutState") -> "ReadoutState":
        """The samples of all states.

        Raises:
            ValueError: if a sample has two different results, or the states are of different
                metrics or variants.
        """
        measured = [state for state in (self, *others) if state.metrics]
        if not measured:
            return self
        first = measured[0]
        for other in measured:
            if first.variant != other.variant or first.metrics.keys() != other.metrics.keys():
                raise ValueError(
                    f"{', '.join(first.metrics)} ({first.variant}) cannot be merged with "
                    f"{', '.join(other.metrics)} ({other.variant}); measure both alike"
                )
        merged = {
            name: PooledSums().merge(*(state.metrics[name] for state in measured))
            for name in first.metrics
        }
        return ReadoutState(first.variant, merged)

    def compute(self) -> dict[str, float]:
        """Mean over the terms of all samples, for each name; see `PooledSums.compute`.

        Raises:
            ValueError: if there are no samples, or none of them has a term of some name.
        """
        if not self.metrics:
            raise ValueError("no sample was measured")
        return {name: sums.compute() for name, sums in self.metrics.items()}


def merge_samples(samples: Iterable[tuple[str, Value]]) -> dict[str, Value]:
    """Values by sample id; a sample may come many times with the same value.

    Raises:
        ValueError: if a sample has two different values.
    """
    merged: dict[str, Value] = {}
    for sample_id, value in samples:
        known = merged.setdefault(sample_id, value)
        if known != value:
            raise ValueError(
                f"sample {sample_id} was measured twice with different results, {known} and "
                f"{value}; sample ids must be unique in a split"
            )
    return merged
