"""The optimiser and its schedule, both from one config."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from probe_eval.config import OptimConfig


def create_optimizer(
    parameters: Iterable[nn.Parameter], config: OptimConfig
) -> torch.optim.Optimizer:
    """AdamW with eps 1e-8, or Adafactor as in its paper, without first moments.

    Adafactor moves a weight by at most the learning rate, or by 1 / sqrt(step) where that is less,
    times the root mean square of its tensor (at least eps 1e-3); an update whose own root mean
    square exceeds d = 1 is scaled down to it. The second moments forget with 1 - step^-0.8.

    Reference: From Image to Video, Table 7 (AdamW); Adafactor (Shazeer and Stern, 2018), Algorithms
        4 and 5; WALT trains its text model with Adafactor at 2e-4.
    """
    if config.name == "adafactor":
        return torch.optim.Adafactor(
            parameters,
            lr=config.peak_lr,
            beta2_decay=-0.8,
            eps=(None, 1e-3),
            d=1.0,
            weight_decay=config.weight_decay,
        )
    return torch.optim.AdamW(
        parameters,
        lr=config.peak_lr,
        betas=(config.beta1, config.beta2),
        eps=1e-8,
        weight_decay=config.weight_decay,
    )


def learning_rate(config: OptimConfig, step: int) -> float:
    """Learning rate of a step, counted from 0: linear from 0 to the peak, then cosine to the end.

    Reference: From Image to Video, App. E and Table 7.
    """
    if step < config.warmup_steps:
        return config.peak_lr * step / config.warmup_steps
    span = max(config.steps - config.warmup_steps, 1)
    cosine = 0.5 * (1 + math.cos(math.pi * (step - config.warmup_steps) / span))
    return config.end_lr + (config.peak_lr - config.end_lr) * cosine
