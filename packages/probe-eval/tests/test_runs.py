"""Results folders belong to one configuration, and files are there whole or not at all."""

import os
from pathlib import Path
from typing import Any

import pytest

from probe_eval.runs import claim, read_json, write_json, write_text

CONFIG: dict[str, Any] = {"seed": 0, "data": {"size": 32, "names": ("a", "b")}}


def test_a_new_folder_is_claimed(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "run"
    assert claim(folder, "probe", CONFIG, write=True) is False
    assert [path.name for path in folder.iterdir()] == ["run.json"]


def test_an_empty_folder_and_hidden_files_are_free(tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").write_text("")
    assert claim(tmp_path, "probe", CONFIG, write=True) is False


def test_only_the_writer_writes(tmp_path: Path) -> None:
    assert claim(tmp_path / "run", "probe", CONFIG, write=False) is False
    assert list(tmp_path.iterdir()) == []


def test_the_same_run_goes_on(tmp_path: Path) -> None:
    claim(tmp_path, "probe", CONFIG, write=True)
    (tmp_path / "checkpoints").mkdir()
    assert claim(tmp_path, "probe", CONFIG, write=True) is True


@pytest.mark.parametrize(
    ("kind", "config", "difference"),
    [
        ("probe", {**CONFIG, "seed": 1}, r"seed is 0 there, 1 here"),
        ("probe", {**CONFIG, "data": {"size": 64}}, r"data\.size is 32 there, 64 here"),
        ("probe", {"seed": 0}, r"data is \{.*\} there, None here"),
        ("probe", {**CONFIG, "new": 3}, r"new is None there, 3 here"),
        ("demo", CONFIG, r"kind is 'probe' there, 'demo' here"),
    ],
)
def test_another_run_is_refused_by_what_differs(
    tmp_path: Path, kind: str, config: dict, difference: str
) -> None:
    claim(tmp_path, "probe", CONFIG, write=True)
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(ValueError, match=rf"another run \(.*{difference}.*--output"):
        claim(tmp_path, kind, config, write=True)
    assert (tmp_path / "run.json").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_every_difference_is_named(tmp_path: Path) -> None:
    claim(tmp_path, "probe", CONFIG, write=True)
    with pytest.raises(ValueError, match=r"seed is 0.*; data\.size is 32"):
        claim(tmp_path, "probe", {"seed": 1, "data": {**CONFIG["data"], "size": 1}}, write=True)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds files that are not a run.*--output"):
        claim(tmp_path, "probe", CONFIG, write=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "results"
    path.write_text("kept")
    with pytest.raises(ValueError, match=r"results is a file; .*--output"):
        claim(path, "probe", CONFIG, write=True)
    assert path.read_text() == "kept"


@pytest.mark.parametrize("text", ["", '{"kind": "pro', "\x00"])
def test_a_damaged_claim_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json is not valid JSON .* delete the folder"):
        claim(tmp_path, "probe", CONFIG, write=True)


def test_a_rank_may_find_the_claim_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 may write its claim just after rank 1 looked for one."""
    folder = tmp_path / "run"
    real, looked = Path.is_file, []

    def is_file(path: Path) -> bool:
        found = real(path)
        if path.name == "run.json" and not looked:
            looked.append(path)
            claim(folder, "probe", CONFIG, write=True)
        return found

    monkeypatch.setattr(Path, "is_file", is_file)
    claim(folder, "probe", CONFIG, write=False)
    assert looked


# --- Files ---------------------------------------------------------------------------------------


def test_json_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    write_json(path, {"é": [1, 2.5, None]})
    assert read_json(path) == {"é": [1, 2.5, None]}


def test_a_failed_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "new")
    monkeypatch.undo()
    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("value", [float("nan"), {1, 2}])
def test_what_is_not_json_is_not_written(tmp_path: Path, value: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / "file.json", {"value": value})
    assert list(tmp_path.iterdir()) == []
