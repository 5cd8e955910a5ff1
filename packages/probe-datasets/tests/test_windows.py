import math

import numpy as np
import pytest
import torch
from einops import einsum, rearrange

from probe_datasets.windows import (
    Window,
    central_window,
    inception_window,
    move_boxes,
    move_intrinsics,
    move_points,
    track_window,
    whole_window,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def window(top: int, left: int, height: int, width: int, frame: tuple[int, int]) -> Window:
    return Window(
        top=top,
        left=left,
        height=height,
        width=width,
        frame_height=frame[0],
        frame_width=frame[1],
    )


def area(w: Window) -> float:
    return w.height * w.width / (w.frame_height * w.frame_width)


@pytest.mark.parametrize(
    ("height", "width", "top", "left", "side"),
    [
        (1280, 1920, 0, 320, 1280),  # Waymo, FRONT: 64 of 384 columns go on each side
        (886, 1920, 0, 517, 886),
        (240, 427, 0, 93, 240),
        (427, 240, 93, 0, 240),
        (7, 7, 0, 0, 7),
    ],
)
def test_central_window_is_the_largest_square(height, width, top, left, side):
    assert central_window(height, width) == window(top, left, side, side, (height, width))


@pytest.mark.parametrize(
    ("draw", "areas", "aspects"),
    [(inception_window, (0.08, 1.0), (3 / 4, 4 / 3)), (track_window, (0.3, 1.0), (0.5, 2.0))],
)
def test_random_windows_fill_their_ranges(draw, areas: tuple, aspects: tuple):
    """In a square, where most pairs fit, so that both are nearly distributed as drawn."""
    generator = seeded(0)
    drawn = [draw(1000, 1000, generator) for _ in range(2000)]
    area_of = np.array([area(w) for w in drawn])
    aspect_of = np.array([w.width / w.height for w in drawn])
    # half a pixel of a side of at least 240
    rounding = 0.5 / 240 * 2
    assert area_of.min() > areas[0] * (1 - rounding)
    assert area_of.max() <= areas[1]
    assert aspect_of.min() > aspects[0] * (1 - rounding)
    assert aspect_of.max() < aspects[1] * (1 + rounding)
    for values, (low, high) in ((area_of, areas), (aspect_of, aspects)):
        counts, _ = np.histogram(values, bins=10, range=(low, high))
        assert counts.min() > 20
    # Tall and wide are equally likely; five standard errors of a share of 2,000.
    assert abs((aspect_of > 1).mean() - 0.5) < 5 * 0.5 / math.sqrt(2000)
    # Small areas fit in any aspect, so below half the area is uniform.
    small = area_of[area_of < 0.5]
    middle = (areas[0] + 0.5) / 2
    spread = 5 * (0.5 - areas[0]) / math.sqrt(12 * len(small))
    assert abs(small.mean() - middle) < spread


def test_places_are_uniform_up_to_the_edges():
    generator = seeded(1)
    drawn = [
        inception_window(4, 6, generator, area=(0.25, 0.25), aspect=(1.5, 1.5)) for _ in range(2000)
    ]
    places = np.zeros((3, 4), int)
    for w in drawn:
        assert (w.height, w.width) == (2, 3)
        places[w.top, w.left] += 1
    # 2000 / 12 each; five standard deviations
    assert np.abs(places - 2000 / 12).max() < 5 * math.sqrt(2000 / 12)


def test_the_generator_decides():
    first = [track_window(240, 427, seeded(7)) for _ in range(2)]
    assert first[0] == first[1]
    generator = seeded(7)
    later = [track_window(240, 427, generator) for _ in range(20)]
    assert later[0] == first[0]
    assert len(set(later)) > 15


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (100, 3000, (0, 1433, 100, 133)),  # 4 / 3 of 100, in the middle
        (3000, 100, (1433, 0, 133, 100)),
        (3, 1000, (0, 498, 3, 4)),
    ],
)
def test_frames_too_long_for_any_draw_give_the_middle(height: int, width: int, expected: tuple):
    drawn = inception_window(height, width, seeded(0), area=(0.5, 1.0))
    assert drawn == window(*expected, (height, width))


@pytest.mark.parametrize("frame", [(1, 1), (1, 9), (2, 500), (37, 53)])
def test_every_frame_has_windows(frame: tuple[int, int]):
    generator = seeded(2)
    for _ in range(200):
        for draw in (inception_window, track_window):
            w = draw(*frame, generator)  # which checks that it lies within the frame
            assert (w.frame_height, w.frame_width) == frame


@pytest.mark.parametrize("case", [(-1, 0, 4, 4), (0, 3, 4, 4), (0, 0, 0, 4), (1, 0, 6, 4)])
def test_impossible_windows(case: tuple):
    with pytest.raises(ValueError, match=r"does not fit a frame of 6 (rows|columns)"):
        window(*case, (6, 6))


def test_impossible_frames_and_ranges():
    for draw in (central_window, whole_window, lambda h, w: inception_window(h, w, seeded(0))):
        with pytest.raises(ValueError, match="frame of 0 x 5 pixels must have at least 1 x 1"):
            draw(0, 5)
    for bad in ((0.0, 1.0), (0.5, 0.4), (0.5, 1.1), (math.nan, 1.0)):
        with pytest.raises(ValueError, match=r"area .* that do not exceed 1"):
            inception_window(9, 9, seeded(0), area=bad)
    for bad in ((-1.0, 1.0), (2.0, 1.0), (1.0, math.inf)):
        with pytest.raises(ValueError, match=r"aspect .* two ascending positive numbers$"):
            inception_window(9, 9, seeded(0), aspect=bad)


def test_points_move_as_pixels_do():
    """The centre of pixel (3, 5) is that of pixel (3 - 2, 5 - 1) of the window."""
    w = window(1, 2, 6, 4, (10, 20))
    points = torch.tensor([[3.5 / 20, 5.5 / 10], [1.9 / 20, 0.5], [6.1 / 20, 0.5], [0.2, 0.05]])
    moved, visible = move_points(points, torch.ones(4, dtype=torch.bool), w)
    torch.testing.assert_close(moved[0], torch.tensor([1.5 / 4, 4.5 / 6]))
    assert visible.tolist() == [True, False, False, False]
    # Outside, the coordinates still are the true ones.
    torch.testing.assert_close(moved[1:3, 0], torch.tensor([-0.1 / 4, 4.1 / 4]))


def test_hidden_points_stay_hidden_and_edges_are_inside():
    points = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.5, 0.5]])
    visible = torch.tensor([True, True, False])
    moved, seen = move_points(points, visible, whole_window(7, 13))
    assert torch.equal(moved, points)
    assert torch.equal(seen, visible)
    assert not move_points(points, visible, window(1, 1, 5, 5, (7, 13)))[1].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_boxes_round_a_drawn_rectangle(dtype: torch.dtype):
    """Cutting the picture and finding the rectangle in it gives the moved box."""
    generator = seeded(3)
    numbers = np.random.default_rng(3)
    checked = 0
    for _ in range(300):
        height, width = (int(n) for n in numbers.integers(8, 40, 2))
        y0, x0 = int(numbers.integers(height)), int(numbers.integers(width))
        y1, x1 = (int(numbers.integers(y0, height)) + 1, int(numbers.integers(x0, width)) + 1)
        picture = torch.zeros(height, width, dtype=torch.bool)
        picture[y0:y1, x0:x1] = True
        w = inception_window(height, width, generator)
        cut = picture[w.top : w.top + w.height, w.left : w.left + w.width]
        box = torch.tensor([x0 / width, y0 / height, x1 / width, y1 / height], dtype=dtype)
        moved, valid = move_boxes(box, torch.tensor(True), w)
        assert bool(valid) == bool(cut.any())
        if valid:
            rows, columns = cut.any(1).nonzero()[:, 0], cut.any(0).nonzero()[:, 0]
            found = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            sides = torch.tensor([w.width, w.height, w.width, w.height])
            # a few roundings of coordinates that are at most 40 times as fine as the window's
            expected = found.to(dtype) / sides
            tolerance = 40 * torch.finfo(dtype).eps
            torch.testing.assert_close(moved, expected, rtol=0, atol=tolerance)
            checked += 1
        else:
            assert not moved.any()
    assert 100 < checked < 300


def test_boxes_move_as_pixels_do_in_waymos_window():
    """1280 x 1920 pixels scaled to 256 x 384, of which columns 64 to 319 stay."""
    numbers = np.random.default_rng(4)
    corners = numbers.uniform(-0.1, 1.1, (500, 2, 2))
    boxes = np.sort(corners, axis=1).reshape(500, 4)
    valid = numbers.random(500) < 0.8
    cut = ((boxes * [384, 256, 384, 256] - [64, 0, 64, 0]) / 256).clip(0, 1)
    left = valid & (cut[:, 2:] > cut[:, :2]).all(axis=1)
    expected = np.where(left[:, None], cut, 0)
    moved, still = move_boxes(
        torch.from_numpy(boxes), torch.from_numpy(valid), central_window(1280, 1920)
    )
    np.testing.assert_array_equal(still.numpy(), left)
    np.testing.assert_allclose(moved.numpy(), expected, rtol=0, atol=1e-12)
    assert 100 < left.sum() < valid.sum()


def test_touching_boxes_have_no_area():
    w = window(0, 5, 10, 5, (10, 10))
    boxes = torch.tensor([[0.1, 0.1, 0.5, 0.9], [0.1, 0.1, 0.6, 0.9], [0.7, 0.3, 0.7, 0.9]])
    moved, valid = move_boxes(boxes, torch.tensor([True, True, True]), w)
    assert valid.tolist() == [False, True, False]
    torch.testing.assert_close(moved[1], torch.tensor([0.0, 0.1, 0.2, 0.9]))


def test_projection_commutes_with_the_window():
    generator = seeded(5)
    points = torch.rand(64, 3, generator=generator, dtype=torch.float64) * 4 - 2
    points[:, 2] += 4
    intrinsics = torch.tensor([1.1, 1.9, 0.47, 0.52], dtype=torch.float64)

    def project(k: torch.Tensor) -> torch.Tensor:
        return k[:2] * points[:, :2] / points[:, 2:] + k[2:]

    seen = torch.ones(64, dtype=torch.bool)
    for _ in range(50):
        w = track_window(240, 427, generator)
        moved, _ = move_points(project(intrinsics), seen, w)
        torch.testing.assert_close(project(move_intrinsics(intrinsics, w)), moved)


def test_moved_intrinsics_are_the_matrix_of_the_resized_window():
    """In pixels: shift the principal point, then scale rows and columns apart."""
    height, width, w, size = 480, 640, window(30, 100, 400, 300, (480, 640)), (64, 96)
    fx, fy, cx, cy = 500.0, 510.0, 322.0, 241.0
    normalised = torch.tensor([fx / width, fy / height, cx / width, cy / height])
    matrix = torch.tensor([[fx, 0, cx - w.left], [0, fy, cy - w.top], [0, 0, 1]])
    scale = torch.diag(torch.tensor([size[1] / w.width, size[0] / w.height, 1.0]))
    in_pixels = einsum(scale, matrix, "i j, j k -> i k")
    k = move_intrinsics(normalised, w) * torch.tensor([size[1], size[0], size[1], size[0]])
    torch.testing.assert_close(
        k, torch.stack([in_pixels[0, 0], in_pixels[1, 1], in_pixels[0, 2], in_pixels[1, 2]])
    )
    several = rearrange(torch.stack([normalised, normalised * 2]), "(a b) k -> a b k", a=2)
    assert torch.equal(move_intrinsics(several, whole_window(480, 640)), several)


def test_bad_labels():
    w = whole_window(4, 4)
    with pytest.raises(ValueError, match="points hold 1 numbers that are not finite; put zeros"):
        move_points(torch.tensor([[0.5, math.nan]]), torch.tensor([False]), w)
    with pytest.raises(ValueError, match="boxes hold 2 numbers"):
        move_boxes(torch.tensor([[0.5, math.inf, 1.0, math.nan]]), torch.tensor([True]), w)
    with pytest.raises(ValueError, match="intrinsics hold 1 numbers"):
        move_intrinsics(torch.tensor([1.0, math.nan, 0.5, 0.5]), w)
    reversed_box = torch.tensor([[0.5, 0.5, 0.25, 0.75]])
    with pytest.raises(ValueError, match=r"a valid one is \[0.5, 0.5, 0.25, 0.75\]"):
        move_boxes(reversed_box, torch.tensor([True]), w)
    moved, valid = move_boxes(reversed_box, torch.tensor([False]), w)
    assert not moved.any()
    assert not valid.any()
