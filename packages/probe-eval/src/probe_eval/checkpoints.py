"""Checkpoints of a training run: whole or not at all, and proven whole before they are read.

A checkpoint is a folder `step-00001000`. Its `manifest.json` is written last and names every other
file with its size and SHA-256, so that a file that was cut short or changed is found.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor

from probe_eval.runs import read_json, write_json, write_tensors, write_text

logger = logging.getLogger(__name__)
KEPT_CHECKPOINTS = 2
MANIFEST_FILE = "manifest.json"
PROGRESS_FILE = "progress.json"
TENSORS_FILE = "objective.safetensors"


def save(
    accelerator: Accelerator,
    folder: Path,
    step: int,
    progress: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> None:
    """Writes a checkpoint that appears whole or not at all, and drops the oldest ones.

    Args:
        accelerator: holds models, optimisers and sources of chance.
        folder: the results folder.
        step: optimiser steps done.
        progress: plain values to keep.
        tensors: what the objective knows beyond its models, equal on all processes.
    """
    home = folder / "checkpoints"
    partial, final = home / ".partial", home / f"step-{step:08d}"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if tensors:
            write_tensors(partial / TENSORS_FILE, tensors)
        write_json(partial / PROGRESS_FILE, {"step": step, **progress})
        write_text(partial / MANIFEST_FILE, manifest_text(describe(partial)))
        shutil.rmtree(final, ignore_errors=True)  # there only when it was unreadable
        os.replace(partial, final)
        for old in sorted(home.glob("step-*"))[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def resume(accelerator: Accelerator, folder: Path) -> tuple[int, dict[str, Any], dict[str, Tensor]]:
    """Loads the newest whole checkpoint.

    Returns:
        Steps done, and the progress and tensors that `save` was given; nothing where there is no
        checkpoint.

    Raises:
        ValueError: if there are checkpoints and none of them is whole.
    """
    found = sorted((folder / "checkpoints").glob("step-*"), reverse=True)
    for checkpoint in found:
        try:
            verify(checkpoint)
            progress = read_json(checkpoint / PROGRESS_FILE)
            path = checkpoint / TENSORS_FILE
            tensors = load_file(path) if path.is_file() else {}
            accelerator.load_state(str(checkpoint))
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            logger.warning(
                "checkpoint %s is unreadable (%s); trying older", checkpoint.name, reason
            )
            continue
        return progress.pop("step"), progress, tensors
    if found:
        raise ValueError(
            f"no readable checkpoint in {folder / 'checkpoints'}; delete that folder to start again"
        )
    return 0, {}, {}


def finish(accelerator: Accelerator, folder: Path) -> None:
    """Removes the checkpoints of a training run whose result has been written."""
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def describe(checkpoint: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file but the manifest, by path; sharded weights lie in folders."""
    files = {}
    for path in sorted(path for path in checkpoint.rglob("*") if not path.is_dir()):
        name = path.relative_to(checkpoint).as_posix()
        if name != MANIFEST_FILE:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            files[name] = {"bytes": path.stat().st_size, "sha256": digest}
    return files


def manifest_text(files: Mapping[str, Any]) -> str:
    """The one spelling of a manifest: a byte more or less is damage."""
    return json.dumps(files, indent=2) + "\n"


def verify(checkpoint: Path) -> None:
    """Checks every file of a checkpoint against its manifest.

    Raises:
        ValueError: naming the first file that is missing, cut short, changed or too many.
    """
    manifest = checkpoint / MANIFEST_FILE
    if not manifest.is_file():
        raise ValueError(f"{MANIFEST_FILE} is missing")
    text = manifest.read_bytes().decode(errors="replace")
    try:
        expected = json.loads(text)
    except ValueError:
        expected = None
    if not isinstance(expected, dict) or manifest_text(expected) != text:
        raise ValueError(f"{MANIFEST_FILE} is cut short or changed")
    found = describe(checkpoint)
    for name, entry in expected.items():
        if name not in found:
            raise ValueError(f"{name} is missing")
        if found[name] != entry:
            sizes = found[name]["bytes"], entry["bytes"]
            what = "has other content" if sizes[0] == sizes[1] else "has {} of {} bytes"
            raise ValueError(f"{name} {what.format(*sizes)}")
    if unknown := found.keys() - expected.keys():
        raise ValueError(f"{min(unknown)} is not in {MANIFEST_FILE}")
