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

from walt_core import Walt, pretrained

FILES = ["README.md", "config.json", "model.safetensors"]
Same = Callable[[Walt, Walt], None]


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
        Walt.from_pretrained("someone/walt")
    assert "someone/walt is no folder here" in str(caught.value)
    assert str(error) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_repository(
    saved: Walt, folder: Path, assert_same: Same, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(repository: str, file: str, **options: Any) -> str:
        asked.append((repository, file, options))
        return str(folder / file)

    monkeypatch.setattr(pretrained, "hf_hub_download", download)
    options = {"revision": "v2", "token": "t", "cache_dir": "c", "local_files_only": True}
    loaded = Walt.from_pretrained("someone/walt", device="cpu", dtype=torch.float64, **options)
    assert_same(saved.double(), loaded)
    assert asked == [
        ("someone/walt", "config.json", options),
        ("someone/walt", "model.safetensors", options),
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


def test_push_to_hub_uploads_three_files(
    saved: Walt, hub: SimpleNamespace, assert_same: Same
) -> None:
    address = saved.push_to_hub("walt", private=True, token="t", commit_message="First")
    assert address == "https://hub/commit/1"
    assert sorted(path.name for path in hub.folder.rglob("*")) == FILES
    assert hub.repositories == [("walt", {"private": True, "exist_ok": True})]
    assert hub.token == "t"
    assert hub.options["repo_id"] == "me/walt"
    assert hub.options["commit_message"] == "First"
    assert_same(saved, Walt.from_pretrained(hub.folder))


@pytest.mark.parametrize("repo_id", [None, "other"])
def test_saving_and_pushing_at_once(
    saved: Walt,
    hub: SimpleNamespace,
    assert_same: Same,
    tmp_path: Path,
    repo_id: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generate, asked = Walt.generate_model_card, []

    def generate_model_card(self: Walt, **options: Any) -> ModelCard:
        asked.append(options)
        return generate(self)

    monkeypatch.setattr(Walt, "generate_model_card", generate_model_card)
    address = saved.save_pretrained(
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
        assert_same(saved, Walt.from_pretrained(folder))
    assert asked == [{"language": "en"}] * 2
