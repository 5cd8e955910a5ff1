"""Kernel distance between two sets of feature vectors: KID on images, KVD on videos.

Unlike the Frechet distance it has no bias that depends on the number of samples, and it may be
negative where two sets are alike.

Axes: m and n samples of two sets, d feature dimensions.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from probe_eval.metrics.features import FeatureState

DEGREE = 3


class KernelDistance(NamedTuple):
    """Mean of several estimates, with what they tell about its error."""

    value: float
    """Squared maximum mean discrepancy; 0 on average where both sets are of one distribution."""
    deviation: float
    """Standard deviation between the estimates; papers give it after a plus-minus sign."""
    standard_error: float
    """Of the mean; see the function for which chance it covers."""
    estimates: tuple[float, ...]


def kernel_distance(
    first: FeatureState,
    second: FeatureState,
    *,
    subset_size: int = 1000,
    num_subsets: int = 100,
    degree: int = DEGREE,
    seed: int = 0,
) -> KernelDistance:
    """Mean over random subsets of both sets, as KID was published.

    Subsets overlap, so that the standard error covers only which subsets were drawn: it can be
    made small at will, and says little about other clips. `block_kernel_distance` has one that
    does.

    Reference: Binkowski et al., Demystifying MMD GANs (ICLR 2018), Sec. 4 (KID: degree 3, 100
        subsets of 1000).

    Args:
        first: features of one set.
        second: features of the other.
        subset_size: samples of each set in a subset, drawn without replacement.
        num_subsets: how many estimates are averaged.
        degree: of the polynomial kernel.
        seed: decides the subsets.

    Returns:
        The distance, which depends on neither processes nor batches.

    Raises:
        ValueError: if a set has fewer samples than a subset, a size is too small, or their
            features differ in dimension.
    """
    check_sets(first, second, subset_size, "subset_size")
    if num_subsets < 1:
        raise ValueError(f"num_subsets must be at least 1, got {num_subsets}")
    generator = torch.Generator().manual_seed(seed)

    def draw(state: FeatureState) -> Tensor:
        picked = torch.randperm(len(state.sample_ids), generator=generator)[:subset_size]
        return state.features[picked].double()

    return summarised(
        [squared_mmd(draw(first), draw(second), degree=degree) for _ in range(num_subsets)]
    )


def block_kernel_distance(
    first: FeatureState,
    second: FeatureState,
    *,
    block_size: int = 1000,
    degree: int = DEGREE,
    seed: int = 0,
) -> KernelDistance:
    """Mean over disjoint random blocks of both sets.

    Blocks share no sample and are independent estimates: the standard error covers which clips
    were sampled. The last samples, too few for a block, are left out.

    Reference: Zaremba et al., B-tests: Low Variance Kernel Two-Sample Tests (NeurIPS 2013), with
        the kernel of KID.

    Args:
        first: features of one set.
        second: features of the other.
        block_size: samples of each set in a block.
        degree: of the polynomial kernel.
        seed: decides the blocks.

    Returns:
        The distance, which depends on neither processes nor batches.

    Raises:
        ValueError: if there are fewer than two blocks, a size is too small, or the features of
            the sets differ in dimension.
    """
    check_sets(first, second, block_size, "block_size")
    blocks = min(len(first.sample_ids), len(second.sample_ids)) // block_size
    if blocks < 2:
        raise ValueError(
            f"sets of {len(first.sample_ids)} and {len(second.sample_ids)} samples have fewer than "
            f"2 blocks of {block_size}, which an error needs; lower block_size or add samples"
        )
    generator = torch.Generator().manual_seed(seed)
    orders = [
        torch.randperm(len(state.sample_ids), generator=generator)[: blocks * block_size]
        for state in (first, second)
    ]
    parts = zip(orders[0].split(block_size), orders[1].split(block_size), strict=True)
    return summarised(
        [
            squared_mmd(first.features[a].double(), second.features[b].double(), degree=degree)
            for a, b in parts
        ]
    )


def squared_mmd(
    first: Float[Tensor, "m d"], second: Float[Tensor, "n d"], *, degree: int = DEGREE
) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (x . y / d + 1)^degree.

    Reference: Gretton et al., A Kernel Two-Sample Test (JMLR 2012), Lemma 6, eq. 3.
    """

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** degree

    def within(values: Tensor) -> Tensor:
        own = kernel(values, values)
        return (own.sum() - own.trace()) / (len(values) * (len(values) - 1))

    return float(within(first) + within(second) - 2 * kernel(first, second).mean())


def summarised(estimates: Sequence[float]) -> KernelDistance:
    """Mean and errors; NaN for those of a single estimate."""
    values = torch.tensor(estimates, dtype=torch.float64)
    deviation = float(values.std()) if len(values) > 1 else math.nan
    return KernelDistance(
        float(values.mean()), deviation, deviation / math.sqrt(len(values)), tuple(estimates)
    )


def check_sets(first: FeatureState, second: FeatureState, size: int, name: str) -> None:
    """Checks that two sets can be compared in parts.

    Raises:
        ValueError: if parts have fewer than two samples or more than a set has, or the features of
            the sets differ in dimension.
    """
    least = min(len(first.sample_ids), len(second.sample_ids))
    if not 2 <= size <= least:
        raise ValueError(
            f"{name} {size} does not fit sets of {len(first.sample_ids)} and "
            f"{len(second.sample_ids)} samples; expected 2 to {least}"
        )
    if first.features.shape[1] != second.features.shape[1]:
        raise ValueError(
            f"features of {first.features.shape[1]} and of {second.features.shape[1]} dimensions "
            "cannot be compared; use one network for both sets"
        )
