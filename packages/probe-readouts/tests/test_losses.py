"""Losses: values against NumPy, masks, gradients, and what they refuse."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from probe_readouts.losses import (
    box_track_loss,
    classification_loss,
    depth_loss,
    point_track_loss,
    pose_loss,
)

NAN = float("nan")


class Case(NamedTuple):
    """A loss with predictions, targets that have one true and one masked half, and a mask."""

    loss: Callable[..., Tensor]
    preds: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]
    valid: Tensor
    entries: str
    """What its errors call an entry."""
    lead: int = 0
    """Axes to put before the entries when they are taken out by the mask."""

    def __call__(self, *preds: Tensor, valid: Tensor | None = None) -> Tensor:
        return self.loss(*preds, *self.targets, valid)

    def only_valid(self) -> "Case":
        """Take out the entries that count."""
        keep = (None,) * self.lead
        preds, targets = (
            tuple(x[self.valid][keep] if keep else x[self.valid] for x in tensors)
            for tensors in (self.preds, self.targets)
        )
        return self._replace(preds=preds, targets=targets)

    def with_junk(self, junk: float) -> "Case":
        """Overwrite the predictions and targets that do not count."""

        def spoil(x: Tensor) -> Tensor:
            x = x.clone()
            x[~self.valid] = junk if x.is_floating_point() else x.dtype == torch.bool or -1
            return x

        preds, targets = (tuple(map(spoil, tensors)) for tensors in (self.preds, self.targets))
        return self._replace(preds=preds, targets=targets)


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def coin(*shape: int, seed: int = 0) -> Tensor:
    return uniform(*shape, seed=seed) < 0.5


def total(*args: Tensor) -> Tensor:
    return point_track_loss(*args).total


def random_boxes(*shape: int, seed: int) -> Tensor:
    first, second = uniform(*shape, 2, seed=seed), uniform(*shape, 2, seed=seed + 1)
    return torch.cat([first.minimum(second), first.maximum(second)], dim=-1)


def cases() -> dict[str, Case]:
    tracks, depths = (2, 3, 4), (2, 3, 4)
    samples = torch.tensor([True, False, True, True, False])
    labels = torch.tensor([0, 2, 1, 1, 0])
    points = (uniform(*tracks, 2, seed=2), normal(*tracks, 2, seed=3))
    point_targets = (uniform(*tracks, 2, seed=4), coin(*tracks, seed=5))
    boxes = (uniform(*tracks, 4, seed=6),)
    box_targets = (random_boxes(*tracks, seed=7),)
    mask = coin(*tracks, seed=9)
    return {
        "classification": Case(
            classification_loss, (normal(5, 3),), (labels,), samples, "5 samples"
        ),
        "pose": Case(
            pose_loss, (normal(5, 3, 4),), (normal(5, 3, 4, seed=1),), samples, "5 samples"
        ),
        "depth": Case(
            depth_loss, (normal(*depths),), (5 * uniform(*depths) + 0.1,), mask, "24 pixels"
        ),
        "points": Case(total, points, point_targets, mask, "24 points", lead=2),
        "boxes": Case(box_track_loss, boxes, box_targets, mask, "24 boxes", lead=2),
    }


CASES = cases()


def value_and_gradients(case: Case, valid: Tensor | None) -> tuple[Tensor, ...]:
    preds = [pred.clone().requires_grad_() for pred in case.preds]
    loss = case(*preds, valid=valid)
    return loss.detach(), *torch.autograd.grad(loss, preds)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("masked", [False, True])
def test_gradient_in_double_precision(name: str, masked: bool) -> None:
    case = CASES[name].with_junk(NAN) if masked else CASES[name]
    # Numeric differences need finite predictions.
    preds = [pred.clone().requires_grad_() for pred in CASES[name].preds]
    valid = case.valid if masked else None
    assert torch.autograd.gradcheck(lambda *x: case(*x, valid=valid), preds)


@pytest.mark.parametrize("name", CASES)
def test_mean_is_over_what_counts(name: str) -> None:
    case = CASES[name]
    alone = case.only_valid()
    torch.testing.assert_close(case(*case.preds, valid=case.valid), alone(*alone.preds))
    everything = torch.ones_like(case.valid)
    assert torch.equal(case(*case.preds), case(*case.preds, valid=everything))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("junk", [NAN, float("inf"), -7.0, 0.75])
def test_masked_entries_change_no_value_and_no_gradient(name: str, junk: float) -> None:
    case = CASES[name]
    clean = value_and_gradients(case, case.valid)
    spoilt = value_and_gradients(case.with_junk(junk), case.valid)
    for ours, theirs in zip(spoilt, clean, strict=True):
        assert torch.equal(ours, theirs)
    for gradient in spoilt[1:]:
        assert gradient.isfinite().all()
        assert not gradient[~case.valid].any()
        assert gradient[case.valid].any()


@pytest.mark.parametrize("name", CASES)
def test_nothing_that_counts_is_an_error(name: str) -> None:
    case = CASES[name]
    with pytest.raises(ValueError, match=f"none of the {case.entries} is valid.*skip this batch"):
        case(*case.preds, valid=torch.zeros_like(case.valid))
    empty = case._replace(targets=tuple(target[:0] for target in case.targets))
    with pytest.raises(ValueError, match="none of the 0"):
        empty(*(pred[:0] for pred in case.preds))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("unchecked_shapes")
def test_shapes_must_agree(name: str) -> None:
    case = CASES[name]
    with pytest.raises(ValueError, match=r"(must have|of) shape \(\d"):
        case(*case.preds, valid=case.valid[:1])
    for i, target in enumerate(case.targets):
        targets = (*case.targets[:i], target[:1], *case.targets[i + 1 :])
        with pytest.raises(ValueError, match=r"(must have|of) shape \(\d"):
            case._replace(targets=targets)(*case.preds)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_summed_in_float32(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    targets = [x.float() if x.is_floating_point() else x for x in case.targets]
    low = [pred.to(dtype) for pred in case.preds]
    loss = case.loss(*low, *targets)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, case.loss(*(pred.float() for pred in low), *targets))


@pytest.mark.parametrize("name", CASES)
def test_a_prediction_that_is_nan_shows(name: str) -> None:
    case = CASES[name]
    preds = [pred.clone() for pred in case.preds]
    preds[0][case.valid] = NAN
    assert case(*preds, valid=case.valid).isnan()


def test_classification_is_the_mean_negative_log_probability() -> None:
    logits, labels = normal(5, 3), torch.tensor([0, 2, 1, 1, 0])
    probabilities = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
    expected = -probabilities[torch.arange(5), labels].log().mean()
    torch.testing.assert_close(classification_loss(logits, labels), expected)


def test_uniform_logits_cost_log_of_the_classes() -> None:
    loss = classification_loss(torch.zeros(2, 8), torch.tensor([3, 7]))
    torch.testing.assert_close(loss, torch.tensor(8.0).log())


def test_large_logits_do_not_overflow() -> None:
    loss = classification_loss(torch.tensor([[1e4, -1e4]]), torch.tensor([1]))
    torch.testing.assert_close(loss, torch.tensor(2e4))


def test_labels_may_be_narrow_integers() -> None:
    logits, labels = normal(2, 3), torch.tensor([0, 2])
    narrow = classification_loss(logits, labels.to(torch.int32))
    assert torch.equal(narrow, classification_loss(logits, labels))


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_must_be_classes(label: int) -> None:
    with pytest.raises(ValueError, match=rf"labels \[{label}\] must be in \[0, 3\)"):
        classification_loss(torch.zeros(2, 3), torch.tensor([0, label]))


def test_pose_is_the_mean_squared_entry() -> None:
    pred, target = normal(5, 3, 4), normal(5, 3, 4, seed=1)
    expected = np.mean((pred.numpy() - target.numpy()) ** 2)
    assert pose_loss(pred, target).item() == pytest.approx(expected, rel=1e-12)
    target[3, 1, 2] = NAN
    with pytest.raises(ValueError, match=r"target poses of samples \[3\] are not finite"):
        pose_loss(pred, target)


@pytest.mark.parametrize("unknown", [0.0, -1.0, NAN, float("inf"), -float("inf")])
def test_unknown_depth_never_counts(unknown: float) -> None:
    pred, target = normal(2, 3, 4).requires_grad_(), 5 * uniform(2, 3, 4, seed=1) + 0.1
    target[0, 1] = target[1, 2, 3] = unknown
    known = np.isfinite(target.numpy()) & (target.numpy() > 0)
    expected = np.mean((pred.detach().numpy()[known] - target.numpy()[known]) ** 2)
    for valid in (None, torch.ones(2, 3, 4).bool()):
        loss = depth_loss(pred, target, valid)
        assert loss.item() == pytest.approx(expected, rel=1e-12)
        (gradient,) = torch.autograd.grad(loss, pred)
        assert torch.equal(gradient != 0, torch.from_numpy(known))
    with pytest.raises(ValueError, match="none of the 24 pixels is valid and of known depth"):
        depth_loss(pred, torch.full_like(pred, unknown).detach())


def test_far_depth_does_not_overflow_in_half_precision() -> None:
    far = torch.full((4,), 300.0, dtype=torch.float16)
    torch.testing.assert_close(depth_loss(0 * far, far), torch.tensor(9e4))


def test_boxes_are_the_mean_squared_coordinate() -> None:
    case = CASES["boxes"]
    (values,), (target,) = case.preds, case.targets
    counts = case.valid.numpy()
    expected = np.mean((values.numpy()[counts] - target.numpy()[counts]) ** 2)
    assert box_track_loss(values, target, case.valid).item() == pytest.approx(expected, rel=1e-12)


def test_target_boxes() -> None:
    values, target = uniform(1, 2, 3, 4), random_boxes(1, 2, 3, seed=2)
    target[0, 0, 1, 2:] = target[0, 0, 1, :2]
    # A target may shrink to a point.
    box_track_loss(values, target)
    valid = torch.ones(1, 2, 3).bool()
    valid[0, 1, 2] = False
    refused = {
        (0.5, 0.5, 0.25, 0.75): "has negative area",
        (0.5, 0.5, 0.75, 1.25): "is not in",
        (0.5, NAN, 0.75, 0.75): "is not in",
    }
    for wrong, message in refused.items():
        target[0, 1, 2] = torch.tensor(wrong, dtype=torch.float64)
        with pytest.raises(ValueError, match=rf"target\[0, 1, 2\] = .* {message}"):
            box_track_loss(values, target)
        box_track_loss(values, target, valid)
