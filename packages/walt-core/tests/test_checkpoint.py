"""Checkpoints: round trip, damaged files, and tensors that do not fit."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from walt_core import (
    Walt,
    WaltConfig,
    checkpoint,
    load_checkpoint,
    save_checkpoint,
)

CONFIG = WaltConfig(
    width=16,
    depth=2,
    num_heads=2,
    latent_channels=4,
    latent_size=(5, 4, 4),
    spatial_window=(1, 4, 4),
    spatiotemporal_window=(5, 2, 2),
)


@pytest.fixture
def model() -> Walt:
    """A model in which every parameter is random, also those that start at zero."""
    torch.manual_seed(0)
    model = Walt(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def path(model: Walt, tmp_path: Path) -> Path:
    path = tmp_path / "walt.safetensors"
    save_checkpoint(model, path)
    return path


def rewrite(path: Path, state: dict[str, torch.Tensor], **metadata: str) -> None:
    """Write tensors under the metadata of a good checkpoint, or under other metadata."""
    good = {"format": checkpoint.FORMAT, "config": json.dumps(CONFIG.to_dict())}
    save_file(state, path, good | metadata)


def test_round_trip(model: Walt, path: Path) -> None:
    loaded = load_checkpoint(path)
    assert loaded.config == CONFIG
    assert not loaded.training
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name], tensor), name
    latents = torch.randn(1, 4, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    timestep = torch.tensor([300])
    # 1e-5: the loaded weights lie elsewhere in memory, which can change the order of sums.
    expected = model.eval()(latents, timestep)
    torch.testing.assert_close(loaded(latents, timestep), expected, atol=1e-5, rtol=1e-5)


def test_a_loaded_model_is_complete(path: Path) -> None:
    """Nothing is left on the meta device, also what is not saved."""
    loaded = load_checkpoint(path)
    tensors = dict(loaded.named_parameters()) | dict(loaded.named_buffers())
    assert {name for name, tensor in tensors.items() if tensor.is_meta} == set()
    loaded.to("cpu")


def test_a_loaded_model_can_be_trained(path: Path) -> None:
    loaded = load_checkpoint(path)
    loaded(torch.zeros(1, 4, 5, 4, 4), torch.tensor([300])).sum().backward()
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_leaves_no_other_file(path: Path) -> None:
    assert list(path.parent.iterdir()) == [path]


def test_makes_the_folder(model: Walt, tmp_path: Path) -> None:
    save_checkpoint(model, tmp_path / "a" / "b" / "walt.safetensors")
    assert (tmp_path / "a" / "b" / "walt.safetensors").is_file()


def test_a_failed_save_keeps_the_old_file(
    model: Walt, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(state: object, target: Path, metadata: object) -> None:
        target.write_bytes(b"half")
        raise OSError("disk full")

    before = path.read_bytes()
    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(model, path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no WALT checkpoint at"):
        load_checkpoint(tmp_path / "none.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_file_cut_short_is_refused(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="is not a readable safetensors file"):
        load_checkpoint(path)


def test_a_pickle_is_refused(model: Walt, path: Path) -> None:
    torch.save(model.state_dict(), path)
    with pytest.raises(ValueError, match="is not a readable safetensors file"):
        load_checkpoint(path)


def test_tensors_that_do_not_fit_are_named(path: Path) -> None:
    state = load_file(path)
    del state["patch_embed.weight"]
    state["proj_out.bias"] = torch.zeros(5)
    state["extra.weight"] = torch.zeros(2)
    rewrite(path, state)
    with pytest.raises(ValueError, match="does not fit its configuration") as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert "missing patch_embed.weight (16, 4)" in message
    assert "unexpected extra.weight (2,)" in message
    assert "proj_out.bias is (5,), expected (4,)" in message


def test_another_format_is_refused(path: Path) -> None:
    save_file(load_file(path), path)
    with pytest.raises(ValueError, match="holds format None, expected 'walt-core/1'"):
        load_checkpoint(path)


@pytest.mark.parametrize("config", ["{", "[]", '{"widht": 8}', '{"width": 7, "depth": 1}'])
def test_a_bad_configuration_is_refused(path: Path, config: str) -> None:
    rewrite(path, load_file(path), config=config)
    with pytest.raises(ValueError, match=r"configuration|num_heads"):
        load_checkpoint(path)
