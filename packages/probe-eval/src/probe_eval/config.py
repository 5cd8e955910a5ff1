"""What a run is: frozen records of plain values, read before torch is imported."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which clips."""

    dataset: str = "moving_shapes"
    """Name in the registry of probe-datasets, for instance `moving_shapes` or `folder`."""
    root: str = ""
    """Folder of the data set; empty for data sets that need none."""
    size: int = 32
    """Height and width of the clips, in pixels; a multiple of 8."""
    num_frames: int = 17
    """Frames in a clip: 1 + 4k."""
    stride: int = 1
    """Source frames from one clip frame to the next."""
    seed: int = 0
    """Seed of rendered data, and of random clip positions."""
    limit: int = 0
    """Use only the first clips of each split; 0 uses all."""
    clips_per_video: int = 1
    """Random clips taken of each video file; data sets that are not of files have 1."""
    on_error: Literal["raise", "skip"] = "raise"
    """A video that cannot be read ends the run, or is skipped and counted in the record."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FeatureConfig:
    """Which frozen features."""

    backbone: str = "v-walt"
    """Name of the frozen backbone, for instance `i-walt` or `v-walt`."""
    pretrained: str = "results/pretrained"
    """Folder that `probe-eval pretrain` wrote."""
    block: int = 4
    """Block whose residual stream is read: 0 is the patch embedding, then 1 to the depth."""
    timestep: int = 200
    """Noise level: 0 (almost clean) to 999 (pure noise)."""
    noise_seed: int = 0
    """Seed of the noise; the noise of a clip depends on it, the clip's name and the timestep."""
    batch_size: int = 32
    """Clips per forward pass of the backbone."""
    memory_gb: float = 4.0
    """Memory for the features of one split, in GB; a split that needs more is an error."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ReadoutConfig:
    """The attentive readout."""

    width: int = 64
    """Channels of its query (the study: 768, or 1024 for Kinetics)."""
    num_heads: int = 4
    """Attention heads; must divide the width."""
    time: Literal["paper", "causal", "nearest"] = "paper"
    """How features are resized from latent frames to video frames."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """AdamW with a linear warm-up from 0 and a cosine decay (the study's Table 7)."""

    steps: int
    """Optimiser steps."""
    batch_size: int
    """Samples per step, over all processes."""
    peak_lr: float = 3e-4
    """Learning rate at the end of the warm-up."""
    end_lr: float = 1e-7
    """Learning rate at the last step."""
    warmup_steps: int = 1000
    """Steps of linear warm-up from 0."""
    weight_decay: float = 1e-4
    """Decoupled weight decay."""
    beta2: float = 0.999
    """Decay of the second moment; the first is 0.9."""
    clip_norm: float = 0.0
    """Gradients are clipped to this norm; 0 leaves them alone."""
    accumulate: int = 1
    """Micro-batches per step and process; one process with 2 equals two with 1, to the bit."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 1")
        if not 0 <= self.warmup_steps <= self.steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} must be 0 to steps {self.steps}; "
                "shorten the warm-up or train longer"
            )
        if not 0 <= self.end_lr <= self.peak_lr:
            raise ValueError(f"end_lr {self.end_lr} must be 0 to peak_lr {self.peak_lr}")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ProbeConfig:
    """One readout on one task: train it on frozen features, then measure it."""

    task: str
    """Name of the task, for instance `action` or `shape`."""
    data: DataConfig = DataConfig()
    """Which clips."""
    features: FeatureConfig = FeatureConfig()
    """Which frozen features."""
    readout: ReadoutConfig = ReadoutConfig()
    """The readout."""
    optim: OptimConfig = OptimConfig(steps=40_000, batch_size=32)
    """How the readout is trained."""
    seed: int = 0
    """Seed of the readout's weights and of the order of the clips."""
    shuffle_labels: bool = False
    """Train on permuted labels: a control, whose score must be at chance."""
    checkpoint_every: int = 1000
    """Steps between checkpoints for resuming."""
    output: str = "results/run"
    """Results folder of this run."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig:
    """A tokenizer and then both denoisers, I-WALT and V-WALT, on the same clips."""

    data: DataConfig = DataConfig()
    """Which clips."""
    tokenizer_size: str = "tiny"
    """Name of the tokenizer configuration."""
    walt_size: str = "tiny"
    """Name of the denoiser size; I-WALT is its twin with spatial windows only."""
    tokenizer: OptimConfig = OptimConfig(
        steps=1000,
        batch_size=4,
        peak_lr=5e-3,
        warmup_steps=20,
        weight_decay=0.0,
        beta2=0.99,
        clip_norm=1.0,
    )
    """How the tokenizer is trained, on stretches of `tokenizer_frames` frames."""
    tokenizer_frames: int = 5
    """Frames of the clips that the tokenizer is trained on: 1 + 4k, at most data.num_frames."""
    image_walt: OptimConfig = OptimConfig(
        steps=700, batch_size=64, peak_lr=2e-3, warmup_steps=50, weight_decay=0.0, clip_norm=1.0
    )
    """How I-WALT is trained, on single frames drawn from the same clips."""
    video_walt: OptimConfig = OptimConfig(
        steps=700, batch_size=16, peak_lr=2e-3, warmup_steps=50, weight_decay=0.0, clip_norm=1.0
    )
    """How V-WALT is trained, on whole clips."""
    images_per_clip: int = 4
    """Frames drawn at random from each clip for I-WALT."""
    seed: int = 0
    """Seed of weights, order and noise."""
    checkpoint_every: int = 100
    """Steps between checkpoints for resuming."""
    output: str = "results/pretrained"
    """Folder for the three models."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ShowConfig:
    """Frames, first principal component of both twins, and where they differ."""

    pretrained: str = "results/pretrained"
    """Folder that `probe-eval pretrain` wrote."""
    output: str = "results/show"
    """Folder for the pictures."""
    block: int = 4
    """Block whose features are drawn."""
    timestep: int = 200
    """Noise level: 0 (almost clean) to 999 (pure noise)."""
    noise_seed: int = 0
    """Seed of the noise."""
    size: int = 128
    """Height and width that the clip is resized and cropped to, in pixels."""
    num_frames: int = 17
    """Frames of the clip: 1 + 4k."""
    stride: int = 1
    """Source frames from one clip frame to the next."""
    start: int = 0
    """First source frame."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DemoConfig:
    """Everything, small: pretraining, four probes with controls, pictures and one page."""

    output: str = "results/demo"
    """Results folder."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Readout seeds of every probe."""
    pretrain: PretrainConfig = PretrainConfig()
    """Pretraining; its output goes below the results folder."""
    optim: OptimConfig = OptimConfig(
        steps=400, batch_size=32, peak_lr=3e-3, end_lr=1e-6, warmup_steps=30
    )
    """How every readout is trained."""

    def __post_init__(self) -> None:
        if not self.seeds:
            raise ValueError("seeds is empty; give at least one, for instance --seeds 0 1 2")
