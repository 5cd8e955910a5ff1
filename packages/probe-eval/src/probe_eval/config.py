"""What a run is: frozen records of plain values, read before torch is imported."""

import dataclasses
from typing import Literal, get_args

OptimizerName = Literal["adamw", "adafactor"]


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
    """Use only so many clips of each split: the first of rendered ones, else those whose names have
    the lowest hashes; 0 uses all."""
    clips_per_video: int = 1
    """Random clips taken of each video of a folder for training; held-out and test videos give 1.
    """
    on_error: Literal["raise", "skip"] = "raise"
    """A sample that cannot be read ends the run, or is skipped and counted in the record."""
    options: tuple[str, ...] = ()
    """Options of the data set as NAME=VALUE, such as `sparse=True` or `split_file=mine.txt`."""
    train_split: str = "train"
    """Split that readouts are trained on."""
    test_split: str = "validation"
    """Split that readouts are measured on."""
    test_dataset: str = ""
    """Data set of the test split, where it is another one than that of the training split."""
    test_root: str = ""
    """Folder of that data set."""
    test_stride: int = 0
    """Source frames from one frame to the next in the test split; 0: as in training."""
    test_options: tuple[str, ...] = ()
    """Options of that data set as NAME=VALUE."""
    draws: int = 1
    """Random crops of each training clip, whose features are made once; 0: a new one each time the
    clip comes up, and new features with it."""
    workers: int = 1
    """Processes that read clips ahead of the backbone, for each process of the run."""

    def __post_init__(self) -> None:
        for name in ("limit", "seed", "draws", "workers", "test_stride"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} {getattr(self, name)} must not be negative")
        if self.clips_per_video < 1:
            raise ValueError(f"clips_per_video {self.clips_per_video} must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ValidateConfig:
    """Which data set is looked at, and how closely."""

    dataset: str
    """Name in the registry of probe-datasets."""
    root: str = ""
    """Folder of the data set; empty for data sets that need none."""
    splits: tuple[str, ...] = ()
    """Splits to look at; all of them when empty."""
    decode: int = 32
    """Samples of each split that are read to the last pixel, evenly spread; -1 reads all."""
    workers: int = 0
    """Processes that read samples; 0 reads in this one."""
    threshold: float = 0.95
    """Share of the expected samples, 0 to 1, that every split must have for exit status 0."""
    options: tuple[str, ...] = ()
    """Options of the data set as NAME=VALUE, such as `sparse=True` or `split_file=mine.txt`."""


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
    average_time: bool = False
    """Average the features over time, as for single pictures, which fill a clip."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type that features are kept in."""
    batch_size: int = 32
    """Clips per forward pass of the backbone."""
    shard: bool = False
    """Spread the layers of the backbone over the processes, for one that no device holds alone."""
    disk_gb: float = 50.0
    """Largest size of the features of one split on disk, in GB; one that needs more is refused."""
    cache: Literal["latents", "features", "none"] = "latents"
    """What is kept for later runs: what the tokenizer makes of clips, features as well, or nothing.
    """
    cache_folder: str = ""
    """Where; empty: the folder in PROBE_EVAL_CACHE, or else ~/.cache/probe-eval."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ReadoutConfig:
    """How large a readout is."""

    width: int = 64
    """Channels of its queries; 0: the study's (Tables 5 and 6)."""
    num_heads: int = 4
    """Attention heads, which must divide the width; with width 0 the study's, whatever it is."""
    time: Literal["paper", "causal", "nearest"] = "paper"
    """How features are resized from latent frames to video frames."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """An optimiser with a linear warm-up from 0 and a cosine decay (the study's Table 7)."""

    steps: int
    """Optimiser steps."""
    batch_size: int
    """Samples per step, over all processes."""
    name: OptimizerName = "adamw"
    """`adafactor` keeps row and column means in place of the second moments, and no first ones;
    its learning rate is relative to the size of each weight (at least 1e-3)."""
    peak_lr: float = 3e-4
    """Learning rate at the end of the warm-up."""
    end_lr: float = 1e-7
    """Learning rate at the last step."""
    warmup_steps: int = 1000
    """Steps of linear warm-up from 0."""
    weight_decay: float = 1e-4
    """Decoupled weight decay."""
    beta1: float = 0.9
    """Decay of the first moment (AdamW)."""
    beta2: float = 0.999
    """Decay of the second moment (AdamW; that of Adafactor grows as 1 - step^-0.8)."""
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
        if self.name not in get_args(OptimizerName):
            raise ValueError(
                f"optimiser {self.name!r} must be one of {', '.join(get_args(OptimizerName))}"
            )


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
    """Seed of the readout's weights."""
    order_seed: int = 0
    """Seed of the order of the clips, and of their crops; readouts of one order share forwards."""
    shuffle_labels: bool = False
    """Train on permuted labels: a control, whose score must be at chance."""
    held_out: float = 0.0
    """Share of the training split that is kept from training and measured in place of the test
    split: for choosing block, timestep and learning rate; 0 measures on the test split."""
    evaluate_every: int = 0
    """Steps between measurements while training; 0 measures at the end alone."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Where curves go, by the names of Accelerate: `tensorboard`, `wandb`, ...; none: nowhere."""
    checkpoint_every: int = 1000
    """Steps between checkpoints for resuming."""
    recipe: str = ""
    """Name of the recipe that these settings began as, for the record."""
    output: str = "results/run"
    """Results folder of this run."""

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out {self.held_out} must be 0 or more and below 1")
        if self.evaluate_every < 0:
            raise ValueError(f"evaluate_every {self.evaluate_every} must not be negative")
        if self.checkpoint_every < 1:
            raise ValueError(f"checkpoint_every {self.checkpoint_every} must be at least 1")
        if self.features.shard and not self.data.draws and self.data.on_error == "skip":
            raise ValueError(
                "features.shard with data.draws 0 needs data.on_error raise: processes whose clips "
                "all fail would leave the others waiting"
            )


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


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class GenerateConfig:
    """Images or videos that a denoiser makes from noise, decoded by its tokenizer."""

    walt: str = "results/walt/walt"
    """Folder of a denoiser, as `probe-eval pretrain walt` leaves it in walt/ and in kept/."""
    tokenizer: str = "results/tokenizer/tokenizer"
    """Folder of the tokenizer that it was trained with."""
    num_samples: int = 8
    """How many images or videos; each depends on the seed and its number alone."""
    seed: int = 0
    """Seed of the noise."""
    steps: int = 50
    """Sampling steps, 1 to 1000."""
    guidance: float = 1.0
    """Strength of class and prompt; 1 for none beyond what the model learned."""
    past_guidance: float = 1.0
    """Strength of the first frames that are given or continued, likewise."""
    classes: tuple[str, ...] = ()
    """Classes by name or number, given to the samples in turn; none: the null class."""
    prompts: tuple[str, ...] = ()
    """Prompts, given to the samples in turn; none: the null text."""
    text: str = ""
    """File of text states of the prompts, as `probe-eval embed` writes it."""
    encoder: str = ""
    """T5 encoder that reads the prompts, in place of a file: a name on the Hub or a folder."""
    video: str = ""
    """Video file whose first frames begin every sample; for models with frame conditioning."""
    first_frames: int = 5
    """Frames of that video: 1 + 4k, fewer than num_frames."""
    num_clips: int = 1
    """Clips in a row, each going on from the last 5 frames of the one before."""
    num_frames: int = 0
    """Frames of a clip, 1 + 4k, or 1 for images; 0: those that the model was made for."""
    size: int = 0
    """Height and width in pixels, a multiple of 8; 0: those that the model was made for."""
    batch_size: int = 8
    """Samples at once."""
    fps: float = 8.0
    """Frames per second of the MP4."""
    output: str = "results/generate"
    """Folder for the pictures, the video and the record."""

    def __post_init__(self) -> None:
        for name in ("num_samples", "num_clips", "batch_size", "first_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 1")
        for name in ("num_frames", "size"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} {getattr(self, name)} must not be negative")
        if not 1 <= self.steps <= 1000:
            raise ValueError(f"steps {self.steps} must be 1 to 1000")
        if not 0 < self.fps <= 1000:
            raise ValueError(f"fps {self.fps} must be above 0 and at most 1000")
        if self.prompts and bool(self.text) == bool(self.encoder):
            raise ValueError("prompts need either text, a file of their states, or an encoder")
        if not self.prompts and (self.text or self.encoder):
            raise ValueError("text and encoder are for prompts; give --prompts")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EmbedConfig:
    """States of prompts, written to a file that training and generating read."""

    encoder: str
    """T5 encoder: a name on the Hugging Face Hub, or a folder."""
    output: str
    """The file of states (safetensors)."""
