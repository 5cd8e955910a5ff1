"""Fourier features: their order, and their precision at the highest octave."""

import math

import numpy as np
import pytest
import torch

from probe_readouts.positional import NUM_OCTAVES, fourier_features


@pytest.mark.parametrize("num_coordinates", [1, 2, 4])
def test_octave_major_and_sines_before_cosines(num_coordinates: int) -> None:
    coordinates = torch.linspace(-0.9, 0.8, 3 * num_coordinates, dtype=torch.float64)
    coordinates = coordinates.unflatten(0, (3, num_coordinates))
    features = fourier_features(coordinates, 5)
    for place, encoded in zip(coordinates.tolist(), features.tolist(), strict=True):
        angles = [math.pi * 2**octave * u for octave in range(5) for u in place]
        expected = [*map(math.sin, angles), *map(math.cos, angles)]
        # 1e-13: double precision at angles up to 45.
        assert encoded == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize(("num_coordinates", "width"), [(2, 64), (4, 128)])
def test_points_are_64_wide_and_boxes_128(num_coordinates: int, width: int) -> None:
    assert fourier_features(torch.zeros(2, 3, num_coordinates)).shape == (2, 3, width)


def test_float32_angles_are_the_published_ones() -> None:
    coordinates = torch.rand(200, 2, generator=torch.Generator().manual_seed(0))
    scaled = coordinates.numpy() * np.float32(np.pi)
    angles = np.concatenate([scaled * np.float32(2**i) for i in range(NUM_OCTAVES)], axis=1)
    assert angles.dtype == np.float32
    shifted = angles + np.float32(np.pi / 2)
    expected = np.sin(np.concatenate([angles, shifted], axis=1).astype(np.float64))
    # 1e-6: the sine of a float32. A true cosine differs by 4e-3, the rounding of pi / 2 + angle.
    features = fourier_features(coordinates)
    torch.testing.assert_close(features.double(), torch.from_numpy(expected), atol=1e-6, rtol=0)


def test_autocast_does_not_round_the_angles() -> None:
    coordinates = torch.rand(20, 2, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = fourier_features(coordinates)
    assert torch.equal(features, fourier_features(coordinates))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_first(dtype: torch.dtype) -> None:
    coordinates = torch.rand(20, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
    features = fourier_features(coordinates)
    assert features.dtype == torch.float32
    assert torch.equal(features, fourier_features(coordinates.float()))


def test_float64_stays_float64() -> None:
    coordinates = torch.rand(20, 2, generator=torch.Generator().manual_seed(0))
    # 0.02: angles up to 1e5 in float32 are off by up to 4e-3, and so is their sum with pi / 2.
    wide = fourier_features(coordinates.double())
    assert wide.dtype == torch.float64
    torch.testing.assert_close(wide, fourier_features(coordinates).double(), atol=0.02, rtol=0)
