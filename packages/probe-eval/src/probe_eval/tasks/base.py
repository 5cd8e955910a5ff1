"""What a task is.

Axes: b samples, t h w feature grid, d width, *n any axes of a sample.
"""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from einops import reduce
from jaxtyping import Bool, Float
from torch import Tensor, nn

from probe_datasets import ClipDataset
from probe_datasets.indexed import IndexedDataset
from probe_eval.config import ReadoutConfig
from probe_eval.metrics.functional.sums import Measured
from probe_eval.views import source
from probe_readouts import Readout

GIVEN = {
    "depth": ("depth", "poses"),
    "camera pose": ("poses",),
    "point tracks": ("points",),
    "box tracks": ("boxes",),
}
"""What the data sets of files are for -> what their examples have for tasks."""
TRIES = 8
"""Examples of other data sets that are looked at, as some may be unreadable."""


@runtime_checkable
class Task(Protocol):
    """Data, readout, loss and metric of one row of the study."""

    @property
    def metric(self) -> str:
        """Name of the number that ranks, one of those that `measure` gives."""
        ...

    @property
    def direction(self) -> Literal["up", "down"]:
        """Whether a higher or a lower value is better."""
        ...

    def check(self, dataset: ClipDataset) -> None:
        """Raises ValueError unless the data set has what the task needs."""
        ...

    def create_readout(
        self, dataset: ClipDataset, config: ReadoutConfig, *, feature_dim: int, num_frames: int
    ) -> Readout:
        """A new readout, from torch's default generator.

        What nothing trains needs no gradient; all other parameters get one from every batch.

        Args:
            dataset: the training split.
            config: how large it is; a width of 0 means the study's sizes.
            feature_dim: channels of the features.
            num_frames: frames of the clip, or 1 where features are averaged over time.

        Raises:
            ValueError: for sizes that do not fit each other, or too few frames.
        """
        ...

    def targets(self, example: Mapping[str, Any]) -> dict[str, Tensor]:
        """What loss and metric need to know of one example, which comes without its pixels.

        Shapes are the same for all examples of a data set. It is kept on disk with the features.
        """
        ...

    def loss(
        self,
        readout: nn.Module,
        features: Float[Tensor, "b t h w d"],
        targets: Mapping[str, Tensor],
        *,
        num_frames: int,
        generators: Sequence[torch.Generator],
    ) -> Float[Tensor, ""]:
        """Training loss: the mean over samples of the loss of each, 0 where nothing counts.

        So it makes no difference how samples are dealt to processes. `readout` is called once.

        Args:
            readout: what `create_readout` made.
            features: of the backbone, with its own time steps.
            targets: stacked.
            num_frames: frames of the clip, or 1 where features are averaged over time.
            generators: a source of chance for each sample, on the CPU.
        """
        ...

    def measure(
        self,
        readout: nn.Module,
        features: Float[Tensor, "b t h w d"],
        targets: Mapping[str, Tensor],
        *,
        num_frames: int,
        sample_ids: Sequence[str],
    ) -> Measured:
        """Sums of each sample; arguments are those of `loss`, and names for errors."""
        ...

    def chance(self, dataset: ClipDataset) -> float | None:
        """The metric's value for the best guess that knows the training split, if that is known."""
        ...


def mean_of_samples(
    losses: Float[Tensor, "b *n"], counts: Bool[Tensor, "b *n"]
) -> Float[Tensor, ""]:
    """Mean over samples of the mean over what counts of each; a sample without any counts as 0.

    Args:
        losses: finite where they do not count too.
        counts: which entries count.
    """
    kept = reduce(torch.where(counts, losses, 0.0), "b ... -> b", "sum")
    return (kept / reduce(counts.long(), "b ... -> b", "sum").clamp(min=1)).mean()


def require(dataset: ClipDataset, field: str) -> None:
    """Checks that the examples of a data set have a field; of rendered ones one is looked at.

    Raises:
        ValueError: if not, or if none of the first examples can be read.
    """
    data = source(dataset)
    if isinstance(data, IndexedDataset):
        fields: Sequence[str] = GIVEN.get(data.spec.task, ())
    else:
        examples = (dataset[index] for index in range(len(dataset)))
        fields = next((list(e) for e in islice(examples, TRIES) if "video" in e), [])
    if field not in fields:
        raise ValueError(
            f"data set has no {field!r} in its examples; choose a data set and a task that fit "
            "each other"
        )


def require_frames(num_frames: int, least: int, what: str) -> None:
    """Checks that there are frames enough.

    Raises:
        ValueError: if not.
    """
    if num_frames < least:
        raise ValueError(
            f"{what} need at least {least} frames, but there is {num_frames}; use longer clips, "
            "and average_time for single pictures alone"
        )


def sizes(config: ReadoutConfig, **chosen: int) -> dict[str, Any]:
    """Keyword arguments of a readout: those chosen, or none for the study's sizes.

    Args:
        config: a width of 0 asks for the study's sizes, number of heads included; heads of 0 for
            the readout's own number.
        chosen: what follows from a width that is given.
    """
    heads = {"num_heads": config.num_heads} if config.num_heads else {}
    return {**chosen, **heads} if config.width else {}
