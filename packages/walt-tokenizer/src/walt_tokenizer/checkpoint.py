"""Weights as one safetensors file with the configuration in its metadata.

Nothing is ever unpickled; writing is atomic.
"""

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from walt_tokenizer.config import TokenizerConfig
from walt_tokenizer.model import VideoTokenizer

FORMAT = "walt-tokenizer/1"


def save_checkpoint(model: VideoTokenizer, path: str | os.PathLike[str]) -> None:
    """Writes weights, latent statistics and configuration to one `.safetensors` file.

    The file appears whole or not at all: it is written beside its place and then renamed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    metadata = {"format": FORMAT, "config": json.dumps(model.config.to_dict())}
    try:
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, partial, metadata)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_checkpoint(path: str | os.PathLike[str]) -> VideoTokenizer:
    """Reads a tokenizer that `save_checkpoint` wrote, in evaluation mode, on the CPU.

    Raises:
        FileNotFoundError: if there is no file at `path`.
        ValueError: if the file is damaged, is not a tokenizer checkpoint, or its tensors do not
            fit its configuration; every missing, unexpected or mis-shaped tensor is named.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no tokenizer checkpoint at {path}; expected a .safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a readable safetensors file ({error}); it is damaged or cut short: "
            "copy or train it again"
        ) from error
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path} holds format {metadata.get('format')!r}, expected {FORMAT!r}: a checkpoint "
            "written by walt_tokenizer.save_checkpoint"
        )
    try:
        config = TokenizerConfig.from_dict(json.loads(metadata["config"]))
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} holds no valid tokenizer configuration: {error}") from error
    with torch.device("meta"):
        model = VideoTokenizer(config)
    problems = mismatches(
        {k: tuple(v.shape) for k, v in model.state_dict().items()},
        {k: tuple(v.shape) for k, v in state.items()},
    )
    if problems:
        raise ValueError(f"{path} does not fit its configuration {config}: {'; '.join(problems)}")
    model.load_state_dict(state, assign=True)
    return model.eval()


def mismatches(
    expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]
) -> list[str]:
    """One phrase for each tensor that is missing, unexpected or of another shape."""
    problems = [f"missing {name} {shape}" for name, shape in expected.items() if name not in found]
    problems += [
        f"unexpected {name} {shape}" for name, shape in found.items() if name not in expected
    ]
    problems += [
        f"{name} is {found[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    return problems
