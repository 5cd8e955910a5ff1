"""Frame and latent arithmetic."""

import pytest

from walt_tokenizer.geometry import latent_size, num_frames, num_latents


def test_seventeen_frames_are_five_latents() -> None:
    assert num_latents(17, 4) == 5
    assert num_frames(5, 4) == 17


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
@pytest.mark.parametrize("latents", [1, 2, 3, 8])
def test_counts_invert_each_other(latents: int, stride: int) -> None:
    assert num_latents(num_frames(latents, stride), stride) == latents


@pytest.mark.parametrize("frames", [0, 2, 3, 4, 6, 16, 18])
def test_invalid_frame_counts_name_the_valid_ones(frames: int) -> None:
    with pytest.raises(ValueError, match=rf"clip of {frames} frames .* \(1, 5, 9, \.\.\.\)"):
        num_latents(frames, 4)


def test_invalid_frame_count_names_the_nearest_ones() -> None:
    with pytest.raises(ValueError, match="cut the clip to 13 frames or extend it to 17"):
        num_latents(16, 4)


def test_no_latents() -> None:
    with pytest.raises(ValueError, match="at least one latent frame, got 0"):
        num_frames(0, 4)


def test_latent_size() -> None:
    assert latent_size(128, 64, 8) == (16, 8)


@pytest.mark.parametrize(
    ("height", "width", "message"),
    [
        (60, 64, "frame height 60 must be a positive multiple of 8; resize or crop to (56|64)"),
        (64, 65, "frame width 65 must be a positive multiple of 8; resize or crop to 64"),
        (0, 64, "frame height 0 .* 8"),
        (4, 64, "frame height 4 .* 8"),
    ],
)
def test_invalid_sizes_name_a_valid_one(height: int, width: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        latent_size(height, width, 8)
