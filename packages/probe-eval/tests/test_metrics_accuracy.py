"""Accuracy against NumPy's stable sort."""

import math

import numpy as np
import pytest
import torch

from probe_eval.metrics.functional.accuracy import accuracy_metrics
from probe_eval.metrics.state import ReadoutState


def compute(pred: torch.Tensor, target: torch.Tensor) -> dict[str, float]:
    measured = accuracy_metrics(pred, target)
    return ReadoutState.of([str(i) for i in range(len(target))], measured).compute()


def reference(logits: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """A stable sort from the highest logit down keeps lower classes first among equal ones."""
    order = np.argsort(-logits, axis=1, kind="stable")
    right = order == target[:, None]
    found = {"top1": np.mean(right[:, :1].any(axis=1))}
    if logits.shape[1] >= 5:
        found["top5"] = np.mean(right[:, :5].any(axis=1))
    return found


@pytest.mark.parametrize("classes", [1, 2, 4, 5, 6, 40])
@pytest.mark.parametrize("spread", [3, 1000])
def test_it_is_numpys_with_ties_to_the_lower_class(classes: int, spread: int) -> None:
    rng = np.random.default_rng(classes)
    # Small integers tie often.
    logits = rng.integers(-spread, spread + 1, size=(200, classes)).astype(np.float64)
    target = rng.integers(0, classes, size=200)
    found = compute(torch.from_numpy(logits), torch.from_numpy(target))
    assert found == reference(logits, target)
    assert found.keys() == ({"top1", "top5"} if classes >= 5 else {"top1"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_ties_of_any_precision_go_to_the_lower_class(dtype: torch.dtype) -> None:
    """300 classes: bfloat16 cannot count so far."""
    flat = torch.zeros(300, 300, dtype=dtype)
    assert compute(flat, torch.arange(300)) == {"top1": 1 / 300, "top5": 5 / 300}


def test_infinite_logits_are_ordered() -> None:
    logits = torch.tensor([[math.inf, 0.0], [-math.inf, 0.0], [math.inf, math.inf]])
    assert compute(logits, torch.tensor([0, 1, 0]))["top1"] == 1
    assert compute(logits, torch.tensor([1, 0, 1]))["top1"] == 0


def test_every_sample_has_one_term() -> None:
    sums = accuracy_metrics(torch.eye(6), torch.tensor([0, 1, 5, 3, 4, 0])).sums
    assert sums["top1"] == ([1.0, 1.0, 0.0, 1.0, 1.0, 0.0], [1] * 6)
    # Of the five zeros in each row, the one of class 5 comes last.
    assert sums["top5"] == ([1.0, 1.0, 0.0, 1.0, 1.0, 1.0], [1] * 6)


def test_nan_names_its_sample() -> None:
    logits = torch.tensor([[0.0, 1.0], [math.nan, 1.0]])
    with pytest.raises(ValueError, match=r"sample b: logits are not a number; .*\(1 times\)"):
        accuracy_metrics(logits, torch.tensor([0, 1]), sample_ids="ab")


@pytest.mark.parametrize("wrong", [-1, 3])
def test_a_class_out_of_range_names_its_sample(wrong: int) -> None:
    with pytest.raises(ValueError, match=r"sample 1 of the batch: class is outside \[0, 3\)"):
        accuracy_metrics(torch.zeros(2, 3), torch.tensor([0, wrong]))
