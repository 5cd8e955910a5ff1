"""The choice of tracks against a plain loop."""

import numpy as np
import pytest
import torch

from probe_datasets.point_tracks import query_tracks


@pytest.mark.parametrize("num_points", [1, 5, 40])
def test_tracks_are_those_of_a_plain_loop(num_points: int):
    chance = np.random.default_rng(num_points)
    points = chance.random((20, 6, 2)).astype(np.float32)
    visible = chance.random((20, 6)) < 0.2
    found = query_tracks(torch.from_numpy(points), torch.from_numpy(visible), num_points)
    xy, seen, valid, queries = (part.numpy() for part in found)
    assert xy.shape == (num_points, 6, 2)
    slot = 0
    for track in range(20):
        shown = [frame for frame in range(6) if visible[track, frame]]
        if not shown or slot == num_points:
            continue
        assert valid[slot]
        assert queries[slot] == shown[0]
        assert np.flatnonzero(seen[slot]).tolist() == shown
        np.testing.assert_array_equal(xy[slot, shown], points[track, shown])
        slot += 1
    assert not valid[slot:].any()
    assert not xy[~seen].any()
    assert valid[: min(slot, num_points)].all()


def test_nothing_visible_and_nothing_asked():
    points, visible = torch.rand(3, 4, 2), torch.zeros(3, 4, dtype=torch.bool)
    assert not any(part.any() for part in query_tracks(points, visible, 2))
    assert not any(part.any() for part in query_tracks(points[:0], visible[:0], 2))
    with pytest.raises(ValueError, match="num_points 0"):
        query_tracks(points, visible, 0)
