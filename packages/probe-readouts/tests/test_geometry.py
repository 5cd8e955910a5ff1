"""Rotations, poses, points and boxes: values, gradients, degenerate matrices, and refusals."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from probe_readouts.geometry import (
    check_boxes,
    check_points,
    nearest_rigid,
    procrustes_so3,
    relative_pose,
)

# Signed singular values, the smallest negative for a reflection: one nearest rotation each.
UNIQUE = {
    "distinct": (3.0, 2.0, 1.0),
    "largest two equal": (2.0, 2.0, 1.0),
    "smallest two equal": (3.0, 1.0, 1.0),
    "all equal": (1.0, 1.0, 1.0),
    "rank 2": (2.0, 1.0, 0.0),
    "reflection": (3.0, 2.0, -1.0),
    "reflection, largest two equal": (2.0, 2.0, -1.0),
}
# Many nearest rotations, so that the map has no derivative.
MANY = {
    "zero": (0.0, 0.0, 0.0),
    "rank 1": (2.0, 0.0, 0.0),
    "reflection, smallest two equal": (2.0, 1.0, -1.0),
    "reflection, all equal": (1.0, 1.0, -1.0),
}


def random_matrices(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def numpy_rotation(matrix: np.ndarray) -> np.ndarray:
    u, _, vt = np.linalg.svd(matrix)
    u[..., -1] *= np.linalg.det(u @ vt)[..., None]
    return u @ vt


def random_rotations(*shape: int, seed: int) -> Tensor:
    return torch.from_numpy(numpy_rotation(random_matrices(*shape, 3, 3, seed=seed).numpy()))


def with_singular_values(values: tuple[float, ...]) -> Tensor:
    u, v = random_rotations(2, seed=1)
    return u @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ v


def random_poses(*shape: int, seed: int) -> Tensor:
    translation = random_matrices(*shape, 3, 1, seed=seed + 100)
    return torch.cat([random_rotations(*shape, seed=seed), translation], dim=-1)


def assert_rotation(matrix: Tensor, atol: float = 1e-12) -> None:
    matrix = matrix.double()
    eye = torch.eye(3, dtype=torch.float64).expand_as(matrix)
    torch.testing.assert_close(matrix @ matrix.mT, eye, atol=atol, rtol=0)
    ones = torch.ones(matrix.shape[:-2], dtype=torch.float64)
    torch.testing.assert_close(torch.linalg.det(matrix), ones, atol=atol, rtol=0)


@pytest.mark.parametrize("shape", [(), (7,), (2, 3), (0,)])
def test_nearest_rotation_equals_that_of_a_numpy_svd(shape: tuple[int, ...]) -> None:
    matrix = random_matrices(*shape, 3, 3)
    rotation = procrustes_so3(matrix)
    expected = torch.from_numpy(numpy_rotation(matrix.numpy()))
    # 1e-10: double precision, with a margin for singular values that nearly cancel.
    torch.testing.assert_close(rotation, expected, atol=1e-10, rtol=0)
    assert_rotation(rotation)


def test_no_other_rotation_is_nearer() -> None:
    matrix = random_matrices(4, 1, 3, 3)
    others = random_rotations(1, 2000, seed=3)
    ours = (procrustes_so3(matrix) - matrix).square().sum(dim=(-1, -2))
    theirs = (others - matrix).square().sum(dim=(-1, -2))
    assert (ours <= theirs).all()


def test_rotations_stay_and_scale_does_not_matter() -> None:
    rotation = random_rotations(5, seed=2)
    for scale in (1e-12, 1.0, 1e12):
        torch.testing.assert_close(procrustes_so3(scale * rotation), rotation, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", UNIQUE)
def test_derivative_where_the_nearest_rotation_is_unique(name: str) -> None:
    matrix = with_singular_values(UNIQUE[name])
    expected = torch.from_numpy(numpy_rotation(matrix.numpy()))
    torch.testing.assert_close(procrustes_so3(matrix), expected, atol=1e-10, rtol=0)
    assert torch.autograd.gradcheck(procrustes_so3, (matrix.requires_grad_(),))


def test_derivative_of_random_matrices() -> None:
    matrix = random_matrices(4, 3, 3, seed=5).requires_grad_()
    assert torch.autograd.gradcheck(procrustes_so3, (matrix,))
    # The derivative is zero along the matrix itself: scale does not matter.
    weight = random_matrices(4, 3, 3, seed=6)
    (gradient,) = torch.autograd.grad((procrustes_so3(matrix) * weight).sum(), matrix)
    torch.testing.assert_close(
        (gradient * matrix).sum(dim=(-1, -2)), torch.zeros(4).double(), atol=1e-9, rtol=0
    )


@pytest.mark.parametrize("name", MANY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rotated", [False, True])
def test_ambiguous_matrices_give_one_of_the_nearest_rotations(
    name: str, dtype: torch.dtype, rotated: bool
) -> None:
    values = torch.tensor(MANY[name], dtype=torch.float64)
    matrix = with_singular_values(MANY[name]) if rotated else torch.diag(values)
    matrix = matrix.to(dtype).requires_grad_()
    rotation = procrustes_so3(matrix)
    # Units in the last place of either precision.
    atol = 1e-12 if dtype == torch.float64 else 1e-6
    assert_rotation(rotation.detach(), atol)
    # The overlap that all of the nearest rotations reach.
    overlap = (rotation.detach() * matrix.detach()).sum().double()
    torch.testing.assert_close(overlap, values.sum(), atol=4 * atol, rtol=0)
    (rotation * random_matrices(3, 3, seed=6).to(dtype)).sum().backward()
    assert matrix.grad is not None
    assert matrix.grad.isfinite().all()
    # Damping by 1e-5 bounds the factor to 5e4.
    assert matrix.grad.abs().amax() < 1e6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_is_rounded_once(dtype: torch.dtype) -> None:
    matrix = random_matrices(6, 3, 3).to(dtype)
    rotation = procrustes_so3(matrix)
    assert rotation.dtype == dtype
    assert torch.equal(rotation, procrustes_so3(matrix.float()).to(dtype))
    # 1e-5: float32, with a margin for singular values that nearly cancel.
    exact = torch.from_numpy(numpy_rotation(matrix.double().numpy()))
    torch.testing.assert_close(procrustes_so3(matrix.float()).double(), exact, atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_matrices_that_are_not_finite(value: float) -> None:
    matrix = random_matrices(2, 4, 3, 3)
    matrix[1, 2, 0, 1] = matrix[1, 3, 2, 2] = value
    with pytest.raises(ValueError, match=rf"matrix\[1, 2, 0, 1\] = \({value}\) is not finite"):
        procrustes_so3(matrix)


def test_nearest_rigid_keeps_the_translation() -> None:
    pose = random_matrices(2, 5, 3, 4)
    rigid = nearest_rigid(pose)
    assert torch.equal(rigid[..., 3], pose[..., 3])
    assert torch.equal(rigid[..., :3], procrustes_so3(pose[..., :3]))
    exact = random_poses(4, seed=7)
    torch.testing.assert_close(nearest_rigid(exact), exact, atol=1e-12, rtol=0)
    pose[1, 0, 2, 3] = float("nan")
    with pytest.raises(ValueError, match=r"pose\[1, 0, 2, 3\] = \(nan\) is not finite"):
        nearest_rigid(pose)


def numpy_relative(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    bottom = np.broadcast_to([0.0, 0.0, 0.0, 1.0], (*first.shape[:-2], 1, 4))
    square = [np.concatenate([pose, bottom], axis=-2) for pose in (first, last)]
    return (square[1] @ np.linalg.inv(square[0]))[..., :3, :]


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
@pytest.mark.parametrize("rigid", [True, False])
def test_relative_pose_is_last_after_the_inverse_of_first(
    shape: tuple[int, ...], rigid: bool
) -> None:
    first, last = (
        random_poses(*shape, seed=seed) if rigid else random_matrices(*shape, 3, 4, seed=seed)
        for seed in (1, 2)
    )
    relative = relative_pose(first, last)
    expected = torch.from_numpy(numpy_relative(first.numpy(), last.numpy()))
    torch.testing.assert_close(relative, expected, atol=1e-10, rtol=1e-10)
    # It takes a point in the axes of the first camera to those of the last.
    point = random_matrices(3, 1, seed=3)
    seen = [pose[..., :3] @ point + pose[..., 3:] for pose in (first, last)]
    torch.testing.assert_close(relative[..., :3] @ seen[0] + relative[..., 3:], seen[1])
    if rigid:
        poses = (first.requires_grad_(), last.requires_grad_())
        assert torch.autograd.gradcheck(relative_pose, poses)


def test_a_camera_that_moves_forward_sees_points_nearer() -> None:
    first = torch.eye(3, 4)
    last = first.clone()
    # At world z = 1, so that the world origin lies 1 m behind it.
    last[2, 3] = -1.0
    relative = relative_pose(first, last)
    point = torch.tensor([0.0, 0.0, 5.0, 1.0])
    assert torch.equal(relative @ point, torch.tensor([0.0, 0.0, 4.0]))


def test_relative_pose_of_a_pose_and_itself_is_the_identity() -> None:
    pose = random_poses(3, seed=4)
    identity = torch.eye(3, 4, dtype=torch.float64).expand(3, 3, 4)
    torch.testing.assert_close(relative_pose(pose, pose), identity, atol=1e-12, rtol=0)


def test_relative_pose_keeps_its_precision() -> None:
    first, last = random_poses(4, seed=5).float(), random_poses(4, seed=6).float()
    plain = relative_pose(first, last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(relative_pose(first, last), plain)
    half = relative_pose(first.half(), last.half())
    assert half.dtype == torch.float16
    assert torch.equal(half, relative_pose(first.half().float(), last.half().float()).half())
    assert relative_pose(first, last.double()).dtype == torch.float64


def test_poses_that_are_refused() -> None:
    pose = random_poses(3, seed=8)
    flat = pose.clone()
    flat[1, :, :3] = 0.0
    with pytest.raises(ValueError, match=r"first\[1\] = \(0, 0, 0, .*\) has no inverse"):
        relative_pose(flat, pose)
    wrong = pose.clone()
    wrong[2, 0, 3] = float("inf")
    with pytest.raises(ValueError, match=r"last\[2, 0, 3\] = \(inf\) is not finite"):
        relative_pose(pose, wrong)


@pytest.mark.usefixtures("unchecked_shapes")
def test_shapes_that_are_refused() -> None:
    cases: dict[str, Callable[[], object]] = {
        r"matrix of shape \(3, 4\) must end in 3 x 3": lambda: procrustes_so3(torch.ones(3, 4)),
        r"pose of shape \(3, 3\) must end in 3 x 4": lambda: nearest_rigid(torch.ones(3, 3)),
        r"last of shape \(4, 4\) must end": lambda: relative_pose(torch.eye(3, 4), torch.eye(4)),
        r"first of shape \(3, 4\) and last of shape \(1, 3, 4\) must agree": lambda: relative_pose(
            torch.eye(3, 4), torch.eye(3, 4)[None]
        ),
        r"points of shape \(5, 4\) must end in 2": lambda: check_points(torch.zeros(5, 4)),
        r"boxes of shape \(5, 2\) must end in 4": lambda: check_boxes(torch.zeros(5, 2)),
        r"valid of shape \(4,\) must have shape \(5,\)": lambda: check_points(
            torch.zeros(5, 2), torch.ones(4).bool()
        ),
    }
    for message, call in cases.items():
        with pytest.raises(ValueError, match=message):
            call()


def test_points_in_the_image_pass() -> None:
    check_points(torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.25, 0.5]]))
    check_points(torch.zeros(2, 0, 2))


@pytest.mark.parametrize("value", [-0.25, 1.0000001, float("nan"), float("inf")])
def test_points_outside_the_image(value: float) -> None:
    points = torch.full((2, 3, 2), 0.5)
    points[1, 0, 1] = points[1, 2, 0] = value
    message = rf"queries\[1, 0\] = \(0\.5, {value:.8g}\) is not in \[0, 1\]; divide pixels"
    with pytest.raises(ValueError, match=message):
        check_points(points, name="queries")
    valid = torch.ones(2, 3).bool()
    valid[1, 0] = False
    with pytest.raises(ValueError, match=r"points\[1, 2\]"):
        check_points(points, valid)
    valid[1, 2] = False
    check_points(points, valid)


def test_one_point_alone() -> None:
    with pytest.raises(ValueError, match=r"points = \(2, 0\) is not in"):
        check_points(torch.tensor([2.0, 0.0]))


def test_boxes() -> None:
    good = [[0.0, 0.0, 1.0, 1.0], [0.25, 0.5, 0.5, 0.75]]
    check_boxes(torch.tensor(good))
    outside = torch.tensor([*good, [0.5, 0.5, 1.5, 0.75]])
    with pytest.raises(ValueError, match=r"boxes\[2\] = \(0.5, 0.5, 1.5, 0.75\) is not in"):
        check_boxes(outside)
    negative = torch.tensor([*good, [0.5, 0.5, 0.75, 0.25]])
    for allow_zero_area in (False, True):
        with pytest.raises(ValueError, match=r"boxes\[2\] .* has negative area; .* y1 <= y2"):
            check_boxes(negative, allow_zero_area=allow_zero_area)
    flat = torch.tensor([*good, [0.5, 0.25, 0.5, 0.75]])
    check_boxes(flat, allow_zero_area=True)
    with pytest.raises(ValueError, match=r"queries\[2\] .* has no area"):
        check_boxes(flat, name="queries")
    valid = torch.tensor([True, True, False])
    for boxes in (outside, negative, flat, outside * float("nan")):
        boxes[:2] = torch.tensor(good)
        check_boxes(boxes, valid)


def test_checks_of_values_are_left_out_on_the_meta_device() -> None:
    check_points(torch.empty(2, 2, device="meta"))
    check_boxes(torch.empty(2, 4, device="meta"))
