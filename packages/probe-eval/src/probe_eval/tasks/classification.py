"""Classification of images and actions with the attentive readout.

Axes: b samples, t h w feature grid, d width.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from probe_datasets import ClipDataset
from probe_eval.config import ReadoutConfig
from probe_eval.metrics.functional.accuracy import accuracy_metrics
from probe_eval.metrics.functional.sums import Measured
from probe_eval.tasks.base import sizes
from probe_eval.views import label_indices
from probe_readouts import READOUTS, AttentiveReadout, Readout, classification_loss

STUDY_FRAMES = 17
"""Rows of the time table of the study's readouts, those of images too."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification:
    """Top-1 accuracy of one label of a data set.

    Reference: From Image to Video, Sec. 3.4 (image classification, action recognition), App. D.1
        and D.2.
    """

    labels: tuple[str, ...]
    """Names that the label goes by; the first that a data set has."""
    metric: str = "top1"
    direction: Literal["up", "down"] = "up"

    def label(self, names: Mapping[str, Any]) -> str | None:
        """The name of the label among those of a data set or an example."""
        return next((label for label in self.labels if label in names), None)

    def classes(self, dataset: ClipDataset) -> tuple[str, ...]:
        """Names of the classes.

        Raises:
            ValueError: if the data set does not have the label.
        """
        label = self.label(dataset.classes)
        if label is None:
            known = ", ".join(dataset.classes) or "none"
            raise ValueError(
                f"data set has no label {' or '.join(map(repr, self.labels))} (its labels: "
                f"{known}); choose a data set and a task that fit each other"
            )
        return dataset.classes[label]

    def check(self, dataset: ClipDataset) -> None:
        self.classes(dataset)

    def create_readout(
        self, dataset: ClipDataset, config: ReadoutConfig, *, feature_dim: int, num_frames: int
    ) -> Readout:
        num_classes = len(self.classes(dataset))
        if config.width:
            arguments = sizes(config, width=config.width, num_frames=num_frames)
        else:
            arguments = {
                "width": study_width(num_classes),
                "num_frames": max(num_frames, STUDY_FRAMES),
            }
        return AttentiveReadout(feature_dim, num_classes, time_method=config.time, **arguments)

    def targets(self, example: Mapping[str, Any]) -> dict[str, Tensor]:
        label = self.label(example["labels"])
        assert label is not None
        return {"label": torch.tensor(example["labels"][label])}

    def loss(
        self,
        readout: nn.Module,
        features: Float[Tensor, "b t h w d"],
        targets: Mapping[str, Tensor],
        *,
        num_frames: int,
        generators: Sequence[torch.Generator],
    ) -> Float[Tensor, ""]:
        return classification_loss(readout(features, num_frames), targets["label"])

    def measure(
        self,
        readout: nn.Module,
        features: Float[Tensor, "b t h w d"],
        targets: Mapping[str, Tensor],
        *,
        num_frames: int,
        sample_ids: Sequence[str],
    ) -> Measured:
        logits = readout(features, num_frames)
        return accuracy_metrics(logits, targets["label"], sample_ids=sample_ids)

    def chance(self, dataset: ClipDataset) -> float:
        """Share of the most frequent class; 1 / classes where labels are not known unread."""
        classes = self.classes(dataset)
        label = self.label(dataset.classes)
        assert label is not None
        indices = label_indices(dataset, label)
        if indices is None:
            return 1 / len(classes)
        return float(np.bincount(indices).max() / len(indices))


def study_width(num_classes: int) -> int:
    """Channels of the query in the study's readout for so many classes, or for most of its sets.

    Reference: From Image to Video, Tables 5 and 6; see `probe_readouts.READOUTS`.
    """
    widths = {
        spec.arguments["num_outputs"]: spec.arguments["width"]
        for spec in READOUTS.values()
        if spec.task == "classification"
    }
    return widths.get(num_classes, widths[1000])
