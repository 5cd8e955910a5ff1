"""Frechet distance between two sets of feature vectors: FID on images, FVD on videos.

Axes: b samples of a batch, d feature dimensions.
"""

import dataclasses

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FrechetState:
    """Count, mean and scatter of feature vectors in float64; states merge in any order.

    The outer products are summed about the mean (Chan, Golub and LeVeque 1979): about the origin,
    features that are large beside their spread would lose the covariance to rounding.

    A vector counts as often as it is added: give each process its own samples, without padding.
    """

    count: int = 0
    """Samples."""
    mean: Float[Tensor, " d"] = dataclasses.field(
        default_factory=lambda: torch.zeros(0, dtype=torch.float64)
    )
    """Mean vector."""
    scatter: Float[Tensor, "d d"] = dataclasses.field(
        default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64)
    )
    """Sum over samples of the outer product of their difference from the mean."""

    @classmethod
    def of(cls, features: Float[Tensor, "b d"]) -> "FrechetState":
        """The state of one batch.

        Raises:
            ValueError: if the batch is empty or a feature is not finite.
        """
        if not features.numel():
            raise ValueError(
                f"features of shape {tuple(features.shape)} are empty; expected (samples, "
                "dimensions)"
            )
        if not bool(torch.isfinite(features).all()):
            raise ValueError("features are not finite")
        values = features.detach().cpu().double()
        mean = values.mean(dim=0)
        centred = values - mean
        return cls(count=len(values), mean=mean, scatter=centred.T @ centred)

    def merge(self, other: "FrechetState") -> "FrechetState":
        """The state of both states' samples.

        Raises:
            ValueError: if their features differ in dimension.
        """
        if not self.count or not other.count:
            return self if self.count else other
        check_dimensions(self, other)
        count = self.count + other.count
        shift = other.mean - self.mean
        return FrechetState(
            count=count,
            mean=(self.count * self.mean + other.count * other.mean) / count,
            scatter=self.scatter
            + other.scatter
            + torch.outer(shift, shift) * (self.count * other.count / count),
        )

    @property
    def rank_deficient(self) -> bool:
        """Whether there are too few samples for a covariance of full rank.

        A distance from such a state is biased upwards by much, and compares only with distances
        from as many samples.
        """
        return self.count <= len(self.mean)

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        """Unbiased covariance.

        Raises:
            ValueError: if there are fewer than two samples.
        """
        if self.count < 2:
            raise ValueError(
                f"a covariance needs at least 2 samples, got {self.count}; evaluate more clips"
            )
        return self.scatter / (self.count - 1)


def frechet_distance(first: FrechetState, second: FrechetState) -> float:
    """Squared Frechet (2-Wasserstein) distance between Gaussians with these means and covariances.

    The trace of the root of the product of the covariances is computed as the sum of singular
    values of the product of their roots. Both are real and nonnegative by construction, also for
    covariances without full rank, where a matrix root of the product turns complex or fails.

    Reference: Dowson and Landau, The Frechet Distance between Multivariate Normal Distributions
        (1982); Heusel et al., GANs Trained by a Two Time-Scale Update Rule (NeurIPS 2017, FID);
        Unterthiner et al., Towards Accurate Generative Models of Video (2018, FVD).

    Args:
        first: features of one set, in any order.
        second: features of the other.

    Returns:
        The distance, 0 for equal sets. See `FrechetState.rank_deficient`.

    Raises:
        ValueError: if a set has fewer than two samples, or their features differ in dimension.
        ImportError: SciPy is not installed.
    """
    check_dimensions(first, second)
    from scipy.linalg import svdvals

    covariances = first.covariance, second.covariance
    roots = [covariance_root(covariance) for covariance in covariances]
    cross = float(np.sum(svdvals((roots[0].T @ roots[1]).numpy())))
    spread = sum(float(covariance.trace()) for covariance in covariances)
    shift = float((first.mean - second.mean).square().sum())
    return max(0.0, shift + spread - 2 * cross)


def covariance_root(covariance: Float[Tensor, "d d"]) -> Float[Tensor, "d r"]:
    """A matrix R with R R^T = covariance, with a column for each eigenvalue above rounding."""
    from scipy.linalg import eigh

    values, vectors = (torch.from_numpy(part) for part in eigh(covariance.numpy()))
    floor = float(values[-1]) * len(values) * torch.finfo(values.dtype).eps
    kept = values > max(floor, 0.0)
    if not bool(kept.any()):  # all samples equal
        return torch.zeros(len(values), 1, dtype=values.dtype)
    return vectors[:, kept] * values[kept].sqrt()


def check_dimensions(first: FrechetState, second: FrechetState) -> None:
    """Checks that two sets have features of the same dimension.

    Raises:
        ValueError: if they differ, or a set is empty.
    """
    if not first.count or not second.count:
        raise ValueError("a set has no features; add at least 2 samples to each")
    if len(first.mean) != len(second.mean):
        raise ValueError(
            f"features of {len(first.mean)} and of {len(second.mean)} dimensions cannot be "
            "compared; use one network for both sets"
        )
