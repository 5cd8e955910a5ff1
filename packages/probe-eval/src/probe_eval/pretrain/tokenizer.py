"""`probe-eval pretrain tokenizer`: any tokenizer, with any part of MAGVIT-v2's objective."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch.utils.data import ConcatDataset, Dataset

import walt_tokenizer
from probe_datasets import ClipDataset, FolderDataset
from probe_eval import records, runs
from probe_eval.backbones.walt import TOKENIZER_FOLDER
from probe_eval.checkpoints import finish
from probe_eval.config import DataConfig
from probe_eval.data import open_split
from probe_eval.harness import Batch, History, train
from probe_eval.networks import load_callable
from probe_eval.pretrain.config import PretrainTokenizerConfig
from probe_eval.pretrain.config import TokenizerTrainingConfig as Training
from probe_eval.pretrain.evaluation import HeldOut
from probe_eval.pretrain.models import (
    check_training,
    create_tokenizer,
    describe_training,
    discriminator_config,
    discriminator_optim,
    identify,
)
from probe_eval.pretrain.objective import TokenizerObjective
from probe_eval.pretrain.samples import (
    Stretches,
    VideoStretches,
    clips_at_once,
    load_clips,
    load_frames,
    number_of_shares,
    open_videos,
    read_clip,
)
from probe_eval.report.curves import draw_curves, merge_rows, write_csv
from probe_readouts import weights_hash
from walt_tokenizer import Discriminator

RECORD_FILE = "record.json"
DISCRIMINATOR_FILE = "discriminator.safetensors"
STATISTICS_CLIPS = 256


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """The clips of a run, opened; videos only where some are mixed in."""

    train: ClipDataset
    held_out: ClipDataset
    train_videos: FolderDataset | None = None
    held_out_videos: FolderDataset | None = None


def run_tokenizer(config: PretrainTokenizerConfig, accelerator: Accelerator) -> dict[str, Any]:
    """Trains one tokenizer; a finished run is read back, an unfinished one resumed.

    Reference: MAGVIT-v2 (Yu et al., ICLR 2024), Sec. 3 and App. A.

    Returns:
        The record, which also lies in `config.output`, beside `tokenizer/`.

    Raises:
        ValueError: for unknown names, sizes that do not fit each other, or a results folder that
            holds another run.
    """
    folder, training = Path(config.output), config.training
    data = open_data(config, accelerator)
    networks = load_networks(config, accelerator)
    tokenizer = create_tokenizer(training, config.seed)
    identity = identity_of(config)
    runs.claim(folder, "pretrain-tokenizer", identity, write=False)
    if (folder / RECORD_FILE).is_file():
        finish(accelerator, folder)
        return runs.read_json(folder / RECORD_FILE)
    samples = open_samples(config, data)
    runs.claim(folder, "pretrain-tokenizer", identity, write=accelerator.is_main_process)
    accelerator.wait_for_everyone()

    started = time.monotonic()
    held_out = {"": data.held_out}
    if data.held_out_videos is not None:
        held_out["videos_"] = data.held_out_videos
    objective, history = fit(
        tokenizer,
        training,
        config.data,
        samples,
        accelerator=accelerator,
        seed=config.seed,
        folder=folder,
        checkpoint_every=config.checkpoint_every,
        perceptual=networks.get("perceptual"),
        evaluate_every=config.evaluate_every,
        evaluate=HeldOut(
            held_out,
            number=config.evaluate_clips,
            samples=config.sample_clips,
            folder=folder / "samples",
            accelerator=accelerator,
            lpips=networks.get("lpips"),
            features=networks.get("video_features"),
        ),
    )
    measure_statistics(objective.result, data.train, accelerator)
    record = make_record(config, accelerator, data, objective, history, started)
    if accelerator.is_main_process:
        write_csv(merge_rows(history.losses, history.evaluations), folder / "curve.csv")
        draw_curves(history.losses, history.evaluations, folder / "curve.png")
        if objective.discriminator is not None:
            runs.write_tensors(folder / DISCRIMINATOR_FILE, objective.discriminator.state_dict())
        objective.result.save_pretrained(folder / TOKENIZER_FOLDER)
        runs.write_json(folder / RECORD_FILE, record)
    finish(accelerator, folder)
    return runs.read_json(folder / RECORD_FILE)


def fit(
    tokenizer: walt_tokenizer.VideoTokenizer,
    training: Training,
    data: DataConfig,
    samples: Dataset[Batch],
    *,
    accelerator: Accelerator,
    seed: int,
    folder: Path,
    checkpoint_every: int,
    perceptual: Callable[..., Any] | None = None,
    evaluate_every: int = 0,
    evaluate: HeldOut | None = None,
) -> tuple[TokenizerObjective, History]:
    """Trains a tokenizer in place; `result` of the objective is what is to be kept."""
    tokenizer.gradient_checkpointing = training.activation_checkpointing
    optims = {"tokenizer": training.optim}
    discriminator = None
    if training.gan:
        discriminator = Discriminator(discriminator_config(training, data))
        optims["discriminator"] = discriminator_optim(training)
    objective = TokenizerObjective(
        tokenizer,
        discriminator,
        samples,
        training,
        accelerator=accelerator,
        perceptual=perceptual,
        evaluate=evaluate,
    )
    history = train(
        objective,
        optims,
        accelerator=accelerator,
        seed=seed,
        folder=folder,
        checkpoint_every=checkpoint_every,
        evaluate_every=evaluate_every,
    )
    objective.result.eval().gradient_checkpointing = False
    return objective, history


# --- What a run is made of -----------------------------------------------------------------------


def identity_of(config: PretrainTokenizerConfig) -> dict[str, Any]:
    """Everything that decides the result, but nothing of where files lie."""
    identity = dataclasses.asdict(config)
    identity.pop("output")
    identify(config.training, identity["training"])
    return identity


def open_data(config: PretrainTokenizerConfig, accelerator: Accelerator) -> Data:
    """Everything that can be refused, refused; then all clips.

    Raises:
        ValueError: for what `check_training` and the data sets refuse.
    """
    train_clips = open_split(config.data, config.data.train_split)
    check_training(config.training, config.data, accelerator)
    held_out = open_split(config.data, config.data.test_split)
    if not config.videos:
        return Data(train=train_clips, held_out=held_out)
    return Data(
        train=train_clips,
        held_out=held_out,
        train_videos=open_videos(config.data, config.videos, "train"),
        held_out_videos=open_videos(config.data, config.videos, "validation"),
    )


def open_samples(config: PretrainTokenizerConfig, data: Data) -> Dataset[Batch]:
    """What the tokenizer is trained on; real videos are read into memory here."""
    stretches = Stretches(data.train, config.training.num_frames, config.seed)
    if data.train_videos is None:
        return stretches
    videos = VideoStretches(
        load_frames(data.train_videos, config.videos_memory_gb),
        number_of_shares(len(stretches), config.videos_share),
        num_frames=config.training.num_frames,
        stride=config.data.stride,
        seed=config.seed,
    )
    return ConcatDataset([stretches, videos])


def load_networks(
    config: PretrainTokenizerConfig, accelerator: Accelerator
) -> dict[str, Callable[..., Any]]:
    """The networks that were given, by their use."""
    specs = {
        "perceptual": config.training.perceptual,
        "lpips": config.lpips,
        "video_features": config.video_features,
    }
    return {
        name: load_callable(spec, device=accelerator.device) for name, spec in specs.items() if spec
    }


# --- What a run leaves ---------------------------------------------------------------------------


def measure_statistics(
    tokenizer: walt_tokenizer.VideoTokenizer, dataset: ClipDataset, accelerator: Accelerator
) -> None:
    """Mean and deviation of the latents, on training clips in one streaming pass.

    Codes of a quantising tokenizer are -1 and 1 and are left so.
    """
    if tokenizer.config.quantizer != "none":
        return
    number = min(len(dataset), STATISTICS_CLIPS)
    size = clips_at_once(read_clip(dataset, 0)["video"].shape[1:])
    tokenizer.fit_latent_statistics(
        load_clips(dataset, range(start, min(start + size, number))).to(accelerator.device)
        for start in range(0, number, size)
    )


def make_record(
    config: PretrainTokenizerConfig,
    accelerator: Accelerator,
    data: Data,
    objective: TokenizerObjective,
    history: History,
    started: float,
) -> dict[str, Any]:
    """Everything that the tokenizer depends on, and what it is worth, as plain values."""
    tokenizer = objective.result
    given = bool(config.training.perceptual)
    return {
        "schema_version": records.SCHEMA_VERSION,
        "kind": "pretrain-tokenizer",
        "tokenizer": {
            "num_parameters": sum(p.numel() for p in tokenizer.parameters()),
            "weights_hash": weights_hash(tokenizer),
            "model": tokenizer.config.to_dict(),
        },
        "perceptual_loss": "on" if given else "off: no perceptual network was given",
        "adversarial_loss": (
            f"from step {config.training.gan_start_step}" if config.training.gan else "off"
        ),
        "dataset": {
            "train": data.train.fingerprint,
            "validation": data.held_out.fingerprint,
            "videos": data.train_videos.fingerprint if data.train_videos else "",
        },
        "coverage": {
            name: records.coverage(split.coverage)
            for name, split in (
                ("train", data.train),
                ("validation", data.held_out),
                ("videos", data.train_videos),
            )
            if split
        },
        "final": history.evaluations[-1],
        "evaluations": history.evaluations,
        "losses": history.losses,
        "config": dataclasses.asdict(config),
        "seconds_since_start_or_resume": round(time.monotonic() - started, 1),
        "environment": records.environment(accelerator.num_processes, str(accelerator.device)),
    }


# --- What a run would be -------------------------------------------------------------------------


def describe_tokenizer(config: PretrainTokenizerConfig, accelerator: Accelerator) -> str:
    """What `run_tokenizer` would do, after the same checks; it does none of it."""
    data = open_data(config, accelerator)
    training = config.training
    load_networks(config, accelerator)
    identity = identity_of(config)
    runs.claim(Path(config.output), "pretrain-tokenizer", identity, write=False)
    lines = describe_training(training, config.data, accelerator)
    clips = f"clips       {len(data.train):,} of {config.data.dataset}"
    if data.train_videos is not None:
        number = number_of_shares(len(data.train), config.videos_share)
        clips += f" and {number:,} of {len(data.train_videos)} videos in {config.videos}"
    lines += [
        f"{clips}; {min(config.evaluate_clips, len(data.held_out))} held out",
        f"evaluations every {config.evaluate_every} steps, checkpoints every "
        f"{config.checkpoint_every}",
        f"writes      {config.output}/: tokenizer/, record.json, curve.csv, curve.png, samples/"
        + (f", {DISCRIMINATOR_FILE}" if training.gan else ""),
        "dry run: nothing was trained or written",
    ]
    return "\n".join(lines)
