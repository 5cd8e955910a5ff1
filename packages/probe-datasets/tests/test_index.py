"""The index: what is kept, when it is made again, what it costs."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pytest

from probe_datasets.formats.files import DataError
from probe_datasets.index import Index, IndexRequest, Listing, cache_folder, open_index
from probe_datasets.scan import Row

LISTED = pa.schema([("label", pa.int32())])
SCANNED = pa.schema([("sample_id", pa.string()), ("offset", pa.int64())])
calls: list[str] = []


def scan_lines(path: Path, row: Row) -> list[Row]:
    """One sample for each line of a file."""
    calls.append(path.name)
    lines = path.read_bytes().splitlines()
    if lines == [b"bad"]:
        raise DataError(f"{path}: is bad; expected good; mend it")
    return [{"sample_id": f"{row['sample_id']}#{i}", "offset": i} for i in range(len(lines))]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    calls.clear()
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    for name, content in {"a": "1\n2\n", "b": "1\n", "sub/c": "1\n2\n3\n"}.items():
        (folder / name).write_text(content)
    return folder


def request(root: Path, **changed: object) -> IndexRequest:
    settings: dict = {
        "dataset": "lines",
        "root": root,
        "split": "train",
        "options": {},
        "watched": (root,),
        "listed": LISTED,
        "scanned": SCANNED,
        "scan": scan_lines,
        "workers": 1,
    }
    return IndexRequest(**(settings | changed))


def listing(root: Path, *more: Row) -> Listing:
    names = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
    rows = [{"sample_id": name, "path": name, "label": len(name)} for name in names]
    return Listing(layout="lines", rows=[*rows, *more], classes={"length": ("0", "1")})


def opened(root: Path, *more: Row, **changed: object) -> Index:
    return open_index(request(root, **changed), lambda: listing(root, *more))


def ids(index: Index) -> list[str]:
    return [index.row(int(number))["sample_id"] for number in index.usable()]


def test_rows_are_those_of_listing_and_scan(root: Path):
    index = opened(root)
    assert ids(index) == ["a#0", "a#1", "b#0", "sub/c#0", "sub/c#1", "sub/c#2"]
    row = index.row(5)
    assert (row["path"], row["label"], row["offset"], row["size"]) == ("sub/c", 5, 2, 6)
    assert index.column("offset").to_pylist() == [0, 1, 0, 0, 1, 2]
    assert (index.layout, index.classes) == ("lines", {"length": ("0", "1")})


def test_nothing_is_scanned_twice_until_it_changes(root: Path):
    before = opened(root)
    assert calls == ["a", "b", "c"]
    calls.clear()
    assert ids(opened(root)) == ids(before)
    assert calls == []
    (root / "sub" / "c").write_text("1\n")
    os.utime(root / "b", ns=(1, 1))
    index = opened(root)
    assert sorted(calls) == ["b", "c"]
    assert ids(index) == ["a#0", "a#1", "b#0", "sub/c#0"]
    calls.clear()
    (root / "a").rename(root / "d")
    assert ids(opened(root)) == ["b#0", "d#0", "d#1", "sub/c#0"]
    assert calls == ["d"]
    (root / "d").unlink()
    assert ids(opened(root)) == ["b#0", "sub/c#0"]


def test_other_options_columns_and_splits_have_their_own_index(root: Path):
    paths = {
        opened(root).path,
        opened(root, split="validation").path,
        opened(root, options={"camera": "LEFT"}).path,
        opened(root, dataset="others").path,
    }
    assert len(paths) == 4
    assert all(path.parent == cache_folder() for path in paths)
    fewer = pa.schema([("sample_id", pa.string())])
    assert "offset" not in opened(root, scanned=fewer).row(0)


def test_missing_and_bad_files_keep_their_reasons(root: Path):
    (root / "bad").write_text("bad\n")
    (root / "empty").write_text("")
    absent = {"sample_id": "x", "path": "x", "label": 0}
    unlisted = {"sample_id": "y", "path": None, "label": 0, "problem": "is not in the archive"}
    index = opened(root, absent, unlisted)
    assert index.unusable(missing=True) == (
        2,
        [("x", "there is no such file"), ("y", "is not in the archive")],
    )
    count, reasons = index.unusable(missing=False)
    assert (count, [name for name, _ in reasons]) == (2, ["bad", "empty"])
    assert "is bad; expected good" in dict(reasons)["bad"]
    assert "is empty" in dict(reasons)["empty"]
    calls.clear()
    (root / "a").write_text("1\n")
    assert opened(root, absent, unlisted).unusable(missing=False) == (count, reasons)
    assert calls == ["a", "bad"]  # what is wrong may lie in another file


def test_an_index_of_other_columns_is_no_help(root: Path):
    """As one has that was made before the package was changed."""
    fewer = pa.schema([("sample_id", pa.string())])
    before = opened(root, scanned=fewer)
    assert opened(root).path == before.path
    assert opened(root).column("offset").to_pylist() == [0, 1, 0, 0, 1, 2]


def test_a_file_that_may_be_read_again(root: Path):
    """What could not be read is tried again when its mode changes, which its time does not show."""
    path = root / "a"
    path.write_text("bad\n")
    assert opened(root).unusable(missing=False)[0] == 1
    status = path.stat()
    path.write_text("1\n2\n")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    path.chmod(0o600)
    assert opened(root).unusable(missing=False)[0] == 0


def test_links_that_lead_nowhere(root: Path):
    os.symlink("itself", root / "itself")
    os.symlink("gone", root / "nowhere")
    os.symlink(root, root / "sub" / "back")
    assert len(ids(opened(root))) == 6


def test_two_samples_of_one_name_are_refused(root: Path):
    with pytest.raises(DataError, match="two samples named 'a#0'"):
        opened(root, {"sample_id": "a", "path": "a", "label": 1})
    assert not list(cache_folder().glob("*.part"))


def test_a_damaged_or_foreign_index_is_made_again(root: Path):
    index = opened(root)
    content, wanted, number = index.path.read_bytes(), ids(index), len(calls)
    for damaged in (b"", content[:100], content[:-20], b"x" * len(content)):
        index.path.unlink()  # the old one may still be mapped
        index.path.write_bytes(damaged)
        assert ids(opened(root)) == wanted
    assert len(calls) == 5 * number


def test_the_fingerprint_is_of_content_not_of_place_or_time(root: Path, tmp_path: Path):
    before = opened(root).fingerprint
    os.utime(root / "a", ns=(5, 5))
    assert opened(root).fingerprint == before
    copy = tmp_path / "copy"
    root.rename(copy)
    assert opened(copy).fingerprint == before
    (copy / "a").write_text("1\n2\n3\n")
    assert opened(copy).fingerprint != before


def test_names_need_not_be_utf8(root: Path):
    name = os.fsdecode(b"caf\xe9")
    (root / name).write_text("1\n")
    (root / f"{name}.empty").write_text("")
    index = opened(root)
    assert f"{name}#0" in ids(index)
    ((_, problem),) = index.unusable(missing=False)[1]
    assert problem.startswith(r"caf\udce9.empty: is empty")


def test_many_processes_scan_the_same(root: Path):
    for i in range(200):
        (root / f"f{i:03}").write_text("1\n" * (i % 3))
    alone = ids(opened(root))
    for file in cache_folder().iterdir():
        file.unlink()
    seen = []
    index = opened(root, workers=2, progress=lambda *state: seen.append(state))
    assert ids(index) == alone
    assert len(seen) == 203 - 67  # the empty ones are not scanned
    assert seen[-1] == (203, 0)


def test_two_that_ask_at_once_do_the_work_once(root: Path):
    found: list[Index] = []
    threads = [threading.Thread(target=lambda: found.append(opened(root))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(calls) == ["a", "b", "c"]
    assert len({index.fingerprint for index in found}) == 1


def test_a_folder_that_cannot_be_written_costs_only_the_keeping(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PROBE_DATASETS_CACHE", str(tmp_path / "file" / "below"))
    assert len(ids(opened(root))) == 6
    assert "set PROBE_DATASETS_CACHE" in caplog.text


MEMORY = """
import resource, sys, time
import pyarrow as pa
from pathlib import Path
from probe_datasets.index import IndexRequest, Listing, open_index
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
def rows(count):
    for i in range(count):
        name = f"train/class{i % 1000:04}/picture_{i:08}.jpg"
        yield {"sample_id": name, "path": None, "label": i}
def build(count):
    columns = pa.schema([("label", pa.int32())])
    root = Path(sys.argv[1])
    request = IndexRequest(dataset=f"many{count}", root=root, split="train", options={},
        watched=(), listed=columns, scanned=pa.schema([]))
    start = time.process_time()
    index = open_index(request, lambda: Listing(layout="", rows=rows(count), classes={}))
    assert len(index) == count
    return time.process_time() - start
build(10)
before = peak()
few, many = build(20_000), build(100_000)
print((peak() - before) / 1024, many / few)
"""


@pytest.mark.slow
def test_a_hundred_thousand_rows_take_little_memory_and_time(root: Path):
    command = [sys.executable, "-c", MEMORY, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    megabytes, ratio = map(float, done.stdout.split())
    assert megabytes < 300
    assert ratio < 25  # five times the rows; quadratic time would be 25 times as long
