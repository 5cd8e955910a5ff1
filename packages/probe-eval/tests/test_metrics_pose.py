"""Pose metrics against SciPy's rotations and loops over points."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import polar
from scipy.spatial.transform import Rotation

from probe_eval.metrics.functional.pose import end_point_error, pose_metrics, rotation_error
from probe_eval.metrics.state import ReadoutState

IDENTITY = torch.eye(3, 4).double()


def compute(pred: torch.Tensor, target: torch.Tensor) -> dict[str, float]:
    state = ReadoutState.of([str(i) for i in range(len(pred))], pose_metrics(pred, target))
    return state.compute()


def pose(rotation: Rotation, shift: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> torch.Tensor:
    return torch.tensor(np.column_stack([rotation.as_matrix(), shift]))


def yaw(degrees: float) -> Rotation:
    return Rotation.from_euler("y", degrees, degrees=True)


def reference(pred: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """One pose; the nearest rotation is the polar factor, turned about its weakest axis."""
    matrix = pred[:, :3]
    if np.linalg.det(matrix) > 0:
        nearest = polar(matrix)[0]
    else:
        left, _, right = np.linalg.svd(matrix)
        nearest = left @ np.diag([1, 1, -1]) @ right
    distances = []
    for x in (-5, 5):
        for y in (-5, 5):
            for z in (0, 10):
                p = np.array([x, y, z])
                true = target[:, :3] @ p + target[:, 3]
                distances.append(math.dist(true, nearest @ p + pred[:, 3]))
    turn = Rotation.from_matrix(nearest) * Rotation.from_matrix(target[:, :3]).inv()
    return {
        "end_point_error": float(np.mean(distances)),
        "rotation_error": math.degrees(turn.magnitude()),
        "translation_error": math.dist(pred[:, 3], target[:, 3]),
    }


def test_it_is_the_loop_over_corners() -> None:
    rng = np.random.default_rng(0)
    targets = [
        pose(Rotation.from_rotvec(rng.normal(size=3)), tuple(rng.normal(size=3))) for _ in range(12)
    ]
    target = torch.stack(targets)
    pred = target + torch.tensor(rng.normal(size=target.shape)) * 0.8  # some are reflections
    assert (pred[..., :3].det() < 0).any()
    expected = [reference(p, t) for p, t in zip(pred.numpy(), target.numpy(), strict=True)]
    means = {name: np.mean([one[name] for one in expected]) for name in expected[0]}
    # 1e-9: SciPy's rotations are quaternions, which it rounds to unit length.
    assert compute(pred, target) == pytest.approx(means, rel=1e-9)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_random_numbers_and_masks(seed: int, dtype: torch.dtype) -> None:
    """Predictions are no rotations; those of samples that do not count may be anything."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 7))
    turns, shifts = rng.normal(size=(2, count, 3)) * rng.choice([0.01, 3.0])
    target = torch.stack(
        [
            pose(Rotation.from_rotvec(turn), tuple(at))
            for turn, at in zip(turns, shifts, strict=True)
        ]
    ).to(dtype)
    pred = torch.tensor(rng.normal(size=(count, 3, 4)) * rng.choice([0.01, 1.0, 100.0])).to(dtype)
    valid = torch.tensor(rng.random(count) < 0.6)
    valid[0] = True
    expected = [
        reference(p.double().numpy(), t.double().numpy())
        for p, t in zip(pred[valid], target[valid], strict=True)
    ]
    pred[~valid] = math.nan
    ids = [str(number) for number in range(count)]
    found = ReadoutState.of(ids, pose_metrics(pred, target, valid)).compute()
    for name, value in found.items():
        # 1e-6: true rotations in float32 are rotations up to 1e-7.
        assert value == pytest.approx(np.mean([one[name] for one in expected]), rel=1e-6, abs=1e-6)


def test_a_shift_of_one_metre() -> None:
    shifted = pose(yaw(30), (0.6, 0.0, 0.8))
    found = compute(shifted[None], pose(yaw(30))[None])
    # 1e-9: the nearest rotation of a rotation is itself up to rounding.
    assert found == pytest.approx(
        {"end_point_error": 1.0, "rotation_error": 0.0, "translation_error": 1.0}, abs=1e-9
    )


@pytest.mark.parametrize("degrees", [90, -90])
def test_a_yaw_of_90_degrees(degrees: float) -> None:
    """Corners are 5 or sqrt(125) m from the y axis, and move by sqrt(2) times that."""
    found = compute(pose(yaw(degrees))[None], IDENTITY[None])
    expected = math.sqrt(2) * (5 + math.sqrt(125)) / 2
    assert expected == pytest.approx(11.44, abs=0.005)
    assert found["end_point_error"] == pytest.approx(expected, rel=1e-9)
    assert found["rotation_error"] == pytest.approx(90, rel=1e-9)
    assert found["translation_error"] == 0


@pytest.mark.parametrize("degrees", [0.0, 1e-4, 1.0, 89.0, 179.0, 179.999, 180.0])
def test_angles_are_exact_at_both_ends(degrees: float) -> None:
    first = Rotation.from_rotvec([0.3, -1.0, 2.0])
    axis = np.array([1.0, 2.0, -2.0]) / 3
    second = first * Rotation.from_rotvec(axis * degrees, degrees=True)
    # 2e-6: at 180 degrees, the root of the trace's rounding error of 1e-16 in radians.
    assert rotation_error(pose(first), pose(second)).item() == pytest.approx(degrees, abs=2e-6)


def test_predictions_become_rotations_first() -> None:
    turned = pose(yaw(20), (1.0, 2.0, 3.0))
    scaled = turned * torch.tensor([0.1, 0.1, 0.1, 1.0])
    assert compute(scaled[None], turned[None])["end_point_error"] == pytest.approx(0, abs=1e-12)
    assert end_point_error(scaled, turned) > 1


def test_perfect_and_degenerate_predictions() -> None:
    target = pose(yaw(40), (1.0, 0.0, 0.0))[None]
    perfect = compute(target, target)
    assert all(value == pytest.approx(0, abs=1e-9) for value in perfect.values())
    nothing = compute(torch.zeros(1, 3, 4).double(), target)
    assert nothing["translation_error"] == 1.0
    assert 0 < nothing["end_point_error"] < math.inf
    # Nothing is further than the other side of the axis that a half turn is about.
    opposite = compute(pose(yaw(220))[None], target)
    assert opposite["rotation_error"] == pytest.approx(180, abs=2e-6)
