"""What the tests of the tokenizer share.

The package is imported inside the fixtures: jaxtyping checks only what is imported after it has
been set up, which is later than this file is read.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import jaxtyping
import pytest
import torch
from torch import Tensor

if TYPE_CHECKING:
    from walt_tokenizer import TokenizerConfig, VideoTokenizer


@pytest.fixture(scope="session")
def build() -> "Callable[..., VideoTokenizer]":
    """Makes tokenizers in which every parameter is random, also those that start at 0 or 1."""
    from walt_tokenizer import VideoTokenizer

    def build(config: "TokenizerConfig", seed: int = 0) -> "VideoTokenizer":
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = VideoTokenizer(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1 or not parameter.any():
                    parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        return model.eval()

    return build


@pytest.fixture(scope="session")
def pixels() -> Callable[..., Tensor]:
    """Makes random pixels in [-1, 1]."""

    def pixels(*shape: int, seed: int = 0) -> Tensor:
        return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) - 1

    return pixels


@pytest.fixture
def _unchecked() -> Iterator[None]:
    """Without jaxtyping, which in tests would refuse a wrong shape before the function does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
