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
    """Folder that `probe-eval pretrain twins` wrote."""
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
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.999
    """Decay of the second moment."""
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
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be 0 or more and below 1")


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
class LossWeights:
    """Weights of the tokenizer's losses (MAGVIT-v2's)."""

    reconstruction: float = 5.0
    """Mean squared error of the pixels."""
    perceptual: float = 0.1
    """Distance by the perceptual network; off without one."""
    adversarial: float = 0.1
    """What the discriminator says of reconstructions; off without `gan`."""
    r1: float = 10.0
    """Of the discriminator: gradient penalty on real clips."""
    lecam: float = 0.001
    """Of the discriminator: LeCAM regularisation."""
    entropy: float = 0.1
    """Of look-up-free quantisation: entropy, low for each latent and high for all."""
    commitment: float = 0.25
    """Of look-up-free quantisation: distance of latents from their codes."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 0:
                raise ValueError(
                    f"weight {field.name} {getattr(self, field.name)} must not be negative"
                )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerTrainingConfig:
    """One tokenizer, and how it is trained."""

    size: str = "tiny"
    """Name of the tokenizer configuration."""
    num_frames: int = 5
    """Frames of the stretches it is trained on: 1 + 4k, at most data.num_frames; 1 for images."""
    optim: OptimConfig = OptimConfig(
        steps=3000,
        batch_size=2,
        peak_lr=8e-4,
        warmup_steps=100,
        weight_decay=0.0,
        beta2=0.99,
        clip_norm=0.5,
    )
    """Optimiser (MAGVIT-v2: batch 256, peak-lr 1e-4, beta1 0, beta2 0.99)."""
    weights: LossWeights = LossWeights()
    """Weights of the losses."""
    ema_decay: float = 0.99
    """Moving average of the weights, which is what is measured and kept; 0 for none (MAGVIT-v2:
    0.999)."""
    perceptual: str = ""
    """Perceptual network, as `file.py:name`, `package.module:name` or a TorchScript file; it
    takes reconstructed and original frames in [-1, 1]. Empty: that loss is off."""
    gan: bool = False
    """Train against a discriminator."""
    gan_start_step: int = 0
    """Step from which the discriminator takes part."""
    discriminator_channels: int = 16
    """Width of the discriminator's first convolution (MAGVIT-v2: 128)."""
    discriminator_lr: float = 1e-4
    """Peak learning rate of the discriminator; the rest of its optimiser is as above."""
    start_from: str = ""
    """Folder of a tokenizer whose weights are the start: one of the same size, or one of images,
    whose kernels go into the last slice of time."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass, to save memory."""

    def __post_init__(self) -> None:
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay {self.ema_decay} must be 0 (none) or more and below 1")
        if not 0 <= self.gan_start_step <= self.optim.steps:
            raise ValueError(
                f"gan_start_step {self.gan_start_step} must be 0 to steps {self.optim.steps}"
            )
        if self.discriminator_channels < 1 or self.discriminator_lr <= 0:
            raise ValueError(
                f"discriminator_channels {self.discriminator_channels} and discriminator_lr "
                f"{self.discriminator_lr} must be positive"
            )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PretrainTokenizerConfig:
    """A tokenizer: any size, any part of MAGVIT-v2's objective."""

    data: DataConfig = DataConfig()
    """Which clips."""
    training: TokenizerTrainingConfig = TokenizerTrainingConfig()
    """Which tokenizer, and how it is trained."""
    videos: str = ""
    """Folder of real videos that are mixed in, of the size and stride of `data`."""
    videos_share: float = 0.25
    """Share of the samples that are of these videos; above 0 and below 1."""
    videos_memory_gb: float = 2.0
    """Memory for their frames, in GB; videos that need more are an error."""
    evaluate_every: int = 500
    """Steps between evaluations, each with samples."""
    evaluate_clips: int = 64
    """Held-out clips that are measured, of `data` and of the videos each."""
    sample_clips: int = 4
    """Held-out clips drawn beside their reconstructions, of `data` and of the videos each."""
    lpips: str = ""
    """Network for LPIPS, in the form of `training.perceptual`; empty: not measured."""
    video_features: str = ""
    """Network for rFVD, clips in [-1, 1] to vectors; empty: not measured."""
    seed: int = 0
    """Seed of weights, order and noise."""
    checkpoint_every: int = 200
    """Steps between checkpoints for resuming."""
    output: str = "results/tokenizer"
    """Folder for the tokenizer, its record, curves and samples."""

    def __post_init__(self) -> None:
        for name in ("evaluate_every", "evaluate_clips", "sample_clips", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 1")
        if not 0 < self.videos_share < 1:
            raise ValueError(f"videos_share {self.videos_share} must be above 0 and below 1")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PretrainTwinsConfig:
    """A tokenizer and then both denoisers, I-WALT and V-WALT, on the same clips."""

    data: DataConfig = DataConfig()
    """Which clips."""
    tokenizer: TokenizerTrainingConfig = TokenizerTrainingConfig(
        size="tiny-norm",
        optim=OptimConfig(
            steps=1000,
            batch_size=4,
            peak_lr=5e-3,
            warmup_steps=20,
            weight_decay=0.0,
            beta2=0.99,
            clip_norm=1.0,
        ),
        weights=LossWeights(reconstruction=1.0),
        ema_decay=0.0,
    )
    """Which tokenizer, and how it is trained."""
    tokenizer_from: str = ""
    """Folder of a trained tokenizer, which is used in place of a new one."""
    walt_size: str = "tiny"
    """Name of the denoiser size; I-WALT is its twin with spatial windows only."""
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
    """Folder that `probe-eval pretrain twins` wrote."""
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
    pretrain: PretrainTwinsConfig = PretrainTwinsConfig()
    """Pretraining; its output goes below the results folder."""
    optim: OptimConfig = OptimConfig(
        steps=400, batch_size=32, peak_lr=3e-3, end_lr=1e-6, warmup_steps=30
    )
    """How every readout is trained."""

    def __post_init__(self) -> None:
        if not self.seeds:
            raise ValueError("seeds is empty; give at least one, for instance --seeds 0 1 2")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ReconstructConfig:
    """A video beside what a tokenizer makes of it, and how close the two are."""

    tokenizer: str = "results/tokenizer/tokenizer"
    """Folder of a tokenizer, as `probe-eval pretrain tokenizer` leaves it in tokenizer/."""
    output: str = "results/reconstruct"
    """Folder for the video and the record."""
    size: int = 0
    """Height and width that frames are resized and cropped to, in pixels, a multiple of 8; 0
    keeps their size, cropped in the centre to multiples of 8."""
    start: int = 0
    """First frame."""
    num_frames: int = 0
    """Frames from there on; 0 takes all. Cut to 1 + 4k."""

    def __post_init__(self) -> None:
        for name in ("size", "start", "num_frames"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} {getattr(self, name)} must not be negative")
