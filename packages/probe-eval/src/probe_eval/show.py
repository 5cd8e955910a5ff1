"""Frames of a clip, what the features of both twins look like on it, and where they differ.

Axes: T H W pixels, t h w feature grid, d width.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from probe_datasets import centre_crop, clip_indices, read_frames, resize_short_side, scan_video
from probe_datasets import to_float as bytes_to_float
from probe_eval.backbone import check_features, load_backbone
from probe_eval.config import ShowConfig
from probe_eval.distributed import share
from probe_eval.progress import track
from probe_eval.report.figures import draw_twins

logger = logging.getLogger(__name__)
TWINS = ("i-walt", "v-walt")


def run_show(
    videos: Sequence[str], config: ShowConfig, accelerator: Accelerator
) -> dict[str, Path]:
    """Draws one picture per video, as in Fig. 3 of From Image to Video.

    All videos are checked before the first picture is drawn.

    Args:
        videos: paths of video files.
        config: which features, which frames.
        accelerator: devices.

    Returns:
        Picture by video.

    Raises:
        ValueError: if a file is not a readable video with enough frames, or a setting is out of
            range.
        FileNotFoundError: if the pretrained folder lacks a twin.
    """
    if not videos:
        raise ValueError("no video given; pass at least one file")
    twins = [load_backbone(name, config.pretrained, accelerator.device) for name in TWINS]
    for twin in twins:
        check_features(twin, block=config.block, timestep=config.timestep)
    indices = {}
    for video in videos:
        info = scan_video(video)
        try:
            indices[video] = clip_indices(
                info.num_frames,
                num_frames=config.num_frames,
                stride=config.stride,
                start=config.start,
            )
        except ValueError as error:
            raise ValueError(f"{video}: {error}") from error
    output = Path(config.output)
    if output.exists() and not output.is_dir():
        raise ValueError(f"output {output} is a file; choose a folder as --output")
    pictures = {}
    mine = share(accelerator, indices.items())
    for video, picked in track(mine, "show", len(mine)):
        frames = centre_crop(
            resize_short_side(read_frames(video, picked), config.size), config.size
        )
        clip = rearrange(bytes_to_float(frames), "T c H W -> 1 c T H W")
        features = {
            twin.name: twin.features(
                twin.encode(clip),
                blocks=(config.block,),
                timestep=config.timestep,
                seed=config.noise_seed,
                sample_ids=[Path(video).name],
            )[config.block][0].cpu()
            for twin in twins
        }
        maps = principal_maps(features)
        path = output / f"{picture_name(video, list(indices))}.png"
        title = f"{Path(video).name}   block {config.block}, timestep {config.timestep}"
        draw_twins(frames, maps, path, title=title)
        pictures[video] = path
        logger.info("%s", path)
    return pictures


def picture_name(video: str, videos: Sequence[str]) -> str:
    """The file's stem, with its number behind where other videos have the same stem."""
    path = Path(video)
    same = [other for other in videos if Path(other).stem == path.stem]
    return path.stem if len(same) == 1 else f"{path.stem}-{same.index(video) + 1}"


def principal_maps(
    features: dict[str, Float[Tensor, "t h w d"]],
) -> dict[str, Float[Tensor, "t h w"]]:
    """First principal component of each backbone over all tokens of the clip, in [0, 1].

    A component has no sign of its own: the first backbone's is positive where fewer tokens are,
    the others' so that they correlate positively with the first.

    Reference: From Image to Video, Sec. 4.1 and Fig. 3.
    """
    maps: dict[str, Tensor] = {}
    reference = None
    for name, grid in features.items():
        component = first_component(rearrange(grid, "t h w d -> (t h w) d"))
        sign = component.pow(3).sum() if reference is None else (component * reference).sum()
        component = component * (1.0 if sign >= 0 else -1.0)
        reference = component if reference is None else reference
        low, high = component.quantile(0.01), component.quantile(0.99)
        scaled = ((component - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
        maps[name] = rearrange(
            scaled, "(t h w) -> t h w", t=grid.shape[0], h=grid.shape[1], w=grid.shape[2]
        )
    return maps


def first_component(tokens: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """Projection of centred tokens on the direction of their largest variance."""
    centred = (tokens - tokens.mean(dim=0)).double()
    covariance = centred.T @ centred
    _, vectors = torch.linalg.eigh(covariance)
    return (centred @ vectors[:, -1]).float()
