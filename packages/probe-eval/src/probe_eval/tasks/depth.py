"""Monocular depth with the decoder of the Scene Representation Transformer.

Axes: b samples, t h w feature grid, d width, T frames, H W pixels, y x rows and columns of a grid.
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
from probe_eval.metrics.functional.depth import depth_metrics
from probe_eval.metrics.functional.sums import Measured
from probe_eval.tasks.base import mean_of_samples, require, sizes
from probe_readouts import DepthReadout, PixelGrid, Readout
from probe_readouts.depth import EVALUATION_STRIDE, TRAINING_STRIDE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Depth:
    """Absolute relative error of depth in metres.

    Trained on every 8th pixel, from a pixel on that is drawn for each sample and step; measured on
    every 4th pixel from the first on.

    Reference: From Image to Video, Sec. 3.4 (monocular depth prediction) and App. D.3.
    """

    metric: str = "abs_rel"
    direction: Literal["up", "down"] = "down"

    def check(self, dataset: ClipDataset) -> None:
        require(dataset, "depth")

    def create_readout(
        self, dataset: ClipDataset, config: ReadoutConfig, *, feature_dim: int, num_frames: int
    ) -> Readout:
        width = config.width
        return DepthReadout(
            feature_dim,
            time_method=config.time,
            **sizes(config, qkv_width=width, hidden_width=width),
        )

    def targets(self, example: Mapping[str, Any]) -> dict[str, Tensor]:
        """Metres, 0 where they do not count; half precision would be off by a thousandth."""
        depth = example["depth"]
        known = example["depth_valid"] & depth.isfinite() & (depth > 0)
        return {"depth": torch.where(known, depth, 0.0).float()}

    def loss(
        self,
        readout: nn.Module,
        features: Float[Tensor, "b t h w d"],
        targets: Mapping[str, Tensor],
        *,
        num_frames: int,
        generators: Sequence[torch.Generator],
    ) -> Float[Tensor, ""]:
        images = targets["depth"]
        height, width = images.shape[-2:]
        grids = [PixelGrid.training((height, width), generator) for generator in generators]
        # Where 8 does not divide the image, grids differ in size: the least is common to all.
        rows, columns = (max(1, side // TRAINING_STRIDE) for side in (height, width))
        depth = torch.stack(
            [
                grid.subsample(image)[..., :rows, :columns]
                for grid, image in zip(grids, images, strict=True)
            ]
        )
        places = torch.stack([grid.coordinates()[:rows, :columns] for grid in grids])
        places = repeat(places.to(features.device), "b y x c -> b T (y x) c", T=num_frames)
        pred = readout(features, places, num_frames)
        depth = rearrange(depth, "b T y x -> b T (y x)")
        known = depth > 0
        return mean_of_samples(torch.where(known, pred - depth, 0.0).square(), known)

    def measure(
        self,
        readout: nn.Module,
        features: Float[Tensor, "b t h w d"],
        targets: Mapping[str, Tensor],
        *,
        num_frames: int,
        sample_ids: Sequence[str],
    ) -> Measured:
        height, width = targets["depth"].shape[-2:]
        grid = PixelGrid.evaluation((height, width))
        pred = readout(features, grid.coordinates(features.device), num_frames)
        measured = depth_metrics(pred, grid.subsample(targets["depth"]), sample_ids=sample_ids)
        variant = f"{measured.variant}, every {EVALUATION_STRIDE}th pixel of both axes"
        return measured._replace(variant=variant)

    def chance(self, dataset: ClipDataset) -> None:
        return None
