"""Classification of images and actions with the attentive readout.

Axes: b samples, t h w feature grid, d width.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probe_datasets import ClipDataset
from probe_eval.config import ReadoutConfig
from probe_eval.metrics.functional.accuracy import top1
from probe_readouts import AttentiveReadout, Readout, classification_loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification:
    """Top-1 accuracy of one label of a data set.

    Reference: From Image to Video, Sec. 3.4 (image classification, action recognition).
    """

    label: str
    """Name of the label in the data set."""
    metric: str = "top1"
    direction: Literal["up", "down"] = "up"

    def check(self, dataset: ClipDataset) -> None:
        if self.label not in dataset.classes:
            known = ", ".join(dataset.classes) or "none"
            raise ValueError(
                f"data set has no label {self.label!r} (its labels: {known}); choose a data set "
                "or a task that fit each other"
            )

    def create_readout(
        self, dataset: ClipDataset, config: ReadoutConfig, *, feature_dim: int, num_frames: int
    ) -> Readout:
        return AttentiveReadout(
            feature_dim,
            len(dataset.classes[self.label]),
            width=config.width,
            num_heads=config.num_heads,
            num_frames=num_frames,
            time_method=config.time,
        )

    def targets(self, example: Mapping[str, Any]) -> dict[str, Tensor]:
        return {"label": torch.tensor(example["labels"][self.label])}

    def loss(
        self,
        readout: nn.Module,
        features: Float[Tensor, "b t h w d"],
        targets: Mapping[str, Tensor],
    ) -> Float[Tensor, ""]:
        return classification_loss(readout(features), targets["label"])

    def score(
        self,
        readout: nn.Module,
        features: Float[Tensor, "b t h w d"],
        targets: Mapping[str, Tensor],
    ) -> Float[Tensor, " b"]:
        return top1(readout(features), targets["label"])

    def chance(self, dataset: ClipDataset) -> float:
        return 1 / len(dataset.classes[self.label])
