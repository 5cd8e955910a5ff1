"""What a pretraining is: frozen records of plain values, read before torch is imported."""

import dataclasses
from typing import Literal

from probe_eval.config import DataConfig, OptimConfig


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
    walt_size: str = "nano"
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
class ConditionRates:
    """How often a sample is trained with each condition that the model has; probabilities."""

    estimate: float = 0.9
    """Self-conditioning: the model reads its own estimate of the clean latents (WALT: 0.9)."""
    past: float = 0.25
    """The model reads the first latent frame or two without noise."""
    drop: float = 0.1
    """Class and text become null, as guidance needs."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not 0 <= getattr(self, field.name) <= 1:
                raise ValueError(
                    f"rate {field.name} {getattr(self, field.name)} must be a probability, 0 to 1"
                )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PretrainWaltConfig:
    """One denoiser, V-WALT or I-WALT of any size, on the latents of a trained tokenizer."""

    data: DataConfig = DataConfig()
    """Which clips."""
    tokenizer: str = "results/tokenizer/tokenizer"
    """Folder of the tokenizer whose latents are denoised, normalised with its statistics."""
    walt_size: str = "tiny"
    """Name of the size: nano, tiny, 284m, 724m, 1.9b, l or xl."""
    windows: Literal["spatiotemporal", "spatial"] = "spatiotemporal"
    """`spatiotemporal` is V-WALT, on clips; `spatial` I-WALT, on frames drawn from the clips."""
    image_batch_size: int = 0
    """Frames in a step beside the clips, a multiple of optim.batch_size; 0: clips alone."""
    images_per_clip: int = 4
    """Frames drawn at random from each clip, once, of which images are taken."""
    class_label: str = ""
    """Label of the data set that conditions, for instance `action`; empty: none."""
    text: str = ""
    """File of text states that condition, as `probe-eval embed` writes it; empty: none."""
    prompt: str = ""
    """Prompt of a clip, with labels of the data set in braces: `a {shape} that moves {action}`."""
    rates: ConditionRates = ConditionRates()
    """How often a sample is trained with each condition."""
    optim: OptimConfig = OptimConfig(
        steps=4000, batch_size=16, peak_lr=1e-3, warmup_steps=100, weight_decay=0.0, clip_norm=1.0
    )
    """Optimiser (WALT: batch 256 to 512, AdamW 5e-4, or Adafactor 2e-4 for text)."""
    ema_decay: float = 0.999
    """Moving average of the weights, which is what is measured, drawn from and kept; 0 for none."""
    evaluate_every: int = 500
    """Steps between evaluations, each with the loss on held-out clips and with samples."""
    evaluate_clips: int = 64
    """Held-out clips whose loss is measured, each at 4 noise levels."""
    sample_clips: int = 8
    """Clips that are generated at each evaluation."""
    sample_steps: int = 50
    """Sampling steps, 1 to 1000."""
    guidance: float = 1.0
    """Strength of class and text in the samples; 1 for none beyond what the model learned."""
    keep_every: int = 0
    """Steps between models that are kept for good in kept/; 0 for none."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass, to save memory."""
    memory_gb: float = 4.0
    """Memory for the latents of all clips, in GB; clips that need more are an error."""
    seed: int = 0
    """Seed of weights, order, noise and samples."""
    checkpoint_every: int = 200
    """Steps between checkpoints for resuming."""
    output: str = "results/walt"
    """Folder for the denoiser, its record, curves, samples and kept models."""

    def __post_init__(self) -> None:
        for name in (
            "images_per_clip",
            "evaluate_every",
            "evaluate_clips",
            "sample_clips",
            "checkpoint_every",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 1")
        if not 1 <= self.sample_steps <= 1000:
            raise ValueError(f"sample_steps {self.sample_steps} must be 1 to 1000")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay {self.ema_decay} must be 0 (none) or more and below 1")
        if self.keep_every < 0:
            raise ValueError(f"keep_every {self.keep_every} must be 0 (none) or more")
        if bool(self.text) != bool(self.prompt):
            raise ValueError(
                "text (a file of states) and prompt (which of them a clip has) go together"
            )
        if self.guidance != 1 and not (self.class_label or self.text):
            raise ValueError(
                f"guidance {self.guidance} needs a condition to follow: give class_label or text"
            )
        images, clips = self.image_batch_size, self.optim.batch_size
        if images < 0 or images % clips or images > clips * self.images_per_clip:
            raise ValueError(
                f"image_batch_size {images} must be 0 or a multiple of optim.batch_size {clips}, "
                f"at most {clips} x images_per_clip {self.images_per_clip}"
            )
        if images and self.windows == "spatial":
            raise ValueError(
                "I-WALT (windows spatial) is trained on frames alone; leave image_batch_size out"
            )
