"""`probe-eval pretrain twins`: a tokenizer, then I-WALT and V-WALT on latents of the same clips.

Axes: n clips, b batch, c channels, t h w latent grid, T H W pixels.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

import walt_core
import walt_tokenizer
from probe_datasets import ClipDataset
from probe_eval import records, runs
from probe_eval.backbones.walt import (
    MODEL_FILE,
    TOKENIZER_FOLDER,
    WINDOWS,
    is_model,
    load_tokenizer,
)
from probe_eval.checkpoints import finish
from probe_eval.config import OptimConfig
from probe_eval.data import open_split
from probe_eval.harness import check_batch, train
from probe_eval.networks import load_callable
from probe_eval.pretrain import models
from probe_eval.pretrain import tokenizer as tokenizers
from probe_eval.pretrain.config import PretrainTwinsConfig
from probe_eval.pretrain.denoising import WaltObjective
from probe_eval.pretrain.evaluation import measure
from probe_eval.pretrain.latents import LATENTS_FILE, Latents, check_latents, encode_clips
from probe_eval.pretrain.samples import Stretches
from probe_readouts import weights_hash

HELD_OUT_CLIPS = 32


def run_twins(config: PretrainTwinsConfig, accelerator: Accelerator) -> Path:
    """Trains the three models that lack in `config.output`; an unfinished one is resumed.

    Reference: From Image to Video, Sec. 3.3: equal architecture, equal clips, equal number of
        steps; I-WALT sees frames drawn at random from the clips that V-WALT sees whole.

    Returns:
        The folder, with `tokenizer/`, `i-walt/` and `v-walt/`.

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
    names = [name for name in WINDOWS if not is_model(folder / name)]
    if names:
        latents = encode_clips(
            tokenizer,
            dataset,
            accelerator,
            images_per_clip=config.images_per_clip,
            seed=config.seed,
            path=folder / LATENTS_FILE,
        )
        for name in names:
            train_walt(name, config, dataset, tokenizer, latents, accelerator)
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
    dataset = open_split(config.data, config.data.train_split)
    identity = dataclasses.asdict(config)
    identity.pop("output")
    if config.tokenizer_from:
        given = load_tokenizer(config.tokenizer_from)
        identity["tokenizer_from"] = weights_hash(given)
        sizes = given.config
    else:
        models.check_training(config.tokenizer, config.data, accelerator)
        models.identify(config.tokenizer, identity["tokenizer"])
        sizes = walt_tokenizer.TOKENIZERS[config.tokenizer.size]
    check_latents(config.data, sizes, config.walt_size)
    for optim in (config.image_walt, config.video_walt):
        check_batch(optim, accelerator.num_processes)
    return dataset, identity


def get_tokenizer(
    config: PretrainTwinsConfig, dataset: ClipDataset, accelerator: Accelerator
) -> walt_tokenizer.VideoTokenizer:
    """The tokenizer with its latent statistics: there already, given, or trained now."""
    folder = Path(config.output) / TOKENIZER_FOLDER
    if is_model(folder):
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
    held_out = open_split(config.data, config.data.test_split)
    indices = range(min(HELD_OUT_CLIPS, len(held_out)))
    psnr = measure(tokenizer, held_out, indices, accelerator)["psnr"].compute()
    optim = training.optim
    keep(config, dataset, "tokenizer", tokenizer, optim, losses, started, accelerator, psnr=psnr)
    return tokenizer


def train_walt(
    name: str,
    config: PretrainTwinsConfig,
    dataset: ClipDataset,
    tokenizer: walt_tokenizer.VideoTokenizer,
    latents: dict[str, Tensor],
    accelerator: Accelerator,
) -> None:
    """Trains one of the twins on latents of the tokenizer, and writes it."""
    started = time.monotonic()
    optim = config.image_walt if name == "i-walt" else config.video_walt
    size = dataclasses.replace(walt_core.WALT_SIZES[config.walt_size], windows=WINDOWS[name])
    model = models.create_denoiser(size, tokenizer, config.seed)
    samples = latents["images"] if name == "i-walt" else latents["videos"]
    objective = WaltObjective(name, model, Latents({"latents": samples}), accelerator=accelerator)
    history = train(
        objective,
        {name: optim},
        accelerator=accelerator,
        seed=config.seed,
        folder=Path(config.output) / name,
        checkpoint_every=config.checkpoint_every,
    )
    keep(config, dataset, name, objective.result, optim, history.curve, started, accelerator)


def keep(
    config: PretrainTwinsConfig,
    dataset: ClipDataset,
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
                "weights_hash": weights_hash(model),
                "model": model.config.to_dict(),
                "optim": dataclasses.asdict(optim),
                "data": dataclasses.asdict(config.data),
                "coverage": records.coverage(dataset.coverage),
                "losses": losses,
                "seconds_since_start_or_resume": round(time.monotonic() - started, 1),
                **measured,
                "environment": records.environment(
                    accelerator.num_processes, str(accelerator.device)
                ),
            },
        )
        model.save_pretrained(folder / name)
    finish(accelerator, folder / name)


def describe_twins(config: PretrainTwinsConfig, accelerator: Accelerator) -> str:
    """What `run_twins` would do, after the same checks; it does none of it."""
    dataset, identity = check_run(config, accelerator)
    runs.claim(Path(config.output), "pretrain-twins", identity, write=False)
    if config.tokenizer_from:
        lines = [f"tokenizer   as it is in {config.tokenizer_from}"]
    else:
        lines = models.describe_training(config.tokenizer, config.data, accelerator)
    number = walt_core.num_parameters(walt_core.WALT_SIZES[config.walt_size])
    images = len(dataset) * config.images_per_clip
    return "\n".join(
        [
            *lines,
            f"twins       {config.walt_size}: {number:,} parameters each",
            f"i-walt      {models.split(config.image_walt, accelerator)} of {images:,} images",
            f"v-walt      {models.split(config.video_walt, accelerator)} of {len(dataset):,} "
            f"clips of {config.data.dataset}",
            f"writes      {config.output}/: tokenizer/, i-walt/ and v-walt/, each with "
            f"{MODEL_FILE}",
            "dry run: nothing was trained or written",
        ]
    )
