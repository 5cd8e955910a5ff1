from collections import Counter

import pytest
import torch

from probe_datasets.clips import clip_indices, clip_span


def test_stride_and_start():
    assert clip_indices(40, num_frames=5, stride=3, start=7) == [7, 10, 13, 16, 19]
    assert clip_span(5, 3) == 13


def test_the_longest_clip_fits_and_one_more_does_not():
    assert clip_indices(33, num_frames=17, stride=2)[-1] == 32
    with pytest.raises(ValueError, match="needs 33 frames, but the video has 32"):
        clip_indices(32, num_frames=17, stride=2)
    with pytest.raises(ValueError, match="needs 34 frames"):
        clip_indices(33, num_frames=17, stride=2, start=1)


@pytest.mark.parametrize(("available", "first"), [(17, 0), (18, 0), (19, 1), (20, 1), (21, 2)])
def test_centre_leaves_equal_margins(available: int, first: int):
    assert clip_indices(available, num_frames=17, start="centre") == list(range(first, first + 17))


def test_random_starts_are_uniform_over_every_possible_start():
    generator = torch.Generator().manual_seed(0)
    starts = Counter(
        clip_indices(8, num_frames=3, stride=2, start="random", generator=generator)[0]
        for _ in range(4000)
    )
    assert sorted(starts) == [0, 1, 2, 3]
    # 1000 each; five standard deviations of a binomial are 137
    assert all(abs(count - 1000) < 140 for count in starts.values())


def test_random_needs_a_generator_and_repeats_with_it():
    with pytest.raises(ValueError, match="pass a seeded"):
        clip_indices(100, start="random")
    one, two = (
        clip_indices(100, start="random", generator=torch.Generator().manual_seed(5))
        for _ in range(2)
    )
    assert one == two


@pytest.mark.parametrize("start", [0, "centre", "random"])
def test_short_videos(start: int | str):
    options = {"num_frames": 5, "stride": 2, "start": start, "generator": torch.Generator()}
    with pytest.raises(ValueError, match="'clamp' or 'loop'"):
        clip_indices(4, **options)
    assert clip_indices(4, short="clamp", **options) == [0, 2, 3, 3, 3]
    assert clip_indices(4, short="loop", **options) == [0, 2, 0, 2, 0]
    assert clip_indices(1, short="loop", **options) == [0] * 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_available": 0}, "num_available 0"),
        ({"num_available": 9, "num_frames": 0}, "num_frames 0"),
        ({"num_available": 9, "stride": 0}, "stride 0"),
        ({"num_available": 9, "start": 9, "short": "clamp"}, "start 9"),
        ({"num_available": 9, "start": -1, "short": "loop"}, "start -1"),
        ({"num_available": 9, "start": "middle"}, "'random' or 'centre'"),
        ({"num_available": 9, "short": "pad"}, "error, clamp, loop"),
    ],
)
def test_bad_arguments(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        clip_indices(**options)
