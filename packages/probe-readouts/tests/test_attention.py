"""Cross-attention block against its formulas, and what it refuses."""

from collections.abc import Callable

import pytest
import torch
from einops import rearrange
from torch import Tensor

from probe_readouts.attention import CrossAttentionBlock, KeysValues, unit_rms
from probe_readouts.time import resize_time, temporal_matrix

# Double precision, and sums of some hundred terms in another order.
EXACT = {"atol": 1e-11, "rtol": 1e-10}


def block(**changes: int) -> CrossAttentionBlock:
    torch.manual_seed(0)
    sizes = {"num_heads": 2, "qkv_width": 8, "hidden_width": 12, **changes}
    return CrossAttentionBlock(10, 6, **sizes).double()


def draw(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def frame(attended_to: KeysValues, index: int) -> KeysValues:
    return KeysValues(attended_to.keys[index], attended_to.values[index])


@pytest.mark.parametrize("num_heads", [1, 2, 8])
def test_values_and_gradients_are_those_of_the_formulas(
    num_heads: int, dense_block: Callable, randomize: Callable
) -> None:
    ours = block(num_heads=num_heads)
    randomize(ours)
    x, features = draw(3, 4, 10), draw(3, 2, 2, 5, 6, seed=2)
    inputs = [x.requires_grad_(), features.requires_grad_(), *ours.parameters()]
    attended_to = ours.project(features)
    for index in range(2):
        output = ours(x, frame(attended_to, index))
        expected = dense_block(ours, x, rearrange(features[:, index], "b h w c -> b (h w) c"))
        torch.testing.assert_close(output, expected, **EXACT)
        weight = draw(3, 4, 10, seed=3)
        our_grads = torch.autograd.grad((output * weight).sum(), inputs, retain_graph=True)
        grads = torch.autograd.grad((expected * weight).sum(), inputs)
        for ours_, theirs in zip(our_grads, grads, strict=True):
            assert theirs.any()
            torch.testing.assert_close(ours_, theirs, **EXACT)


@pytest.mark.parametrize(("num_in", "num_out"), [(5, 17), (4, 2), (1, 3)])
def test_resizing_keys_and_values_is_resizing_features(
    num_in: int, num_out: int, randomize: Callable
) -> None:
    ours = block()
    randomize(ours)
    features = draw(2, num_in, 2, 3, 6)
    matrix = temporal_matrix(num_in, num_out)
    after = ours.project(features, matrix)
    before = ours.project(resize_time(features, num_out))
    assert after.keys.shape == (num_out, 2, 2, 6, 4)
    torch.testing.assert_close(after.keys, before.keys, **EXACT)
    torch.testing.assert_close(after.values, before.values, **EXACT)


def test_shared_queries_are_queries_repeated(randomize: Callable) -> None:
    ours = block()
    randomize(ours)
    shared, attended_to = draw(1, 4, 10), frame(ours.project(draw(3, 1, 2, 2, 6, seed=2)), 0)
    repeated = ours(shared.expand(3, -1, -1), attended_to)
    torch.testing.assert_close(ours(shared, attended_to), repeated, **EXACT)


def test_queries_do_not_see_each_other() -> None:
    ours = block()
    x, attended_to = draw(2, 4, 10), frame(ours.project(draw(2, 1, 2, 2, 6, seed=2)), 0)
    changed = x.clone()
    changed[:, 1] = 100.0 * draw(2, 10, seed=3)
    kept = [0, 2, 3]
    expected = ours(x, attended_to)[:, kept]
    torch.testing.assert_close(ours(changed, attended_to)[:, kept], expected, **EXACT)


def test_zero_features_have_a_finite_gradient() -> None:
    features = torch.zeros(1, 1, 2, 2, 6, dtype=torch.float64, requires_grad=True)
    ours = block()
    ours(draw(1, 3, 10), frame(ours.project(features), 0)).sum().backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ours.parameters())


def test_the_norm_of_half_precision_is_computed_in_float32() -> None:
    x = draw(4, 64).bfloat16()
    # 2^-8: one rounding to bfloat16, at the end.
    torch.testing.assert_close(unit_rms(x).double(), unit_rms(x.double()), atol=0, rtol=2**-8)
    # The square of 1000 is not a float16.
    assert torch.equal(unit_rms(torch.full((8,), 1000.0).half()), torch.ones(8).half())


@pytest.mark.parametrize("num_heads", [3, 0])
def test_heads_must_divide_the_width(num_heads: int) -> None:
    message = rf"num_heads {num_heads} must divide qkv_width 8; pick one of \[1, 2, 4, 8\]"
    with pytest.raises(ValueError, match=message):
        block(num_heads=num_heads)
