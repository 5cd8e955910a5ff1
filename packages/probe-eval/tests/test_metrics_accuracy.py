"""Top-1 accuracy against NumPy."""

import numpy as np
import pytest
import torch

from probe_eval.metrics.functional.accuracy import top1


@pytest.mark.parametrize("classes", [1, 2, 7])
def test_top1_is_numpys_with_ties_to_the_lower_class(classes: int) -> None:
    rng = np.random.default_rng(classes)
    # Small integers tie often.
    logits = rng.integers(-2, 3, size=(200, classes)).astype(np.float32)
    target = rng.integers(0, classes, size=200)
    expected = np.argmax(logits, axis=1) == target
    found = top1(torch.from_numpy(logits), torch.from_numpy(target))
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.numpy(), expected.astype(np.float32))


def test_infinite_logits_are_ordered() -> None:
    logits = torch.tensor([[float("inf"), 0.0], [float("-inf"), 0.0]])
    assert top1(logits, torch.tensor([0, 1])).tolist() == [1, 1]


def test_nan_is_an_error() -> None:
    with pytest.raises(ValueError, match="NaN"):
        top1(torch.tensor([[0.0, 1.0], [float("nan"), 1.0]]), torch.tensor([0, 1]))


@pytest.mark.parametrize("wrong", [-1, 3])
def test_a_class_out_of_range_is_an_error(wrong: int) -> None:
    with pytest.raises(ValueError, match=r"outside \[0, 3\)"):
        top1(torch.zeros(2, 3), torch.tensor([0, wrong]))
