"""Checkpoints: round trip, damaged files, and tensors that do not fit."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from walt_tokenizer import (
    TokenizerConfig,
    VideoTokenizer,
    checkpoint,
    load_checkpoint,
    save_checkpoint,
)

CONFIG = TokenizerConfig(
    base_channels=8,
    channel_multipliers=(1, 2),
    temporal_strides=(2,),
    num_res_blocks=1,
    latent_channels=4,
    norm_groups=4,
)


@pytest.fixture
def model() -> VideoTokenizer:
    torch.manual_seed(0)
    model = VideoTokenizer(CONFIG)
    model.latent_mean.normal_()
    model.latent_std.uniform_(0.5, 2)
    return model


@pytest.fixture
def path(model: VideoTokenizer, tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.safetensors"
    save_checkpoint(model, path)
    return path


def rewrite(path: Path, state: dict[str, torch.Tensor], **metadata: str) -> None:
    """Write tensors under the metadata of a good checkpoint, or under other metadata."""
    good = {"format": checkpoint.FORMAT, "config": json.dumps(CONFIG.to_dict())}
    save_file(state, path, good | metadata)


def test_round_trip(model: VideoTokenizer, path: Path) -> None:
    loaded = load_checkpoint(path)
    assert loaded.config == CONFIG
    assert not loaded.training
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name], tensor), name
    video = torch.rand(1, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    # 1e-5: the loaded weights lie elsewhere in memory, which can change the order of sums.
    expected = model.eval().encode(video, normalize=True)
    torch.testing.assert_close(loaded.encode(video, normalize=True), expected, atol=1e-5, rtol=1e-5)


def test_a_loaded_model_can_be_trained(path: Path) -> None:
    loaded = load_checkpoint(path)
    loaded(torch.zeros(1, 3, 3, 8, 8)).sum().backward()
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_leaves_no_other_file(path: Path) -> None:
    assert list(path.parent.iterdir()) == [path]


def test_makes_the_folder(model: VideoTokenizer, tmp_path: Path) -> None:
    save_checkpoint(model, tmp_path / "a" / "b" / "tokenizer.safetensors")
    assert (tmp_path / "a" / "b" / "tokenizer.safetensors").is_file()


def test_a_failed_save_keeps_the_old_file(
    model: VideoTokenizer, path: Path, monkeypatch: pytest.MonkeyPatch
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
    with pytest.raises(FileNotFoundError, match="no tokenizer checkpoint at"):
        load_checkpoint(tmp_path / "none.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_file_cut_short_is_refused(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="is not a readable safetensors file"):
        load_checkpoint(path)


def test_a_pickle_is_refused(model: VideoTokenizer, path: Path) -> None:
    torch.save(model.state_dict(), path)
    with pytest.raises(ValueError, match="is not a readable safetensors file"):
        load_checkpoint(path)


def test_tensors_that_do_not_fit_are_named(path: Path) -> None:
    state = load_file(path)
    del state["encoder.conv_in.conv.weight"]
    state["decoder.conv_out.conv.bias"] = torch.zeros(5)
    state["extra.weight"] = torch.zeros(2)
    rewrite(path, state)
    with pytest.raises(ValueError, match="does not fit its configuration") as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert "missing encoder.conv_in.conv.weight (8, 3, 3, 3, 3)" in message
    assert "unexpected extra.weight (2,)" in message
    assert "decoder.conv_out.conv.bias is (5,), expected (3,)" in message


def test_another_format_is_refused(path: Path) -> None:
    save_file(load_file(path), path)
    with pytest.raises(ValueError, match="holds format None, expected 'walt-tokenizer/1'"):
        load_checkpoint(path)


@pytest.mark.parametrize("config", ["{", "[]", '{"base_chanels": 8}', '{"down_kernel": 7}'])
def test_a_bad_configuration_is_refused(path: Path, config: str) -> None:
    rewrite(path, load_file(path), config=config)
    with pytest.raises(ValueError, match=r"configuration|down_kernel"):
        load_checkpoint(path)
