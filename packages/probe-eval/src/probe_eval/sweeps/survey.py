"""What a sweep finds before it begins: its clips and its backbones; and what they take, timed.

Everything that can be refused is refused here, before anything long.
"""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from probe_datasets import ClipDataset
from probe_eval.backbone import FrozenBackbone, check_features, load_backbone
from probe_eval.config import DataConfig, ProbeConfig
from probe_eval.data import Splits, open_splits
from probe_eval.probing.heads import create_readout, frames
from probe_eval.sweeps import held
from probe_eval.sweeps.estimate import (
    BackboneCost,
    BackboneKey,
    FeatureKey,
    HeadCost,
    HeadKey,
    Survey,
    backbone_key,
    feature_key,
    head_key,
)
from probe_eval.sweeps.plan import Clips
from probe_eval.tasks import load_task

if TYPE_CHECKING:
    from probe_eval.sweeps.sweep import Cell

SLOW_SECONDS = 0.5
"""Work on one clip that takes longer is not timed again on more of them."""
CLIPS_TIMED = 8


def look(cells: Sequence["Cell"], device: torch.device | str = "cpu", *, timed: bool) -> Survey:
    """Opens every data set and loads every backbone of a sweep, one after the other.

    Args:
        cells: all cells.
        device: where backbones and readouts run.
        timed: whether one forward of each backbone and one step of each readout are timed.

    Raises:
        ValueError: for a data set without what a task needs, a block beyond the depth, or a noise
            level out of range.
        FileNotFoundError: if weights or data are not there.
    """
    configs = [cell.config for cell in cells]
    splits: dict[DataConfig, Splits] = {}
    clips: dict[DataConfig, Clips] = {}
    for config in configs:
        if config.data not in splits:
            found = splits[config.data] = open_splits(config.data, config.held_out)
            clips[config.data] = count(found)
    for data, task in dict.fromkeys((config.data, config.task) for config in configs):
        for split in (splits[data].train, splits[data].test):
            load_task(task, split)
    weights: dict[BackboneKey, str] = {}
    backbones: dict[tuple[BackboneKey, DataConfig], BackboneCost] = {}
    heads: dict[HeadKey, HeadCost] = {}
    inputs: dict[tuple[str, DataConfig], int] = {}
    features_held: dict[FeatureKey, int] = {}
    for key in dict.fromkeys(backbone_key(config) for config in configs):
        mine = [config for config in configs if backbone_key(config) == key]
        backbone = load_backbone(*key, device)
        for block, timestep in {(c.features.block, c.features.timestep) for c in mine}:
            check_features(backbone, block=block, timestep=timestep)
        weights[key] = backbone.weights_hash
        for data in dict.fromkeys(config.data for config in mine if timed):
            of_data = [config for config in mine if config.data == data]
            examples, cost, features = time_backbone(backbone, splits[data].train, of_data)
            backbones[key, data] = cost
            for config in {head_key(config): config for config in of_data}.values():
                heads[head_key(config)] = time_head(config, splits[data].train, examples, features)
            if data.draws and of_data[0].features.cache != "none":
                measured = splits[data].held_out or splits[data].test
                parts = [held.describe(splits[data].train), held.describe(measured)]
                inputs[backbone.encoder_hash, data] = held.inputs_held(
                    backbone, parts, of_data[0].features
                )
                for config in of_data:
                    features_held[feature_key(config)] = held.features_held(
                        backbone, parts, config.features, [config.features.block]
                    )
    return Survey(
        clips=clips,
        weights=weights,
        backbones=backbones,
        heads=heads,
        inputs_held=inputs,
        features_held=features_held,
    )


def count(splits: Splits) -> Clips:
    """How many clips there are."""
    return Clips(
        train=len(splits.train),
        held_out=len(splits.held_out) if splits.held_out else 0,
        test=len(splits.test),
    )


def seconds_each(work: Callable[[int], Any], batch: int) -> float:
    """Seconds for one of a batch; a batch of one is enough where that takes long."""
    for size in (1, batch):
        started = time.perf_counter()
        work(size)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        spent = time.perf_counter() - started
        if spent > SLOW_SECONDS:
            break
    return spent / size


def time_backbone(
    backbone: FrozenBackbone, dataset: ClipDataset, cells: Sequence[ProbeConfig]
) -> tuple[list[Any], BackboneCost, Tensor]:
    """What a clip takes in a backbone; also some examples, and features of one of them."""
    features = cells[0].features
    blocks = sorted({cell.features.block for cell in cells})
    number = min(CLIPS_TIMED, features.batch_size, len(dataset))
    started = time.perf_counter()
    examples = [dataset.clip(index) for index in range(number)]
    examples = [example for example in examples if "video" in example]
    if not examples:
        raise ValueError(f"none of the first {number} clips of {cells[0].data.dataset} can be read")
    read = (time.perf_counter() - started) / number
    video = torch.stack([example["video"] for example in examples])
    ids = [example["sample_id"] for example in examples]
    made: dict[str, Any] = {}

    def encode(size: int) -> None:
        made["inputs"] = backbone.encode(video[:size])

    def forward(size: int) -> None:
        made["features"] = backbone.features(
            inputs[:size],
            blocks=blocks,
            timestep=features.timestep,
            seed=features.noise_seed,
            sample_ids=ids[:size],
        )

    encode_seconds = seconds_each(encode, len(ids))
    inputs = made["inputs"]
    forward_seconds = seconds_each(forward, len(inputs))
    grid = made["features"][blocks[-1]][:1].float()
    if features.average_time:
        grid = grid.mean(dim=1, keepdim=True)
    kept = getattr(torch, features.dtype).itemsize
    cost = BackboneCost(
        read_seconds=read,
        encode_seconds=encode_seconds if backbone.encoder_hash else 0.0,
        forward_seconds=forward_seconds,
        input_bytes=inputs[0].numel() * inputs.element_size(),
        block_bytes=grid.numel() * kept,
        feature_bytes=grid.numel() * 4,
        num_parameters=backbone.num_parameters,
        encoder_hash=backbone.encoder_hash,
    )
    return examples, cost, grid


def time_head(
    cell: ProbeConfig, dataset: ClipDataset, examples: Sequence[Any], features: Tensor
) -> HeadCost:
    """What a sample takes in one step of a readout."""
    task = load_task(cell.task, dataset)
    readout = create_readout(cell, task, dataset, feature_dim=features.shape[-1])
    readout.to(features.device)
    targets = [task.targets(examples[number % len(examples)]) for number in range(len(examples))]

    def step(size: int) -> None:
        chosen = [targets[number % len(targets)] for number in range(size)]
        loss = task.loss(
            readout,
            features.expand(size, *features.shape[1:]).contiguous(),
            {k: v.to(features.device) for k, v in default_collate(chosen).items()},
            num_frames=frames(cell),
            generators=[torch.Generator().manual_seed(number) for number in range(size)],
        )
        loss.backward()

    return HeadCost(
        parameters=sum(p.numel() for p in readout.parameters() if p.requires_grad),
        step_seconds=seconds_each(step, cell.optim.batch_size),
    )
