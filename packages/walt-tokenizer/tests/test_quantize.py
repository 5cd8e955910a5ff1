"""Look-up-free quantisation: codes, indices, and its two losses."""

import itertools
import math
from collections.abc import Iterator

import jaxtyping
import numpy as np
import pytest
import torch
from torch import Tensor

from walt_tokenizer.quantize import (
    codes_to_indices,
    commitment_loss,
    entropy_loss,
    indices_to_codes,
    quantize,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def _unchecked() -> Iterator[None]:
    """Without jaxtyping, which in tests would refuse a wrong dtype before the function does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_codes_are_exactly_signs(dtype: torch.dtype) -> None:
    """Also of tiny and huge latents, where `z + (sign - z)` is not exact."""
    latents = torch.cat([random(1, 18, 3, 4, 4) * scale for scale in (1e-4, 1, 1e4)]).to(dtype)
    codes = quantize(latents)
    assert codes.dtype == dtype
    assert torch.equal(codes, torch.where(latents > 0, 1.0, -1.0).to(dtype))


def test_zero_is_minus_one() -> None:
    latents = torch.tensor([0.0, -0.0, 1e-30, -1e-30])[None, :, None, None, None]
    assert quantize(latents).flatten().tolist() == [-1, -1, 1, -1]
    assert codes_to_indices(quantize(latents)).item() == 0b0100


def test_gradients_pass_unchanged() -> None:
    latents, weights = random(2, 6, 3, 4, 4).requires_grad_(), random(2, 6, 3, 4, 4, seed=1)
    (quantize(latents) * weights).sum().backward()
    assert latents.grad is not None
    assert torch.equal(latents.grad, weights)


def test_nan_is_not_hidden() -> None:
    assert quantize(torch.full((1, 2, 1, 1, 1), math.nan)).isnan().all()


@pytest.mark.parametrize("bits", [1, 2, 8, 18, 31, 32, 33, 62])
def test_round_trip_from_codes(bits: int) -> None:
    codes = quantize(random(2, bits, 3, 4, 5))
    indices = codes_to_indices(codes)
    assert indices.dtype == torch.int64
    assert indices.min() >= 0
    assert indices.max() < 2**bits
    assert torch.equal(indices_to_codes(indices, bits), codes)


@pytest.mark.parametrize("bits", [1, 4, 9])
def test_every_index_is_one_code(bits: int) -> None:
    indices = torch.arange(2**bits)[None, None, None]
    codes = indices_to_codes(indices, bits)
    assert codes.dtype == torch.float32
    assert torch.equal(codes_to_indices(codes), indices)
    assert len({tuple(code) for code in codes[0, :, 0, 0].T.tolist()}) == 2**bits


def test_channel_i_is_bit_i() -> None:
    for i in range(18):
        code = -torch.ones(1, 18, 1, 1, 1)
        code[0, i] = 1
        assert codes_to_indices(code).item() == 2**i
    assert codes_to_indices(torch.ones(1, 18, 1, 1, 1)).item() == 262_143
    assert codes_to_indices(-torch.ones(1, 18, 1, 1, 1)).item() == 0


def test_indices_keep_their_place() -> None:
    codes = quantize(random(2, 5, 3, 4, 6))
    indices = codes_to_indices(codes)
    assert indices.shape == (2, 3, 4, 6)
    bits = (codes[1, :, 2, 0, 5] > 0).tolist()
    assert indices[1, 2, 0, 5] == sum(2**i for i, bit in enumerate(bits) if bit)


@pytest.mark.parametrize("value", [0.0, 0.5, -2.0, math.nan, math.inf])
def test_codes_must_be_signs(value: float) -> None:
    codes = torch.ones(1, 3, 1, 2, 2)
    codes[0, 1, 0, 1, 1] = value
    with pytest.raises(ValueError, match=rf"codes hold {value:.6g} and 0 more .* quantize first"):
        codes_to_indices(codes)


@pytest.mark.parametrize("value", [-1, 8, 2**40])
def test_indices_must_be_in_range(value: int) -> None:
    indices = torch.zeros(1, 1, 2, 2, dtype=torch.int64)
    indices[0, 0, 1, 1] = value
    with pytest.raises(ValueError, match=rf"hold {value}, expected 0 to 7 for 3 bits"):
        indices_to_codes(indices, 3)


def test_narrow_integers_are_indices_too() -> None:
    indices = torch.tensor([[[[100, 127]]]], dtype=torch.int8)
    assert torch.equal(indices_to_codes(indices, 18), indices_to_codes(indices.long(), 18))


@pytest.mark.usefixtures("_unchecked")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64])
def test_indices_must_be_whole_numbers(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=rf"indices of dtype {dtype} must be whole numbers"):
        indices_to_codes(torch.zeros(1, 1, 2, 2, dtype=dtype), 3)


@pytest.mark.parametrize("bits", [0, 63])
def test_number_of_bits_must_fit_an_index(bits: int) -> None:
    with pytest.raises(ValueError, match=f"codes of {bits} bits .* expected 1 to 62"):
        indices_to_codes(torch.zeros(1, 1, 2, 2, dtype=torch.int64), bits)
    with pytest.raises(ValueError, match=f"codes of {bits} bits .* expected 1 to 62"):
        codes_to_indices(torch.ones(1, bits, 1, 1, 1))


def entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(np.where(p > 0, p, 1))).sum(axis=-1)


def enumerate_terms(latents: np.ndarray, temperature: float) -> tuple[float, float]:
    """Mean entropy and entropy of the mean of n x c latents, from the distances to all codes."""
    codes = np.array(list(itertools.product([-1.0, 1.0], repeat=latents.shape[1])))
    distances = ((latents[:, None] - codes[None]) ** 2).sum(axis=2)
    logits = -distances / temperature
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return entropy(p).mean(), entropy(p.mean(axis=0))


def flat(latents: Tensor) -> np.ndarray:
    return latents.movedim(1, -1).flatten(0, -2).numpy()


@pytest.mark.parametrize("temperature", [0.01, 0.3, 2.0, 20.0])
@pytest.mark.parametrize("bits", [1, 2, 5, 6])
def test_entropy_is_that_of_all_codes(bits: int, temperature: float) -> None:
    latents = random(2, bits, 2, 3, 4).double()
    each, joint = enumerate_terms(flat(latents), temperature)
    loss = entropy_loss(latents, temperature=temperature)
    np.testing.assert_allclose(loss, each - joint, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("groups", [2, 3, 6])
def test_groups_bound_the_entropy_of_the_mean(groups: int) -> None:
    """The mean entropy stays exact; the other term is the sum over groups of consecutive bits."""
    mixing = random(6, 6, seed=1).double()
    latents = torch.einsum("dc,bcthw->bdthw", mixing, random(2, 6, 3, 4, 4).double())
    size = 6 // groups
    parts = [enumerate_terms(flat(latents)[:, i : i + size], 1.0) for i in range(0, 6, size)]
    each, joint = enumerate_terms(flat(latents), 1.0)
    assert sum(part[0] for part in parts) == pytest.approx(each, rel=1e-12)
    assert sum(part[1] for part in parts) > joint + 0.01
    loss = entropy_loss(latents, temperature=1.0, groups=groups)
    np.testing.assert_allclose(loss, each - sum(part[1] for part in parts), rtol=1e-10)
    assert loss < entropy_loss(latents, temperature=1.0)


def test_entropy_of_one_position_is_zero() -> None:
    """The mean code is then the position's own, so this also is: per-position term == joint one."""
    latents = random(1, 18, 1, 1, 1)
    torch.testing.assert_close(
        entropy_loss(latents, temperature=1.0), torch.tensor(0.0), rtol=0, atol=1e-5
    )


def test_entropy_of_eighteen_bits() -> None:
    """Sure positions that all differ have the entropy of a uniform choice among them."""
    indices = (torch.arange(512) * 509).reshape(2, 4, 8, 8)
    loss = entropy_loss(indices_to_codes(indices, 18))
    torch.testing.assert_close(loss.item(), -math.log(512), rtol=1e-5, atol=0)
    same = entropy_loss(indices_to_codes(torch.full_like(indices, 4711), 18))
    torch.testing.assert_close(same.item(), 0.0, rtol=0, atol=1e-5)


def test_gradient_of_the_entropy_is_the_finite_difference() -> None:
    latents = random(1, 4, 2, 2, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: entropy_loss(z, temperature=2.0, groups=2), (latents,)
    )
    assert torch.autograd.gradcheck(lambda z: entropy_loss(z, temperature=0.5), (latents,))


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_entropy_and_its_gradient_stay_finite(scale: float) -> None:
    """Also where the probability of most codes underflows to zero."""
    latents = (random(2, 18, 2, 4, 4) * scale).requires_grad_()
    loss = entropy_loss(latents)
    loss.backward()
    assert latents.grad is not None
    assert loss.isfinite()
    assert latents.grad.isfinite().all()


def test_minimising_the_entropy_spreads_and_sharpens_the_codes() -> None:
    latents = (random(1, 6, 4, 8, 8) * 0.1 + 0.2).requires_grad_()
    before = len(set(codes_to_indices(quantize(latents.detach())).flatten().tolist()))
    optimizer = torch.optim.Adam([latents], lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        entropy_loss(latents, temperature=1.0).backward()
        optimizer.step()
    after = len(set(codes_to_indices(quantize(latents.detach())).flatten().tolist()))
    assert before < 40
    assert after == 64
    assert entropy_loss(latents, temperature=1.0) < -0.9 * math.log(64)


@pytest.mark.parametrize("autocast", [False, True])
def test_losses_are_in_float32_or_better(autocast: bool) -> None:
    latents = random(2, 6, 2, 8, 8).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        low = [entropy_loss(latents, temperature=1.0), commitment_loss(latents, quantize(latents))]
        wide = latents.double()
        double = [entropy_loss(wide, temperature=1.0), commitment_loss(wide, quantize(wide))]
    for a, b in zip(low, double, strict=True):
        assert (a.dtype, b.dtype) == (torch.float32, torch.float64)
        # bf16 anywhere inside would be 1e-3 off.
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=0)


def test_commitment_moves_latents_to_their_codes() -> None:
    latents = random(2, 6, 2, 3, 4).double().requires_grad_()
    codes = quantize(latents)
    loss = commitment_loss(latents, codes)
    z = latents.detach().numpy()
    np.testing.assert_allclose(loss.item(), ((np.abs(z) - 1) ** 2).mean())
    loss.backward()
    assert latents.grad is not None
    torch.testing.assert_close(latents.grad, 2 * (latents - codes).detach() / latents.numel())
    assert commitment_loss(codes, codes) == 0


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        entropy_loss(random(1, 4, 1, 2, 2), temperature=temperature)


@pytest.mark.parametrize(
    ("bits", "groups", "valid"),
    [(18, 4, "1, 2, 3, 6, 9, 18"), (18, 0, "1, 2, 3, 6, 9, 18"), (40, 1, "2, 4, 5, 8, 10, 20, 40")],
)
def test_groups_must_divide_the_channels_into_small_ones(
    bits: int, groups: int, valid: str
) -> None:
    with pytest.raises(ValueError, match=rf"at most 20 bits: pick one of \[{valid}\]"):
        entropy_loss(random(1, bits, 1, 2, 2), groups=groups)
