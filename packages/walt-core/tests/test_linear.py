"""Linear maps: bf16 on a CPU without units for it is computed in fp32."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from walt_core.ops import linear as module
from walt_core.ops.linear import Linear, linear

Random = Callable[..., Tensor]
CALLS = ["weights", "autocast"]


@pytest.fixture(params=[True, False], ids=["units", "none"])
def units(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the CPU is to have bf16 units."""
    monkeypatch.setattr(module, "cpu_has_bf16", lambda: request.param)
    return request.param


@pytest.mark.usefixtures("units")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_other_types_are_torchs_own(random: Random, dtype: torch.dtype) -> None:
    x, weight, bias = random(2, 3, 8).to(dtype), random(5, 8).to(dtype), random(5).to(dtype)
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    assert torch.equal(linear(x, weight, None), F.linear(x, weight))


@pytest.mark.parametrize("call", CALLS)
def test_bfloat16_without_units_is_rounded_once(
    random: Random, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """The result is the exact product of the operands, to half a unit of its last place."""
    monkeypatch.setattr(module, "cpu_has_bf16", lambda: False)
    x, y, bias = random(4, 3, 300), random(6, 300, seed=1), random(6, seed=2)
    low = [z.bfloat16() if call == "weights" else z.float() for z in (x, y, bias)]
    exact = [z.double() for z in low]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=call == "autocast"):
        found = linear(*low)
    assert found.dtype == torch.bfloat16
    # 1e-4: sums of 300 in fp32, about values of 1 to 40; 2**-8: half a unit of 8 bits.
    torch.testing.assert_close(found.double(), F.linear(*exact), atol=1e-4, rtol=2**-8)


@pytest.mark.parametrize("call", CALLS)
def test_both_ways_give_bfloat16_and_its_gradients(units: bool, random: Random, call: str) -> None:
    dtype = torch.bfloat16 if call == "weights" else torch.float32
    layer = Linear(16, 4).to(dtype)
    x = random(5, 16).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=call == "autocast"):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    out.square().sum().backward()
    for tensor in (x, layer.weight, layer.bias):
        assert tensor.grad is not None
        assert tensor.grad.dtype == dtype
    exact = x.detach().double()
    weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
    # 0.02: operands and results of 8 bits.
    torch.testing.assert_close(out.double(), F.linear(exact, weight, bias), atol=0.02, rtol=0.02)


def test_weights_are_those_of_torch() -> None:
    """Under the same names and drawn in the same way."""
    torch.manual_seed(0)
    ours = Linear(4, 3)
    torch.manual_seed(0)
    theirs = nn.Linear(4, 3)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert torch.equal(ours.weight, theirs.weight)
    assert isinstance(ours, nn.Linear)
