"""Features by sample id: any split into batches and processes is the same, to the bit."""

import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from probe_eval.metrics.features import FeatureState, feature_statistics
from probe_eval.metrics.frechet import frechet_distance

COUNT = 13
IDS = [f"clip/{(7 * number) % COUNT:02d}" for number in range(COUNT)]  # not in order
CLIPS = torch.rand(COUNT, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1


def colours(clips: torch.Tensor) -> torch.Tensor:
    """A network with 6 features: mean and deviation of each channel."""
    flat = clips.flatten(2)
    return torch.cat([flat.mean(dim=2), flat.std(dim=2)], dim=1)


class Colours(torch.nn.Module):
    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        flat = clips.flatten(2)
        return torch.cat([flat.mean(dim=2), flat.std(dim=2)], dim=1)


def batches(size: int, rows: range | list[int] = range(COUNT)) -> Iterator:
    rows = list(rows)
    for start in range(0, len(rows), size):
        picked = rows[start : start + size]
        yield [IDS[row] for row in picked], CLIPS[picked]


def same(first: FeatureState, second: FeatureState) -> bool:
    return first.sample_ids == second.sample_ids and torch.equal(first.features, second.features)


def test_rows_are_in_the_order_of_ids() -> None:
    state = feature_statistics(colours, batches(4))
    assert state.sample_ids == tuple(sorted(IDS))
    expected = colours(CLIPS)[[IDS.index(name) for name in sorted(IDS)]]
    torch.testing.assert_close(state.features, expected)


@pytest.mark.parametrize("seed", range(10))
def test_any_partition_is_the_same_to_the_bit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    features = torch.from_numpy(rng.normal(size=(COUNT, 5)))
    whole = FeatureState.of(IDS, features)
    world, size = int(rng.integers(1, 4)), int(rng.integers(1, 6))
    order = rng.permutation(COUNT).tolist()
    padded = order + order[: -COUNT % world]
    states = []
    for rank in range(world):
        rows = padded[rank::world]
        for start in range(0, len(rows), size):
            picked = rows[start : start + size]
            states.append(FeatureState.of([IDS[row] for row in picked], features[picked]))
    shuffled = [states[place] for place in rng.permutation(len(states))]
    merged = FeatureState().merge(*shuffled)
    assert same(merged, whole)
    assert torch.equal(merged.moments().scatter, whole.moments().scatter)
    assert same(pickle.loads(pickle.dumps(merged)), whole)


def test_moments_are_numpys() -> None:
    state = feature_statistics(colours, batches(5))
    moments = state.moments()
    features = colours(CLIPS).double().numpy()
    np.testing.assert_allclose(moments.mean, features.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(moments.covariance, np.cov(features, rowvar=False), rtol=1e-5)
    assert frechet_distance(moments, moments) < 1e-12


def test_rounding_of_another_batch_is_no_other_result() -> None:
    """The lesser of both is kept, whichever comes first."""
    first = FeatureState.of("a", torch.tensor([[1.0, 2.0]]))
    again = FeatureState.of("a", torch.tensor([[1.0, 2.0001]]))
    assert same(first.merge(again), first)
    assert same(again.merge(first), first)
    other = FeatureState.of("a", torch.tensor([[1.0, 2.1]]))
    with pytest.raises(ValueError, match="sample a was measured twice with different features"):
        first.merge(other)


def test_nothing_merges_with_anything() -> None:
    state = feature_statistics(colours, batches(5))
    assert same(FeatureState().merge(state, FeatureState()), state)
    assert FeatureState().merge(FeatureState()).sample_ids == ()


def test_types() -> None:
    half = FeatureState.of("ab", torch.ones(2, 3, dtype=torch.bfloat16))
    assert half.features.dtype == torch.float32
    double = FeatureState.of("ab", torch.ones(2, 3, dtype=torch.float64))
    assert double.features.dtype == torch.float64


def test_networks_by_name(tmp_path: Path) -> None:
    expected = feature_statistics(colours, batches(3))
    path = tmp_path / "net.py"
    path.write_text(
        "import torch\n"
        "def net(clips):\n"
        "    flat = clips.flatten(2)\n"
        "    return torch.cat([flat.mean(dim=2), flat.std(dim=2)], dim=1)\n"
    )
    assert same(feature_statistics(f"{path}:net", batches(3)), expected)
    script = tmp_path / "net.pt"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is", DeprecationWarning)
        torch.jit.save(torch.jit.script(Colours()), script)
    found = feature_statistics(str(script), batches(3))
    torch.testing.assert_close(found.features, expected.features)


def test_images_have_features_too() -> None:
    images = [(IDS[:2], CLIPS[:2, :, 0]), (IDS[2:5], CLIPS[2:5, :, 0])]
    assert feature_statistics(colours, images).features.shape == (5, 6)


def test_gradients_are_not_kept() -> None:
    layer = torch.nn.Linear(6, 2)
    state = feature_statistics(lambda clips: layer(colours(clips)), batches(5))
    assert not state.features.requires_grad


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="no samples to take features of"):
        feature_statistics(colours, [])
    for wrong in (
        lambda clips: None,
        lambda clips: clips.mean(),
        lambda clips: clips,
        lambda clips: colours(clips)[:1],
    ):
        with pytest.raises(ValueError, match=r"the network returned .* for 5 samples; expected"):
            feature_statistics(wrong, batches(5))
    with pytest.raises(ValueError, match="features of b are not finite"):
        FeatureState.of("ab", torch.tensor([[0.0], [torch.nan]]))
    with pytest.raises(ValueError, match=r"1 sample ids do not fit features of shape \(2, 3\)"):
        FeatureState.of("a", torch.zeros(2, 3))
    with pytest.raises(ValueError, match="features of 2 and of 3 dimensions cannot be merged"):
        FeatureState.of("a", torch.zeros(1, 3)).merge(FeatureState.of("b", torch.zeros(1, 2)))
    with pytest.raises(ValueError, match="empty"):
        FeatureState().moments()
