"""A video beside what a tokenizer makes of it, and how close the two are.

The video passes through in pieces, so that memory does not grow with its length.

Axes: T frames, H W pixels.
"""

import dataclasses
import hashlib
import logging
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from einops import rearrange
from jaxtyping import UInt8
from torch import Tensor

import walt_tokenizer
from probe_datasets import (
    VideoInfo,
    centre_crop,
    read_frames,
    resize_short_side,
    scan_video,
    to_float,
)
from probe_eval import records, runs
from probe_eval.backbones.walt import load_tokenizer
from probe_eval.config import ReconstructConfig
from probe_eval.metrics.reconstruction import PSNR_LIMIT, PsnrState, SsimState, check_ssim_size
from probe_eval.progress import Tracker
from probe_eval.report.reconstructions import side_by_side
from probe_eval.report.video import VideoWriter
from probe_readouts import weights_hash

logger = logging.getLogger(__name__)
RECORD_FILE = "record.json"
VIDEO_FILE = "side-by-side.mp4"
READ_BYTES = 1 << 27  # of frames decoded at a time: each time, decoding begins at a keyframe
READ_FRAMES = 256
PIECE_FRAMES = 16  # handed to the tokenizer at a time
FPS_OF_ONE_FRAME = 25.0


def run_reconstruct(
    video: str, config: ReconstructConfig, accelerator: Accelerator
) -> dict[str, Any]:
    """Reconstructs a video; writes `side-by-side.mp4` and `record.json`.

    The metrics are those of the frames that the tokenizer returned, before they are compressed.

    Args:
        video: path of a video file.
        config: which tokenizer, which frames.
        accelerator: the device.

    Returns:
        The record.

    Raises:
        ValueError: if the file is no readable video, a setting is out of range, or the results
            folder holds something else.
        FileNotFoundError: if there is no tokenizer.
    """
    if accelerator.num_processes > 1:
        raise ValueError(
            f"reconstruct works on one video in one process, got {accelerator.num_processes}; "
            "run it with --num_processes 1 or without a launcher"
        )
    tokenizer = load_tokenizer(config.tokenizer).to(accelerator.device)
    logger.info("%s: checking every frame", video)
    info = scan_video(video)
    try:
        frames = choose_frames(info.num_frames, config, tokenizer.config.temporal_stride)
        height, width = frame_size(info, config.size, tokenizer.config.spatial_stride)
        check_ssim_size(height, width)
    except ValueError as error:
        raise ValueError(f"{video}: {error}") from error
    folder = Path(config.output)
    with open(video, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    identity = {**dataclasses.asdict(config), "video": video, "video_hash": digest}
    identity["weights_hash"] = weights_hash(tokenizer)
    for name in ("output", "tokenizer"):
        identity.pop(name)
    runs.claim(folder, "reconstruct", identity, write=True)
    psnr, ssim = reconstruct(
        tokenizer,
        read_pieces(info, frames, (height, width), config.size),
        len(frames),
        info,
        folder,
    )
    record = {
        "schema_version": records.SCHEMA_VERSION,
        "task": "reconstruct",
        "metrics": {"psnr": psnr.compute(), "ssim": ssim.compute()},
        "video": {
            "path": video,
            "hash": digest,
            "container": info.container,
            "codec": info.codec,
            "num_frames": info.num_frames,
            "fps": info.fps,
            "height": info.height,
            "width": info.width,
        },
        "frames": {
            "first": frames.start,
            "used": len(frames),
            "left_out": (config.num_frames or info.num_frames - frames.start) - len(frames),
            "time_stride": tokenizer.config.temporal_stride,
            "height": height,
            "width": width,
        },
        "tokenizer": {
            "folder": config.tokenizer,
            "config": tokenizer.config.to_dict(),
            "weights_hash": identity["weights_hash"],
            "num_parameters": sum(p.numel() for p in tokenizer.parameters()),
        },
        "config": dataclasses.asdict(config),
        "environment": records.environment(1, str(accelerator.device)),
    }
    runs.write_json(folder / RECORD_FILE, record)
    return record


@torch.inference_mode()
def reconstruct(
    tokenizer: walt_tokenizer.VideoTokenizer,
    pieces: Iterator[UInt8[Tensor, "T 3 H W"]],
    total: int,
    info: VideoInfo,
    folder: Path,
) -> tuple[PsnrState, SsimState]:
    """Passes pieces through the tokenizer, measures and draws what comes out.

    Args:
        tokenizer: on its device.
        pieces: stretches of frames, one after the other.
        total: frames in all of them.
        info: the video that they are of.
        folder: for the video.

    Returns:
        Both metrics, with a sample for each stretch that the tokenizer returned.
    """
    device = tokenizer.latent_mean.device
    originals: deque[Tensor] = deque()

    def feed() -> Iterator[Tensor]:
        for piece in pieces:
            clip = rearrange(to_float(piece.to(device)), "T c H W -> 1 c T H W")
            originals.extend(piece)
            yield clip

    psnr, ssim, done = PsnrState(), SsimState(), 0
    with (
        VideoWriter(folder / VIDEO_FILE, info.fps or FPS_OF_ONE_FRAME) as writer,
        Tracker("reconstruct", total) as tracker,
    ):
        for pred in tokenizer.decode_stream(tokenizer.encode_stream(feed())):
            for part in pred.split(PIECE_FRAMES, dim=2):
                count = part.shape[2]
                frames = torch.stack([originals.popleft() for _ in range(count)])
                clip = rearrange(to_float(frames.to(device)), "T c H W -> 1 c T H W")
                name = [f"{done:09d}"]
                psnr = psnr.merge(PsnrState.measure(name, part, clip))
                ssim = ssim.merge(SsimState.measure(name, part, clip))
                writer.write(side_by_side(clip[0], part[0]))
                done += count
                tracker.advance(count, note=f"PSNR {psnr.compute():.2f} dB")
    assert done == total, f"{done} frames of {total} came back"
    return psnr, ssim


def choose_frames(available: int, config: ReconstructConfig, stride: int) -> range:
    """The longest stretch that the tokenizer takes, 1 + stride * k frames, of those asked for.

    Raises:
        ValueError: if the video is shorter than asked for.
    """
    if config.start >= available:
        raise ValueError(
            f"start {config.start} is behind the last of {available} frames; lower --start"
        )
    wanted = config.num_frames or available - config.start
    if config.start + wanted > available:
        raise ValueError(
            f"has {available - config.start} frames from frame {config.start} on, fewer than "
            f"num_frames {wanted}; lower --num-frames, or leave it out to take all"
        )
    return range(config.start, config.start + 1 + (wanted - 1) // stride * stride)


def frame_size(info: VideoInfo, size: int, stride: int) -> tuple[int, int]:
    """Height and width that are reconstructed.

    Raises:
        ValueError: if the tokenizer has no latent for them.
    """
    if size % stride:
        below, above = size // stride * stride, (size // stride + 1) * stride
        near = f"{below} or {above}" if below else f"{above}"
        raise ValueError(f"size {size} must be a multiple of {stride}; pass --size {near}")
    if size:
        return size, size
    height, width = info.height // stride * stride, info.width // stride * stride
    if not height or not width:
        raise ValueError(
            f"frames of {info.height} x {info.width} are smaller than {stride} x {stride} pixels; "
            "pass --size to enlarge them"
        )
    return height, width


def read_pieces(
    info: VideoInfo, frames: range, shape: tuple[int, int], size: int
) -> Iterator[UInt8[Tensor, "T 3 H W"]]:
    """The frames, a few at a time: scaled where `size` is given, and cropped in the centre."""
    at_once = min(READ_FRAMES, max(1, READ_BYTES // (3 * info.height * info.width)))
    for start in range(0, len(frames), at_once):
        found = read_frames(info.path, frames[start : start + at_once])
        for piece in found.split(PIECE_FRAMES):
            if size:
                yield centre_crop(resize_short_side(piece, size), size)
            else:
                top, left = (info.height - shape[0]) // 2, (info.width - shape[1]) // 2
                yield piece[:, :, top : top + shape[0], left : left + shape[1]]


def summary(record: dict[str, Any]) -> str:
    """One line: the metrics, and which frames they are of."""
    frames, metrics = record["frames"], record["metrics"]
    last = frames["first"] + frames["used"] - 1
    left_out = ""
    if frames["left_out"]:
        stride = frames["time_stride"]
        left_out = f", the last {frames['left_out']} left out to have 1 + {stride}k"
    bound = "at least " if metrics["psnr"] >= PSNR_LIMIT else ""
    return (
        f"PSNR {bound}{metrics['psnr']:.2f} dB, SSIM {metrics['ssim']:.4f} on {frames['used']} "
        f"frames ({frames['first']} to {last}{left_out}) of {frames['height']} x {frames['width']}"
    )
