"""Principal components against NumPy, and how maps and pictures are named and signed."""

from pathlib import Path

import numpy as np
import pytest
import torch

from probe_eval.show import first_component, picture_name, principal_maps


def tokens(number: int = 60, width: int = 8, seed: int = 0) -> torch.Tensor:
    """Tokens that vary most in one direction, and unevenly along it."""
    rng = np.random.default_rng(seed)
    spread = rng.exponential(size=(number, 1)) * 3 * rng.normal(size=(1, width))
    return torch.from_numpy(spread + 0.3 * rng.normal(size=(number, width)) + 5).float()


@pytest.mark.parametrize("shape", [(60, 8), (5, 30), (200, 1)])
def test_the_component_is_that_of_numpys_svd(shape: tuple[int, int]) -> None:
    x = tokens(*shape)
    centred = x.double().numpy() - x.double().numpy().mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    expected, found = u[:, 0] * s[0], first_component(x).numpy()
    found = found * np.sign(found @ expected)
    # 1e-4: the tokens are centred in fp32.
    np.testing.assert_allclose(found, expected, atol=1e-4 * s[0])


def grid(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(3, 4, 5, -1)


def test_maps_lie_between_0_and_1() -> None:
    maps = principal_maps({"a": grid(tokens()), "b": grid(tokens(seed=1))})
    assert list(maps) == ["a", "b"]
    for values in maps.values():
        assert values.shape == (3, 4, 5)
        assert (values.min(), values.max()) == (0, 1)
        assert values.std() > 0.1


def test_fewer_tokens_are_bright_in_the_first_map() -> None:
    """A component has no sign: negated features have the same map."""
    x = grid(tokens())
    bright = principal_maps({"a": x})["a"]
    assert torch.equal(bright, principal_maps({"a": -x})["a"])
    assert (bright > 0.5).sum() < (bright < 0.5).sum()


def test_the_second_map_goes_with_the_first() -> None:
    first, second = grid(tokens()), grid(tokens() + 0.1 * tokens(seed=2))
    for sign in (1, -1):
        maps = principal_maps({"a": first, "b": sign * second})
        pair = torch.stack([values.flatten() for values in maps.values()])
        assert torch.corrcoef(pair)[0, 1] > 0.5


def test_features_that_are_all_alike_make_a_map() -> None:
    maps = principal_maps({"a": torch.ones(2, 3, 3, 4), "b": torch.zeros(2, 3, 3, 4)})
    assert all(torch.isfinite(values).all() for values in maps.values())


def test_pictures_of_one_name_are_told_apart() -> None:
    videos = ["x/a.mp4", "y/a.mp4", "x/a.webm", "x/b.mp4"]
    names = [picture_name(video, videos) for video in videos]
    assert len(set(names)) == 4
    assert names[-1] == "b"
    assert all(Path(name).name == name for name in names)


def test_pictures_of_far_folders_of_one_name_are_told_apart() -> None:
    videos = ["one/clips/a.mp4", "two/clips/a.mp4"]
    assert len({picture_name(video, videos) for video in videos}) == 2
