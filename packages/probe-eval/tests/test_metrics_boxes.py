"""Box overlap against counted cells and loops over boxes."""

import numpy as np
import pytest
import torch

from probe_eval.metrics.functional.boxes import box_iou, box_metrics
from probe_eval.metrics.state import ReadoutState


def compute(*args: torch.Tensor | None) -> float:
    measured = box_metrics(*args)
    ids = [str(i) for i in range(len(measured.sums["mean_iou"].terms))]
    return ReadoutState.of(ids, measured).compute()["mean_iou"]


def cells(box: np.ndarray) -> set[tuple[int, int]]:
    """Unit cells that a box of whole numbers covers."""
    x1, y1, x2, y2 = box
    return {(x, y) for x in range(x1, x2) for y in range(y1, y2)}


def counted_iou(pred: np.ndarray, target: np.ndarray) -> float:
    both = cells(pred) | cells(target)
    return len(cells(pred) & cells(target)) / len(both) if both else 0.0


def random_boxes(seed: int, *shape: int) -> np.ndarray:
    """Boxes on a grid of 8 x 8 cells; corners in any order, many without area."""
    return np.random.default_rng(seed).integers(0, 9, size=(*shape, 4))


def test_overlap_is_that_of_counted_cells() -> None:
    pred, target = random_boxes(0, 500), random_boxes(1, 500)
    found = box_iou(torch.tensor(pred) / 8, torch.tensor(target) / 8)
    expected = [counted_iou(p, t) for p, t in zip(pred, target, strict=True)]
    assert any(0 < value < 1 for value in expected)
    # Eighths are exact, so that only the division rounds.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)


def test_it_is_the_loop_over_boxes() -> None:
    pred, target = random_boxes(0, 3, 7, 5), random_boxes(1, 3, 7, 5)
    rng = np.random.default_rng(2)
    starts, valid = rng.integers(0, 7, size=(3, 5)), rng.random((3, 7, 5)) < 0.7
    values = [
        counted_iou(pred[v, t, q], target[v, t, q])
        for v in range(3)
        for q in range(5)
        for t in range(starts[v, q] + 1, 7)
        if valid[v, t, q]
    ]
    args = (torch.tensor(pred) / 8, torch.tensor(target) / 8)
    found = compute(*args, torch.tensor(starts), torch.tensor(valid))
    assert found == pytest.approx(np.mean(values), rel=1e-12)


@pytest.mark.parametrize("seed", range(12))
def test_random_shapes_masks_and_late_queries(seed: int) -> None:
    rng = np.random.default_rng(seed)
    videos, frames, queries = (int(size) for size in rng.integers((1, 2, 1), (4, 9, 6)))
    shape = (videos, frames, queries)
    pred, target = random_boxes(2 * seed, *shape), random_boxes(2 * seed + 1, *shape)
    starts, valid = rng.integers(0, frames, size=(videos, queries)), rng.random(shape) < 0.7
    starts[0, 0], valid[0, 1, 0] = 0, True  # one at least counts
    values = [
        counted_iou(pred[v, t, q], target[v, t, q])
        for v, t, q in np.ndindex(*shape)
        if t > starts[v, q] and valid[v, t, q]
    ]
    args = (torch.tensor(pred) / 8, torch.tensor(target) / 8)
    found = compute(*args, torch.tensor(starts), torch.tensor(valid))
    assert found == pytest.approx(np.mean(values), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(
    "box",
    [
        (0.5, 0.5, 0.5, 0.5),
        (0.2, 0.5, 0.8, 0.5),
        (0.8, 0.2, 0.2, 0.8),
        (0.8, 0.8, 0.2, 0.2),  # both sides are negative, their product is not
    ],
)
def test_boxes_without_area_overlap_nothing(box: tuple[float, ...]) -> None:
    degenerate, whole = torch.tensor(box), torch.tensor([0.0, 0.0, 1.0, 1.0])
    for pair in ((degenerate, whole), (whole, degenerate), (degenerate, degenerate)):
        assert box_iou(*pair) == 0


def test_degenerate_targets_count_as_0() -> None:
    target = torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(1, 3, 1, 1)
    pred = target.clone()
    target[0, 2, 0] = 0.5
    assert compute(pred, target) == 0.5


def test_perfect_and_wrong_boxes() -> None:
    target = torch.tensor([0.1, 0.2, 0.3, 0.7]).expand(2, 17, 3, 4)
    assert compute(target, target) == 1.0
    assert compute(target + 0.3, target) == 0.0
    assert compute(target + torch.tensor([0.1, 0.0, 0.1, 0.0]), target) == pytest.approx(1 / 3)


def test_frame_0_is_given_and_does_not_count() -> None:
    target = torch.tensor([0.1, 0.2, 0.3, 0.7]).repeat(2, 17, 3, 1)
    pred = target + 0.01
    before = compute(pred, target)
    pred[:, 0], target[:, 0] = torch.nan, torch.nan
    measured = box_metrics(pred, target)
    assert compute(pred, target) == before
    assert measured.sums["mean_iou"].terms == [16 * 3, 16 * 3]
    assert measured.variant == "masks frames up to and including the query, pooled over boxes"


def test_boxes_weigh_alike_and_videos_do_not() -> None:
    target = torch.tensor([0.1, 0.2, 0.3, 0.7]).repeat(2, 2, 4, 1)
    pred = target.clone()
    pred[1] += 0.5
    valid = torch.ones(2, 2, 4, dtype=torch.bool)
    valid[1, :, 1:] = False
    assert compute(pred, target, None, valid) == 4 / 5
