"""What the tests share.

The package is imported inside the fixtures: jaxtyping checks only what is imported after it has
been set up, which is later than this file is read.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import jaxtyping
import numpy as np
import pytest
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from walt_core import Conditions, Walt, WaltConfig


@pytest.fixture(scope="session")
def small() -> "WaltConfig":
    """The smallest denoiser with all that one can have."""
    from walt_core import WaltConfig

    return WaltConfig(
        width=16,
        depth=2,
        num_heads=2,
        latent_channels=4,
        latent_size=(5, 4, 4),
        spatial_window=(1, 4, 4),
        spatiotemporal_window=(5, 2, 2),
        num_classes=3,
        text_width=8,
        self_conditioning=True,
        frame_conditioning=True,
    )


@pytest.fixture(scope="session")
def build() -> "Callable[..., Walt]":
    """Makes denoisers in which every parameter is random, also those that start at zero."""
    from walt_core import Walt

    def build(config: "WaltConfig", seed: int = 0) -> "Walt":
        generator = torch.Generator().manual_seed(seed)
        model = Walt(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
            model.latent_mean.copy_(torch.arange(float(config.latent_channels)))
            model.latent_std.copy_(1 + torch.arange(float(config.latent_channels)))
        return model.eval()

    return build


@pytest.fixture(scope="session")
def random() -> Callable[..., Tensor]:
    """Makes normal numbers in double precision."""

    def random(*shape: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return random


@pytest.fixture(scope="session")
def bias_of_pairs() -> "Callable[[nn.Module, tuple[int, int, int]], np.ndarray]":
    """Position bias (m, n, n) of a window by its definition: a loop over pairs of places."""
    from walt_core.positions import AxialPositionBias, JointPositionBias

    def resize(table: np.ndarray, axis: int, size: int) -> np.ndarray:
        """Linear interpolation of an axis to 2 size - 1 offsets, between the same ends."""
        end = table.shape[axis] - 1
        places = np.linspace(0, end, 2 * size - 1) if size > 1 else np.array([end / 2])
        rows = np.arange(table.shape[axis])
        return np.apply_along_axis(lambda row: np.interp(places, rows, row), axis, table)

    def bias_of_pairs(bias: nn.Module, window: tuple[int, int, int]) -> np.ndarray:
        if isinstance(bias, JointPositionBias):
            joint = bias.table.detach().double().numpy().reshape(*bias.spans, -1)
            for axis, size in enumerate(window):
                joint = resize(joint, axis, size)
        else:
            assert isinstance(bias, AxialPositionBias)
            t, h, w = (
                resize(table.detach().double().numpy(), 0, size)
                for table, size in zip(bias.tables, window, strict=True)
            )
            joint = t[:, None, None] + h[None, :, None] + w[None, None]
        places = list(np.ndindex(*window))
        pairs = np.empty((joint.shape[-1], len(places), len(places)))
        for i, query in enumerate(places):
            for j, key in enumerate(places):
                dt, dh, dw = (
                    q - k + size - 1 for q, k, size in zip(query, key, window, strict=True)
                )
                pairs[:, i, j] = joint[dt, dh, dw]
        return pairs

    return bias_of_pairs


@pytest.fixture
def latents(random: Callable[..., Tensor]) -> Tensor:
    """Two clips of the small denoiser's size, in double precision."""
    return random(2, 4, 5, 4, 4)


@pytest.fixture
def everything(random: Callable[..., Tensor]) -> "Conditions":
    """Conditions of every kind for two clips."""
    from walt_core import Conditions

    return Conditions(
        classes=torch.tensor([2, 0]),
        text=random(2, 4, 8, seed=1),
        text_valid=torch.tensor([[True, True, True, False], [True, False, True, False]]),
        past=random(2, 4, 5, 4, 4, seed=2),
        past_frames=torch.tensor([1, 2]),
    )


@pytest.fixture
def told(random: Callable[..., Tensor], everything: "Conditions") -> "tuple[Conditions, Tensor]":
    """Conditions of every kind, and an estimate."""
    return everything, random(2, 4, 5, 4, 4, seed=3)


@pytest.fixture
def saved(build: "Callable[..., Walt]", small: "WaltConfig") -> "Walt":
    """The denoiser that lies in `folder`."""
    return build(small)


@pytest.fixture
def folder(saved: "Walt", tmp_path: Path) -> Path:
    """A folder that `save_pretrained` wrote."""
    folder = tmp_path / "walt"
    saved.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def assert_same() -> "Callable[[Walt, Walt], None]":
    """Checks that two denoisers are equal to the bit."""

    def assert_same(model: "Walt", other: "Walt") -> None:
        assert model.config == other.config
        state, values = model.state_dict(), other.state_dict()
        assert state.keys() == values.keys()
        for name, value in state.items():
            assert value.dtype == values[name].dtype, name
            assert torch.equal(value, values[name]), name

    return assert_same


@pytest.fixture
def _no_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may unpickle, whatever the file."""

    def fail(*args: object, **options: object) -> None:
        pytest.fail("a pickle was read")

    monkeypatch.setattr(torch, "load", fail)
    monkeypatch.setattr("pickle.load", fail)
    monkeypatch.setattr("pickle.loads", fail)


@pytest.fixture
def _unchecked() -> Iterator[None]:
    """Without jaxtyping, which in tests would refuse a wrong shape before the function does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
