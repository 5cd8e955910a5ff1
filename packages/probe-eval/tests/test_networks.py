"""Networks of the user's own, by name, and what is said where there is none."""

import sys
import warnings
from pathlib import Path

import pytest
import torch

from probe_eval.networks import load_callable

SOURCE = """
from __future__ import annotations
import dataclasses
import torch

@dataclasses.dataclass
class Settings:
    scale: float = 2.0

class Distance(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(Settings().scale))
        self.drop = torch.nn.Dropout(0.9)

    def forward(self, pred, target):
        return self.scale * self.drop(pred - target).abs().mean(dim=(1, 2, 3))

network = Distance()
number = 3

def distance(pred, target):
    return (pred - target).abs().mean(dim=(1, 2, 3))
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


@pytest.fixture
def frames() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, 8, 8, generator=generator), torch.rand(2, 3, 8, 8, generator=generator)


def test_a_function_of_a_file(source: Path, frames: tuple) -> None:
    found = load_callable(f"{source}:distance")
    assert torch.equal(found(*frames), (frames[0] - frames[1]).abs().mean(dim=(1, 2, 3)))


def test_a_module_of_a_file_is_frozen_but_passes_gradients(source: Path, frames: tuple) -> None:
    network = load_callable(f"{source}:network")
    pred = frames[0].requires_grad_()
    value = network(pred, frames[1])
    # Evaluation mode: nothing is dropped.
    torch.testing.assert_close(value, 2 * (pred - frames[1]).abs().mean(dim=(1, 2, 3)))
    value.sum().backward()
    assert pred.grad is not None
    assert float(pred.grad.abs().sum()) > 0
    assert network.scale.grad is None


def test_an_importable_module_and_dotted_names(
    source: Path, frames: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = source.parent / "some_package"
    package.mkdir()
    (package / "inner.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(source.parent)
    found = load_callable("some_package.inner:distance")
    assert found(*frames).shape == (2,)
    assert load_callable("some_package.inner:network.forward")(*frames).shape == (2,)
    for name in ("some_package", "some_package.inner"):
        sys.modules.pop(name)


class Distance(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self.scale * (pred - target).abs().mean(dim=(1, 2, 3))


def test_a_torchscript_file_without_its_source(tmp_path: Path, frames: tuple) -> None:
    path = tmp_path / "distance.pt"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is", DeprecationWarning)
        torch.jit.save(torch.jit.script(Distance()), path)
    network = load_callable(str(path))
    torch.testing.assert_close(
        network(*frames), 2 * (frames[0] - frames[1]).abs().mean(dim=(1, 2, 3))
    )
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    # Only that one warning is kept quiet, and only while the file is read.
    with pytest.warns(DeprecationWarning, match=r"torch\.jit\.load"):
        torch.jit.load(path)


@pytest.mark.parametrize(
    ("spec", "kind", "message"),
    [
        ("nothing.py:f", FileNotFoundError, "no file nothing.py"),
        ("nothing.pt", FileNotFoundError, "no file nothing.pt"),
        ("{source}", ValueError, "unknown form; expected 'path/to/file.py:name', "),
        ("{source}:", ValueError, "unknown form"),
        ("distance", ValueError, "unknown form"),
        ("{source}:distanse", ValueError, "has no 'distanse'; it has network, distance"),
        ("{source}:number", ValueError, "is of type int, which cannot be called"),
        ("{source}:Distance", ValueError, "is a class; name an instance"),
        ("no_such_package.inner:f", ImportError, "no module 'no_such_package'"),
        ("probe_eval.nothing:f", ImportError, "no module 'probe_eval.nothing'"),
        ("{weights}", ValueError, "not a TorchScript file"),
        ("{text}", ValueError, "not a TorchScript file"),
    ],
)
def test_what_is_wrong_is_said(
    spec: str, kind: type, message: str, source: Path, tmp_path: Path
) -> None:
    weights, text = tmp_path / "weights.pt", tmp_path / "text.ts"
    torch.save({"scale": torch.ones(1)}, weights)
    text.write_text("a text")
    with pytest.raises(kind, match=message):
        load_callable(spec.format(source=source, weights=weights, text=text))


def test_a_module_that_lacks_something_says_what(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("import not_installed_here\n")
    with pytest.raises(ModuleNotFoundError, match="not_installed_here"):
        load_callable(f"{path}:f")
    assert "_probe_eval_mine" not in sys.modules
