"""The cache: where it is, how large it may be, what may go, and disks that are full or locked."""

import errno
import gc
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from probe_eval.cli import main
from probe_eval.storage import cache
from probe_eval.storage.tables import INDEX_FILE, TableWriter, shard_name

DAY = 86400


class Owner:
    """What holds an entry."""


def add(
    root: Path, name: str, *, kind: str = "inputs", days: float = 0, finish: bool = True
) -> Path:
    """Puts an entry of one shard of 4 kB into a cache; it was used some days ago."""
    key = {"name": name}
    folder = cache.entry_folder(root, kind, key)
    writer = TableWriter(folder, key, 1, about={"dataset": name})
    cache.hold(folder, writer)
    writer.start()
    writer.write(0, ["a"], {"x": torch.zeros(1, 1000)}, {})
    if finish:
        writer.finish()
    used = time.time() - days * DAY
    for path in (folder, *(path for path in folder.iterdir() if path.name == INDEX_FILE)):
        os.utime(path, (used, used))
    return folder


def names(found: list[cache.Entry]) -> list[str]:
    return [entry.key["name"] for entry in found]


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PROBE_EVAL_CACHE", str(tmp_path / "variable"))
    assert cache.cache_root() == tmp_path / "variable"
    assert cache.cache_root("~/here") == Path.home() / "here"
    monkeypatch.delenv("PROBE_EVAL_CACHE")
    assert cache.cache_root() == Path.home() / ".cache" / "probe-eval"


def test_the_cap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PROBE_EVAL_CACHE_GB", raising=False)
    assert cache.cap_gb() == 200
    monkeypatch.setenv("PROBE_EVAL_CACHE_GB", "2.5")
    cache.check_cap(tmp_path, 10**9, 15 * 10**8)
    with pytest.raises(ValueError, match=r"holds 1 GB, and 1.5 GB more .* 2.5 GB; .*cache gc"):
        cache.check_cap(tmp_path, 10**9, 15 * 10**8 + 1)
    for wrong in ("much", "-1", "nan"):
        monkeypatch.setenv("PROBE_EVAL_CACHE_GB", wrong)
        with pytest.raises(ValueError, match=f"PROBE_EVAL_CACHE_GB '{wrong}' must be a number"):
            cache.cap_gb()


def test_what_does_not_fit_onto_the_disk_is_refused(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    cache.check_disk(tmp_path / "not" / "there", free // 2)
    with pytest.raises(ValueError, match=r"GB are needed in .*there, but its disk has .* left"):
        cache.check_disk(tmp_path / "not" / "there", 2 * free)


def test_entries_are_listed_with_what_they_are_of(tmp_path: Path) -> None:
    add(tmp_path, "old", days=2)
    add(tmp_path, "new", kind="features")
    add(tmp_path, "part", kind="targets", days=1, finish=False)
    (tmp_path / "networks").mkdir()
    (tmp_path / "networks" / "other.safetensors").write_bytes(bytes(10**6))
    found = cache.entries(tmp_path)
    assert names(found) == ["new", "part", "old"]
    assert [entry.kind for entry in found] == ["features", "targets", "inputs"]
    assert [entry.complete for entry in found] == [True, False, True]
    assert [entry.rows for entry in found] == [1, 0, 1]
    assert all(4000 < entry.bytes < 8000 for entry in found)
    assert sum(entry.bytes for entry in found) == cache.cache_bytes(tmp_path)
    assert cache.entries(tmp_path / "not there") == []


def test_what_may_go(tmp_path: Path) -> None:
    for day in range(4):
        add(tmp_path, str(day), days=day, finish=day != 1)
    found = cache.entries(tmp_path)
    one = max(entry.bytes for entry in found) / 1e9

    def chosen(**settings: Any) -> list[str]:
        return names(cache.select_garbage(found, **settings))

    assert chosen() == []
    assert chosen(incomplete=True) == ["1"]
    assert chosen(older_than_days=1.5) == ["3", "2"]
    assert chosen(max_gb=0.0) == ["3", "2", "1", "0"]
    assert chosen(max_gb=2 * one) == ["3", "2"]
    assert chosen(max_gb=2 * one, incomplete=True) == ["1", "3"]
    assert chosen(max_gb=4 * one) == []


def test_what_is_in_use_stays(tmp_path: Path) -> None:
    folder = add(tmp_path, "held", days=9)
    gc.collect()
    (entry,) = cache.entries(tmp_path)
    first, second = Owner(), Owner()
    cache.hold(folder, first)
    cache.hold(folder, second)
    del first
    assert cache.in_use(folder)
    assert not cache.remove(entry)
    del second
    assert not cache.in_use(folder)
    assert cache.remove(entry)
    assert list((tmp_path / "inputs").iterdir()) == []


def test_what_another_program_uses_stays_until_it_ends(tmp_path: Path) -> None:
    """However it ends."""
    folder = add(tmp_path, "held")
    (entry,) = cache.entries(tmp_path)
    program = (
        "import sys, time; from pathlib import Path; from probe_eval.storage import cache\n"
        "cache.hold(Path(sys.argv[1]), cache); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout
        assert other.stdout.readline() == "held\n"
        assert not cache.remove(entry)
        other.kill()
        other.wait()
    assert cache.remove(entry)


@pytest.mark.parametrize("days", [0, 1])
def test_without_locks_what_changed_lately_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr("fcntl.flock", none)
    add(tmp_path, "entry", days=days)
    (entry,) = cache.entries(tmp_path)
    assert cache.remove(entry) == bool(days)


def test_an_entry_that_is_removed_is_made_again(tmp_path: Path) -> None:
    """By a program that comes just after."""
    folder = add(tmp_path, "entry")
    (entry,) = cache.entries(tmp_path)
    assert cache.remove(entry)
    owner = Owner()
    cache.hold(folder, owner)
    assert folder.is_dir()
    assert cache.in_use(folder)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, r"the disk of .* is full; make room .*PROBE_EVAL_CACHE"),
        (errno.EDQUOT, r"the disk of .* is full"),
        (errno.EROFS, r"cannot be written \(.*\); use a folder that can.*--features.cache none"),
        (errno.EACCES, r"cannot be written"),
        (errno.EIO, r"Input/output error"),
    ],
)
def test_disk_errors_say_what_and_the_way_out(tmp_path: Path, number: int, message: str) -> None:
    with pytest.raises(OSError, match=message), cache.told_disk_errors(tmp_path):
        raise OSError(number, os.strerror(number))


def test_a_cache_that_may_only_be_read_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = add(tmp_path, "entry")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(os, "open", refuse)
    cache.hold(folder, Owner())
    cache.touch(folder)
    with pytest.raises(OSError, match="Read-only"):
        cache.hold(tmp_path / "inputs" / "new", Owner())


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Status and output of a command line."""
    status = main([str(word) for word in words])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_the_command_lists_verifies_and_makes_room(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = add(tmp_path, "old", days=3)
    new = add(tmp_path, "new")
    gc.collect()
    status, out, _ = run(capsys, "cache", "ls", "--folder", tmp_path)
    assert status == 0
    lines = out.splitlines()
    assert "dataset new" in lines[0]
    assert "just now" in lines[0]
    assert "3 days ago" in lines[1]
    assert "2 entries" in lines[2]
    assert run(capsys, "cache", "verify", "--folder", tmp_path)[0] == 0
    path = new / shard_name(0)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"x")
    status, out, _ = run(capsys, "cache", "verify", "--folder", tmp_path)
    assert status == 1
    assert f"{path} has other content" in out
    assert "1 of them damaged" in out
    status, out, _ = run(
        capsys, "cache", "gc", "--folder", tmp_path, "--older-than-days", 1, "--dry-run"
    )
    assert status == 0
    assert "would remove" in out
    assert old.exists()
    (tmp_path / "inputs" / ".removed-x").mkdir()
    owner = Owner()
    cache.hold(new, owner)
    status, out, _ = run(capsys, "cache", "gc", "--folder", tmp_path, "--max-gb", 0, "--json")
    document = json.loads(out)
    assert [entry["key"]["name"] for entry in document["removed"]] == ["old"]
    assert [entry["key"]["name"] for entry in document["in_use"]] == ["new"]
    assert [path.name for path in (tmp_path / "inputs").iterdir()] == [new.name]


def test_the_command_refuses_what_it_cannot_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = run(capsys, "cache", "gc", "--folder", tmp_path)
    assert (status, "--max-gb (0 removes all)" in err) == (2, True)
    status, _, err = run(capsys, "cache", "gc", "--max-gb", -1)
    assert (status, "must be 0 or more" in err) == (2, True)
    status, _, err = run(capsys, "cache", "list")
    assert (status, "unknown action 'list'; known: ls, verify, gc" in err) == (2, True)
    status, out, _ = run(capsys, "cache")
    assert (status, "verify  read all" in out) == (0, True)
