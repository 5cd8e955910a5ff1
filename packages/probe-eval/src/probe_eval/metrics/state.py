"""Metric states: one score per sample, merged by sample, so that nothing counts twice."""

import dataclasses
import math
from collections.abc import Iterable, Mapping


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
        for sample_id in self.scores.keys() & other.scores.keys():
            if self.scores[sample_id] != other.scores[sample_id]:
                raise ValueError(
                    f"sample {sample_id} was scored {self.scores[sample_id]} and "
                    f"{other.scores[sample_id]}; sample ids must be unique in a split"
                )
        return SampleScores({**self.scores, **other.scores})

    def compute(self) -> float:
        """Mean over samples, summed in the order of their ids.

        Raises:
            ValueError: if there are no samples.
        """
        if not self.scores:
            raise ValueError("no sample was scored")
        return math.fsum(self.scores[key] for key in sorted(self.scores)) / len(self.scores)
