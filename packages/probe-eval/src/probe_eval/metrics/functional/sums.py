"""Sums over what counts of every sample: what a metric returns and a state merges.

Every metric of a readout is a pure function that ends here. It takes a batch and gives plain
numbers for each of its samples, which depend neither on the rest of the batch nor on the machine's
number of threads: sums are rounded once (`math.fsum`).

Axes: b samples, *n any axes of a sample.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Shaped
from torch import Tensor


class Sums(NamedTuple):
    """Sum over the terms of each sample and how many they are; a sample may have none."""

    totals: list[float]
    terms: list[int]


class Measured(NamedTuple):
    """What one metric function found in the samples of a batch."""

    variant: str
    """What distinguishes these numbers from others of the same name; belongs in every record."""
    sums: dict[str, Sums]
    """Name of a number -> its sums."""


def masked_sums(values: Shaped[Tensor, "b *n"], counts: Bool[Tensor, "b *n"]) -> Sums:
    """Sums each sample's values where they count.

    Args:
        values: numbers or truth values (as 0 and 1), in any unit; anything where they do not count.
        counts: which values are terms.
    """
    kept = [
        value[count].tolist()
        for value, count in zip(values.double().cpu(), counts.cpu(), strict=True)
    ]
    return Sums([math.fsum(terms) for terms in kept], [len(terms) for terms in kept])


def check_shapes(expected: Sequence[int], **tensors: Tensor | None) -> None:
    """Checks that tensors have a shape, because others would broadcast to wrong numbers.

    Raises:
        ValueError: naming the tensor that differs; None never does.
    """
    for name, tensor in tensors.items():
        if tensor is not None and tensor.shape != torch.Size(expected):
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; expected {tuple(expected)}, that of the "
                "target"
            )


def refuse(
    bad: Bool[Tensor, "b *n"], problem: str, sample_ids: Sequence[str] | None = None
) -> None:
    """Checks that no entry of any sample is bad.

    Args:
        bad: true where an entry has the problem.
        problem: what is wrong and what to do, after the name of the sample.
        sample_ids: names of the samples; None names them by their positions in the batch.

    Raises:
        ValueError: naming the first sample that has a bad entry.
    """
    if not bool(bad.any()):
        return
    sample = int(rearrange(bad, "b ... -> b (...)").any(dim=1).nonzero()[0])
    name = f"{sample} of the batch" if sample_ids is None else sample_ids[sample]
    raise ValueError(f"sample {name}: {problem} ({int(bad[sample].sum())} times)")
