"""One probe: frozen features, a readout trained on them, a score, a record.

Axes: n samples, t h w feature grid, d width.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from probe_datasets import ClipDataset, Coverage
from probe_eval import records, runs
from probe_eval.backbone import FrozenBackbone, check_features, load_backbone
from probe_eval.checkpoints import finish
from probe_eval.config import ProbeConfig
from probe_eval.data import open_split
from probe_eval.distributed import gather_items, share
from probe_eval.features import FeatureStore, FeatureTable
from probe_eval.harness import Batch, Loss, Objective, check_batch, stream, train
from probe_eval.metrics.state import SampleScores
from probe_eval.tasks import load_task
from probe_eval.tasks.base import Task
from probe_readouts import BackboneIdentity, resize_time, save_readout

RECORD_FILE = "record.json"
READOUT_FILE = "readout.safetensors"
EVALUATION_BATCH = 64


class FeatureSamples(Dataset[Batch]):
    """Rows of a feature table with their targets.

    Args:
        table: the features.
        task: says what the targets are.
        shuffle_seed: when given, targets are dealt out to the wrong samples (a control).
    """

    def __init__(self, table: FeatureTable, task: Task, shuffle_seed: int | None = None) -> None:
        self.features = table.features
        self.targets = [task.targets(example) for example in table.examples]
        self.sample_ids = [example["sample_id"] for example in table.examples]
        if shuffle_seed is not None:
            generator = stream(shuffle_seed, "shuffled labels", 0)
            order = torch.randperm(len(self), generator=generator)
            self.targets = [self.targets[index] for index in order.tolist()]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Batch:
        return {"features": self.features[index], **self.targets[index]}


class ProbeObjective(Objective):
    """A readout on frozen features."""

    def __init__(
        self,
        title: str,
        task: Task,
        readout: nn.Module,
        samples: FeatureSamples,
        config: ProbeConfig,
    ) -> None:
        self.title, self.models, self.dataset = title, {"readout": readout}, samples
        self.task, self.config = task, config

    def losses(
        self,
        models: Mapping[str, nn.Module],
        batch: Batch,
        generators: Sequence[torch.Generator],
        step: int,
    ) -> Iterator[Loss]:
        """Mean loss of the task; a readout draws no noise."""
        features = prepare(batch["features"], self.config)
        yield Loss("readout", self.task.loss(models["readout"], features, batch))


def prepare(
    features: Float[Tensor, "b t h w d"], config: ProbeConfig
) -> Float[Tensor, "b T h w d"]:
    """Features with one time step per video frame."""
    return resize_time(features, config.data.num_frames, method=config.readout.time)


def run_probe(
    config: ProbeConfig, accelerator: Accelerator, store: FeatureStore | None = None
) -> dict[str, Any]:
    """Trains and measures one readout; a finished run is read back, an unfinished one resumed.

    Reference: From Image to Video, Sec. 3.4 and App. E.

    Args:
        config: the run.
        accelerator: devices and processes.
        store: features shared with other runs of this process.

    Returns:
        The record, which also lies in `config.output`.

    Raises:
        ValueError: for unknown names, values out of range, or a results folder of another run.
        FileNotFoundError: if the pretrained folder lacks the weights.
    """
    folder = Path(config.output)
    splits = {split: open_split(config.data, split) for split in ("train", "validation")}
    check_classes(splits)
    task = load_task(config.task, splits["train"])
    backbone = load_backbone(
        config.features.backbone, config.features.pretrained, accelerator.device
    )
    check_features(backbone, block=config.features.block, timestep=config.features.timestep)
    check_batch(config.optim, accelerator.num_processes)
    torch.manual_seed(config.seed)
    readout = task.create_readout(
        splits["train"],
        config.readout,
        feature_dim=backbone.width,
        num_frames=config.data.num_frames,
    )
    identity = {**dataclasses.asdict(config), "weights_hash": backbone.weights_hash}
    identity.pop("output")
    identity["features"].pop("pretrained")
    runs.claim(folder, "probe", identity, write=False)
    if (folder / RECORD_FILE).is_file():
        finish(accelerator, folder)
        return records.read_record(folder / RECORD_FILE)

    store = store or FeatureStore(accelerator)
    tables = {
        split: store.get(
            backbone, dataset, config.features, title=f"features {backbone.name} {split}"
        )
        for split, dataset in splits.items()
    }
    # Claimed only now: a setting that extraction refuses leaves no folder behind.
    runs.claim(folder, "probe", identity, write=accelerator.is_main_process)
    accelerator.wait_for_everyone()
    title = f"readout {config.task} {backbone.name} seed {config.seed}"
    samples = FeatureSamples(tables["train"], task, config.seed if config.shuffle_labels else None)
    if config.shuffle_labels:
        title += " shuffled"
    objective = ProbeObjective(title, task, readout, samples, config)
    history = train(
        objective,
        {"readout": config.optim},
        accelerator=accelerator,
        seed=config.seed,
        folder=folder,
        checkpoint_every=config.checkpoint_every,
    )
    losses = history.curve
    value = evaluate(readout, task, FeatureSamples(tables["validation"], task), config, accelerator)
    coverages = {
        split: data.coverage.with_failed(tables[split].failed) for split, data in splits.items()
    }
    record = make_record(
        config, accelerator, task, backbone, readout, splits, coverages, value, losses
    )
    if accelerator.is_main_process:
        about = {name: record[name] for name in ("task", "dataset", "metric")}
        save_readout(readout, folder / READOUT_FILE, identify(backbone, config), about)
        runs.write_json(folder / "losses.json", losses)
        records.write_record(folder / RECORD_FILE, record)
    finish(accelerator, folder)
    return record


def check_classes(splits: Mapping[str, ClipDataset]) -> None:
    """Checks that an index means the same class in every split.

    Raises:
        ValueError: naming the first label that differs.
    """
    first, *others = splits
    for split in others:
        for label, names in splits[first].classes.items():
            if splits[split].classes.get(label) != names:
                raise ValueError(
                    f"the classes of {label!r} differ between {first} ({len(names)}) and {split} "
                    f"({len(splits[split].classes.get(label, ()))}); use lists of the same classes"
                )


def identify(backbone: FrozenBackbone, config: ProbeConfig) -> BackboneIdentity:
    """Which features a run's readout reads, as `probe_readouts.load_readout` wants it told."""
    return BackboneIdentity(
        name=backbone.name,
        weights=backbone.weights_hash,
        block=config.features.block,
        timestep=config.features.timestep,
        time_method=config.readout.time,
    )


@torch.inference_mode()
def evaluate(
    readout: nn.Module,
    task: Task,
    samples: FeatureSamples,
    config: ProbeConfig,
    accelerator: Accelerator,
) -> SampleScores:
    """Scores of all samples, the same for any number of processes."""
    readout.eval()
    state = SampleScores()
    starts = range(0, len(samples), EVALUATION_BATCH)
    for start in share(accelerator, starts):
        rows = range(start, min(start + EVALUATION_BATCH, len(samples)))
        batch = {
            name: value.to(accelerator.device)
            for name, value in default_collate([samples[row] for row in rows]).items()
        }
        scores = task.score(readout, prepare(batch["features"], config), batch)
        ids = [samples.sample_ids[row] for row in rows]
        state = state.merge(SampleScores.of(ids, scores.tolist()))
    merged = SampleScores()
    for part in gather_items(accelerator, [state]):
        merged = merged.merge(part)
    return merged


def make_record(
    config: ProbeConfig,
    accelerator: Accelerator,
    task: Task,
    backbone: FrozenBackbone,
    readout: nn.Module,
    splits: Mapping[str, ClipDataset],
    coverages: Mapping[str, Coverage],
    scores: SampleScores,
    losses: Sequence[tuple[int, float]],
) -> dict[str, Any]:
    """Everything that the score depends on, as plain values."""
    level: dict[str, Any] = dict(backbone.noise_level(config.features.timestep))
    level["log_snr"] = level["log_snr"] if math.isfinite(level["log_snr"]) else None
    dataset: dict[str, Any] = {"name": config.data.dataset}
    for split, data in splits.items():
        found = coverages[split].found
        dataset[split] = {
            "fingerprint": data.fingerprint,
            "evaluated": len(scores.scores) if split == "validation" else found,
            **records.coverage(coverages[split]),
        }
    return {
        "schema_version": records.SCHEMA_VERSION,
        "task": config.task,
        "metric": {
            "name": task.metric,
            "direction": task.direction,
            "value": scores.compute(),
            "chance": task.chance(splits["train"]),
        },
        "dataset": dataset,
        "backbone": {
            "name": backbone.name,
            "weights_hash": backbone.weights_hash,
            "num_parameters": backbone.num_parameters,
        },
        "features": {
            "block": config.features.block,
            "timestep": config.features.timestep,
            **level,
            "noise_seed": config.features.noise_seed,
        },
        "readout": {
            "name": type(readout).__name__,
            "num_parameters": sum(p.numel() for p in readout.parameters()),
        },
        "shuffled_labels": config.shuffle_labels,
        "seed": config.seed,
        "config": dataclasses.asdict(config),
        "final_loss": losses[-1][1],
        "environment": records.environment(accelerator.num_processes, str(accelerator.device)),
    }
