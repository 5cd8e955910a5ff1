"""What a network that the user brings says of images or clips, as one vector for each.

FID and FVD are `frechet_distance` of two sets' moments, KID is `kernel_distance` of two sets.
Those of torchmetrics give the same numbers for images and one process; they count the samples that
pad a batch, and their sums depend on how samples were split.

Axes: b samples of a batch, n samples of a set, d feature dimensions.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probe_eval.metrics.frechet import FrechetState
from probe_eval.networks import load_callable

_SAME = 1e-3  # relative difference that rounding in another batch may leave


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FeatureState:
    """Feature vectors in the order of their sample ids; states merge in any order and number.

    Padded samplers and several processes may measure a sample more than once: it counts once.
    Memory grows with the number of samples; `FrechetState` keeps only moments, for one process.
    """

    sample_ids: tuple[str, ...] = ()
    """Sorted, each of them once."""
    features: Float[Tensor, "n d"] = dataclasses.field(default_factory=lambda: torch.zeros(0, 0))
    """A row for each id; float32, or float64 where the network gave that."""

    @classmethod
    def of(cls, sample_ids: Iterable[str], features: Float[Tensor, "b d"]) -> "FeatureState":
        """The state of one batch.

        Raises:
            ValueError: if the batch is empty, the lengths differ, a feature is not finite, or a
                sample has two different vectors.
        """
        sample_ids = tuple(sample_ids)
        if not features.numel() or len(sample_ids) != len(features):
            raise ValueError(
                f"{len(sample_ids)} sample ids do not fit features of shape "
                f"{tuple(features.shape)}; expected a vector for each of at least one sample"
            )
        values = features.detach().cpu()
        values = values if values.dtype == torch.float64 else values.float()
        finite = values.isfinite().all(dim=1)
        if not bool(finite.all()):
            raise ValueError(
                f"features of {sample_ids[int((~finite).nonzero()[0])]} are not finite"
            )
        return sorted_state(sample_ids, values)

    def merge(self, *others: "FeatureState") -> "FeatureState":
        """The samples of all states.

        Raises:
            ValueError: if a sample has two different vectors, or vectors differ in dimension.
        """
        parts = [state for state in (self, *others) if state.sample_ids]
        if len(parts) < 2:
            return parts[0] if parts else self
        dimensions = sorted({part.features.shape[1] for part in parts})
        if len(dimensions) > 1:
            raise ValueError(
                f"features of {' and of '.join(map(str, dimensions))} dimensions cannot be "
                "merged; use one network for all samples"
            )
        sample_ids = tuple(sample_id for part in parts for sample_id in part.sample_ids)
        return sorted_state(sample_ids, torch.cat([part.features for part in parts]))

    def moments(self) -> FrechetState:
        """Count, mean and scatter, for `frechet_distance`.

        Raises:
            ValueError: if there are no samples.
        """
        return FrechetState.of(self.features)


def feature_statistics(
    network: Callable[..., Any] | str,
    batches: Iterable[tuple[Sequence[str], Float[Tensor, "_ 3 ..."]]],
    *,
    device: torch.device | str = "cpu",
) -> FeatureState:
    """Features of images or clips, batch by batch.

    Several processes each take batches of their own; merge what all of them return.

    Args:
        network: maps a batch to vectors `b d`, or its name; see `probe_eval.networks`.
        batches: sample ids and images `b 3 H W` or clips `b 3 T H W` in [-1, 1].
        device: where batches are moved, and a network that is loaded by name.

    Returns:
        The features, whose `moments` give FID or FVD and which `kernel_distance` takes.

    Raises:
        ValueError: if there are no batches, or the network returns anything but one finite vector
            for each sample; see `load_callable` for networks by name.
    """
    if isinstance(network, str):
        network = load_callable(network, device=device)
    states = []
    for sample_ids, clips in batches:
        with torch.no_grad():
            features = network(clips.to(device))
        if not isinstance(features, Tensor) or features.shape[:-1] != clips.shape[:1]:
            is_tensor = isinstance(features, Tensor)
            found = tuple(features.shape) if is_tensor else type(features).__name__
            raise ValueError(
                f"the network returned {found} for {len(clips)} samples; expected a tensor of "
                f"shape ({len(clips)}, dimensions)"
            )
        states.append(FeatureState.of(sample_ids, features))
    if not states:
        raise ValueError("there are no samples to take features of; give at least one batch")
    return states[0].merge(*states[1:])


def sorted_state(sample_ids: Sequence[str], features: Float[Tensor, "n d"]) -> FeatureState:
    """A state of rows in any order, in which samples may come twice.

    Of vectors that differ by rounding, as those of one clip in two batches do, the lesser is kept,
    so that their order does not matter.

    Raises:
        ValueError: if a sample has two vectors that differ by more.
    """
    rows: dict[str, int] = {}
    for row, sample_id in enumerate(sample_ids):
        known = rows.setdefault(sample_id, row)
        if known == row or torch.equal(features[known], features[row]):
            continue
        pair = features[[known, row]].double()
        if float((pair[0] - pair[1]).norm()) > _SAME * float(pair.norm(dim=1).max()):
            raise ValueError(
                f"sample {sample_id} was measured twice with different features; sample ids must "
                "be unique in a set, and a network in evaluation mode"
            )
        rows[sample_id] = min(known, row, key=lambda row: features[row].tolist())
    order = sorted(rows)
    return FeatureState(sample_ids=tuple(order), features=features[[rows[key] for key in order]])
