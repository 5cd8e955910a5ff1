"""`probe-eval pretrain twins`: a tokenizer, then I-WALT and V-WALT on latents of the same clips.

Axes: n clips, b batch, c channels, t h w latent grid, T H W pixels.
"""

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset

import walt_core
import walt_tokenizer
from probe_datasets import ClipDataset
from probe_eval import records, runs
from probe_eval.backbones.walt import (
    TOKENIZER_FILES,
    TOKENIZER_FOLDER,
    WINDOWS,
    hash_weights,
    load_tokenizer,
)
from probe_eval.checkpoints import finish
from probe_eval.config import OptimConfig, PretrainTwinsConfig
from probe_eval.data import open_split
from probe_eval.distributed import gather_items
from probe_eval.harness import Batch, Loss, Objective, check_batch, stream, train
from probe_eval.networks import load_callable
from probe_eval.pretrain import models
from probe_eval.pretrain import tokenizer as tokenizers
from probe_eval.pretrain.evaluation import measure
from probe_eval.pretrain.samples import Stretches, clips_at_once, load_clips
from probe_eval.progress import Tracker

LATENTS_FILE = "latents.safetensors"
MODEL_FILE = "model.json"
HELD_OUT_CLIPS = 32


class Latents(Dataset[Batch]):
    """Normalised latents in memory."""

    def __init__(self, latents: Tensor) -> None:
        self.latents = latents

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: int) -> Batch:
        return {"latents": self.latents[index]}


class WaltObjective(Objective):
    """Denoising of latents with the v target, at uniformly drawn timesteps.

    Reference: WALT (Gupta et al., ECCV 2024), Sec. 3.1.
    """

    def __init__(self, title: str, model: walt_core.Walt, dataset: Dataset[Batch]) -> None:
        self.title, self.models, self.dataset = title, {title: model}, dataset
        self.schedule = model.schedule

    def losses(
        self,
        models: Mapping[str, nn.Module],
        batch: Batch,
        generators: Sequence[torch.Generator],
        step: int,
    ) -> Iterator[Loss]:
        """Mean squared error of v; timestep and noise come from each sample's own generator."""
        latents = batch["latents"]
        steps = [torch.randint(self.schedule.num_timesteps, (), generator=g) for g in generators]
        noise = [torch.randn(latents.shape[1:], generator=g) for g in generators]
        loss = walt_core.v_prediction_loss(
            models[self.title],
            self.schedule,
            latents,
            torch.stack(steps).to(latents.device),
            torch.stack(noise).to(latents),
        )
        yield Loss(self.title, loss)


def run_twins(config: PretrainTwinsConfig, accelerator: Accelerator) -> Path:
    """Trains the three models that lack in `config.output`; an unfinished one is resumed.

    Reference: From Image to Video, Sec. 3.3: equal architecture, equal clips, equal number of
        steps; I-WALT sees frames drawn at random from the clips that V-WALT sees whole.

    Returns:
        The folder, with `tokenizer/`, `i-walt.safetensors`, `v-walt.safetensors`.

    Raises:
        ValueError: for unknown names, sizes that do not fit each other, or a results folder that
            holds another run.
        FileNotFoundError: if `config.tokenizer_from` holds no tokenizer.
    """
    folder = Path(config.output)
    dataset, identity = check_run(config, accelerator)
    runs.claim(folder, "pretrain-twins", identity, write=accelerator.is_main_process)
    accelerator.wait_for_everyone()
    tokenizer = get_tokenizer(config, dataset, accelerator)
    names = [name for name in WINDOWS if not (folder / f"{name}.safetensors").is_file()]
    if names:
        latents = encode_clips(config, tokenizer, dataset, accelerator)
        for name in names:
            train_walt(name, config, latents, accelerator)
    if accelerator.is_main_process:
        (folder / LATENTS_FILE).unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    return folder


def check_run(
    config: PretrainTwinsConfig, accelerator: Accelerator
) -> tuple[ClipDataset, dict[str, Any]]:
    """Everything that can be refused, refused.

    Returns:
        The training clips, and everything that decides the result.

    Raises:
        ValueError: naming what is unknown or does not fit.
        FileNotFoundError: if `config.tokenizer_from` holds no tokenizer.
    """
    dataset = open_split(config.data, "train")
    identity = dataclasses.asdict(config)
    identity.pop("output")
    if config.tokenizer_from:
        given = load_tokenizer(config.tokenizer_from)
        identity["tokenizer_from"] = hash_weights(given)
        sizes = given.config
    else:
        models.check_training(config.tokenizer, config.data, accelerator)
        models.identify(config.tokenizer, identity["tokenizer"])
        sizes = walt_tokenizer.TOKENIZERS[config.tokenizer.size]
    check_sizes(config, sizes)
    for optim in (config.image_walt, config.video_walt):
        check_batch(optim, accelerator.num_processes)
    return dataset, identity


def check_sizes(config: PretrainTwinsConfig, sizes: walt_tokenizer.TokenizerConfig) -> None:
    """Checks that clips, tokenizer and denoisers fit each other.

    Raises:
        ValueError: naming what is unknown or does not fit.
    """
    known = walt_core.WALT_SIZES
    if config.walt_size not in known:
        raise ValueError(f"unknown walt_size {config.walt_size!r}; known: {', '.join(known)}")
    walt = known[config.walt_size]
    if sizes.latent_channels != walt.latent_channels:
        raise ValueError(
            f"the tokenizer has {sizes.latent_channels} latent channels but {config.walt_size!r} "
            f"takes {walt.latent_channels}; choose another tokenizer or walt_size"
        )
    stride, period = sizes.spatial_stride, sizes.temporal_stride
    grid = ((config.data.num_frames - 1) // period + 1, *[config.data.size // stride] * 2)
    window = walt.spatiotemporal_window
    if (
        (config.data.num_frames - 1) % period
        or config.data.size % stride
        or any(g % w for g, w in zip(grid, window, strict=True))
    ):
        raise ValueError(
            f"clips of {config.data.num_frames} x {config.data.size} x {config.data.size} have "
            f"the latent grid {grid}, which windows {window} of {config.walt_size!r} do not "
            f"divide; use {period * (window[0] - 1) + 1} frames and a multiple of "
            f"{stride * window[1]} pixels"
        )


def get_tokenizer(
    config: PretrainTwinsConfig, dataset: ClipDataset, accelerator: Accelerator
) -> walt_tokenizer.VideoTokenizer:
    """The tokenizer with its latent statistics: there already, given, or trained now."""
    folder = Path(config.output) / TOKENIZER_FOLDER
    if all((folder / name).is_file() for name in TOKENIZER_FILES):
        return load_tokenizer(folder).to(accelerator.device)
    started = time.monotonic()
    training = config.tokenizer
    if config.tokenizer_from:
        tokenizer = load_tokenizer(config.tokenizer_from).to(accelerator.device)
        losses: list[tuple[int, float]] = []
    else:
        network = training.perceptual
        objective, history = tokenizers.fit(
            models.create_tokenizer(training, config.seed),
            training,
            config.data,
            Stretches(dataset, training.num_frames, config.seed),
            accelerator=accelerator,
            seed=config.seed,
            folder=folder,
            checkpoint_every=config.checkpoint_every,
            perceptual=load_callable(network, device=accelerator.device) if network else None,
        )
        tokenizer, losses = objective.result, history.curve
        tokenizers.measure_statistics(tokenizer, dataset, accelerator)
    held_out = open_split(config.data, "validation")
    indices = range(min(HELD_OUT_CLIPS, len(held_out)))
    psnr = measure(tokenizer, held_out, indices, accelerator)["psnr"].compute()
    keep(config, "tokenizer", tokenizer, training.optim, losses, started, accelerator, psnr=psnr)
    return tokenizer


def train_walt(
    name: str, config: PretrainTwinsConfig, latents: dict[str, Tensor], accelerator: Accelerator
) -> None:
    """Trains one of the twins and writes it."""
    started = time.monotonic()
    optim = config.image_walt if name == "i-walt" else config.video_walt
    torch.manual_seed(config.seed)
    model = walt_core.Walt(
        dataclasses.replace(walt_core.WALT_SIZES[config.walt_size], windows=WINDOWS[name])
    )
    samples = latents["images"] if name == "i-walt" else latents["videos"]
    history = train(
        WaltObjective(name, model, Latents(samples)),
        {name: optim},
        accelerator=accelerator,
        seed=config.seed,
        folder=Path(config.output) / name,
        checkpoint_every=config.checkpoint_every,
    )
    keep(config, name, model, optim, history.curve, started, accelerator)


def keep(
    config: PretrainTwinsConfig,
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
        if isinstance(model, walt_tokenizer.VideoTokenizer):
            model.save_pretrained(folder / name)
        else:
            walt_core.save_checkpoint(model, folder / f"{name}.safetensors")
    finish(accelerator, folder / name)


@torch.inference_mode()
def encode_clips(
    config: PretrainTwinsConfig,
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
    size = clips_at_once(dataset[0]["video"].shape[1:])
    starts = range(0, len(dataset), size)
    done = []
    with Tracker("latents", len(dataset)) as tracker:
        for start in list(starts)[accelerator.process_index :: accelerator.num_processes]:
            indices = range(start, min(start + size, len(dataset)))
            video = load_clips(dataset, indices).to(accelerator.device)
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
        runs.write_tensors(path, latents)
    return latents


def describe_twins(config: PretrainTwinsConfig, accelerator: Accelerator) -> str:
    """What `run_twins` would do, after the same checks; it does none of it."""
    dataset, identity = check_run(config, accelerator)
    runs.claim(Path(config.output), "pretrain-twins", identity, write=False)
    if config.tokenizer_from:
        lines = [f"tokenizer   as it is in {config.tokenizer_from}"]
    else:
        lines = models.describe_training(config.tokenizer, config.data, accelerator)
    with torch.device("meta"):
        walt = walt_core.Walt(walt_core.WALT_SIZES[config.walt_size])
    images = len(dataset) * config.images_per_clip
    return "\n".join(
        [
            *lines,
            f"twins       {config.walt_size}: {models.count(walt):,} parameters each",
            f"i-walt      {models.split(config.image_walt, accelerator)} of {images:,} images",
            f"v-walt      {models.split(config.video_walt, accelerator)} of {len(dataset):,} "
            f"clips of {config.data.dataset}",
            f"writes      {config.output}/: tokenizer/, i-walt.safetensors, v-walt.safetensors, "
            f"{MODEL_FILE} of each",
            "dry run: nothing was trained or written",
        ]
    )
