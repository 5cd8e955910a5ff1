"""`probe-eval generate`: images and videos that a denoiser makes from noise.

Axes: c channels, t h w latent grid, p known latent frames, T H W pixels.
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

import walt_core
import walt_tokenizer
from probe_datasets import centre_crop, read_frames, resize_short_side, scan_video, to_float
from probe_eval import records, runs
from probe_eval.backbones.walt import (
    MODEL_FILE,
    check_pair,
    load_denoiser,
    load_tokenizer,
)
from probe_eval.config import GenerateConfig
from probe_eval.report.grids import write_clips
from probe_eval.sampling import CONTINUED_LATENTS, Request, generate_together
from probe_eval.text import TextStates, encode_prompts, read_states
from probe_readouts import weights_hash

RECORD_FILE = "record.json"


def run_generate(config: GenerateConfig, accelerator: Accelerator) -> dict[str, Any]:
    """Generates samples; writes `samples.png`, for videos also `samples.mp4`, and `record.json`.

    Reference: WALT (Gupta et al., ECCV 2024), Sec. 3.3 and 3.4.

    Args:
        config: which models, which samples.
        accelerator: device, precision, and processes, which share the samples.

    Returns:
        The record.

    Raises:
        ValueError: if tokenizer and denoiser were not trained together, something is asked for that
            the denoiser cannot do, or the results folder holds something else.
        FileNotFoundError: if a model, a video or a file of text states lacks.
    """
    denoiser = load_denoiser(config.walt)
    tokenizer = load_tokenizer(config.tokenizer).to(accelerator.device)
    check_pair(config.walt, tokenizer, denoiser)
    grid = choose_grid(config, denoiser.config, tokenizer.config)
    classes = choose_classes(config, denoiser.config)
    text = choose_text(config, denoiser.config, accelerator)
    check_past(config, denoiser.config, grid, tokenizer.config.temporal_stride)
    check_guidance(config)
    past, video_hash = None, ""
    if config.video:
        past, video_hash = first_latents(config, tokenizer, grid)
    identity: dict[str, Any] = {
        **dataclasses.asdict(config),
        "walt": weights_hash(denoiser),
        "tokenizer": weights_hash(tokenizer),
        "video": video_hash,
    }
    for name in ("output", "batch_size"):
        identity.pop(name)
    folder = Path(config.output)
    runs.claim(folder, "generate", identity, write=accelerator.is_main_process)
    accelerator.wait_for_everyone()
    request = Request(
        number=config.num_samples,
        seed=config.seed,
        grid=grid,
        steps=config.steps,
        guidance=config.guidance,
        past_guidance=config.past_guidance,
        classes=classes,
        text=text,
        past=past,
        num_clips=config.num_clips,
        batch_size=config.batch_size,
    )
    denoiser = denoiser.to(accelerator.device)
    samples = generate_together(denoiser, tokenizer, request, accelerator, "generate")
    record = {
        "schema_version": records.SCHEMA_VERSION,
        "task": "generate",
        "samples": {
            "number": len(samples),
            "frames": samples.shape[2],
            "height": samples.shape[3],
            "width": samples.shape[4],
            "latent_grid": list(grid),
            "noise": "stream(seed, 'generate', number of the sample)",
            "classes": list(classes),
            "prompts": list(text.prompts) if text else [],
            "text_encoder": text.encoder if text else "",
            "video_hash": video_hash,
        },
        "denoiser": {
            "weights_hash": identity["walt"],
            "num_parameters": sum(p.numel() for p in denoiser.parameters()),
            "config": denoiser.config.to_dict(),
        },
        "tokenizer": {
            "weights_hash": identity["tokenizer"],
            "config": tokenizer.config.to_dict(),
        },
        "config": dataclasses.asdict(config),
        "environment": records.environment(accelerator.num_processes, str(accelerator.device)),
    }
    if accelerator.is_main_process:
        files = write_clips(folder, "samples", samples, fps=config.fps)
        runs.write_json(folder / RECORD_FILE, {**record, "files": [file.name for file in files]})
    accelerator.wait_for_everyone()
    return runs.read_json(folder / RECORD_FILE)


# --- What is asked for ---------------------------------------------------------------------------


def choose_grid(
    config: GenerateConfig, walt: walt_core.WaltConfig, sizes: walt_tokenizer.TokenizerConfig
) -> tuple[int, int, int]:
    """Latent grid of a clip: as asked for, or the one that the denoiser was made for.

    Raises:
        ValueError: if the tokenizer or the windows cannot divide it.
    """
    period, stride = sizes.temporal_stride, sizes.spatial_stride
    own = 1 if walt.windows == "spatial" else 1 + (walt.latent_size[0] - 1) * period
    frames = config.num_frames or own
    height, width = (config.size or side * stride for side in walt.latent_size[1:])
    if (frames - 1) % period:
        raise ValueError(f"num_frames {frames} must be 1 + {period} * k: 1, {1 + period}, ...")
    if height % stride or width % stride:
        raise ValueError(f"size {config.size} must be a multiple of {stride}")
    grid = ((frames - 1) // period + 1, height // stride, width // stride)
    windows = {walt.window(layer) for layer in (1, 2)}
    if grid[0] == 1:  # An image: its tokens see one another in the spatial layers alone.
        windows = {walt.spatial_window}
    for window in windows:
        if any(side % part for side, part in zip(grid, window, strict=True)):
            raise ValueError(
                f"clips of {frames} x {height} x {width} have the latent grid {grid}, which window "
                f"{window} of the denoiser does not divide; leave num_frames and size out for "
                f"{own} x {walt.latent_size[1] * stride} x {walt.latent_size[2] * stride}"
            )
    return grid


def choose_classes(config: GenerateConfig, walt: walt_core.WaltConfig) -> tuple[int, ...]:
    """Numbers of the classes that are asked for; names are those of the training.

    Raises:
        ValueError: if the denoiser has no classes, or not this one.
    """
    if not config.classes:
        return ()
    if not walt.num_classes:
        raise ValueError("classes are asked of a denoiser that was trained without; leave them out")
    path = Path(config.walt) / MODEL_FILE
    names = list(runs.read_json(path).get("classes", [])) if path.is_file() else []
    found = []
    for name in config.classes:
        if name in names:
            found.append(names.index(name))
        elif name.isdecimal() and int(name) < walt.num_classes:
            found.append(int(name))
        else:
            known = f"; known: {', '.join(names)}" if names else ""
            raise ValueError(f"unknown class {name!r}; 0 to {walt.num_classes - 1}{known}")
    return tuple(found)


def choose_text(
    config: GenerateConfig, walt: walt_core.WaltConfig, accelerator: Accelerator
) -> TextStates | None:
    """States of the prompts that are asked for, from the file or the encoder.

    Raises:
        ValueError: if the denoiser takes no text, or that of another encoder.
    """
    if not config.prompts:
        return None
    if not walt.text_width:
        raise ValueError("prompts are asked of a denoiser that was trained without text")
    if config.text:
        text = read_states(config.text).select(config.prompts)
    else:
        text = encode_prompts(config.prompts, config.encoder, accelerator.device)
        text = text.select(config.prompts)
    if text.width != walt.text_width:
        raise ValueError(
            f"text states of {text.encoder!r} have width {text.width} but the denoiser takes "
            f"{walt.text_width}; use the encoder that it was trained with"
        )
    return text


def check_past(
    config: GenerateConfig, walt: walt_core.WaltConfig, grid: tuple[int, int, int], period: int
) -> None:
    """Checks that first frames and continuations can be had.

    Raises:
        ValueError: if the denoiser knows no past, or the clips are too short for it.
    """
    if not config.video and config.num_clips == 1:
        if config.past_guidance != 1:
            raise ValueError(
                f"past_guidance {config.past_guidance} needs first frames to follow: give video, "
                "or more than one of num_clips"
            )
        return
    what = "video" if config.video else f"num_clips {config.num_clips}"
    if not walt.frame_conditioning:
        raise ValueError(f"{what} needs a denoiser with frame conditioning, which this one lacks")
    if config.num_clips > 1 and grid[0] <= CONTINUED_LATENTS:
        raise ValueError(f"{what} needs clips of more than {CONTINUED_LATENTS} latent frames")
    known = (config.first_frames - 1) // period + 1
    if config.video and ((config.first_frames - 1) % period or known >= grid[0]):
        raise ValueError(
            f"first_frames {config.first_frames} must be 1 + {period} * k, and fewer than the "
            f"{1 + period * (grid[0] - 1)} of a clip"
        )


def check_guidance(config: GenerateConfig) -> None:
    """Checks that guidance has something to follow.

    Raises:
        ValueError: if neither classes nor prompts are given.
    """
    if config.guidance != 1 and not (config.classes or config.prompts):
        raise ValueError(
            f"guidance {config.guidance} needs something to follow: give --classes or --prompts"
        )


@torch.no_grad()
def first_latents(
    config: GenerateConfig,
    tokenizer: walt_tokenizer.VideoTokenizer,
    grid: tuple[int, int, int],
) -> tuple[Float[Tensor, "c p h w"], str]:
    """Normalised latents of the first frames of the video, and its hash.

    Raises:
        ValueError: if the file is no readable video, or too short.
    """
    info = scan_video(config.video)
    if info.num_frames < config.first_frames:
        raise ValueError(
            f"{config.video}: has {info.num_frames} frames, fewer than first_frames "
            f"{config.first_frames}"
        )
    side = grid[1] * tokenizer.config.spatial_stride
    frames = read_frames(config.video, range(config.first_frames))
    frames = centre_crop(resize_short_side(frames, side), side)
    clip = rearrange(to_float(frames.to(tokenizer.latent_mean.device)), "T c H W -> 1 c T H W")
    with open(config.video, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    return tokenizer.encode(clip, normalize=True)[0], digest
