"""Window partition and merge."""

import pytest
import torch

from walt_core.ops.window import Window, merge, partition

GRID = (5, 4, 6)


@pytest.mark.parametrize("window", [(1, 4, 6), (5, 2, 3), (5, 4, 6), (1, 1, 1), (1, 2, 2)])
def test_merge_inverts_partition(window: Window) -> None:
    x = torch.arange(2.0 * 5 * 4 * 6 * 3).unflatten(0, (2, *GRID, 3))
    assert torch.equal(merge(partition(x, window), window, GRID), x)


def test_a_window_holds_neighbours_of_one_sample_in_grid_order() -> None:
    b, t, h, w = torch.meshgrid(*(torch.arange(n) for n in (2, *GRID)), indexing="ij")
    windows = partition(torch.stack([b, t, h, w], dim=-1).float(), (5, 2, 3))
    assert windows.shape == (2 * 1 * 2 * 2, 5 * 2 * 3, 4)
    for window in windows.long():
        first = window[0]
        assert (window[:, 0] == first[0]).all()
        offsets = (window - first)[:, 1:].tolist()
        assert offsets == [[i, j, k] for i in range(5) for j in range(2) for k in range(3)]


@pytest.mark.parametrize("window", [(2, 4, 6), (5, 3, 6), (5, 4, 4)])
def test_windows_must_divide_the_grid(window: Window) -> None:
    with pytest.raises(ValueError, match=r"must divide the latent grid \(t, h, w\)=\(5, 4, 6\)"):
        partition(torch.zeros(1, *GRID, 2), window)
