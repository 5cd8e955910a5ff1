"""Pretraining: a tokenizer, then I-WALT and V-WALT on its latents of the same clips.

Axes: n clips, b batch, c channels, t h w latent grid, T H W pixels.
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset

import walt_core
import walt_tokenizer
from probe_datasets import ClipDataset
from probe_eval import records, runs
from probe_eval.backbones.walt import TOKENIZER_FILE, WINDOWS, hash_weights
from probe_eval.config import OptimConfig, PretrainConfig
from probe_eval.data import open_split
from probe_eval.distributed import gather_items
from probe_eval.harness import Batch, check_batch, finish, stream, train
from probe_eval.progress import Tracker

LATENTS_FILE = "latents.safetensors"
MODEL_FILE = "model.json"
ENCODE_BATCH = 16
HELD_OUT_CLIPS = 32


class Stretches(Dataset[Batch]):
    """One stretch of consecutive frames of every clip, at a place that depends on the clip."""

    def __init__(self, dataset: ClipDataset, num_frames: int, seed: int) -> None:
        self.dataset, self.num_frames, self.seed = dataset, num_frames, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Batch:
        video = self.dataset[index]["video"]
        generator = stream(self.seed, "stretch", index)
        last = video.shape[1] - self.num_frames
        start = int(torch.randint(last + 1, (1,), generator=generator))
        return {"video": video[:, start : start + self.num_frames]}


class TokenizerObjective:
    """Reconstruction of clips.

    Reference: MAGVIT-v2 (Yu et al., ICLR 2024), Sec. 4, the L2 term.
    """

    def __init__(self, model: walt_tokenizer.VideoTokenizer, dataset: Dataset[Batch]) -> None:
        self.title, self.model, self.dataset = "tokenizer", model, dataset

    def loss(self, model: nn.Module, batch: Batch, generators: Sequence[torch.Generator]) -> Tensor:
        """Mean squared error of the pixels."""
        return walt_tokenizer.reconstruction_loss(model(batch["video"]), batch["video"])


class Latents(Dataset[Batch]):
    """Normalised latents in memory."""

    def __init__(self, latents: Tensor) -> None:
        self.latents = latents

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: int) -> Batch:
        return {"latents": self.latents[index]}


class WaltObjective:
    """Denoising of latents with the v target, at uniformly drawn timesteps.

    Reference: WALT (Gupta et al., ECCV 2024), Sec. 3.1.
    """

    def __init__(self, title: str, model: walt_core.Walt, dataset: Dataset[Batch]) -> None:
        self.title, self.model, self.dataset = title, model, dataset
        self.schedule = model.schedule

    def loss(self, model: nn.Module, batch: Batch, generators: Sequence[torch.Generator]) -> Tensor:
        """Mean squared error of v; timestep and noise come from each sample's own generator."""
        latents = batch["latents"]
        steps = [torch.randint(self.schedule.num_timesteps, (), generator=g) for g in generators]
        noise = [torch.randn(latents.shape[1:], generator=g) for g in generators]
        return walt_core.v_prediction_loss(
            model,
            self.schedule,
            latents,
            torch.stack(steps).to(latents.device),
            torch.stack(noise).to(latents),
        )


def run_pretrain(config: PretrainConfig, accelerator: Accelerator) -> Path:
    """Trains the three models that lack in `config.output`; an unfinished one is resumed.

    Reference: From Image to Video, Sec. 3.3: equal architecture, equal clips, equal number of
        steps; I-WALT sees frames drawn at random from the clips that V-WALT sees whole.

    Returns:
        The folder, with `tokenizer.safetensors`, `i-walt.safetensors`, `v-walt.safetensors`.

    Raises:
        ValueError: for unknown names, sizes that do not fit each other, or a results folder that
            holds another run.
    """
    folder = Path(config.output)
    dataset = open_split(config.data, "train")
    check_sizes(config)
    for optim in (config.tokenizer, config.image_walt, config.video_walt):
        check_batch(optim, accelerator.num_processes)
    identity = dataclasses.asdict(config)
    identity.pop("output")
    runs.claim(folder, "pretrain", identity, write=accelerator.is_main_process)
    accelerator.wait_for_everyone()
    tokenizer = train_tokenizer(config, dataset, accelerator)
    names = [name for name in WINDOWS if not (folder / f"{name}.safetensors").is_file()]
    if names:
        latents = encode_clips(config, tokenizer, dataset, accelerator)
        for name in names:
            train_walt(name, config, latents, accelerator)
    if accelerator.is_main_process:
        (folder / LATENTS_FILE).unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    return folder


def check_sizes(config: PretrainConfig) -> None:
    """Checks names and sizes before anything is computed.

    Raises:
        ValueError: naming what is unknown or does not fit.
    """
    tables = {
        "tokenizer_size": (config.tokenizer_size, walt_tokenizer.TOKENIZERS),
        "walt_size": (config.walt_size, walt_core.WALT_SIZES),
    }
    for field, (name, known) in tables.items():
        if name not in known:
            raise ValueError(f"unknown {field} {name!r}; known: {', '.join(known)}")
    sizes = walt_tokenizer.TOKENIZERS[config.tokenizer_size]
    walt = walt_core.WALT_SIZES[config.walt_size]
    stride, period = sizes.spatial_stride, sizes.temporal_stride
    for name, frames in (
        ("data.num_frames", config.data.num_frames),
        ("tokenizer_frames", config.tokenizer_frames),
    ):
        if frames < 1 or (frames - 1) % period:
            raise ValueError(f"{name} {frames} must be 1 + {period} * k: 1, 5, 9, 13, 17, ...")
    if config.tokenizer_frames > config.data.num_frames:
        raise ValueError(
            f"tokenizer_frames {config.tokenizer_frames} must not exceed data.num_frames "
            f"{config.data.num_frames}"
        )
    grid = ((config.data.num_frames - 1) // period + 1, *[config.data.size // stride] * 2)
    window = walt.spatiotemporal_window
    if config.data.size % stride or any(g % w for g, w in zip(grid, window, strict=True)):
        raise ValueError(
            f"clips of {config.data.num_frames} x {config.data.size} x {config.data.size} have "
            f"the latent grid {grid}, which windows {window} of {config.walt_size!r} do not "
            f"divide; use {period * (window[0] - 1) + 1} frames and a multiple of "
            f"{stride * window[1]} pixels"
        )


def train_tokenizer(
    config: PretrainConfig, dataset: ClipDataset, accelerator: Accelerator
) -> walt_tokenizer.VideoTokenizer:
    """The trained tokenizer with its latent statistics; read back when it is there already."""
    path = Path(config.output) / TOKENIZER_FILE
    if path.is_file():
        return walt_tokenizer.load_checkpoint(path).to(accelerator.device)
    started = time.monotonic()
    torch.manual_seed(config.seed)
    tokenizer = walt_tokenizer.VideoTokenizer(walt_tokenizer.TOKENIZERS[config.tokenizer_size])
    stretches = Stretches(dataset, config.tokenizer_frames, config.seed)
    losses = train(
        TokenizerObjective(tokenizer, stretches),
        config.tokenizer,
        accelerator=accelerator,
        seed=config.seed,
        folder=Path(config.output) / "tokenizer",
        checkpoint_every=config.checkpoint_every,
    )
    tokenizer.eval()
    starts = range(0, min(len(dataset), 256), ENCODE_BATCH)
    tokenizer.fit_latent_statistics(
        load_videos(dataset, range(s, min(s + ENCODE_BATCH, len(dataset)))).to(accelerator.device)
        for s in starts
    )
    psnr = reconstruction_psnr(tokenizer, open_split(config.data, "validation"), accelerator)
    keep(config, "tokenizer", tokenizer, config.tokenizer, losses, started, accelerator, psnr=psnr)
    return tokenizer


def train_walt(
    name: str, config: PretrainConfig, latents: dict[str, Tensor], accelerator: Accelerator
) -> None:
    """Trains one of the twins and writes it."""
    started = time.monotonic()
    optim = config.image_walt if name == "i-walt" else config.video_walt
    torch.manual_seed(config.seed)
    model = walt_core.Walt(
        dataclasses.replace(walt_core.WALT_SIZES[config.walt_size], windows=WINDOWS[name])
    )
    samples = latents["images"] if name == "i-walt" else latents["videos"]
    losses = train(
        WaltObjective(name, model, Latents(samples)),
        optim,
        accelerator=accelerator,
        seed=config.seed,
        folder=Path(config.output) / name,
        checkpoint_every=config.checkpoint_every,
    )
    keep(config, name, model, optim, losses, started, accelerator)


def keep(
    config: PretrainConfig,
    name: str,
    model: walt_tokenizer.VideoTokenizer | walt_core.Walt,
    optim: OptimConfig,
    losses: list[tuple[int, float]],
    started: float,
    accelerator: Accelerator,
    **measured: float,
) -> None:
    """Writes weights and what made them, then drops the checkpoints."""
    folder = Path(config.output)
    if accelerator.is_main_process:
        runs.write_json(
            folder / name / MODEL_FILE,
            {
                "name": name,
                "num_parameters": sum(p.numel() for p in model.parameters()),
                "weights_hash": hash_weights(model),
                "model": model.config.to_dict(),
                "optim": dataclasses.asdict(optim),
                "data": dataclasses.asdict(config.data),
                "losses": losses,
                "seconds_since_start_or_resume": round(time.monotonic() - started, 1),
                **measured,
                "environment": records.environment(
                    accelerator.num_processes, str(accelerator.device)
                ),
            },
        )
        path = folder / f"{name}.safetensors"
        if isinstance(model, walt_tokenizer.VideoTokenizer):
            walt_tokenizer.save_checkpoint(model, path)
        else:
            walt_core.save_checkpoint(model, path)
    finish(accelerator, folder / name)


def load_videos(dataset: ClipDataset, indices: Sequence[int]) -> Tensor:
    """A batch of clips."""
    return torch.stack([dataset[index]["video"] for index in indices])


@torch.inference_mode()
def encode_clips(
    config: PretrainConfig,
    tokenizer: walt_tokenizer.VideoTokenizer,
    dataset: ClipDataset,
    accelerator: Accelerator,
) -> dict[str, Tensor]:
    """Normalised latents of every clip, and of frames drawn at random from it as images.

    Returns:
        `videos` with one row a clip, `images` with `images_per_clip` rows of one latent frame.
    """
    path = Path(config.output) / LATENTS_FILE
    if path.is_file():
        try:
            return load_file(path)
        except SafetensorError:
            path.unlink()
    starts = range(0, len(dataset), ENCODE_BATCH)
    done = []
    with Tracker("latents", len(dataset)) as tracker:
        for start in list(starts)[accelerator.process_index :: accelerator.num_processes]:
            indices = range(start, min(start + ENCODE_BATCH, len(dataset)))
            video = load_videos(dataset, indices).to(accelerator.device)
            frames = torch.stack(
                [
                    torch.randint(
                        video.shape[2],
                        (config.images_per_clip,),
                        generator=stream(config.seed, "frames", index),
                    )
                    for index in indices
                ]
            ).to(accelerator.device)
            picked = torch.stack([clip[:, row] for clip, row in zip(video, frames, strict=True)])
            images = tokenizer.encode(
                rearrange(picked, "b c n h w -> (b n) c 1 h w"), normalize=True
            )
            done.append((start, tokenizer.encode(video, normalize=True).cpu(), images.cpu()))
            tracker.advance(min(len(indices) * accelerator.num_processes, len(dataset)))
    parts = sorted(gather_items(accelerator, done), key=lambda part: part[0])
    latents = {
        "videos": torch.cat([videos for _, videos, _ in parts]).contiguous(),
        "images": torch.cat([images for _, _, images in parts]).contiguous(),
    }
    if accelerator.is_main_process:
        partial = path.with_name(f".{path.name}.partial")
        try:
            save_file(latents, partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return latents


@torch.inference_mode()
def reconstruction_psnr(
    tokenizer: walt_tokenizer.VideoTokenizer, dataset: ClipDataset, accelerator: Accelerator
) -> float:
    """Peak signal-to-noise ratio in dB on held-out clips, from their mean squared error."""
    video = load_videos(dataset, range(min(HELD_OUT_CLIPS, len(dataset)))).to(accelerator.device)
    errors = [
        F.mse_loss(tokenizer(part).clamp(-1, 1), part, reduction="sum").item()
        for part in video.split(ENCODE_BATCH)
    ]
    return float(10 * torch.log10(torch.tensor(4 * video.numel() / sum(errors))))
