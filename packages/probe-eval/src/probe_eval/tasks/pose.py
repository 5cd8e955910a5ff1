"""Pose of the last camera relative to the first.

Axes: b samples, t h w feature grid, d width.
"""

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor, nn

from probe_datasets import ClipDataset
from probe_eval.config import ReadoutConfig
from probe_eval.metrics.functional.pose import pose_metrics
from probe_eval.metrics.functional.sums import Measured
from probe_eval.tasks.base import mean_of_samples, require, require_frames, sizes
from probe_eval.views import source
from probe_readouts import PoseReadout, Readout, relative_pose

STILL = "still_end_point_error"
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pose:
    """End-point error of the relative pose in metres.

    A clip whose first or last pose is not known does not count. `still_end_point_error` is the
    error of the guess that the camera does not move.

    Reference: From Image to Video, Sec. 3.4 (relative camera pose estimation) and App. D.4.
    """

    metric: str = "end_point_error"
    direction: Literal["up", "down"] = "down"

    def check(self, dataset: ClipDataset) -> None:
        require(dataset, "poses")
        if not getattr(source(dataset), "metric", True):
            warn_of_units(dataset.fingerprint)

    def create_readout(
        self, dataset: ClipDataset, config: ReadoutConfig, *, feature_dim: int, num_frames: int
    ) -> Readout:
        require_frames(num_frames, 2, "relative poses")
        arguments = sizes(config, width=config.width)
        return PoseReadout(feature_dim, time_method=config.time, **arguments)

    def targets(self, example: Mapping[str, Any]) -> dict[str, Tensor]:
        ends, valid = example["poses"][[0, -1]].double(), example["poses_valid"][[0, -1]].all()
        pose = relative_pose(*ends) if valid else torch.eye(3, 4)
        return {"pose": pose.float(), "valid": valid}

    def loss(
        self,
        readout: nn.Module,
        features: Float[Tensor, "b t h w d"],
        targets: Mapping[str, Tensor],
        *,
        num_frames: int,
        generators: Sequence[torch.Generator],
    ) -> Float[Tensor, ""]:
        pred = readout(features, num_frames)
        counts = repeat(targets["valid"], "b -> b i j", i=3, j=4)
        return mean_of_samples(torch.where(counts, pred - targets["pose"], 0.0).square(), counts)

    def measure(
        self,
        readout: nn.Module,
        features: Float[Tensor, "b t h w d"],
        targets: Mapping[str, Tensor],
        *,
        num_frames: int,
        sample_ids: Sequence[str],
    ) -> Measured:
        pose, valid = targets["pose"], targets["valid"]
        measured = pose_metrics(readout(features, num_frames), pose, valid, sample_ids=sample_ids)
        still = repeat(torch.eye(3, 4).to(pose), "i j -> b i j", b=len(pose))
        sums = pose_metrics(still, pose, valid, sample_ids=sample_ids).sums
        return measured._replace(sums={**measured.sums, STILL: sums[self.metric]})

    def chance(self, dataset: ClipDataset) -> None:
        return None


@functools.cache
def warn_of_units(fingerprint: str) -> None:
    """Says once of each data set that its unit of length is not the metre."""
    logger.warning(
        "poses are in each clip's own unit of length, so errors are not in metres; the option "
        "scale_table=FILE makes them so"
    )
