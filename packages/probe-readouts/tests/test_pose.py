"""Pose readout: which frames it reads, and that it is the attentive readout on both."""

from collections.abc import Callable

import pytest
import torch
from einops import rearrange
from torch import Tensor

from probe_readouts.pose import PoseReadout
from probe_readouts.time import resize_time


def small(time_method: str = "paper") -> PoseReadout:
    torch.manual_seed(0)
    return PoseReadout(6, width=16, num_heads=4, time_method=time_method).double()


def draw(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_is_the_attentive_readout_on_first_and_last_frame(randomize: Callable) -> None:
    readout, features = small(), draw(2, 5, 2, 3, 6)
    randomize(readout)
    both = torch.cat([features[:, 0], features[:, -1]], dim=-1)
    outputs = readout.attentive(rearrange(both, "b h w c -> b 1 h w c"))
    # Outputs are the rows of [R | t], one after another.
    expected = torch.stack([outputs[:, 0:4], outputs[:, 4:8], outputs[:, 8:12]], dim=1)
    assert torch.equal(readout(features), expected)


def test_frames_between_do_not_matter() -> None:
    readout, features = small(), draw(2, 5, 2, 3, 6)
    changed = features.clone()
    changed[:, 1:-1] = draw(2, 3, 2, 3, 6, seed=2)
    assert torch.equal(readout(changed), readout(features))
    for end in (0, -1):
        changed = features.clone()
        changed[:, end] = draw(2, 2, 3, 6, seed=3)
        assert (readout(changed) - readout(features)).abs().amax() > 1e-3


def test_first_and_last_are_told_apart() -> None:
    readout, features = small(), draw(2, 5, 2, 3, 6)
    assert (readout(features.flip(1)) - readout(features)).abs().amax() > 1e-3


@pytest.mark.parametrize("time_method", ["paper", "causal", "nearest"])
def test_ends_are_those_of_the_resized_features(time_method: str) -> None:
    readout, features = small(time_method), draw(2, 5, 2, 3, 6)
    expected = readout(resize_time(features, 17, time_method))
    # 1e-12: double precision.
    torch.testing.assert_close(readout(features, 17), expected, atol=1e-12, rtol=1e-12)


def test_an_image_is_its_own_last_frame() -> None:
    readout, image = small(), draw(2, 1, 2, 3, 6)
    twice = readout(image.expand(-1, 2, -1, -1, -1))
    assert torch.equal(readout(image), twice)


def test_default_heads_are_64_wide() -> None:
    with torch.device("meta"):
        assert PoseReadout(8).attentive.pooling.num_heads == 4


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match=r"num_heads 3 must divide width 16; pick one of \[1, 2,"):
        PoseReadout(8, width=16, num_heads=3)
    with pytest.raises(ValueError, match="width 96 is not a multiple of 64"):
        PoseReadout(8, width=96)
