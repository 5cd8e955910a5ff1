"""Frozen features of a split, computed once and shared by every readout that needs them.

Axes: n samples, t h w feature grid, d width.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from einops import pack
from jaxtyping import Float
from torch import Tensor

from probe_datasets import ClipDataset
from probe_eval.backbone import FrozenBackbone
from probe_eval.config import FeatureConfig
from probe_eval.distributed import gather_ordered, share
from probe_eval.progress import Tracker

Labels = dict[str, Any]
"""An example without its pixels: `sample_id`, and `labels` where it has them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureTable:
    """Features of every clip of a split that can be read, in the order of the split."""

    features: Float[Tensor, "n t h w d"]
    examples: tuple[Labels, ...]
    """The examples without their pixels."""
    failed: Mapping[str, str]
    """Why each clip that could not be read has no row, by its name."""


def extract_features(
    backbone: FrozenBackbone,
    dataset: ClipDataset,
    config: FeatureConfig,
    accelerator: Accelerator,
    *,
    title: str,
) -> FeatureTable:
    """Features of a whole split, the work shared among the processes.

    Chunks of `config.batch_size` clips are formed before they are dealt out, so the numbers do
    not depend on the number of processes.

    Reference: From Image to Video, Sec. 3.4.

    Raises:
        ValueError: if the features would not fit into `config.memory_gb`, or no clip can be read.
    """
    chunks = [
        range(first, min(first + config.batch_size, len(dataset)))
        for first in range(0, len(dataset), config.batch_size)
    ]
    mine = share(accelerator, chunks)
    done: list[tuple[int, tuple[list[Tensor], list[Labels], dict[str, str]]]] = []
    with Tracker(title, len(dataset)) as tracker:
        for chunk in mine:
            given: list[Any] = [dataset[index] for index in chunk]
            examples = [example for example in given if "video" in example]
            failed = {e["sample_id"]: e["problem"] for e in given if "video" not in e}
            tables = []
            if examples:
                features = backbone.features(
                    torch.stack([example["video"] for example in examples]),
                    blocks=(config.block,),
                    timestep=config.timestep,
                    seed=config.noise_seed,
                    sample_ids=[example["sample_id"] for example in examples],
                )[config.block]
                check_memory(features[0], len(dataset), config.memory_gb)
                tables.append(features)
            labels = [
                {name: value for name, value in example.items() if name != "video"}
                for example in examples
            ]
            done.append((chunk.start, (tables, labels, failed)))
            tracker.advance(min(len(chunk) * accelerator.num_processes, len(dataset)))
    everyone = gather_ordered(accelerator, done)
    rows = tuple(example for _, examples, _ in everyone for example in examples)
    failed = {name: why for _, _, reasons in everyone for name, why in reasons.items()}
    if not rows:
        first = next(iter(failed.values()))
        raise ValueError(f"none of the {len(dataset)} clips can be read, the first: {first}")
    table, _ = pack([part for parts, _, _ in everyone for part in parts], "* t h w d")
    return FeatureTable(features=table.clone(), examples=rows, failed=failed)


def check_memory(one: Tensor, count: int, limit_gb: float) -> None:
    """Refuses a table that would be larger than allowed, before it is made."""
    need = one.numel() * one.element_size() * count / 1e9
    if need > limit_gb:
        raise ValueError(
            f"features of {count} clips need {need:.1f} GB, more than memory_gb {limit_gb}; "
            "raise --features.memory-gb, lower --data.limit, or use a smaller --data.size"
        )


class FeatureStore:
    """Feature tables in memory, made at first use; what lets many readouts share one pass."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.tables: dict[tuple, FeatureTable] = {}

    def get(
        self, backbone: FrozenBackbone, dataset: ClipDataset, config: FeatureConfig, *, title: str
    ) -> FeatureTable:
        """The features of a split; extracted unless an equal request came before."""
        key = (
            backbone.weights_hash,
            dataset.fingerprint,
            len(dataset),
            config.block,
            config.timestep,
            config.noise_seed,
            config.batch_size,
        )
        if key not in self.tables:
            self.tables[key] = extract_features(
                backbone, dataset, config, self.accelerator, title=title
            )
        return self.tables[key]
