"""The optimiser and its schedule, both from one config."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from probe_eval.config import OptimConfig


def create_optimizer(
    groups: Sequence[tuple[Iterable[nn.Parameter], OptimConfig]],
) -> torch.optim.Optimizer:
    """AdamW with eps 1e-8, or Adafactor as in its paper, without first moments.

    Adafactor moves a weight by at most the learning rate, or by 1 / sqrt(step) where that is less,
    times the root mean square of its tensor (at least eps 1e-3); an update whose own root mean
    square exceeds d = 1 is scaled down to it. The second moments forget with 1 - step^-0.8.

    Reference: From Image to Video, Table 7 (AdamW); Adafactor (Shazeer and Stern, 2018), Algorithms
        4 and 5; WALT trains its text model with Adafactor at 2e-4.

    Args:
        groups: parameters, and how they are trained; parameter groups of one optimiser.

    Raises:
        ValueError: if the groups name different optimisers.
    """
    names = sorted({config.name for _, config in groups})
    if len(names) != 1:
        raise ValueError(f"one optimiser cannot be both {' and '.join(names)}; train separately")
    if names == ["adafactor"]:
        return torch.optim.Adafactor(
            [
                {
                    "params": list(parameters),
                    "lr": config.peak_lr,
                    "weight_decay": config.weight_decay,
                }
                for parameters, config in groups
            ],
            beta2_decay=-0.8,
            eps=(None, 1e-3),
            d=1.0,
        )
    return torch.optim.AdamW(
        [
            {
                "params": list(parameters),
                "lr": config.peak_lr,
                "betas": (config.beta1, config.beta2),
                "weight_decay": config.weight_decay,
            }
            for parameters, config in groups
        ],
        eps=1e-8,
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
