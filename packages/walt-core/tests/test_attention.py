"""Attention: every implementation agrees with the reference, the reference with NumPy."""

import logging
import sys
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from walt_core.ops import attention as module
from walt_core.ops.attention import (
    IMPLEMENTATIONS,
    attention,
    fastest_on_cpu,
    resolve_attention,
)

Random = Callable[..., Tensor]
OTHERS = sorted(set(IMPLEMENTATIONS) - {"math", "flash"})
# What a softmax of 7 keys and sums of 8 products lose in each type. bf16 keeps 8 bits, of logits
# and of weights.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05}


@pytest.fixture
def inputs(random: Random) -> dict[str, Tensor]:
    """Queries, keys, values, a bias for each pair, and which keys count."""
    valid = torch.tensor(
        [[True] * 7, [True, False, True, True, False, False, True], [False] * 6 + [True]]
    )
    return {
        "q": random(3, 2, 5, 8),
        "k": random(3, 2, 7, 8, seed=1),
        "v": random(3, 2, 7, 8, seed=2),
        "bias": random(2, 5, 7, seed=3),
        "valid": valid,
    }


def chosen(
    inputs: dict[str, Tensor], *, bias: bool, valid: bool, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """Copies of the inputs that are asked for, in a type; the floats collect gradients."""
    names = ["q", "k", "v"] + ["bias"] * bias + ["valid"] * valid
    return {
        name: inputs[name] if name == "valid" else inputs[name].to(dtype).clone().requires_grad_()
        for name in names
    }


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("valid", [False, True])
@pytest.mark.parametrize("scale", [None, 1.0])
def test_math_equals_numpy(
    inputs: dict[str, Tensor], bias: bool, valid: bool, scale: float | None
) -> None:
    """Softmax over the keys that count, of products over the root of the head width."""
    found = attention(**chosen(inputs, bias=bias, valid=valid), impl="math", scale=scale)
    q, k, v, biases, counts = (x.numpy() for x in inputs.values())
    for b, head, i in np.ndindex(3, 2, 5):
        kept = counts[b] if valid else np.ones(7, dtype=bool)
        logits = k[b, head, kept] @ q[b, head, i] * (scale or 8**-0.5)
        if bias:
            logits = logits + biases[head, i, kept]
        weights = np.exp(logits) / np.exp(logits).sum()
        np.testing.assert_allclose(found[b, head, i].detach().numpy(), weights @ v[b, head, kept])


@pytest.mark.parametrize("impl", OTHERS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("valid", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_implementations_equal_math(
    inputs: dict[str, Tensor],
    random: Random,
    impl: str,
    bias: bool,
    valid: bool,
    dtype: torch.dtype,
) -> None:
    """In values and gradients."""
    weight = random(3, 2, 5, 8, seed=4).to(dtype)
    results = []
    for name in ("math", impl):
        arguments = chosen(inputs, bias=bias, valid=valid, dtype=dtype)
        out = attention(**arguments, impl=name)
        leaves = [x for x in arguments.values() if x.is_floating_point()]
        results.append([out, *torch.autograd.grad((out * weight).sum(), leaves)])
    tolerance = TOLERANCES[dtype]
    for expected, ours in zip(*results, strict=True):
        assert ours.dtype == expected.dtype == dtype
        torch.testing.assert_close(ours, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("impl", ["math", *OTHERS])
def test_bfloat16_is_near_double_precision(inputs: dict[str, Tensor], impl: str) -> None:
    expected = attention(**chosen(inputs, bias=True, valid=True))
    low = attention(**chosen(inputs, bias=True, valid=True, dtype=torch.bfloat16), impl=impl)
    torch.testing.assert_close(low.double(), expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("impl", ["math", *OTHERS])
def test_keys_that_do_not_count_get_no_gradient(inputs: dict[str, Tensor], impl: str) -> None:
    arguments = chosen(inputs, bias=True, valid=True)
    attention(**arguments, impl=impl).square().sum().backward()
    for name in ("k", "v"):
        gradient = arguments[name].grad
        assert gradient is not None
        touched = gradient.abs().sum(dim=(1, 3)) > 0
        assert torch.equal(touched[:2], inputs["valid"][:2])
    # A key that is alone has weight 1 whatever it is.
    assert arguments["k"].grad is not None
    assert arguments["k"].grad[2].abs().max() < 1e-12


@pytest.mark.parametrize("impl", ["math", *OTHERS])
def test_float32_bias_with_bfloat16_queries(inputs: dict[str, Tensor], impl: str) -> None:
    """Under autocast the bias table stays float32 while queries are bfloat16."""
    q, k, v, bias, valid = inputs.values()
    expected = attention(q, k, v, bias, valid)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), bias.float(), valid, impl=impl)
    torch.testing.assert_close(out.double(), expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("valid", [False, True])
@pytest.mark.parametrize("part", [1, 2])
def test_a_part_at_a_time_is_all_at_once(
    inputs: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    bias: bool,
    valid: bool,
    part: int,
) -> None:
    """Without gradients a CPU computes few logits at a time, also where the last part is short."""
    arguments = chosen(inputs, bias=bias, valid=valid)
    expected = attention(**arguments)
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", part * 2 * 5 * 7 + 1)
    with torch.no_grad():
        torch.testing.assert_close(attention(**arguments), expected, atol=1e-12, rtol=1e-12)


# --- The flash-attn package ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bias", "valid"])
def test_flash_takes_neither_bias_nor_mask(inputs: dict[str, Tensor], name: str) -> None:
    arguments = chosen(inputs, bias=name == "bias", valid=name == "valid")
    with pytest.raises(ValueError, match="'flash' takes neither bias nor mask; use 'sdpa' or"):
        attention(**arguments, impl="flash")


def test_flash_without_its_package_says_how_to_install_it(
    inputs: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As flash-attn-4 leaves it too: a package of that name without the function.
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    with pytest.raises(ImportError, match=r"pip install 'walt-core\[flash\]'"):
        attention(**chosen(inputs, bias=False, valid=False), impl="flash")
    with pytest.raises(ImportError, match=r"pip install 'walt-core\[flash\]'"):
        resolve_attention("flash")


@pytest.mark.parametrize("scale", [None, 1.0])
def test_flash_is_called_as_its_package_wants(
    inputs: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, scale: float | None
) -> None:
    """Heads lie behind tokens there; a stand-in with its signature gives the same numbers."""

    def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float) -> Tensor:
        heads = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(*heads, scale=softmax_scale).transpose(1, 2)

    monkeypatch.setattr(module, "load_flash", lambda: flash_attn_func)
    arguments = chosen(inputs, bias=False, valid=False)
    found = attention(**arguments, impl="flash", scale=scale)
    torch.testing.assert_close(found, attention(**arguments, scale=scale))


@pytest.mark.gpu
def test_flash_equals_math_on_a_gpu(inputs: dict[str, Tensor]) -> None:
    pytest.importorskip("flash_attn")
    results = []
    for impl, dtype in (("math", torch.float32), ("flash", torch.float16)):
        q, k, v = (inputs[name].to("cuda", dtype).requires_grad_() for name in ("q", "k", "v"))
        out = attention(q, k, v, impl=impl)
        gradients = torch.autograd.grad(out.square().sum(), [q, k, v])
        results.append([x.float() for x in (out, *gradients)])
    for expected, found in zip(*results, strict=True):
        # 5e-3: half precision keeps 11 bits, of logits and of weights.
        torch.testing.assert_close(found, expected, atol=5e-3, rtol=5e-3)


# --- Names ---------------------------------------------------------------------------------------


def test_unknown_implementation_lists_the_known_ones(inputs: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="unknown attention 'fast'; known: math, sdpa, cpu, flash"):
        attention(**chosen(inputs, bias=False, valid=False), impl="fast")
    with pytest.raises(
        ValueError, match="unknown attention 'fast'; known: auto, math, sdpa, cpu, flash"
    ):
        resolve_attention("fast")


def test_only_auto_chooses_and_logs(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="walt_core"):
        assert [resolve_attention(name) for name in ("math", "sdpa")] == ["math", "sdpa"]
        assert not caplog.records
        choice = resolve_attention("auto")
    assert choice in IMPLEMENTATIONS
    assert repr(choice) in caplog.text


@pytest.mark.parametrize("units", [False, True])
def test_cpus_take_what_is_faster(
    inputs: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, units: bool
) -> None:
    """SDPA has no fast kernel for a bias with a gradient, nor for the CPU's own bf16."""
    monkeypatch.setattr("walt_core.ops.linear.cpu_has_bf16", lambda: units)
    q = inputs["q"].float()
    assert fastest_on_cpu(q) == "math"
    with torch.no_grad():
        assert fastest_on_cpu(q) == "sdpa"
        expected = "math" if units else "sdpa"
        assert fastest_on_cpu(q.bfloat16()) == expected
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert fastest_on_cpu(q) == expected


@pytest.mark.parametrize(("gpu", "choice"), [(False, "cpu"), (True, "sdpa")])
def test_auto_is_sdpa_where_there_is_a_gpu(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, choice: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert resolve_attention("auto") == choice
