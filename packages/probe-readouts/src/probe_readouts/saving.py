"""A trained readout as one file that says which features it reads.

The file is safetensors: the weights, and in its metadata, under `readout`, one JSON text with the
format, the class, the keyword arguments that rebuild it and the identity of the backbone. Nothing
is ever unpickled, and a file appears whole or not at all.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from probe_readouts.readout import Readout
from probe_readouts.registry import READOUTS
from probe_readouts.time import TIME_METHODS

FORMAT = "probe-readouts/1"
HEADER = "readout"
"""Key of the JSON text in the metadata of the file."""

_CLASSES: dict[str, type[Readout]] = {
    spec.readout.__name__: spec.readout for spec in READOUTS.values()
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BackboneIdentity:
    """Which features a readout was trained on.

    Raises:
        ValueError: an empty name, a negative number or an unknown time method.
    """

    name: str
    """Name of the backbone."""
    weights: str
    """Hash of its weights, see `weights_hash`. An empty one is unknown, which is equal to none:
    it cannot vouch that two backbones are the same."""
    block: int
    """Block whose residual stream is read; 0 is the patch embedding."""
    timestep: int
    """Noise level; 0 is clean, also for backbones that know no noise."""
    time_method: str
    """How features are resized in time: "paper", "causal" or "nearest"."""

    def __post_init__(self) -> None:
        for key in ("name", "weights", "time_method"):
            if not isinstance(getattr(self, key), str):
                raise ValueError(f"{key} {getattr(self, key)!r} must be text")
        if not self.name:
            raise ValueError("name is empty; say which backbone the features come from")
        for key in ("block", "timestep"):
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ValueError(f"{key} {value!r} must be a whole number that is not negative")
        if self.time_method not in TIME_METHODS:
            raise ValueError(
                f"unknown time_method {self.time_method!r}; choose one of {TIME_METHODS}"
            )


def weights_hash(*models: nn.Module | Mapping[str, Tensor]) -> str:
    """Compute a hash over the names, types, shapes and values of all tensors.

    Equal weights have equal hashes on every machine and device; one bit in one of them changes it.

    Args:
        models: modules, or their state dicts, of everything that the features pass through, in
            order; for instance a tokenizer and a denoiser.

    Returns:
        The first 16 hexadecimal digits of a SHA-256.
    """
    digest = hashlib.sha256()
    for model in models:
        state = model.state_dict() if isinstance(model, nn.Module) else model
        for name, tensor in sorted(state.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            values = tensor.detach().cpu().contiguous().flatten()
            digest.update(values.view(torch.uint8).numpy().tobytes())  # NumPy has no bfloat16
    return digest.hexdigest()[:16]


def save_readout(
    readout: Readout,
    path: str | os.PathLike[str],
    backbone: BackboneIdentity,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a readout, what rebuilds it and what it reads to one safetensors file.

    Args:
        readout: one of the classes of this package.
        path: the file; it is replaced where it exists, and its folder is made where it lacks.
        backbone: the features that the readout was trained on.
        metadata: anything else worth keeping, of plain JSON values, such as the data set and the
            score; loading ignores it.

    Raises:
        ValueError: if the readout is of another class, resizes features in another way than
            `backbone` says, or has weights that are not finite, or if the metadata is not JSON.
    """
    name = type(readout).__name__
    if _CLASSES.get(name) is not type(readout):
        raise ValueError(
            f"readout is a {name}, which no file can rebuild; save one of {', '.join(_CLASSES)} "
            "itself, not what wraps it"
        )
    if readout.time_method != backbone.time_method:
        raise ValueError(
            f"readout has time_method {readout.time_method!r} but the backbone's features are "
            f"resized by {backbone.time_method!r}; build the readout with the method that it is "
            "trained with"
        )
    state = {key: value.detach().contiguous() for key, value in readout.state_dict().items()}
    _check_finite(state, "the readout")
    header = {
        "format": FORMAT,
        "class": name,
        "config": readout.config,
        "backbone": dataclasses.asdict(backbone),
        "metadata": dict(metadata or {}),
    }
    try:
        text = json.dumps(header, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata must hold plain JSON values: {error}") from error
    with _replacing(Path(path)) as partial:
        # One entry: several are written in any order, and equal readouts would not be equal files.
        save_file(state, partial, {HEADER: text})


def load_readout(
    path: str | os.PathLike[str],
    backbone: BackboneIdentity,
    *,
    allow_other_backbone: bool = False,
    device: torch.device | str = "cpu",
) -> Readout:
    """Read a readout that `save_readout` wrote, in evaluation mode, for the same features.

    Features of another backbone, other weights, another block or noise level have the same shape
    and give worthless outputs without a word, so the reader has to say which ones it will pass.
    Weights whose hash is unknown, here or in the file, count as others.

    Args:
        path: the file.
        backbone: the features that the readout will be given.
        allow_other_backbone: load it also where they are not those it was trained on.
        device: where the weights go.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, is not a readout's, was trained on other features
            (every difference is named), or its tensors do not fit its configuration.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; expected one that save_readout wrote")
    header, state = _read(path)
    try:
        with torch.device("meta"):
            readout = _CLASSES[header["class"]](**header["config"])
        trained_on = BackboneIdentity(**header["backbone"])
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path} holds no valid configuration of {header['class']}: {error}; save it again"
        ) from error
    differences = _differences(trained_on, backbone)
    if differences and not allow_other_backbone:
        raise ValueError(
            f"{path} was trained on other features: {'; '.join(differences)}; pass the features "
            "it was trained on, or allow_other_backbone=True"
        )
    if problems := _mismatches(readout.state_dict(), state):
        raise ValueError(
            f"{path} does not fit its own configuration {header['config']}: {'; '.join(problems)}; "
            "it was changed after it was saved: copy or train it again"
        )
    _check_finite(state, str(path))
    readout.load_state_dict(state, assign=True)
    return readout.eval().to(device)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a file; raises ValueError unless it is a readout's."""
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            text = (file.metadata() or {}).get(HEADER, "null")
            state = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a readable safetensors file ({error}); it is damaged, cut short or of "
            "another kind: copy or train it again"
        ) from error
    try:
        header = json.loads(text)
    except ValueError as error:
        raise ValueError(
            f"the header of {path} is not valid JSON ({error}); it is damaged: copy it again"
        ) from error
    found = header.get("format") if isinstance(header, dict) else None
    if found != FORMAT:
        raise ValueError(
            f"{path} is no readout of format {FORMAT!r} but of {found!r}; expected a file that "
            "save_readout of this version wrote"
        )
    for key, kind in {"class": str, "config": dict, "backbone": dict}.items():
        if not isinstance(header.get(key), kind):
            raise ValueError(f"the header of {path} has no {key}; it is damaged: copy it again")
    if header["class"] not in _CLASSES:
        raise ValueError(
            f"{path} holds a readout of unknown class {header['class']!r}; known: "
            f"{', '.join(_CLASSES)}"
        )
    return header, state


def _differences(trained_on: BackboneIdentity, given: BackboneIdentity) -> list[str]:
    """List one phrase for each field in which two identities differ or may differ."""
    phrases = []
    for name, old in dataclasses.asdict(trained_on).items():
        new = getattr(given, name)
        if old != new or (name == "weights" and not old):
            old, new = (repr(value) if value != "" else "unknown" for value in (old, new))
            phrases.append(f"{name} is {old} in the file and {new} here")
    return phrases


def _mismatches(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """List one phrase for each tensor that is missing, left over, or of another shape or kind."""
    problems = [f"missing {name}" for name in expected if name not in found]
    problems += [f"left over {name}" for name in found if name not in expected]
    for name in [name for name in expected if name in found]:
        ours, theirs = tuple(expected[name].shape), tuple(found[name].shape)
        if ours != theirs:
            problems.append(f"{name} is {theirs}, expected {ours}")
        elif not found[name].is_floating_point():
            problems.append(f"{name} is {found[name].dtype}, expected floating point")
    return problems


def _check_finite(state: Mapping[str, Tensor], owner: str) -> None:
    """Raise ValueError if a tensor holds NaN or infinity."""
    if bad := [name for name, value in state.items() if not bool(value.isfinite().all())]:
        raise ValueError(
            f"{owner} holds NaN or infinite numbers in {', '.join(bad)}; its training went wrong: "
            "go back to an earlier checkpoint"
        )


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to, which takes its place when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
