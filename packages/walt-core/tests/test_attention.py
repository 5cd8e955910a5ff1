"""Attention: every implementation agrees with the reference, the reference with a loop."""

import logging
import sys
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from walt_core.ops.attention import IMPLEMENTATIONS, attention, resolve_attention


class Inputs(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor
    weight: Tensor


def inputs(dtype: torch.dtype) -> Inputs:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    q, k, v = draw(3, 2, 5, 8), draw(3, 2, 7, 8), draw(3, 2, 7, 8)
    tensors = (q, k, v, draw(2, 5, 7))
    return Inputs(*(x.requires_grad_() for x in tensors), weight=draw(3, 2, 5, 8))


def test_math_is_a_weighted_mean_of_values() -> None:
    q, k, v, bias, _ = inputs(torch.float64)
    out = attention(q, k, v, bias, impl="math")
    for b in range(3):
        for head in range(2):
            for i in range(5):
                scores = torch.stack(
                    [q[b, head, i] @ k[b, head, j] / 8**0.5 + bias[head, i, j] for j in range(7)]
                )
                weights = scores.exp() / scores.exp().sum()
                torch.testing.assert_close(out[b, head, i], weights @ v[b, head])


@pytest.mark.parametrize("impl", sorted(set(IMPLEMENTATIONS) - {"math", "flash"}))
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(
    # Double precision; float32 with sums in another order.
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5)],
    ids=str,
)
def test_implementations_equal_math(
    impl: str, with_bias: bool, dtype: torch.dtype, tolerance: float
) -> None:
    results = []
    for name in ("math", impl):
        q, k, v, bias, weight = inputs(dtype)
        out = attention(q, k, v, bias if with_bias else None, impl=name)
        leaves = [q, k, v, bias] if with_bias else [q, k, v]
        results.append([out, *torch.autograd.grad((out * weight).sum(), leaves)])
    for expected, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("impl", ["math", "sdpa"])
def test_float32_bias_with_bfloat16_queries(impl: str) -> None:
    """Under autocast the bias table stays float32 while queries are bfloat16."""
    q, k, v, bias, _ = inputs(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), bias, impl=impl)
    # 0.05: bfloat16 keeps 8 bits.
    torch.testing.assert_close(out.float(), attention(q, k, v, bias), atol=0.05, rtol=0.05)


def test_flash_takes_no_bias() -> None:
    q, k, v, bias, _ = inputs(torch.float32)
    with pytest.raises(ValueError, match="'flash' takes no additive bias; use 'sdpa' or 'math'"):
        attention(q, k, v, bias, impl="flash")


def test_flash_without_its_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # As flash-attn-4 leaves it too: a package of that name without the function.
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    q, k, v, _, _ = inputs(torch.float32)
    with pytest.raises(ImportError, match=r"pip install 'walt-core\[flash\]'"):
        attention(q, k, v, impl="flash")


@pytest.mark.gpu
def test_flash_equals_math_on_a_gpu() -> None:
    pytest.importorskip("flash_attn")
    q, k, v, _, _ = (x.cuda().half() for x in inputs(torch.float32))
    expected = attention(q.float(), k.float(), v.float())
    # 2e-3: half precision keeps 11 bits.
    found = attention(q, k, v, impl="flash").float()
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)


def test_unknown_implementation_lists_the_known_ones() -> None:
    q, k, v, _, _ = inputs(torch.float32)
    with pytest.raises(ValueError, match="unknown attention 'fast'; known: math, sdpa, flash"):
        attention(q, k, v, impl="fast")
    with pytest.raises(
        ValueError, match="unknown attention 'fast'; known: auto, math, sdpa, flash"
    ):
        resolve_attention("fast")


def test_only_auto_chooses_and_logs(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="walt_core"):
        assert resolve_attention("math") == "math"
        assert not caplog.records
        choice = resolve_attention("auto")
    assert choice in IMPLEMENTATIONS
    assert choice in caplog.text
