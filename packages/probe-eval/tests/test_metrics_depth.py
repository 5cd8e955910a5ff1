"""Depth metrics against loops over pixels."""

import math

import numpy as np
import pytest
import torch

from probe_eval.metrics.functional.depth import depth_metrics
from probe_eval.metrics.state import ReadoutState


def compute(*args: torch.Tensor) -> dict[str, float]:
    measured = depth_metrics(*args)
    return ReadoutState.of([str(i) for i in range(len(args[0]))], measured).compute()


def reference(pred: np.ndarray, target: np.ndarray, valid: np.ndarray) -> dict[str, float]:
    """Eigen et al. 2014, pixel by pixel."""
    error, close, count = 0.0, 0, 0
    for p, g, counts in zip(pred.flat, target.flat, valid.flat, strict=True):
        if not counts or not np.isfinite(g) or g <= 0:
            continue
        p, g = float(p), float(g)
        error += abs(p - g) / g
        close += p > 0 and max(p / g, g / p) < 1.25
        count += 1
    return {"abs_rel": error / count, "delta_1.25": close / count}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_loop_over_pixels(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    target = rng.uniform(0.2, 8.0, size=(3, 2, 6, 7))
    pred = torch.tensor(target * rng.normal(1.0, 0.3, size=target.shape)).to(dtype)
    target[rng.random(target.shape) < 0.2] = 0.0
    target[0, 0, 0] = [math.nan, math.inf, -math.inf, -1.0, 0.0, 1.0, 2.0]
    target[1] = 0.0  # a sample without depth
    valid = rng.random(target.shape) < 0.7
    found = compute(pred, torch.tensor(target), torch.tensor(valid))
    expected = reference(pred.double().numpy(), target, valid)
    # 1e-12: the reference adds in another order.
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", range(12))
def test_random_shapes_and_masks(seed: int) -> None:
    """The last two axes are pixels, or there is one of queries; masks let few or most count."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 7, size=rng.integers(2, 5)))
    target = rng.uniform(0.1, 10.0, size=shape)
    pred = target * rng.normal(1.0, rng.choice([0.1, 1.0]), size=shape)
    target[rng.random(shape) < rng.choice([0.0, 0.5])] = rng.choice([0.0, -1.0, math.nan, math.inf])
    valid = rng.random(shape) < rng.uniform(0.2, 1)
    target.flat[0], valid.flat[0] = 2.0, True  # one at least counts
    hidden = ~valid | ~np.isfinite(target) | (target <= 0)
    pred[hidden] = rng.choice([0.0, math.nan, math.inf])
    found = compute(torch.tensor(pred), torch.tensor(target), torch.tensor(valid))
    assert found == pytest.approx(reference(pred, target, valid), rel=1e-12)


def test_pixels_weigh_alike_and_images_do_not() -> None:
    target = torch.tensor([[2.0, 2.0, 2.0, 2.0], [2.0, 0.0, 0.0, 0.0]])
    pred = torch.tensor([[2.0, 2.0, 2.0, 2.0], [3.0, 9.0, 9.0, 9.0]])
    assert compute(pred, target) == {"abs_rel": 0.5 / 5, "delta_1.25": 4 / 5}


@pytest.mark.parametrize(
    ("pred", "error", "close"),
    [
        (4.0, 0.0, 1.0),
        (4.99, 0.2475, 1.0),
        (5.0, 0.25, 0.0),  # the factor itself is too much
        (3.21, 0.1975, 1.0),
        (3.2, 0.2, 0.0),
        (0.0, 1.0, 0.0),
        (-4.0, 2.0, 0.0),  # the quotient of two negative numbers would be 1
    ],
)
def test_known_values(pred: float, error: float, close: float) -> None:
    target = torch.full((2, 3), 4.0, dtype=torch.float64)
    found = compute(torch.full_like(target, pred), target)
    assert found == pytest.approx({"abs_rel": error, "delta_1.25": close}, abs=1e-12)


def test_known_depth_that_is_predicted_as_nan_is_refused_and_unknown_depth_is_not() -> None:
    pred = torch.tensor([[1.0, math.nan]])
    assert compute(pred, torch.tensor([[1.0, 0.0]]))["abs_rel"] == 0
    with pytest.raises(ValueError, match=r"sample 0 of the batch: predicted depth .*\(1 times\)"):
        compute(pred, torch.tensor([[1.0, 1.0]]))
