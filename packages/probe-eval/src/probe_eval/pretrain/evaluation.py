"""What a tokenizer's reconstructions of held-out clips are worth, and what they look like.

Axes: b batch, T H W pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

import walt_tokenizer
from probe_datasets import ClipDataset
from probe_eval.distributed import gather_items, share
from probe_eval.harness import Row
from probe_eval.metrics.features import FeatureState
from probe_eval.metrics.frechet import frechet_distance
from probe_eval.metrics.reconstruction import LpipsState, PsnrState, SsimState
from probe_eval.pretrain.samples import clips_at_once, load_clips, read_clip
from probe_eval.report.reconstructions import write_samples

Network = Callable[..., Any]
States = dict[str, Any]


class HeldOut:
    """Held-out clips; a call measures a tokenizer on them.

    Args:
        datasets: clips by a prefix for the names of the numbers.
        number: how many clips of each are measured, at most.
        samples: how many clips of each are drawn.
        folder: where the pictures go.
        accelerator: processes, which share the work.
        lpips: distance of frames.
        features: clips to vectors.
    """

    def __init__(
        self,
        datasets: Mapping[str, ClipDataset],
        *,
        number: int,
        samples: int,
        folder: Path,
        accelerator: Accelerator,
        lpips: Network | None = None,
        features: Network | None = None,
    ) -> None:
        self.datasets, self.number, self.samples = datasets, number, samples
        self.folder, self.accelerator = folder, accelerator
        self.lpips, self.features = lpips, features

    def __call__(self, tokenizer: walt_tokenizer.VideoTokenizer, step: int) -> Row:
        """Numbers by name, equal on all processes; writes `step-<step>.png` and `.mp4`."""
        row: Row = {}
        for prefix, dataset in self.datasets.items():
            states = measure(
                tokenizer,
                dataset,
                range(min(self.number, len(dataset))),
                self.accelerator,
                lpips=self.lpips,
                features=self.features,
            )
            row |= {f"{prefix}{name}": value for name, value in numbers(states).items()}
        if self.accelerator.is_main_process:
            clips = torch.cat(
                [
                    load_clips(dataset, range(min(self.samples, len(dataset))))
                    for dataset in self.datasets.values()
                ]
            )
            pred = reconstruct(tokenizer, clips.to(self.accelerator.device)).cpu()
            write_samples(self.folder, f"step-{step:08d}", clips, pred)
        self.accelerator.wait_for_everyone()
        return row


@torch.no_grad()
def reconstruct(tokenizer: walt_tokenizer.VideoTokenizer, clips: Tensor) -> Tensor:
    """Reconstructions of clips, clamped to [-1, 1], a few at a time."""
    parts = clips.split(clips_at_once(clips.shape[2:]))
    return torch.cat([tokenizer(part).clamp(-1, 1) for part in parts])


@torch.no_grad()
def measure(
    tokenizer: walt_tokenizer.VideoTokenizer,
    dataset: ClipDataset,
    indices: Sequence[int],
    accelerator: Accelerator,
    *,
    lpips: Network | None = None,
    features: Network | None = None,
) -> States:
    """States of all metrics on some clips, merged over all processes."""
    size = clips_at_once(read_clip(dataset, indices[0])["video"].shape[1:])
    starts = range(0, len(indices), size)
    mine: list[States] = []
    for start in share(accelerator, starts):
        picked = indices[start : start + size]
        names = [dataset.sample_id(index) for index in picked]
        clips = load_clips(dataset, picked).to(accelerator.device)
        pred = tokenizer(clips)
        states: States = {
            "psnr": PsnrState.measure(names, pred, clips),
            "ssim": SsimState.measure(names, pred, clips),
        }
        if lpips is not None:
            states["lpips"] = LpipsState.measure(names, pred, clips, network=lpips)
        if features is not None:
            states["real"] = FeatureState.of(names, features(clips))
            states["fake"] = FeatureState.of(names, features(pred.clamp(-1, 1)))
        mine.append(states)
    first, *rest = gather_items(accelerator, mine)
    return {name: state.merge(*(states[name] for states in rest)) for name, state in first.items()}


def numbers(states: States) -> Row:
    """The metrics of merged states by name: psnr in dB, ssim, lpips, rfvd."""
    row = {name: states[name].compute() for name in ("psnr", "ssim", "lpips") if name in states}
    if "real" in states:
        row["rfvd"] = frechet_distance(states["real"].moments(), states["fake"].moments())
    return row
