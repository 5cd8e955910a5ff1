import pytest
import torch

from probe_datasets.transforms import centre_crop, resize_short_side, to_float


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
