"""`probe-eval pretrain walt`: one denoiser, V-WALT or I-WALT, on the latents of a tokenizer."""

import dataclasses
import time
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from einops import rearrange
from torch import Tensor

import walt_core
import walt_tokenizer
from probe_datasets import ClipDataset
from probe_eval import records, runs
from probe_eval.backbones.walt import MODEL_FILE, load_tokenizer
from probe_eval.checkpoints import finish
from probe_eval.data import FirstClips, open_split
from probe_eval.harness import History, check_batch, train
from probe_eval.pretrain import models
from probe_eval.pretrain.config import PretrainWaltConfig
from probe_eval.pretrain.denoising import WaltObjective
from probe_eval.pretrain.latents import (
    LABEL,
    LATENTS_FILE,
    Latents,
    check_latents,
    check_memory,
    encode_clips,
    latent_grid,
)
from probe_eval.pretrain.prompts import choose_prompts, label_classes, prompt_rows
from probe_eval.pretrain.validation import LEVELS, HeldOutLoss, Samples
from probe_eval.report.curves import draw_curves, merge_rows, write_csv
from probe_eval.sampling import Request
from probe_eval.text import TextStates, read_states
from probe_readouts import weights_hash

RECORD_FILE = "record.json"
WALT_FOLDER = "walt"
KEPT_FOLDER = "kept"
SAMPLES_FOLDER = "samples"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What a run is made of, opened and found to fit together."""

    train: ClipDataset
    held_out: ClipDataset
    tokenizer: walt_tokenizer.VideoTokenizer
    walt: walt_core.WaltConfig
    grid: tuple[int, int, int]
    classes: tuple[str, ...]
    text: TextStates | None
    identity: dict[str, Any]


def run_walt(config: PretrainWaltConfig, accelerator: Accelerator) -> dict[str, Any]:
    """Trains one denoiser; a finished run is read back, an unfinished one resumed.

    Reference: WALT (Gupta et al., ECCV 2024), Sec. 3; From Image to Video, Sec. 3.3 (I-WALT).

    Returns:
        The record, which also lies in `config.output`, beside `walt/`.

    Raises:
        ValueError: for unknown names, sizes that do not fit each other, or a results folder that
            holds another run.
        FileNotFoundError: if there is no tokenizer, or no file of text states.
    """
    folder = Path(config.output)
    run = open_run(config, accelerator)
    runs.claim(folder, "pretrain-walt", run.identity, write=False)
    if (folder / RECORD_FILE).is_file():
        finish(accelerator, folder)
        return runs.read_json(folder / RECORD_FILE)
    runs.claim(folder, "pretrain-walt", run.identity, write=accelerator.is_main_process)
    accelerator.wait_for_everyone()

    started = time.monotonic()
    run.tokenizer.to(accelerator.device)
    held_out = FirstClips(run.held_out, config.evaluate_clips)
    encoded = {
        split: encode_clips(
            run.tokenizer,
            dataset,
            accelerator,
            images_per_clip=config.images_per_clip,
            seed=config.seed,
            path=folder / LATENTS_FILE if split == "train" else None,
            title=f"latents {split}",
        )
        for split, dataset in (("train", run.train), ("validation", held_out))
    }
    samples = {split: make_samples(config, run, latents) for split, latents in encoded.items()}
    objective = make_objective(config, run, samples, accelerator)
    history = train(
        objective,
        {"walt": config.optim},
        accelerator=accelerator,
        seed=config.seed,
        folder=folder,
        checkpoint_every=config.checkpoint_every,
        evaluate_every=config.evaluate_every,
    )
    model = objective.result
    record = make_record(config, run, accelerator, model, history, started)
    if accelerator.is_main_process:
        write_csv(merge_rows(history.losses, history.evaluations), folder / "curve.csv")
        draw_curves(
            history.losses,
            history.evaluations,
            folder / "curve.png",
            measured=("validation_loss", "constant_loss"),
            title="loss on held-out clips",
        )
        save_model(model, folder / WALT_FOLDER, run, config.optim.steps)
        (folder / LATENTS_FILE).unlink(missing_ok=True)
        runs.write_json(folder / RECORD_FILE, record)
    finish(accelerator, folder)
    return runs.read_json(folder / RECORD_FILE)


# --- What a run is made of -----------------------------------------------------------------------


def open_run(config: PretrainWaltConfig, accelerator: Accelerator) -> Run:
    """Everything that can be refused, refused; then all that is trained on.

    Raises:
        ValueError: naming what is unknown or does not fit.
        FileNotFoundError: if there is no tokenizer, or no file of text states.
    """
    train_clips = open_split(config.data, config.data.train_split)
    held_out = open_split(config.data, config.data.test_split)
    tokenizer = load_tokenizer(config.tokenizer)
    walt = check_latents(config.data, tokenizer.config, config.walt_size)
    grid = latent_grid(config.data, tokenizer.config)
    check_memory(
        len(train_clips), config.images_per_clip, grid, walt.latent_channels, config.memory_gb
    )
    check_batch(config.optim, accelerator.num_processes)
    classes: tuple[str, ...] = ()
    changes: dict[str, Any] = {"windows": config.windows}
    if config.class_label:
        classes = tuple(label_classes(train_clips, config.class_label, "class_label"))
        changes["num_classes"] = len(classes)
    text = None
    if config.text:
        text = choose_prompts(read_states(config.text), config.prompt, train_clips)
        changes["text_width"] = text.width
    identity = dataclasses.asdict(config)
    identity.pop("output")
    identity["tokenizer"] = weights_hash(tokenizer)
    if text is not None:
        identity["text"] = text.fingerprint
    return Run(
        train=train_clips,
        held_out=held_out,
        tokenizer=tokenizer,
        walt=dataclasses.replace(walt, **changes),
        grid=(1, *grid[1:]) if config.windows == "spatial" else grid,
        classes=classes,
        text=text,
        identity=identity,
    )


def make_samples(config: PretrainWaltConfig, run: Run, latents: dict[str, Tensor]) -> Latents:
    """The samples of the objective: clips with their images, or for I-WALT images alone."""
    number = config.images_per_clip
    tensors = {"latents": latents["videos"]}
    if config.class_label:
        tensors["classes"] = latents[f"{LABEL}{config.class_label}"]
    if run.text is not None:
        labels = {name: latents[f"{LABEL}{name}"] for name in run.train.classes}
        tensors["prompts"] = prompt_rows(config.prompt, run.train, labels)
    if config.windows == "spatial":
        tensors = {name: value.repeat_interleave(number, 0) for name, value in tensors.items()}
        tensors["latents"] = latents["images"]
    elif config.image_batch_size:
        tensors["images"] = rearrange(latents["images"], "(n k) ... -> n k ...", k=number)
    return Latents(tensors)


def make_objective(
    config: PretrainWaltConfig, run: Run, samples: dict[str, Latents], accelerator: Accelerator
) -> WaltObjective:
    """The objective with its measurements and what it keeps."""
    folder = Path(config.output)
    model = models.create_denoiser(run.walt, run.tokenizer, config.seed)
    model.gradient_checkpointing = config.activation_checkpointing
    loss = HeldOutLoss(
        samples["validation"],
        samples["train"].tensors["latents"].mean(dim=0),
        run.text,
        seed=config.seed,
        accelerator=accelerator,
    )
    request = Request(
        number=config.sample_clips,
        seed=config.seed,
        grid=run.grid,
        steps=config.sample_steps,
        guidance=config.guidance,
        classes=tuple(range(len(run.classes))),
        text=run.text,
        batch_size=config.sample_clips,
    )
    draw_samples = Samples(request, run.tokenizer, folder / SAMPLES_FOLDER, accelerator)

    def evaluate(model: walt_core.Walt, step: int) -> dict[str, Any]:
        row = loss(model)
        draw_samples(model, step)
        return row

    def keep(model: walt_core.Walt, step: int) -> None:
        if accelerator.is_main_process:
            save_model(model, folder / KEPT_FOLDER / f"step-{step:08d}", run, step)
        accelerator.wait_for_everyone()

    return WaltObjective(
        "walt",
        model,
        samples["train"],
        accelerator=accelerator,
        rates=walt_core.Rates(**dataclasses.asdict(config.rates)),
        images_per_step=config.image_batch_size // config.optim.batch_size,
        text=run.text,
        ema_decay=config.ema_decay,
        evaluate=evaluate,
        keep_every=config.keep_every,
        keep=keep,
    )


# --- What a run leaves ---------------------------------------------------------------------------


def save_model(model: walt_core.Walt, folder: Path, run: Run, step: int) -> None:
    """Writes weights, and beside them what generating needs to know of the training."""
    runs.write_json(
        folder / MODEL_FILE,
        {
            "step": step,
            "weights_hash": weights_hash(model),
            "num_parameters": models.count(model),
            "tokenizer_hash": weights_hash(run.tokenizer),
            "classes": list(run.classes),
            "prompts": list(run.text.prompts) if run.text else [],
            "text_encoder": run.text.encoder if run.text else "",
        },
    )
    model.save_pretrained(folder)


def make_record(
    config: PretrainWaltConfig,
    run: Run,
    accelerator: Accelerator,
    model: walt_core.Walt,
    history: History,
    started: float,
) -> dict[str, Any]:
    """Everything that the denoiser depends on, and what it is worth, as plain values."""
    kept = range(config.keep_every, config.optim.steps + 1, config.keep_every or 1)
    return {
        "schema_version": records.SCHEMA_VERSION,
        "kind": "pretrain-walt",
        "walt": {
            "num_parameters": models.count(model),
            "weights_hash": weights_hash(model),
            "model": model.config.to_dict(),
        },
        "tokenizer": {
            "weights_hash": weights_hash(run.tokenizer),
            "latent_mean": run.tokenizer.latent_mean.tolist(),
            "latent_std": run.tokenizer.latent_std.tolist(),
        },
        "classes": list(run.classes),
        "text_encoder": run.text.encoder if run.text else "",
        "dataset": {"train": run.train.fingerprint, "validation": run.held_out.fingerprint},
        "coverage": {
            "train": records.coverage(run.train.coverage),
            "validation": records.coverage(run.held_out.coverage),
        },
        "final": history.evaluations[-1],
        "evaluations": history.evaluations,
        "losses": history.losses,
        "kept": [f"{KEPT_FOLDER}/step-{step:08d}" for step in kept] if config.keep_every else [],
        "config": dataclasses.asdict(config),
        "seconds_since_start_or_resume": round(time.monotonic() - started, 1),
        "environment": records.environment(accelerator.num_processes, str(accelerator.device)),
    }


# --- What a run would be -------------------------------------------------------------------------


def describe_walt(config: PretrainWaltConfig, accelerator: Accelerator) -> str:
    """What `run_walt` would do, after the same checks; it does none of it."""
    run = open_run(config, accelerator)
    runs.claim(Path(config.output), "pretrain-walt", run.identity, write=False)
    kind = "I-WALT" if config.windows == "spatial" else "V-WALT"
    conditions = [
        text
        for text, there in (
            (f"{len(run.classes)} classes of {config.class_label!r}", bool(run.classes)),
            (f"text of width {run.walt.text_width}", run.text is not None),
            ("its own estimate", run.walt.self_conditioning),
            ("past frames", run.walt.frame_conditioning and run.grid[0] > 1),
        )
        if there
    ]
    clips = f"{len(run.train):,} clips of {config.data.dataset}"
    if config.windows == "spatial":
        clips = f"{len(run.train) * config.images_per_clip:,} frames of {clips}"
    elif config.image_batch_size:
        clips += f", and {config.image_batch_size} frames a step"
    sharded = ", sharded" if str(accelerator.distributed_type).endswith("FSDP") else ""
    return "\n".join(
        [
            f"walt        {kind} {config.walt_size}: {walt_core.num_parameters(run.walt):,} "
            f"parameters{sharded}, latent grid {' x '.join(map(str, run.grid))}",
            f"conditions  {', '.join(conditions) or 'none'}",
            f"tokenizer   as it is in {config.tokenizer}",
            f"steps       {models.split(config.optim, accelerator)} of {clips}",
            f"optimiser   {config.optim.name}, peak rate {config.optim.peak_lr:g}, precision "
            f"{accelerator.mixed_precision}",
            f"evaluations every {config.evaluate_every} steps on "
            f"{min(config.evaluate_clips, len(run.held_out))} held-out clips at {LEVELS} noise "
            f"levels, with {config.sample_clips} samples; checkpoints every "
            f"{config.checkpoint_every}",
            f"writes      {config.output}/: {WALT_FOLDER}/, {RECORD_FILE}, curve.csv, curve.png, "
            f"{SAMPLES_FOLDER}/" + (f", {KEPT_FOLDER}/" if config.keep_every else ""),
            "dry run: nothing was trained or written",
        ]
    )
