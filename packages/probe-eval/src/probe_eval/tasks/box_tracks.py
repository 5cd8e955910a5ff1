"""Box tracking with the recurrent readout.

Axes: b samples, t h w feature grid, d width, T frames, q objects, one for each query.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from probe_datasets import ClipDataset
from probe_eval.config import ReadoutConfig
from probe_eval.metrics.functional.boxes import box_metrics
from probe_eval.metrics.functional.sums import Measured
from probe_eval.tasks.base import mean_of_samples, require, require_frames, sizes
from probe_readouts import BoxTrackReadout, Readout

STATIC = "static_mean_iou"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoxTracks:
    """Mean overlap of the boxes of objects that have one in the first frame, which is the query.

    Training counts all frames, the measurement those after the first. `static_mean_iou` is the
    guess that no box moves.

    Reference: From Image to Video, Sec. 3.4 (visual correspondence) and App. D.6.
    """

    metric: str = "mean_iou"
    direction: Literal["up", "down"] = "up"

    def check(self, dataset: ClipDataset) -> None:
        require(dataset, "boxes")

    def create_readout(
        self, dataset: ClipDataset, config: ReadoutConfig, *, feature_dim: int, num_frames: int
    ) -> Readout:
        require_frames(num_frames, 2, "tracks")
        width = config.width
        chosen = sizes(config, width=width, qkv_width=width, hidden_width=4 * width)
        readout = BoxTrackReadout(feature_dim, time_method=config.time, **chosen)
        readout.logit_head.requires_grad_(False)  # boxes are not labelled with visibility
        return readout

    def targets(self, example: Mapping[str, Any]) -> dict[str, Tensor]:
        """Boxes by object; those of objects that are no query do not count."""
        boxes, valid = example["boxes"], example["boxes_valid"]
        query = valid[:, 0] & (boxes[:, 0, 2:] > boxes[:, 0, :2]).all(dim=-1)
        return {"boxes": boxes, "valid": valid & rearrange(query, "q -> q 1")}

    def loss(
        self,
        readout: nn.Module,
        features: Float[Tensor, "b t h w d"],
        targets: Mapping[str, Tensor],
        *,
        num_frames: int,
        generators: Sequence[torch.Generator],
    ) -> Float[Tensor, ""]:
        target, valid = frame_first(targets)
        tracks = readout(features, target[:, 0], None, valid[:, 0], num_frames)
        counts = repeat(valid, "b T q -> b T q c", c=4)
        return mean_of_samples(torch.where(counts, tracks.values - target, 0.0).square(), counts)

    def measure(
        self,
        readout: nn.Module,
        features: Float[Tensor, "b t h w d"],
        targets: Mapping[str, Tensor],
        *,
        num_frames: int,
        sample_ids: Sequence[str],
    ) -> Measured:
        target, valid = frame_first(targets)
        tracks = readout(features, target[:, 0], None, valid[:, 0], num_frames)
        measured = box_metrics(tracks.values, target, None, valid, sample_ids=sample_ids)
        still = repeat(target[:, 0], "b q c -> b T q c", T=num_frames)
        sums = box_metrics(still, target, None, valid, sample_ids=sample_ids).sums
        return measured._replace(sums={**measured.sums, STATIC: sums[self.metric]})

    def chance(self, dataset: ClipDataset) -> None:
        return None


def frame_first(targets: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Boxes and whether they count, frame by frame."""
    boxes = rearrange(targets["boxes"], "b q T c -> b T q c")
    return boxes, rearrange(targets["valid"], "b q T -> b T q")
