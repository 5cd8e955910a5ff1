"""Metric states: numbers of each sample, merged by sample, so that nothing counts twice."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from typing import TypeVar

from probe_eval.metrics.functional.sums import Measured

State = TypeVar("State", bound="PooledSums")
Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True, slots=True)
class SampleScores:
    """Scores by sample id; merging states in any order and number gives the same result.

    Padded samplers and several processes may score a sample more than once: it counts once.
    """

    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, sample_ids: Iterable[str], scores: Iterable[float]) -> "SampleScores":
        """The state of one batch.

        Raises:
            ValueError: if a score is not finite, a sample has two different scores, or the
                lengths differ.
        """
        pairs = list(zip(sample_ids, scores, strict=True))
        bad = [sample_id for sample_id, score in pairs if not math.isfinite(score)]
        if bad:
            raise ValueError(f"score of {bad[0]} ({len(bad)} in all) is not finite")
        values = dict(pairs)
        twice = [sample_id for sample_id, score in pairs if values[sample_id] != score]
        if twice:
            raise ValueError(
                f"sample {twice[0]} has two scores in one batch; sample ids must be unique in a "
                "split"
            )
        return cls(values)

    def merge(self, other: "SampleScores") -> "SampleScores":
        """Both states' samples.

        Raises:
            ValueError: if a sample has two different scores.
        """
        return SampleScores(merge_samples(self.scores, other.scores, "scored"))

    def compute(self) -> float:
        """Mean over samples, summed in the order of their ids.

        Raises:
            ValueError: if there are no samples.
        """
        if not self.scores:
            raise ValueError("no sample was scored")
        return math.fsum(self.scores[key] for key in sorted(self.scores)) / len(self.scores)


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
        sample_ids = list(sample_ids)
        if isinstance(terms, int):
            terms = repeat(terms, len(sample_ids))
        state = cls()
        for sample_id, total, count in zip(sample_ids, sums, terms, strict=True):
            if not math.isfinite(total):
                raise ValueError(f"{cls.__name__} of {sample_id} is not finite")
            state = state.merge(cls({sample_id: (total, count)}))
        return state

    def merge(self: State, other: State) -> State:
        """Both states' samples.

        Raises:
            ValueError: if a sample has two different sums.
        """
        how = "measured twice with different results,"
        return type(self)(merge_samples(self.sums, other.sums, how))

    def compute(self) -> float:
        """Mean over the terms of all samples, summed in the order of their ids.

        Raises:
            ValueError: if there are no samples, or none of them has a term.
        """
        if not self.sums:
            raise ValueError("no sample was measured")
        terms = sum(terms for _, terms in self.sums.values())
        if not terms:
            raise ValueError(f"nothing counts in any of the {len(self.sums)} samples")
        return math.fsum(self.sums[key][0] for key in sorted(self.sums)) / terms


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

    def merge(self, other: "ReadoutState") -> "ReadoutState":
        """Both states' samples.

        Raises:
            ValueError: if a sample has two different results, or the states are of different
                metrics or variants.
        """
        if not self.metrics or not other.metrics:
            return self if self.metrics else other
        if self.variant != other.variant or self.metrics.keys() != other.metrics.keys():
            raise ValueError(
                f"{', '.join(self.metrics)} ({self.variant}) cannot be merged with "
                f"{', '.join(other.metrics)} ({other.variant}); measure both alike"
            )
        merged = {name: sums.merge(other.metrics[name]) for name, sums in self.metrics.items()}
        return ReadoutState(self.variant, merged)

    def compute(self) -> dict[str, float]:
        """Mean over the terms of all samples, for each name; see `PooledSums.compute`.

        Raises:
            ValueError: if there are no samples, or none of them has a term of some name.
        """
        if not self.metrics:
            raise ValueError("no sample was measured")
        return {name: sums.compute() for name, sums in self.metrics.items()}


def merge_samples(
    first: Mapping[str, Value], second: Mapping[str, Value], how: str
) -> dict[str, Value]:
    """Both mappings from sample ids, which agree where they overlap.

    Raises:
        ValueError: if a sample has two different values; `how` says what was done to it.
    """
    for sample_id in first.keys() & second.keys():
        if first[sample_id] != second[sample_id]:
            raise ValueError(
                f"sample {sample_id} was {how} {first[sample_id]} and {second[sample_id]}; sample "
                "ids must be unique in a split"
            )
    return {**first, **second}
