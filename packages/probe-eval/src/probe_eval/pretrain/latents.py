"""The latents that denoisers are trained on: of whole clips, and of frames drawn from them.

Axes: n clips, k frames drawn from each, c channels, t h w latent grid, T H W pixels.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset

import walt_core
import walt_tokenizer
from probe_datasets import ClipDataset
from probe_eval import runs
from probe_eval.config import DataConfig
from probe_eval.distributed import gather_ordered, share
from probe_eval.harness import Batch, stream
from probe_eval.pretrain.samples import GIGABYTE, clips_at_once, read_clip
from probe_eval.progress import Tracker

LATENTS_FILE = "latents.safetensors"
LABEL = "label."


class Latents(Dataset[Batch]):
    """Tensors in memory, one row a sample: normalised latents and what goes with them."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)

    def __len__(self) -> int:
        return len(self.tensors["latents"])

    def __getitem__(self, index: int) -> Batch:
        return {name: values[index] for name, values in self.tensors.items()}


@torch.no_grad()
def encode_clips(
    tokenizer: walt_tokenizer.VideoTokenizer,
    dataset: ClipDataset,
    accelerator: Accelerator,
    *,
    images_per_clip: int,
    seed: int,
    path: Path | None = None,
    title: str = "latents",
) -> dict[str, Tensor]:
    """Normalised latents of every clip, and of frames drawn at random from it as images.

    Args:
        tokenizer: on its device, with its statistics.
        dataset: the clips.
        accelerator: processes, which share the work.
        images_per_clip: how many frames are drawn of each clip.
        seed: seed of the frames.
        path: where they are kept for a run that is resumed, and read if they are there whole.
        title: shown beside the progress bar.

    Returns:
        On the CPU: `videos` with one row a clip, `images` with `images_per_clip` rows of one latent
        frame for each, and `label.<name>` with the class of each clip.
    """
    if path is not None and path.is_file():
        try:
            return load_file(path)
        except SafetensorError:
            path.unlink()
    size = clips_at_once(read_clip(dataset, 0)["video"].shape[1:])
    starts = range(0, len(dataset), size)
    done = []
    with Tracker(title, len(dataset)) as tracker:
        for start in share(accelerator, starts):
            indices = range(start, min(start + size, len(dataset)))
            examples = [read_clip(dataset, index) for index in indices]
            video = torch.stack([example["video"] for example in examples])
            video = video.to(accelerator.device)
            frames = [
                torch.randint(
                    video.shape[2], (images_per_clip,), generator=stream(seed, "frames", index)
                ).to(accelerator.device)
                for index in indices
            ]
            picked = torch.stack([clip[:, row] for clip, row in zip(video, frames, strict=True)])
            images = tokenizer.encode(
                rearrange(picked, "b c n h w -> (b n) c 1 h w"), normalize=True
            )
            part = {"videos": tokenizer.encode(video, normalize=True), "images": images}
            part |= {
                f"{LABEL}{name}": torch.tensor([example["labels"][name] for example in examples])
                for name in dataset.classes
            }
            done.append((start, {name: value.cpu() for name, value in part.items()}))
            tracker.advance(min(len(indices) * accelerator.num_processes, len(dataset)))
    parts = gather_ordered(accelerator, done)
    latents = {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}
    if path is not None and accelerator.is_main_process:
        runs.write_tensors(path, latents)
    return latents


def latent_grid(data: DataConfig, sizes: walt_tokenizer.TokenizerConfig) -> tuple[int, int, int]:
    """Latent grid (t, h, w) of the clips."""
    frames, side = data.num_frames - 1, data.size // sizes.spatial_stride
    return frames // sizes.temporal_stride + 1, side, side


def check_latents(
    data: DataConfig, sizes: walt_tokenizer.TokenizerConfig, walt_size: str
) -> walt_core.WaltConfig:
    """The denoiser of a name, after a check that clips, tokenizer and denoiser fit each other.

    Raises:
        ValueError: naming what is unknown or does not fit.
    """
    known = walt_core.WALT_SIZES
    if walt_size not in known:
        raise ValueError(f"unknown walt_size {walt_size!r}; known: {', '.join(known)}")
    walt = known[walt_size]
    if sizes.latent_channels != walt.latent_channels:
        raise ValueError(
            f"the tokenizer has {sizes.latent_channels} latent channels but {walt_size!r} "
            f"takes {walt.latent_channels}; choose another tokenizer or walt_size"
        )
    stride, period = sizes.spatial_stride, sizes.temporal_stride
    grid, window = latent_grid(data, sizes), walt.spatiotemporal_window
    spatial = walt.spatial_window
    if (
        (data.num_frames - 1) % period
        or data.size % stride
        or any(g % w for g, w in zip(grid, window, strict=True))
        or any(g % w for g, w in zip(grid, spatial, strict=True))
    ):
        side = max(window[1], spatial[1])
        raise ValueError(
            f"clips of {data.num_frames} x {data.size} x {data.size} have the latent grid {grid}, "
            f"which windows {spatial} and {window} of {walt_size!r} do not divide; use "
            f"{period * (window[0] - 1) + 1} frames and a multiple of {stride * side} pixels"
        )
    return walt


def check_memory(
    clips: int, images_per_clip: int, grid: tuple[int, int, int], channels: int, memory_gb: float
) -> None:
    """Checks that the latents of all clips fit into memory.

    Raises:
        ValueError: saying how much they need.
    """
    t, h, w = grid
    needed = 4 * clips * (t + images_per_clip) * h * w * channels / GIGABYTE
    if needed > memory_gb:
        raise ValueError(
            f"the latents of {clips:,} clips and {images_per_clip} frames of each need "
            f"{needed:.3g} GB, more than memory_gb {memory_gb:g}; raise it, or use fewer clips"
        )
