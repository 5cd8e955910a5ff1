"""Repositories of the Hub: what is asked for, what is uploaded, and what cannot be reached."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, hub_mixin
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from walt_tokenizer import TokenizerConfig, VideoTokenizer, pretrained

CONFIG = TokenizerConfig(
    base_channels=8,
    channel_multipliers=(1, 2),
    temporal_strides=(2,),
    num_res_blocks=1,
    latent_channels=4,
    norm_groups=4,
)
FILES = ["README.md", "config.json", "model.safetensors"]


@pytest.fixture
def model(build: Callable[..., VideoTokenizer]) -> VideoTokenizer:
    model = build(CONFIG)
    model.latent_mean.copy_(torch.arange(4.0))
    model.latent_std.copy_(1 + torch.arange(4.0))
    return model


@pytest.fixture
def folder(model: VideoTokenizer, tmp_path: Path) -> Path:
    folder = tmp_path / "tokenizer"
    model.save_pretrained(folder)
    return folder


def assert_same(model: VideoTokenizer, other: VideoTokenizer) -> None:
    assert model.config == other.config
    state, values = model.state_dict(), other.state_dict()
    assert state.keys() == values.keys()
    for name, value in state.items():
        assert value.dtype == values[name].dtype, name
        assert torch.equal(value, values[name]), name


@pytest.mark.parametrize(
    "error",
    [
        LocalEntryNotFoundError("no connection and nothing in the cache"),
        OfflineModeIsEnabled("offline"),
        ConnectionError("refused"),
        TimeoutError("too slow"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_repository_that_cannot_be_reached(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **options: object) -> str:
        raise error

    monkeypatch.setattr(pretrained, "hf_hub_download", fail)
    with pytest.raises(FileNotFoundError, match="and no Hub repository with") as caught:
        VideoTokenizer.from_pretrained("someone/tokenizer")
    assert "someone/tokenizer is no folder here" in str(caught.value)
    assert str(error) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_repository(model: VideoTokenizer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repository: str, file: str, **options: Any) -> str:
        asked.append((repository, file, options))
        return str(folder / file)

    monkeypatch.setattr(pretrained, "hf_hub_download", download)
    options = {"revision": "v2", "token": "t", "cache_dir": "c", "local_files_only": True}
    loaded = VideoTokenizer.from_pretrained("someone/tokenizer", device="cpu", **options)
    assert_same(model, loaded)
    assert asked == [
        ("someone/tokenizer", "config.json", options),
        ("someone/tokenizer", "model.safetensors", options),
    ]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """A Hub that notes what it gets."""
    hub = SimpleNamespace(folder=tmp_path / "hub", repositories=[], options={})

    class Api:
        def __init__(self, token: str | None = None) -> None:
            hub.token = token

        def create_repo(self, repo_id: str, **options: Any) -> SimpleNamespace:
            hub.repositories.append((repo_id, options))
            return SimpleNamespace(repo_id=f"me/{repo_id}")

        def upload_folder(self, *, folder_path: Path, **options: Any) -> str:
            shutil.copytree(folder_path, hub.folder)
            hub.options = options
            return "https://hub/commit/1"

    monkeypatch.setattr(hub_mixin, "HfApi", Api)
    return hub


def test_push_to_hub_uploads_three_files(model: VideoTokenizer, hub: SimpleNamespace) -> None:
    address = model.push_to_hub("tokenizer", private=True, token="t", commit_message="First")
    assert address == "https://hub/commit/1"
    assert sorted(path.name for path in hub.folder.rglob("*")) == FILES
    assert hub.repositories == [("tokenizer", {"private": True, "exist_ok": True})]
    assert hub.token == "t"
    assert hub.options["repo_id"] == "me/tokenizer"
    assert hub.options["commit_message"] == "First"
    assert_same(model, VideoTokenizer.from_pretrained(hub.folder))


@pytest.mark.parametrize("repo_id", [None, "other"])
def test_saving_and_pushing_at_once(
    model: VideoTokenizer,
    hub: SimpleNamespace,
    tmp_path: Path,
    repo_id: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generate, asked = VideoTokenizer.generate_model_card, []

    def generate_model_card(self: VideoTokenizer, **options: Any) -> ModelCard:
        asked.append(options)
        return generate(self)

    monkeypatch.setattr(VideoTokenizer, "generate_model_card", generate_model_card)
    address = model.save_pretrained(
        tmp_path / "mine",
        push_to_hub=True,
        repo_id=repo_id,
        branch="b",
        model_card_kwargs={"language": "en"},
    )
    assert address == "https://hub/commit/1"
    assert [name for name, _ in hub.repositories] == [repo_id or "mine"]
    assert hub.options["revision"] == "b"
    for folder in (tmp_path / "mine", hub.folder):
        assert_same(model, VideoTokenizer.from_pretrained(folder))
    assert asked == [{"language": "en"}] * 2
