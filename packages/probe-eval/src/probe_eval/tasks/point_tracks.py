"""Point tracking with the recurrent readout.

Axes: b samples, t h w feature grid, d width, T frames, q tracks, one for each query.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from probe_datasets import ClipDataset
from probe_eval.config import ReadoutConfig
from probe_eval.metrics.functional.sums import Measured, Sums
from probe_eval.metrics.functional.tracks import QUERY_MODES, QueryMode, track_metrics
from probe_eval.tasks.base import mean_of_samples, require, require_frames, sizes
from probe_readouts import PointTrackReadout, Readout

HEADLINES = ("average_jaccard", "average_pts_within_thresh", "occlusion_accuracy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PointTracks:
    """Average Jaccard of points that are queried in the frame in which they are first seen.

    Training counts frames from the query's own on. Its loss is that of
    `probe_readouts.point_track_loss`, whose constants these are, for each sample.

    Measured in query mode "first". `*_strided` are the same predictions under the mask of mode
    "strided", which leaves out the query's frame alone; a published notebook for Perception Test
    masks so. `static_*` is the guess that no point moves or is ever hidden.

    Reference: From Image to Video, Sec. 3.4 (visual correspondence) and App. D.5; Doersch et al.,
        TAPIR (ICCV 2023), for the constants, as the study prints none.
    """

    size: float = 256.0
    """Pixels along either side of the square in which distances are measured."""
    delta: float = 4.0
    """Where the Huber loss turns from quadratic to linear, in pixels."""
    threshold: float = 6.0
    """Error in pixels from which a position counts as uncertain."""
    position_weight: float = 0.05
    """Weight of the Huber loss beside the two cross-entropies."""
    metric: str = "average_jaccard"
    direction: Literal["up", "down"] = "up"

    def check(self, dataset: ClipDataset) -> None:
        require(dataset, "points")

    def create_readout(
        self, dataset: ClipDataset, config: ReadoutConfig, *, feature_dim: int, num_frames: int
    ) -> Readout:
        require_frames(num_frames, 2, "tracks")
        width = config.width
        chosen = sizes(config, width=width, qkv_width=width, hidden_width=4 * width)
        return PointTrackReadout(feature_dim, time_method=config.time, **chosen)

    def targets(self, example: Mapping[str, Any]) -> dict[str, Tensor]:
        """Tracks by track; positions that are not known lie outside the image, at -1.

        Perception Test and TAP-Vid publish none of hidden points, and have zeros there.

        Raises:
            ValueError: if a point is not visible in the frame of its query.
        """
        points, visible = example["points"], example["points_visible"]
        seen = visible.gather(1, rearrange(example["query_frames"], "q -> q 1"))[:, 0]
        if bool((example["points_valid"] & ~seen).any()):
            raise ValueError(
                f"sample {example['sample_id']}: a point is not visible in the frame that it is "
                "queried in; correct query_frames, or mark the point as not valid"
            )
        unknown = ~visible & ((points == 0).all(dim=-1) | ~points.isfinite().all(dim=-1))
        return {
            "points": torch.where(rearrange(unknown, "q T -> q T 1"), -1.0, points),
            "visible": visible,
            "valid": example["points_valid"],
            "query_frames": example["query_frames"],
        }

    def loss(
        self,
        readout: nn.Module,
        features: Float[Tensor, "b t h w d"],
        targets: Mapping[str, Tensor],
        *,
        num_frames: int,
        generators: Sequence[torch.Generator],
    ) -> Float[Tensor, ""]:
        target, visible, valid = frame_first(targets)
        frames = rearrange(torch.arange(num_frames, device=target.device), "T -> T 1")
        counts = valid & (frames >= rearrange(targets["query_frames"], "b q -> b 1 q"))
        tracks = readout(features, *queries(targets), num_frames)
        in_scene = counts & ((target >= 0) & (target <= 1)).all(dim=-1)
        error = torch.where(rearrange(in_scene, "... -> ... 1"), tracks.values - target, 0.0)
        distance = torch.linalg.vector_norm(self.size * error, dim=-1)
        huber = F.huber_loss(
            distance, torch.zeros_like(distance), reduction="none", delta=self.delta
        )
        near = distance.detach() < self.threshold
        total = self.position_weight * mean_of_samples(huber, in_scene)
        for logits, truth, mask in zip(
            tracks.logits.unbind(dim=-1), (visible, near), (counts, in_scene), strict=True
        ):
            losses = F.binary_cross_entropy_with_logits(
                torch.where(mask, logits, 0.0), truth.to(logits.dtype), reduction="none"
            )
            total = total + mean_of_samples(losses, mask)
        return total

    def measure(
        self,
        readout: nn.Module,
        features: Float[Tensor, "b t h w d"],
        targets: Mapping[str, Tensor],
        *,
        num_frames: int,
        sample_ids: Sequence[str],
    ) -> Measured:
        target, visible, valid = frame_first(targets)
        points, query_frames, _ = queries(targets)

        def sums(pred: Tensor, seen: Tensor, mode: QueryMode) -> dict[str, Sums]:
            truth = (target, visible, query_frames, valid)
            return track_metrics(pred, seen, *truth, query_mode=mode, sample_ids=sample_ids).sums

        tracks = readout(features, *queries(targets), num_frames)
        found = sums(tracks.values, tracks.visible, "first")
        strided = sums(tracks.values, tracks.visible, "strided")
        still = repeat(points, "b q c -> b T q c", T=num_frames)
        static = sums(still, torch.ones_like(visible), "first")
        return Measured(
            f"first: {QUERY_MODES['first']}",
            {
                **found,
                **{f"{name}_strided": strided[name] for name in HEADLINES},
                **{f"static_{name}": static[name] for name in HEADLINES},
            },
        )

    def chance(self, dataset: ClipDataset) -> None:
        return None


def frame_first(
    targets: Mapping[str, Tensor],
) -> tuple[Float[Tensor, "b T q 2"], Bool[Tensor, "b T q"], Bool[Tensor, "b T q"]]:
    """Positions, whether they are visible and whether they count, frame by frame."""
    visible = rearrange(targets["visible"], "b q T -> b T q")
    valid = repeat(targets["valid"], "b q -> b T q", T=visible.shape[1])
    return rearrange(targets["points"], "b q T c -> b T q c"), visible, valid


def queries(targets: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Positions of the queries in [0, 1], their frames, and which of them are no padding."""
    frames = targets["query_frames"].long()
    at = repeat(frames, "b q -> b q 1 c", c=2)
    points = rearrange(targets["points"].gather(2, at), "b q 1 c -> b q c")
    return points.clamp(0, 1), frames, targets["valid"]  # rounding leads out of the image
