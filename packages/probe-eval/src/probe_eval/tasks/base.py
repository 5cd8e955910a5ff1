"""What a task is.

Axes: b samples, t h w feature grid, d width.
"""

from collections.abc import Mapping
from typing import Any, Literal, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from probe_datasets import ClipDataset
from probe_eval.config import ReadoutConfig
from probe_readouts import Readout


@runtime_checkable
class Task(Protocol):
    """Data, readout, loss and metric of one row of the study."""

    @property
    def metric(self) -> str:
        """Name of the metric, with its variant."""
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
        """A new readout, from torch's default generator."""
        ...

    def targets(self, example: Mapping[str, Any]) -> dict[str, Tensor]:
        """What loss and metric need to know of one example, which comes without its pixels."""
        ...

    def loss(
        self,
        readout: nn.Module,
        features: Float[Tensor, "b t h w d"],
        targets: Mapping[str, Tensor],
    ) -> Float[Tensor, ""]:
        """Mean training loss of a batch; features have one time step per video frame."""
        ...

    def score(
        self,
        readout: nn.Module,
        features: Float[Tensor, "b t h w d"],
        targets: Mapping[str, Tensor],
    ) -> Float[Tensor, " b"]:
        """The metric of every sample of a batch."""
        ...

    def chance(self, dataset: ClipDataset) -> float:
        """The metric's value for guessing."""
        ...
