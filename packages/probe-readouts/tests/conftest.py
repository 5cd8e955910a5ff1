"""Fixtures: shape checks off, and the cross-attention block as the formulas say it."""

import math
from collections.abc import Callable, Iterator

import jaxtyping
import pytest
import torch
from torch import Tensor, nn


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """Turn off jaxtyping's checks, which speak before our errors and cannot be traced."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
    torch.compiler.reset()


@pytest.fixture
def randomize() -> Callable[[nn.Module], None]:
    """Function that adds noise to all parameters, so that no scale is 1 and no bias is 0."""

    def add_noise(module: nn.Module) -> None:
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in module.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter += 0.2 * noise.to(parameter)

    return add_noise


@pytest.fixture
def layer_norm() -> Callable[..., Tensor]:
    """Function that computes a LayerNorm without bias from its formula."""
    return _layer_norm


@pytest.fixture
def mlp() -> Callable[..., Tensor]:
    """Function that computes an MLP with the tanh form of GELU from its formula."""
    return _mlp


@pytest.fixture
def dense_block() -> Callable[..., Tensor]:
    """Function that computes a cross-attention block from its formulas, one head at a time.

    It takes the block for its weights, queries `b q p` and the tokens of one frame `b n c`, and
    normalises queries and keys each with their own scale.
    """

    def compute(block: nn.Module, x: Tensor, tokens: Tensor) -> Tensor:
        queries = _layer_norm(x, block.query_norm.weight) @ block.query.weight.T
        keys = tokens @ block.key.weight.T
        values = tokens @ block.value.weight.T
        heads = []
        for part in torch.arange(queries.shape[-1]).chunk(block.num_heads):
            query = _rms_norm(queries[..., part], block.query_scale)
            key = _rms_norm(keys[..., part], block.key_scale)
            scores = query @ key.mT / math.sqrt(len(part))
            weights = scores.exp() / scores.exp().sum(dim=-1, keepdim=True)
            heads.append(weights @ values[..., part])
        x = x + torch.cat(heads, dim=-1) @ block.output.weight.T + block.output.bias
        return x + _mlp(block.mlp, _layer_norm(x, block.mlp_norm.weight))

    return compute


def _rms_norm(x: Tensor, scale: Tensor) -> Tensor:
    return x / ((x * x).mean(dim=-1, keepdim=True) + 1e-6).sqrt() * scale


def _layer_norm(x: Tensor, scale: Tensor, eps: float = 1e-6) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / ((centred * centred).mean(dim=-1, keepdim=True) + eps).sqrt() * scale


def _mlp(module: nn.Module, x: Tensor) -> Tensor:
    hidden = x @ module.expand.weight.T + module.expand.bias
    tanh = torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3))
    return (0.5 * hidden * (1 + tanh)) @ module.project.weight.T + module.project.bias
