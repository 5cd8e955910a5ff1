import pytest
import torch
from einops import rearrange, repeat

from probe_datasets.transforms import (
    centre_crop,
    crop_nearest,
    crop_resize,
    flip,
    resize_short_side,
    to_float,
)
from probe_datasets.windows import (
    Window,
    central_window,
    inception_window,
    move_intrinsics,
    move_points,
    track_window,
    whole_window,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cut(frames: torch.Tensor, window: Window) -> torch.Tensor:
    """The window's pixels, by slicing."""
    bottom, right = window.top + window.height, window.left + window.width
    return frames[..., window.top : bottom, window.left : right]


def noise(num_frames: int, height: int, width: int) -> torch.Tensor:
    return torch.randint(
        0, 256, (num_frames, 3, height, width), dtype=torch.uint8, generator=seeded(0)
    )


def to_bytes(video: torch.Tensor) -> torch.Tensor:
    return rearrange((video + 1) * 127.5, "c T h w -> T c h w").round()


def test_to_float_spans_the_whole_range():
    bytes_ = torch.tensor([0, 255], dtype=torch.uint8)
    assert to_float(bytes_).tolist() == [-1.0, 1.0]
    every = torch.arange(256, dtype=torch.uint8)
    back = ((to_float(every) + 1) * 127.5).round().to(torch.uint8)
    assert torch.equal(back, every)


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ((3, 240, 427), 128, (3, 128, 228)),
        ((3, 427, 240), 128, (3, 228, 128)),
        ((17, 3, 20, 30), 40, (17, 3, 40, 60)),
        ((2, 4, 3, 64, 64), 32, (2, 4, 3, 32, 32)),
        ((8, 1000), 4, (4, 500)),
    ],
)
def test_resize_keeps_aspect_and_leading_axes(shape: tuple, size: int, expected: tuple):
    assert resize_short_side(torch.zeros(shape), size).shape == expected


def test_halving_averages_and_does_not_alias():
    """A one-pixel checkerboard must turn grey; without antialiasing it would not."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    board = ((x + y) % 2 * 255).to(torch.uint8)
    small = resize_short_side(board, 16)
    assert small.dtype == torch.uint8
    # 127.5 rounds to either side; the border sees a few pixels fewer
    assert (small[2:-2, 2:-2].int() - 127).abs().max() <= 1


def test_bytes_are_the_rounded_floats():
    frames = torch.randint(0, 256, (2, 3, 37, 53), generator=torch.Generator().manual_seed(0))
    as_float = resize_short_side(frames.float(), 16)
    assert torch.equal(resize_short_side(frames.to(torch.uint8), 16), as_float.round().byte())


def test_same_size_is_untouched():
    frames = torch.rand(3, 16, 20)
    assert resize_short_side(frames, 16) is frames


@pytest.mark.parametrize(("height", "width"), [(4, 4), (5, 8), (9, 4)])
def test_crop_is_central(height: int, width: int):
    rows = torch.arange(height)[:, None].expand(height, width)
    columns = torch.arange(width)[None].expand(height, width)
    top, left = (height - 4) // 2, (width - 4) // 2
    assert centre_crop(rows, 4)[:, 0].tolist() == list(range(top, top + 4))
    assert centre_crop(columns, 4)[0].tolist() == list(range(left, left + 4))


def test_bad_sizes():
    with pytest.raises(ValueError, match="from 1 to 8 for frames of 8 x 9; use resize_short_side"):
        centre_crop(torch.zeros(3, 8, 9), 10)
    with pytest.raises(ValueError, match="size 0"):
        resize_short_side(torch.zeros(3, 8, 9), 0)


@pytest.mark.parametrize("size", [24, (32, 20)])
def test_a_marker_is_found_where_its_point_moves(size: int | tuple[int, int]):
    """The brightest spot of the result is the moved point, within half a pixel of the result."""
    generator = seeded(1)
    height, width = 96, 150
    seen = torch.tensor(True)
    found = 0
    for _ in range(150):
        # 8 x 8 pixels, so that the largest reduction still shows it
        y, x = (int(torch.randint(n - 8, (), generator=generator)) for n in (height, width))
        frames = torch.zeros(1, 3, height, width, dtype=torch.uint8)
        frames[..., y : y + 8, x : x + 8] = 255
        window = track_window(height, width, generator)
        point, visible = move_points(
            torch.tensor([(x + 4) / width, (y + 4) / height]), seen, window
        )
        video = crop_resize(frames, window, size)
        rows, columns = video.shape[-2:]
        if not (visible and cut(frames[0, 0], window).sum() == 64 * 255):
            continue  # cut by the edge, which moves its centre
        weight = (video[0, 0] + 1).clamp(min=0)
        at_y = (weight.sum(1) * (torch.arange(rows) + 0.5)).sum() / weight.sum()
        at_x = (weight.sum(0) * (torch.arange(columns) + 0.5)).sum() / weight.sum()
        assert abs(at_x - point[0] * columns) < 0.5
        assert abs(at_y - point[1] * rows) < 0.5
        found += 1
    assert found > 50


def test_crop_resize_is_the_filtered_slice():
    """Bytes stand for float32 within 1 level: half by rounding, half by the pass between."""
    frames = noise(3, 60, 80)
    generator = seeded(2)
    for size in ((16, 16), (40, 24), (90, 70), (5, 1), (1, 5), (1, 1)):
        window = inception_window(60, 80, generator)
        exact = torch.nn.functional.interpolate(
            cut(frames, window).float(), size, mode="bilinear", antialias=True
        )
        video = crop_resize(frames, window, size)
        assert video.shape == (3, 3, *size)
        assert video.is_contiguous()
        assert (to_bytes(video) - exact).abs().max() <= 1
        if exact.numel() > 1000:  # no drift to dark or bright: a thirtieth of a level
            assert abs((to_bytes(video) - exact).mean()) < 1 / 30


def test_the_layout_in_memory_changes_no_byte():
    frames = noise(3, 61, 47)
    window = inception_window(61, 47, seeded(3))
    adjacent = rearrange(rearrange(frames, "T c H W -> T H W c").contiguous(), "T H W c -> T c H W")
    assert adjacent.stride(1) == 1
    assert torch.equal(crop_resize(adjacent, window, 32), crop_resize(frames, window, 32))
    each = torch.cat([crop_resize(frame, window, 32) for frame in frames.split(1)], dim=1)
    assert torch.equal(each, crop_resize(frames, window, 32))


def test_the_window_at_its_own_size_is_a_slice():
    frames = noise(2, 30, 40)
    window = inception_window(30, 40, seeded(4))
    video = crop_resize(frames, window, (window.height, window.width))
    assert torch.equal(to_bytes(video), cut(frames, window).float())


def test_nothing_outside_the_window_shows():
    window = Window(top=8, left=10, height=20, width=22, frame_height=40, frame_width=50)
    frames = torch.full((1, 3, 40, 50), 255, dtype=torch.uint8)
    cut(frames, window).zero_()
    assert (crop_resize(frames, window, 7) == -1).all()


def test_central_window_is_waymos_crop():
    """1280 x 1920 scaled to 256 x 384, then the central 256 x 256; here at an eighth.

    Both scale by the same, so that away from the cut edges, where the filter ends, only rounding
    differs: by a level at most.
    """
    frames = noise(2, 160, 240)
    expected = centre_crop(resize_short_side(frames, 32), 32).float()
    video = to_bytes(crop_resize(frames, central_window(160, 240), 32))
    assert (video - expected)[..., 1:-1].abs().max() <= 1


@pytest.mark.parametrize(("height", "width"), [(60, 107), (107, 60), (75, 76)])
def test_central_window_is_resize_and_crop_in_general(height: int, width: int):
    """Whole pixels shift or stretch it by up to 1 pixel: 6 levels in these ramps, and rounding."""
    size = 32
    step = 6 * size / min(height, width)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    ramps = torch.stack([x * step / 2, y * step / 2, (x + y) * step / 4])
    frames = rearrange(ramps.round().to(torch.uint8), "c H W -> 1 c H W")
    expected = centre_crop(resize_short_side(frames, size), size).float()
    video = to_bytes(crop_resize(frames, central_window(height, width), size))
    assert (video - expected)[..., 1:-1, 1:-1].abs().max() <= 6 + 2


def test_nearest_takes_the_pixel_under_each_centre():
    generator = seeded(5)
    y, x = torch.meshgrid(torch.arange(37), torch.arange(53), indexing="ij")
    for _ in range(100):
        window = track_window(37, 53, generator)
        rows, columns = (int(n) for n in torch.randint(1, 60, (2,), generator=generator))
        at_y, at_x = crop_nearest(torch.stack([y, x]), window, (rows, columns))
        # the centre lies in the pixel: half a pixel from its centre at most
        centre_y = window.top + (torch.arange(rows)[:, None] + 0.5) * window.height / rows
        centre_x = window.left + (torch.arange(columns) + 0.5) * window.width / columns
        assert (at_y + 0.5 - centre_y).abs().max() <= 0.5 + 1e-4
        assert (at_x + 0.5 - centre_x).abs().max() <= 0.5 + 1e-4
        assert (cut(y, window).min() <= at_y).all()
        assert (cut(x, window).max() >= at_x).all()


def test_values_are_never_blended():
    """Two depths and a hole give these three and no other, and validity stays with its depth."""
    depth = torch.full((2, 40, 60), 1.5)
    depth[:, :, 30:] = 4.0
    depth[:, 10:20] = 0.0
    segments = (depth > 2).to(torch.uint8)
    window = inception_window(40, 60, seeded(6))
    small = crop_nearest(depth, window, 23)
    assert set(small.unique().tolist()) <= {0.0, 1.5, 4.0}
    assert torch.equal(crop_nearest(depth > 0, window, 23), small > 0)
    assert torch.equal(crop_nearest(segments, window, 23), (small > 2).to(torch.uint8))
    assert torch.equal(crop_nearest(depth, whole_window(40, 60), (40, 60)), depth)


@pytest.mark.parametrize("scale", [1, 2], ids=["depth as large as colour", "depth half as large"])
def test_a_plane_reprojects_after_the_crop(scale: int):
    """Cut depth and moved intrinsics put every pixel back on the plane it was drawn from."""
    normal, distance = torch.tensor([0.2, -0.3, 1.0]), 3.0
    intrinsics = torch.tensor([1.2, 1.6, 0.48, 0.53])
    generator = seeded(7)

    def rays(height: int, width: int, k: torch.Tensor) -> torch.Tensor:
        v, u = torch.meshgrid(
            (torch.arange(height) + 0.5) / height,
            (torch.arange(width) + 0.5) / width,
            indexing="ij",
        )
        return torch.stack([(u - k[2]) / k[0], (v - k[3]) / k[1], torch.ones_like(u)], dim=-1)

    depth = distance / (rays(240 // scale, 320 // scale, intrinsics) * normal).sum(-1)
    for _ in range(20):
        window = track_window(240, 320, generator)
        small = crop_nearest(depth, window, 48)
        points = rays(48, 48, move_intrinsics(intrinsics, window)) * small[..., None]
        offset = ((points * normal).sum(-1) - distance).abs()
        # Half a pixel of depth turns a ray by 0.5 / (1.2 * 320) across and 0.5 / (1.6 * 240) down;
        # points at up to 6 m leave the plane by the slopes, 0.2 and 0.3, times that.
        assert depth.max() < 6
        assert offset.max() < 6 * scale * 0.5 * (0.2 / (1.2 * 320) + 0.3 / (1.6 * 240)) + 1e-5


def test_flip_mirrors_columns_and_is_its_own_inverse():
    frames = noise(2, 5, 8)
    assert torch.equal(flip(frames)[..., 0], frames[..., 7])
    assert torch.equal(flip(flip(frames)), frames)
    video = crop_resize(frames, whole_window(5, 8), (5, 8))
    assert torch.equal(flip(video), crop_resize(flip(frames), whole_window(5, 8), (5, 8)))


def test_bad_crops():
    frames = noise(1, 8, 9)
    with pytest.raises(ValueError, match="frames of 8 x 9 cannot be cut by a window of frames of"):
        crop_resize(frames, whole_window(9, 8), 4)
    for size in (0, (4, 0), (-1, 4)):
        with pytest.raises(ValueError, match="must be at least 1 pixel"):
            crop_resize(frames, whole_window(8, 9), size)
        with pytest.raises(ValueError, match="must be at least 1 pixel"):
            crop_nearest(frames, whole_window(8, 9), size)


def test_one_picture_makes_a_clip():
    """Cut and resize once, then repeat: the same as a clip of equal frames."""
    picture = noise(1, 40, 30)
    window = inception_window(40, 30, seeded(8))
    clip = repeat(crop_resize(picture, window, 16), "c 1 h w -> c T h w", T=3)
    frames = repeat(picture, "1 c H W -> T c H W", T=3)
    assert torch.equal(clip, crop_resize(frames, window, 16))
