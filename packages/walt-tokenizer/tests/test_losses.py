"""Losses against NumPy, in every precision, and the gradients that they pass on."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from walt_tokenizer.discriminator import Discriminator, DiscriminatorConfig
from walt_tokenizer.losses import (
    LecamAverages,
    LossWeights,
    discriminator_loss,
    generator_loss,
    lecam_penalty,
    r1_penalty,
    reconstruction_loss,
)

CONFIG = DiscriminatorConfig(
    base_channels=4, channel_multipliers=(1, 2), num_frames=3, height=8, width=8
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build() -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(CONFIG)


def averages(real: float = 0.3, fake: float = -0.4) -> LecamAverages:
    result = LecamAverages()
    result.real.fill_(real)
    result.fake.fill_(fake)
    return result


def lecam(real: Tensor, fake: Tensor) -> Tensor:
    return lecam_penalty(real, fake, averages())


def generator(_: Tensor, fake: Tensor) -> Tensor:
    return generator_loss(fake)


LOGIT_LOSSES = [generator, discriminator_loss, lecam]


def test_reconstruction_is_the_mean_squared_error() -> None:
    pred, target = random(2, 2, 3, 5, 8, 8).unbind()
    expected = ((pred - target) ** 2).sum() / pred.numel()
    torch.testing.assert_close(reconstruction_loss(pred, target), expected)
    assert reconstruction_loss(target, target) == 0


def test_low_precision_is_summed_in_float32() -> None:
    pred = torch.full((1, 3, 17, 32, 32), 0.5, dtype=torch.bfloat16)
    loss = reconstruction_loss(pred, torch.zeros_like(pred))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, torch.tensor(0.25))


@pytest.mark.parametrize("scale", [0.1, 3.0, 50.0, 1e4])
def test_adversarial_losses_are_the_logistic_ones(scale: float) -> None:
    real, fake = random(2, 64).double().mul(scale).unbind()
    of_real = np.logaddexp(0, -real.numpy()).mean()
    of_fake = np.logaddexp(0, fake.numpy()).mean()
    # Softplus leaves out less than exp(-20) of a large logit.
    np.testing.assert_allclose(discriminator_loss(real, fake), of_real + of_fake, atol=1e-8)
    np.testing.assert_allclose(
        generator_loss(fake), np.logaddexp(0, -fake.numpy()).mean(), atol=1e-8
    )


def test_adversarial_losses_at_known_logits() -> None:
    zero = torch.zeros(3)
    torch.testing.assert_close(generator_loss(zero).item(), math.log(2))
    torch.testing.assert_close(discriminator_loss(zero, zero).item(), 2 * math.log(2))
    sure = torch.full((3,), 30.0)
    assert discriminator_loss(sure, -sure) < 1e-12 < generator_loss(-sure)


def test_lecam_is_the_published_penalty() -> None:
    real, fake = random(2, 64).double().mul(2).unbind()
    expected = 0.0
    for logit in real.tolist():
        expected += max(0.0, logit - -0.4) ** 2 / 64
    for logit in fake.tolist():
        expected += max(0.0, 0.3 - logit) ** 2 / 64
    # The averages are fp32: 0.3 and -0.4 to seven digits.
    torch.testing.assert_close(lecam(real, fake).item(), expected, rtol=1e-6, atol=0)


def test_lecam_holds_back_only_a_discriminator_that_is_right() -> None:
    wrong = lecam(torch.full((2,), -0.5), torch.full((2,), 0.4))
    assert wrong == 0
    assert lecam(torch.full((2,), 2.0), torch.full((2,), 0.4)) > 0
    assert lecam(torch.full((2,), -0.5), torch.full((2,), -2.0)) > 0


@pytest.mark.parametrize("loss", LOGIT_LOSSES)
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_large_logits_stay_finite(
    loss: Callable[[Tensor, Tensor], Tensor], sign: int, dtype: torch.dtype
) -> None:
    logits = torch.full((4,), sign * 1e4, dtype=dtype).requires_grad_()
    value = loss(logits, logits)
    value.backward()
    assert logits.grad is not None
    assert value.isfinite()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("loss", LOGIT_LOSSES)
@pytest.mark.parametrize("autocast", [False, True])
def test_losses_are_in_float32_or_better(
    loss: Callable[[Tensor, Tensor], Tensor], autocast: bool
) -> None:
    real, fake = random(2, 999).bfloat16().unbind()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        low, double = loss(real, fake), loss(real.double(), fake.double())
    assert (low.dtype, double.dtype) == (torch.float32, torch.float64)
    # bf16 anywhere inside would be 1e-3 off.
    torch.testing.assert_close(low.double(), double, rtol=2e-6, atol=0)


@pytest.mark.parametrize("loss", LOGIT_LOSSES)
def test_gradients_are_the_finite_differences(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    real, fake = random(2, 6).double().unbind()
    inputs = (real.requires_grad_(), fake.requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs, atol=1e-6)


def test_losses_pull_the_right_way() -> None:
    logits = [torch.zeros(2, requires_grad=True) for _ in range(3)]
    generator_loss(logits[0]).backward()
    discriminator_loss(logits[1], logits[2]).backward()
    signs = [logit.grad.sign().tolist() for logit in logits if logit.grad is not None]
    assert signs == [[-1, -1], [-1, -1], [1, 1]], "fake up; real up and fake down"


def test_averages_follow_the_logits() -> None:
    follow = LecamAverages()
    assert (follow.real, follow.fake) == (0, 0)
    expected = np.zeros(2)
    for step in range(5):
        real, fake = random(2, 8, seed=step).add(torch.tensor([[3.0], [-2.0]])).unbind()
        follow.update(real.bfloat16().requires_grad_(), fake)
        means = np.array([real.bfloat16().float().mean(), fake.mean()])
        expected = 0.999 * expected + 0.001 * means
    np.testing.assert_allclose([follow.real, follow.fake], expected, rtol=1e-5)
    assert follow.real.dtype == follow.fake.dtype == torch.float32
    assert not follow.real.requires_grad


def test_averages_settle_at_a_constant() -> None:
    follow = LecamAverages(decay=0.5)
    for _ in range(40):
        follow.update(torch.full((2,), 3.0), torch.full((4,), -1.0))
    torch.testing.assert_close(follow.real, torch.tensor(3.0))
    torch.testing.assert_close(follow.fake, torch.tensor(-1.0))


def test_averages_are_saved_with_a_run() -> None:
    state = averages(1.5, -2.5).state_dict()
    assert set(state) == {"real", "fake"}
    restored = LecamAverages()
    restored.load_state_dict(state)
    assert (restored.real, restored.fake) == (1.5, -2.5)
    assert not list(restored.parameters())


def test_averages_may_move_between_penalty_and_backward() -> None:
    real = torch.tensor([1.0], requires_grad=True)
    moving = averages()
    penalty = lecam_penalty(real, torch.tensor([1.0]), moving)
    moving.update(torch.tensor([100.0]), torch.tensor([100.0]))
    penalty.backward()
    assert real.grad is not None
    torch.testing.assert_close(real.grad, torch.tensor([2 * 1.4]))


@pytest.mark.parametrize("decay", [-0.1, 1.0, math.nan])
def test_decay_must_be_a_share(decay: float) -> None:
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        LecamAverages(decay)


class Quadratic(nn.Module):
    """Logit `scale * sum of squares`, whose R1 is `4 scale^2 * sum of squares`."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, video: Tensor) -> Tensor:
        return self.scale * video.square().flatten(1).sum(dim=1)


def test_r1_of_a_known_function() -> None:
    model, video = Quadratic(), random(3, 3, 2, 4, 4).double()
    penalty = r1_penalty(model, video)
    squares = video.square().sum() / 3
    torch.testing.assert_close(penalty, 4 * 0.5**2 * squares)
    (gradient,) = torch.autograd.grad(penalty, model.scale)
    torch.testing.assert_close(gradient, 8 * 0.5 * squares)


def test_r1_is_the_finite_difference_of_the_logits() -> None:
    """Along its own gradient a logit changes by the norm of it."""
    model, video = build().double(), random(1, 3, *CONFIG.grids[0]).double()
    pixels = video.clone().requires_grad_()
    (direction,) = torch.autograd.grad(model(pixels).sum(), pixels)
    direction = direction / direction.norm()
    step = 1e-6
    slope = (model(video + step * direction) - model(video - step * direction)) / (2 * step)
    torch.testing.assert_close(r1_penalty(model, video), slope[0] ** 2, rtol=1e-6, atol=0)


def test_gradient_of_r1_is_the_finite_difference_of_r1() -> None:
    model, video = build().double(), random(2, 3, *CONFIG.grids[0]).double()
    r1_penalty(model, video).backward()
    step = 1e-6
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        i = int(parameter.grad.abs().argmax())
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.flatten()[i] += sign * step
            values.append(r1_penalty(model, video).item())
            with torch.no_grad():
                parameter.flatten()[i] -= sign * step
        slope = (values[0] - values[1]) / (2 * step)
        found = parameter.grad.flatten()[i].item()
        # Differences of fp64 sums are good to about 1e-9.
        np.testing.assert_allclose(found, slope, rtol=1e-5, atol=1e-8, err_msg=name)


def test_r1_does_not_depend_on_the_batch_around_a_clip() -> None:
    model, video = build(), random(4, 3, *CONFIG.grids[0])
    one_by_one = torch.stack([r1_penalty(model, clip[None]) for clip in video])
    torch.testing.assert_close(r1_penalty(model, video), one_by_one.mean())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_r1_under_autocast_is_in_float32(dtype: torch.dtype) -> None:
    """Autocast, left on, would run the first derivative's matrix products in bf16."""
    model, video = build(), random(2, 3, *CONFIG.grids[0]).to(dtype)
    expected = r1_penalty(model, video.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        penalty = r1_penalty(model, video)
    assert penalty.dtype == torch.float32
    assert torch.equal(penalty, expected)


def test_r1_leaves_the_clips_alone() -> None:
    video = random(2, 3, *CONFIG.grids[0]).requires_grad_()
    model = build()
    r1_penalty(model, video * 2).backward()
    assert video.grad is None
    frozen = video.detach()
    r1_penalty(model, frozen)
    assert not frozen.requires_grad


@pytest.fixture
def _one_process(tmp_path: Path) -> Iterator[None]:
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


# Of the last layer's one row, which has two equally good strides.
@pytest.mark.filterwarnings("ignore:Grad strides do not match bucket view strides")
@pytest.mark.usefixtures("_one_process")
@pytest.mark.parametrize("together", [True, False])
def test_r1_in_distributed_data_parallel(together: bool) -> None:
    """With the losses in one backward, or alone, where it must reach biases too; and in no_sync."""
    real, fake = random(2, 2, 3, *CONFIG.grids[0]).unbind()

    def step(model: nn.Module) -> None:
        loss = r1_penalty(model, real)
        if together:
            loss = 10 * loss + discriminator_loss(model(real), model(fake))
        loss.backward()

    plain, wrapped = build(), DistributedDataParallel(build())
    for _ in range(2):
        step(plain)
    with wrapped.no_sync():
        step(wrapped)
    step(wrapped)
    for (name, expected), found in zip(
        plain.named_parameters(), wrapped.module.parameters(), strict=True
    ):
        assert expected.grad is not None
        torch.testing.assert_close(found.grad, expected.grad, msg=name)


def test_weights_are_those_of_the_paper() -> None:
    assert dataclasses.asdict(LossWeights()) == {
        "reconstruction": 5.0,
        "perceptual": 0.1,
        "adversarial": 0.1,
        "r1": 10.0,
        "lecam": 0.001,
        "entropy": 0.1,
        "commitment": 0.25,
    }


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(LossWeights)])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_weights_are_not_negative(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name} {value} must be finite and not negative"):
        LossWeights(**{name: value})
    assert getattr(LossWeights(**{name: 0.0}), name) == 0
