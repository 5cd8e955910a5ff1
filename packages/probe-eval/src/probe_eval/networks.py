"""Networks that users bring: none is downloaded, any callable of the right shape will do.

What is expected of one, by its use:

- perceptual loss: (reconstructed frames `n 3 H W`, original frames `n 3 H W`), both in [-1, 1],
  to a distance per frame `n` or their mean; differentiable in the first argument.
- LPIPS: the same, without gradients.
- video features: clips `b 3 T H W` in [-1, 1] to vectors `b d`. It resizes clips to what its
  network takes.

A network is code and is run: load only what you trust.
"""

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

TORCHSCRIPT = (".pt", ".ts")
NAME_FORMS = "'path/to/file.py:name' or 'package.module:name'"
FORMS = "'path/to/file.py:name', 'package.module:name' or a TorchScript file (*.pt, *.ts)"


def load_callable(spec: str, *, device: torch.device | str = "cpu") -> Callable[..., Any]:
    """A network by name.

    Args:
        spec: a function, or an instance of a module, in a Python file or an importable module; or
            a TorchScript file. A dotted name is looked up step by step.
        device: where modules are moved; a plain function looks after its own device.

    Returns:
        The callable; modules are in evaluation mode and their weights take no gradients.

    Raises:
        ValueError: if the spec has another form, the name is not there, or what it names cannot
            be called or is a class.
        FileNotFoundError: if there is no such file.
        ImportError: if there is no such module.
    """
    if spec.endswith(TORCHSCRIPT):
        return frozen(_load_torchscript(Path(spec), device), device)
    found = find_object(spec, "network", FORMS)
    if isinstance(found, type):
        raise ValueError(
            f"network {spec!r} is a class; name an instance of it, or a function that calls one"
        )
    return frozen(found, device) if isinstance(found, nn.Module) else found


def find_object(spec: str, what: str, forms: str = NAME_FORMS) -> Callable[..., Any]:
    """What a user calls `file.py:name` or `module:name`.

    A file may import what lies beside it.

    Args:
        spec: where it is, and its name; a dotted name is looked up step by step.
        what: what it is taken for, for errors.
        forms: the forms that it may have, for errors.

    Raises:
        ValueError: if the spec has another form, the name is not there, or what it names cannot
            be called.
        FileNotFoundError: if there is no such file.
        ImportError: if there is no such module.
    """
    place, separator, name = spec.rpartition(":")
    if not separator or not place or not name:
        raise ValueError(f"{what} {spec!r} has an unknown form; expected {forms}")
    found: Any = (
        _import_file(Path(place), what) if place.endswith(".py") else _import_module(place, what)
    )
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{what} {spec!r}: {place} has no {name!r}{_known(found)}")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(
            f"{what} {spec!r} is of type {type(found).__name__}, which cannot be called; name a "
            "function or a torch.nn.Module"
        )
    return found


def frozen(module: nn.Module, device: torch.device | str) -> nn.Module:
    """The module on a device, in evaluation mode, its weights without gradients."""
    for parameter in module.parameters():  # ScriptModule has no requires_grad_
        parameter.requires_grad_(False)
    return module.to(device).eval()


def _load_torchscript(path: Path, device: torch.device | str) -> nn.Module:
    _check_file(path, "network")
    try:
        with warnings.catch_warnings():
            # torch 2.13 deprecates TorchScript, which is still how networks are handed on
            # without their source.
            warnings.filterwarnings("ignore", r"`torch\.jit\.load` is", DeprecationWarning)
            return torch.jit.load(path, map_location=device)
    except RuntimeError as error:
        raise ValueError(
            f"network {path} is not a TorchScript file; write one with "
            "torch.jit.save(torch.jit.script(module), path), since weights alone are no network"
        ) from error


def _import_file(path: Path, what: str) -> ModuleType:
    _check_file(path, what)
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # last, so that it hides nothing
    spec = importlib.util.spec_from_file_location(f"_probe_eval_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for the module of a class
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(spec.name, None)
        raise
    return module


def _import_module(name: str, what: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there, and lacks something itself
        raise ImportError(
            f"there is no module {error.name!r} to take a {what} from; install it, or give the "
            "path of a file: 'path/to/file.py:name'"
        ) from error


def _check_file(path: Path, what: str) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path} to take a {what} from")


def _known(place: Any) -> str:
    names = [
        name
        for name, value in vars(place).items()
        if callable(value) and not isinstance(value, type) and not name.startswith("_")
    ]
    return f"; it has {', '.join(names[:8])}" if names else ""
