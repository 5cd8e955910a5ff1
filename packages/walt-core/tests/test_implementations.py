"""Ways to compute the denoiser: kernels, types, checkpoints and graphs, which agree."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from walt_core import Conditions, Walt, WaltConfig

Build = Callable[..., Walt]
TIMESTEP = torch.tensor([300, 10])
# Double precision, in another order or blocked in another way.
CLOSE = {"atol": 1e-10, "rtol": 1e-10}


def gradients(
    model: Walt, latents: Tensor, conditions: Conditions, estimate: Tensor
) -> dict[str, Tensor]:
    """The output and the gradient of every parameter."""
    model.zero_grad()
    output = model(latents, TIMESTEP, conditions, estimate)
    output.square().mean().backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return {"output": output.detach(), **grads}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], **options: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **options, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("windows", ["spatiotemporal", "spatial"])
@pytest.mark.parametrize("position_bias", ["joint", "axial"])
@pytest.mark.parametrize("frames", [5, 1])
def test_implementations_agree_in_the_whole_model(
    build: Build,
    small: WaltConfig,
    latents: Tensor,
    told: tuple[Conditions, Tensor],
    windows: Any,
    position_bias: Any,
    frames: int,
) -> None:
    conditions = told[0] if frames == 5 else told[0].without_past()
    results = []
    for attention in ("math", "sdpa"):
        config = dataclasses.replace(
            small, windows=windows, position_bias=position_bias, attention=attention
        )
        inputs = latents[:, :, :frames], conditions, told[1][:, :, :frames]
        results.append(gradients(build(config).double(), *inputs))
    assert_close(results[1], results[0], **CLOSE)


@pytest.mark.gpu
def test_flash_agrees_in_the_whole_model(build: Build, small: WaltConfig, latents: Tensor) -> None:
    pytest.importorskip("flash_attn")
    outputs = []
    for attention, dtype in (("math", torch.float32), ("flash", torch.bfloat16)):
        config = dataclasses.replace(small, position_bias="axial", attention=attention)
        model = build(config).to("cuda", dtype)
        with torch.no_grad():
            outputs.append(model(latents.to("cuda", dtype), TIMESTEP.cuda()).float())
    # 8 bits in weights, sums and softmax.
    assert (outputs[1] - outputs[0]).norm() < 0.02 * outputs[0].norm()


def test_gradient_checkpointing_changes_no_number(
    build: Build, small: WaltConfig, latents: Tensor, told: tuple[Conditions, Tensor]
) -> None:
    """And computes every block once more on the way back."""
    model = build(small).double()
    calls: list[nn.Module] = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda module, _: calls.append(module))
    expected = gradients(model, latents, *told)
    assert len(calls) == 2
    model.gradient_checkpointing = True
    calls.clear()
    found = gradients(model, latents, *told)
    assert len(calls) == 4
    assert_close(found, expected, rtol=0, atol=0)
    calls.clear()
    with torch.no_grad():
        model(latents, TIMESTEP)
    assert len(calls) == 2


@pytest.mark.parametrize("attention", ["math", "sdpa"])
@pytest.mark.parametrize("way", ["weights", "autocast"])
def test_bfloat16_is_near_float32(
    build: Build,
    small: WaltConfig,
    latents: Tensor,
    told: tuple[Conditions, Tensor],
    attention: Any,
    way: str,
) -> None:
    model = build(dataclasses.replace(small, attention=attention)).float()
    inputs = latents.float(), *(told[0].to(latents.float()), told[1].float())
    expected = gradients(model, *inputs)
    if way == "weights":
        low = latents.bfloat16()
        found = gradients(model.bfloat16(), low, told[0].to(low), told[1].to(low))
    else:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = gradients(model, *inputs)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        error = (found[name].float() - value).norm() / value.norm()
        # 8 bits in weights, sums and softmax, forward and, for gradients, backward.
        assert error < (0.03 if name == "output" else 0.15), name


@pytest.mark.slow
@pytest.mark.usefixtures("_unchecked")
# Torch's own, while it traces.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_compiled_blocks_agree(build: Build, small: WaltConfig, latents: Tensor) -> None:
    """Each kind of block is one graph, without breaks, for all blocks of its kind."""
    model = build(dataclasses.replace(small, depth=4)).double()
    told = Conditions(text=torch.ones(2, 3, 8, dtype=torch.float64)), latents
    ask = {"blocks": [1], "timestep": [9, 200], "noise": latents}
    expected, features = gradients(model, latents, *told), model.features(latents, **ask)

    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    model.compile_blocks(backend=backend, fullgraph=True)
    try:
        for _ in range(2):
            assert_close(gradients(model, latents, *told), expected, **CLOSE)
            assert len(graphs) == 2
        for _ in range(2):
            torch.testing.assert_close(model.features(latents, **ask)[1], features[1], **CLOSE)
            assert len(graphs) == 3
    finally:
        torch.compiler.reset()
    assert model.state_dict().keys() == build(model.config).state_dict().keys()
