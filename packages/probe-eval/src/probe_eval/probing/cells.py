"""Cells: what decides a result, what cells are called, and which of them share forwards.

This module imports no torch: plans are made without it.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from probe_eval.config import DataConfig, FeatureConfig, OptimConfig, ProbeConfig, ReadoutConfig

Cells = tuple[ProbeConfig, ...]
PARTS: dict[str, Any] = {
    "data": DataConfig,
    "features": FeatureConfig,
    "readout": ReadoutConfig,
    "optim": OptimConfig,
}
"""Fields of a cell that are records themselves."""
INCIDENTAL: dict[str, tuple[str, ...]] = {
    "": ("output", "recipe", "trackers", "checkpoint_every"),
    "data": ("workers",),
    "features": ("cache", "cache_folder", "disk_gb", "shard"),
}
"""Settings that decide no result, by the part that they lie in."""


def cell_identity(config: ProbeConfig) -> dict[str, Any]:
    """All settings that decide a result, as plain values."""
    identity: dict[str, Any] = dataclasses.asdict(config)
    for part, names in INCIDENTAL.items():
        settings = identity[part] if part else identity
        for name in names:
            del settings[name]
    return json.loads(json.dumps(identity))


def cell_name(config: ProbeConfig) -> str:
    """Name of a cell, which no cell of another result has; fit for a file."""
    text = json.dumps(cell_identity(config), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    features = config.features
    mantissa, exponent = f"{config.optim.peak_lr:.3e}".split("e")
    words = [
        re.sub(r"[^\w.]+", "_", config.task),
        re.sub(r"[^\w.-]+", "_", features.backbone),
        f"b{features.block:02d}",
        f"t{features.timestep:03d}",
        f"lr{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}",
        f"s{config.seed}",
        *(["shuffled"] if config.shuffle_labels else []),
        digest,
    ]
    return "-".join(words)


def read_cell(values: dict[str, Any]) -> ProbeConfig:
    """A cell from its plain values, the inverse of `dataclasses.asdict` and JSON.

    Raises:
        ValueError: if a setting is unknown or refused.
    """
    try:
        given = {
            name: PARTS[name](**_tuples(value)) if name in PARTS else value
            for name, value in _tuples(values).items()
        }
        return ProbeConfig(**given)
    except TypeError as error:
        raise ValueError(f"settings are not those of a probe: {error}") from error


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }


def job_key(config: ProbeConfig) -> tuple[Hashable, ...]:
    """What cells must have in common to share forwards."""
    features, data = config.features, config.data
    return (
        dataclasses.replace(data, workers=0),
        features.backbone,
        features.pretrained,
        features.timestep,
        features.noise_seed,
        features.average_time,
        features.dtype,
        features.batch_size,
        config.held_out,
        # New crops in every epoch are those of one order of the clips.
        None if data.draws else config.order_seed,
    )


def training_key(config: ProbeConfig) -> tuple[Hashable, ...]:
    """What cells of a job must have in common to be trained at the same time."""
    optim = config.optim
    return (
        optim.steps,
        optim.batch_size,
        optim.accumulate,
        optim.name,
        config.order_seed,
        config.evaluate_every,
    )


def split_into_jobs(cells: Sequence[ProbeConfig]) -> list[Cells]:
    """Cells that share forwards, together; jobs and their cells in the order of the cells."""
    return group(cells, job_key)


def split_into_trainings(cells: Sequence[ProbeConfig]) -> list[Cells]:
    """Cells of a job that are trained at the same time, together, in the order of the cells."""
    return group(cells, training_key)


def group(
    cells: Sequence[ProbeConfig], key: Callable[[ProbeConfig], tuple[Hashable, ...]]
) -> list[Cells]:
    """Cells of equal keys, together, in the order of the cells."""
    groups: dict[tuple[Hashable, ...], list[ProbeConfig]] = {}
    for cell in cells:
        groups.setdefault(key(cell), []).append(cell)
    return [tuple(group) for group in groups.values()]
