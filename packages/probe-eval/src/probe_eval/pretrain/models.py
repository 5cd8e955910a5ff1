"""The models of a training, from its configuration."""

import dataclasses
import math
from typing import Any

import torch
from accelerate import Accelerator

import walt_core
import walt_tokenizer
from probe_eval.backbones.walt import load_tokenizer
from probe_eval.config import DataConfig, OptimConfig
from probe_eval.harness import check_batch
from probe_eval.metrics.reconstruction import check_ssim_size
from probe_eval.pretrain.config import TokenizerTrainingConfig as Training
from probe_readouts import weights_hash
from walt_tokenizer import Discriminator, DiscriminatorConfig


def check_training(training: Training, data: DataConfig, accelerator: Accelerator) -> None:
    """Checks names and sizes before anything is computed.

    Raises:
        ValueError: naming what is unknown or does not fit.
    """
    known = walt_tokenizer.TOKENIZERS
    if training.size not in known:
        raise ValueError(f"unknown tokenizer size {training.size!r}; known: {', '.join(known)}")
    sizes = known[training.size]
    period, stride = sizes.temporal_stride, sizes.spatial_stride
    for name, frames in (
        ("data.num_frames", data.num_frames),
        ("num_frames of the tokenizer's training", training.num_frames),
    ):
        if frames < 1 or (frames - 1) % period:
            raise ValueError(
                f"{name} {frames} must be 1 + {period} * k: 1, {1 + period}, {1 + 2 * period}, ..."
            )
    if training.num_frames > data.num_frames:
        raise ValueError(
            f"num_frames {training.num_frames} of the tokenizer's training must not exceed "
            f"data.num_frames {data.num_frames}"
        )
    if data.size < stride or data.size % stride:
        raise ValueError(
            f"data.size {data.size} must be a multiple of {stride}, such as "
            f"{max(stride, stride * round(data.size / stride))}"
        )
    check_ssim_size(data.size, data.size)
    check_batch(training.optim, accelerator.num_processes)


def create_tokenizer(training: Training, seed: int) -> walt_tokenizer.VideoTokenizer:
    """A new tokenizer, or one that starts from another: of its own kind, or of images.

    Raises:
        ValueError: if that other is damaged or does not fit.
        FileNotFoundError: if there is none.
    """
    torch.manual_seed(seed)
    sizes = walt_tokenizer.TOKENIZERS[training.size]
    if not training.start_from:
        return walt_tokenizer.VideoTokenizer(sizes)
    start = load_tokenizer(training.start_from)
    return start if start.config == sizes else walt_tokenizer.inflate(start, sizes)


def create_denoiser(
    size: walt_core.WaltConfig, tokenizer: walt_tokenizer.VideoTokenizer, seed: int
) -> walt_core.Walt:
    """A new denoiser for the latents of a tokenizer, whose statistics it records."""
    torch.manual_seed(seed)
    model = walt_core.Walt(size)
    model.latent_mean.copy_(tokenizer.latent_mean)
    model.latent_std.copy_(tokenizer.latent_std)
    return model


def identify(training: Training, identity: dict[str, Any]) -> None:
    """Puts the weights that a tokenizer starts from in the place of their folder."""
    if training.start_from:
        identity["start_from"] = weights_hash(load_tokenizer(training.start_from))


def discriminator_config(training: Training, data: DataConfig) -> DiscriminatorConfig:
    """The discriminator of stretches of the training's length."""
    return DiscriminatorConfig(
        base_channels=training.discriminator_channels,
        num_frames=training.num_frames,
        height=data.size,
        width=data.size,
    )


def discriminator_optim(training: Training) -> OptimConfig:
    """The tokenizer's optimiser with the discriminator's learning rate."""
    return dataclasses.replace(
        training.optim,
        peak_lr=training.discriminator_lr,
        end_lr=min(training.optim.end_lr, training.discriminator_lr),
    )


def describe_training(training: Training, data: DataConfig, accelerator: Accelerator) -> list[str]:
    """Lines on the models and steps of a tokenizer's training."""
    with torch.device("meta"):
        tokenizer = walt_tokenizer.VideoTokenizer(walt_tokenizer.TOKENIZERS[training.size])
        discriminator = Discriminator(discriminator_config(training, data))
    lines = [f"tokenizer   {training.size}: {count(tokenizer):,} parameters"]
    if training.gan:
        lines.append(
            f"adversary   {count(discriminator):,} parameters, from step {training.gan_start_step}"
        )
    shape = f"{training.num_frames} x {data.size} x {data.size}"
    lines.append(f"steps       {split(training.optim, accelerator)} clips of {shape}")
    return lines


def split(optim: OptimConfig, accelerator: Accelerator) -> str:
    """Steps, and how a batch is divided."""
    shard = optim.batch_size // (accelerator.num_processes * optim.accumulate)
    return (
        f"{optim.steps:,} x {optim.batch_size} = {accelerator.num_processes} processes x "
        f"{optim.accumulate} micro-batches x {shard}"
    )


def count(model: torch.nn.Module) -> int:
    """Number of parameters."""
    return sum(math.prod(parameter.shape) for parameter in model.parameters())
