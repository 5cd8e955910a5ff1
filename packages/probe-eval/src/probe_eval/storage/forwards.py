"""Clips through a frozen backbone, as readouts get its features.

Axes: b clips, T H W pixels, t h w feature grid, d width.
"""

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from probe_eval.backbone import FrozenBackbone
from probe_eval.clock import Clock
from probe_eval.config import FeatureConfig

NOISE = "gaussian by (seed, sample, timestep)"
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def column_name(block: int) -> str:
    """Column of a block's features."""
    return f"block-{block:02d}"


@torch.no_grad()
def encode_batch(
    backbone: FrozenBackbone, video: Float[Tensor, "b 3 T H W"], accelerator: Accelerator
) -> Tensor:
    """What the backbone makes its features of: latents, or the pixels themselves."""
    with accelerator.autocast():
        return backbone.encode(video)


@torch.no_grad()
def features_of_batch(
    backbone: FrozenBackbone,
    inputs: Tensor,
    sample_ids: Sequence[str],
    config: FeatureConfig,
    blocks: Sequence[int],
    *,
    accelerator: Accelerator,
    clock: Clock,
) -> dict[int, Float[Tensor, "b t h w d"]]:
    """Features of some clips as readouts get them, from one forward pass.

    Args:
        backbone: makes them.
        inputs: what `encode_batch` made of the clips, on any device.
        sample_ids: one name a clip.
        config: timestep, noise seed, type, and whether to average over time.
        blocks: which blocks.
        accelerator: decides the precision.
        clock: counts the clips as `forwards`.

    Returns:
        By block, on the backbone's device.

    Raises:
        ValueError: a feature is not finite.
    """
    with accelerator.autocast():
        features = backbone.features(
            inputs,
            blocks=blocks,
            timestep=config.timestep,
            seed=config.noise_seed,
            sample_ids=sample_ids,
        )
    clock.count("forwards", len(sample_ids))
    dtype = DTYPES[config.dtype]
    made = {}
    for block in blocks:
        grid = features[block]
        if config.average_time:
            grid = reduce(grid.float(), "b t h w d -> b 1 h w d", "mean")
        made[block] = grid.to(dtype)
        check_finite(made[block], grid, sample_ids, f"features after block {block}", backbone.name)
    return made


def check_finite(
    kept: Tensor, made: Tensor, sample_ids: Sequence[str], what: str, backbone: str
) -> None:
    """Refuses features that are infinite or no numbers.

    Raises:
        ValueError: naming the first clip, and the way out.
    """
    # A sum is finite only where all is; it is cheaper than a mask of all.
    if bool(torch.isfinite(kept.float().sum())) or bool(torch.isfinite(kept).all()):
        return
    bad = [bool(torch.isfinite(row).all()) for row in kept].index(False)
    if bool(torch.isfinite(made[bad]).all()):
        way_out = f"{kept.dtype} cannot hold them; use --features.dtype bfloat16 or float32"
    else:
        way_out = "check the backbone's weights, its precision and the clip"
    raise ValueError(f"{what} of {sample_ids[bad]!r} by {backbone} are not finite; {way_out}")
