"""What a plan takes on disk, in memory and of time, from what one forward and one step took.

Pure arithmetic; `probe_eval.sweeps.survey` does the timing.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from probe_eval.config import DataConfig, ProbeConfig, ReadoutConfig
from probe_eval.sweeps.plan import ADAM_BYTES, Clips, Job, forwards

GIGABYTE = 1e9
MEASURE_SHARE = 1 / 3
"""Of the time of a step: a forward pass, without the backward pass that takes twice as long."""
BackboneKey = tuple[str, str]
"""Backbone and folder of its weights."""
HeadKey = tuple[BackboneKey, DataConfig, str, ReadoutConfig]
"""Readouts that take the same time."""
FeatureKey = tuple[BackboneKey, DataConfig, int, int]
"""Features of a timestep and a block."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BackboneCost:
    """What one clip takes."""

    read_seconds: float
    """Reading or rendering it."""
    encode_seconds: float
    """What comes before the noise, for instance the tokenizer."""
    forward_seconds: float
    """One forward, up to the deepest block."""
    input_bytes: int
    """Of what is encoded, as it is kept."""
    block_bytes: int
    """Of the features of one block, as they are kept."""
    feature_bytes: int
    """Of the features of one block, as readouts read them."""
    num_parameters: int
    """Of all that runs."""
    encoder_hash: str
    """Of all that decides what is encoded; empty where that are the pixels."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class HeadCost:
    """What one readout takes."""

    parameters: int
    """That are trained."""
    step_seconds: float
    """Forward, backward and optimiser for one sample of a batch."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """What was found."""

    clips: Mapping[DataConfig, Clips]
    """How many clips there are."""
    weights: Mapping[BackboneKey, str]
    """Hash of all weights of each backbone."""
    backbones: Mapping[tuple[BackboneKey, DataConfig], BackboneCost]
    """Empty unless timed."""
    heads: Mapping[HeadKey, HeadCost]
    """Empty unless timed."""
    inputs_held: Mapping[tuple[str, DataConfig], int] = dataclasses.field(default_factory=dict)
    """Clips that the cache holds as they are encoded, by the hash of the encoder."""
    features_held: Mapping[FeatureKey, int] = dataclasses.field(default_factory=dict)
    """Clips whose features the cache holds."""


def backbone_key(cell: ProbeConfig) -> BackboneKey:
    """Backbone and folder of its weights."""
    return cell.features.backbone, cell.features.pretrained


def head_key(cell: ProbeConfig) -> HeadKey:
    """Readouts that take the same time."""
    return backbone_key(cell), cell.data, cell.task, cell.readout


def feature_key(cell: ProbeConfig) -> FeatureKey:
    """The features that a cell reads."""
    return backbone_key(cell), cell.data, cell.features.timestep, cell.features.block


def of_jobs(
    jobs: Sequence[Job], open_cells: Sequence[Sequence[ProbeConfig]], found: Survey
) -> list[dict[str, Any]]:
    """What each job takes; what is encoded for one job and kept costs the next one nothing.

    Args:
        jobs: in the order in which they are run.
        open_cells: the cells of each that are not done.
        found: clips, and what each takes.

    Returns:
        For each job `encodes`, clips that its backbone encodes, `encodes_held` and `forwards_held`,
        those that the cache spares it; `kept_gb` of the cache; `disk_gb` of scratch; `memory_gb`;
        and `seconds` on one process.
    """
    encoded: set[tuple[str, DataConfig]] = set()
    rows = []
    for job, cells in zip(jobs, open_cells, strict=True):
        first = job.cells[0]
        cost = found.backbones[backbone_key(first), first.data]
        clips, passes = found.clips[first.data], forwards(job, found.clips)
        fresh = job.kind == "train" and not first.data.draws
        stored = clips.measured if fresh else passes
        keeps = bool(cost.encoder_hash) and first.features.cache != "none"
        key = (f"{cost.encoder_hash} {job.kind}", first.data)
        of_cache = found.inputs_held.get((cost.encoder_hash, first.data), 0)
        spared = of_cache if keeps and job.kind == "train" and key not in encoded else 0
        encodes = passes - (stored if keeps and key in encoded else spared)
        kept = (stored - spared) * cost.input_bytes if keeps and key not in encoded else 0
        encoded.add(key)
        known = job.kind == "train"
        skipped = min(found.features_held.get(feature_key(c), 0) for c in job.cells) * known
        features = stored * len(job.blocks) * cost.block_bytes
        if first.features.cache == "features":
            kept += features * (stored - skipped) // max(1, stored)
        parameters = sum(found.heads[head_key(cell)].parameters for cell in cells)
        batch = max(cell.optim.batch_size for cell in job.cells)
        reading = encodes * cost.read_seconds
        computing = encodes * cost.encode_seconds
        computing += (passes - skipped) * cost.forward_seconds
        rows.append(
            {
                "encodes": encodes if cost.encoder_hash else 0,
                "encodes_held": spared,
                "forwards_held": skipped,
                "kept_gb": kept / GIGABYTE,
                "disk_gb": 0.0 if first.features.cache == "features" else features / GIGABYTE,
                "memory_gb": (
                    parameters * ADAM_BYTES
                    + cost.num_parameters * 4
                    + batch * len(job.blocks) * cost.feature_bytes
                )
                / GIGABYTE,
                "seconds": max(reading, computing)
                + sum(head_seconds(cell, job, clips, found) for cell in cells),
            }
        )
    return rows


def head_seconds(cell: ProbeConfig, job: Job, clips: Clips, found: Survey) -> float:
    """Seconds of training and measuring one readout."""
    step = found.heads[head_key(cell)].step_seconds
    if job.kind == "test":
        return clips.test * step * MEASURE_SHARE
    samples = cell.optim.steps * cell.optim.batch_size
    return samples * step + clips.measured * step * MEASURE_SHARE
