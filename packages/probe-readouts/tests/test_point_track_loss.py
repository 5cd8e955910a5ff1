"""Loss of point tracks: values against NumPy, which points count, gradients, and refusals."""

import numpy as np
import pytest
import torch
from torch import Tensor

from probe_readouts.losses import PointTrackLoss, point_track_loss

NAN = float("nan")


def normal(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def uniform(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def coin(*shape: int, seed: int) -> Tensor:
    return uniform(*shape, seed=seed) < 0.5


def random_points(*shape: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Predictions and targets: some near, some far, and every fourth has left the scene."""
    values = uniform(*shape, 2, seed=1)
    offset = normal(*shape, 2, seed=2) * torch.where(coin(*shape, 1, seed=3), 0.01, 0.2)
    target = (values + offset).clamp(0.0, 1.0)
    gone = uniform(*shape, seed=4) < 0.25
    target[gone] = torch.tensor([1.5, 0.5], dtype=torch.float64)
    return values, normal(*shape, 2, seed=5), target, coin(*shape, seed=6) & ~gone


def numpy_point_track_loss(
    values: np.ndarray,
    logits: np.ndarray,
    target: np.ndarray,
    visible: np.ndarray,
    valid: np.ndarray,
    size: float = 256.0,
    delta: float = 4.0,
    threshold: float = 6.0,
) -> tuple[float, float, float]:
    """One point at a time."""
    terms: tuple[list[float], ...] = ([], [], [])

    def cross_entropy(logit: float, truth: bool) -> float:
        return float(np.log1p(np.exp(-logit if truth else logit)))

    for i in np.ndindex(valid.shape):
        if not valid[i]:
            continue
        terms[1].append(cross_entropy(logits[i][0], visible[i]))
        if not all(0 <= u <= 1 for u in target[i]):
            continue
        d = size * float(np.hypot(*(values[i] - target[i])))
        terms[0].append(d * d / 2 if d < delta else delta * (d - delta / 2))
        terms[2].append(cross_entropy(logits[i][1], d < threshold))
    return tuple(float(np.mean(term)) for term in terms)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("constants", [{}, {"size": 64.0, "delta": 2.0, "threshold": 1.5}])
def test_points_against_one_point_at_a_time(masked: bool, constants: dict[str, float]) -> None:
    values, logits, target, visible = random_points(3, 5, 6)
    valid = coin(3, 5, 6, seed=20) if masked else torch.ones(3, 5, 6).bool()
    loss = point_track_loss(values, logits, target, visible, valid, **constants)
    arrays = (x.numpy() for x in (values, logits, target, visible, valid))
    expected = numpy_point_track_loss(*arrays, **constants)
    assert [term.item() for term in loss[1:]] == pytest.approx(expected, rel=1e-12)
    position, visibility, certainty = expected
    assert loss.total.item() == pytest.approx(0.05 * position + visibility + certainty, rel=1e-12)


def one_point(pixels: float, certainty: float = 0.0) -> PointTrackLoss:
    """Loss of a prediction that is so many pixels to the right of its target."""
    target = torch.full((1, 1, 1, 2), 0.25, dtype=torch.float64)
    values = target + torch.tensor([pixels / 256, 0.0], dtype=torch.float64)
    logits = torch.tensor([0.0, certainty], dtype=torch.float64)[None, None, None]
    return point_track_loss(values, logits, target, torch.ones(1, 1, 1).bool())


@pytest.mark.parametrize(("pixels", "expected"), [(0, 0), (3, 4.5), (4, 8), (5, 12), (10, 32)])
def test_position_is_quadratic_up_to_4_pixels_and_then_linear(
    pixels: float, expected: float
) -> None:
    assert one_point(pixels).position.item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("pixels", "certain"), [(0, True), (5.9, True), (6.1, False)])
def test_certain_means_less_than_6_pixels_off(pixels: float, certain: bool) -> None:
    loss = one_point(pixels, certainty=20.0).certainty.item()
    assert loss == pytest.approx(0.0 if certain else 20.0, abs=1e-6)


def test_weights_of_the_terms() -> None:
    args = random_points(2, 3, 4)
    loss = point_track_loss(*args, position_weight=2.0, visibility_weight=3.0, certainty_weight=0.0)
    torch.testing.assert_close(loss.total, 2.0 * loss.position + 3.0 * loss.visibility)


def test_certainty_moves_no_position() -> None:
    values, logits, *targets = random_points(2, 3, 4)
    loss = point_track_loss(values.requires_grad_(), logits.requires_grad_(), *targets)
    gradients = torch.autograd.grad(loss.certainty, (values, logits), allow_unused=True)
    assert gradients[0] is None
    assert gradients[1][..., 1].any()
    assert not gradients[1][..., 0].any()


@pytest.mark.parametrize("place", [NAN, float("inf"), 1.5, -0.25])
def test_points_that_left_the_scene_have_a_visibility_only(place: float) -> None:
    values, logits, target, visible = random_points(2, 3, 4)
    gone = torch.zeros(2, 3, 4).bool()
    gone[0, 1, 2] = gone[1, 0, 0] = True
    target[gone] = torch.tensor([place, 0.5], dtype=torch.float64)
    visible &= ~gone
    loss = point_track_loss(values.requires_grad_(), logits.requires_grad_(), target, visible)
    for_values, for_logits = torch.autograd.grad(loss.total, (values, logits))
    assert for_values.isfinite().all()
    assert not for_values[gone].any()
    assert not for_logits[gone][:, 1].any()
    assert for_logits[gone][:, 0].all()


def test_all_points_may_have_left_the_scene() -> None:
    values, logits, target, visible = random_points(1, 2, 3)
    values, logits = values.requires_grad_(), logits.requires_grad_()
    nowhere, hidden = torch.full_like(target, NAN), torch.zeros_like(visible)
    loss = point_track_loss(values, logits, nowhere, hidden)
    assert loss.position == 0
    assert loss.certainty == 0
    assert loss.total == loss.visibility
    for_values, for_logits = torch.autograd.grad(loss.total, (values, logits))
    assert torch.equal(for_values, torch.zeros_like(values))
    assert not for_logits[..., 1].any()


def test_hidden_points_in_the_scene_have_a_position() -> None:
    values, logits, _, _ = random_points(1, 2, 3)
    hidden = torch.zeros(1, 2, 3).bool()
    target = torch.full_like(values, 0.5)
    ours = point_track_loss(values, logits, target, hidden)
    assert torch.equal(ours.position, point_track_loss(values, logits, target, ~hidden).position)
    assert ours.position > 0


@pytest.mark.parametrize("exact", [False, True])
def test_gradient_in_double_precision(exact: bool) -> None:
    values, logits, target, visible = random_points(2, 2, 3)
    if exact:
        # Distance 0, where a square root has no derivative but its square has.
        target = torch.where(target > 1, target, values)
    preds = (values.clone().requires_grad_(), logits.requires_grad_())
    assert torch.autograd.gradcheck(lambda *x: point_track_loss(*x, target, visible).total, preds)
    (gradient,) = torch.autograd.grad(point_track_loss(*preds, target, visible).total, preds[0])
    assert gradient.any() == (not exact)


@pytest.mark.parametrize("place", [NAN, 1.5])
def test_a_visible_point_cannot_be_outside_the_image(place: float) -> None:
    values, logits, target, visible = random_points(2, 3, 4)
    target[1, 2, 3] = place
    visible[1, 2, 3] = True
    with pytest.raises(ValueError, match=r"visible target\[1, 2, 3\] = .* is not in \[0, 1\]"):
        point_track_loss(values, logits, target, visible)
    valid = torch.ones(2, 3, 4).bool()
    valid[1, 2, 3] = False
    point_track_loss(values, logits, target, visible, valid)


@pytest.mark.parametrize("value", [0.0, -1.0, NAN, float("inf")])
@pytest.mark.parametrize("name", ["size", "delta", "threshold"])
def test_constants_must_be_positive(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} {value} must be a number of pixels above 0"):
        point_track_loss(*random_points(2, 3, 4), **{name: value})


@pytest.mark.parametrize("name", ["position_weight", "visibility_weight", "certainty_weight"])
def test_weights_must_not_be_negative(name: str) -> None:
    with pytest.raises(ValueError, match="must be finite and at least 0"):
        point_track_loss(*random_points(2, 3, 4), **{name: -1.0})
