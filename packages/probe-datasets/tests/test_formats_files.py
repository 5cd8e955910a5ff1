import os
from pathlib import Path

import pytest

from probe_datasets.formats.files import (
    DataError,
    check_relative,
    data_error,
    read_bytes,
    read_json,
    read_lines,
    real_number,
    safe_path,
    whole_number,
)


def test_paths_below_the_root_are_given(tmp_path: Path):
    assert safe_path(tmp_path, "a/b.jpg") == tmp_path / "a" / "b.jpg"
    assert safe_path(tmp_path, "a//b..jpg") == tmp_path / "a" / "b..jpg"
    assert safe_path(tmp_path, ".") == tmp_path


@pytest.mark.parametrize(
    "relative",
    [
        *("../a", "a/../../b", "a/..", "..", "/etc/passwd", "//a"),
        *("C:/a", "C:\\a", "\\a", "..\\a", "", "a\0b", "a\ud800b"),
    ],
)
def test_paths_that_leave_the_root_are_refused(tmp_path: Path, relative: str):
    with pytest.raises(DataError, match="names"):
        safe_path(tmp_path, relative)
    with pytest.raises(DataError, match=r"list\.txt: names"):
        check_relative(relative, source=tmp_path / "list.txt")


def test_links_may_not_leave_the_root(tmp_path: Path):
    root, outside = tmp_path / "root", tmp_path / "root_outside"
    (root / "in").mkdir(parents=True)
    outside.mkdir()
    (outside / "secret").write_text("x")
    (root / "in" / "file").write_text("y")
    os.symlink(outside, root / "out")
    os.symlink(outside / "secret", root / "file_out")
    os.symlink(root / "in", root / "inner")
    os.symlink("loop", root / "loop")
    assert safe_path(root, "inner/file").read_text() == "y"
    for relative in ("out/secret", "file_out", "out", "out/not_there"):
        with pytest.raises(DataError, match="a link that leaves"):
            safe_path(root, relative)
    assert not safe_path(root, "loop").exists()
    os.symlink(root, tmp_path / "link_to_root")
    assert safe_path(tmp_path / "link_to_root", "in/file").read_text() == "y"


def test_messages_are_one_line():
    error = data_error("two\nlines\udcff", "is\r bad", "good\x1b[0m", "mend it")
    assert str(error) == "two\\nlines\\xff: is\\r bad; expected good\\x1b[0m; mend it"


def test_lines(tmp_path: Path):
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xef\xbb\xbffirst\r\n\n  \n second \nlast")
    assert list(read_lines(path, "a list")) == [(1, "first"), (4, " second "), (5, "last")]
    for content, what in (
        (b"", "is empty"),
        (b"a\0b\n", "is no text file"),
        (b"a\n" + b"x" * 70_000, r"is no text file \(line 2\)"),
        (b"ok\n\xff\xfe\n", r"not text in UTF-8 \(line 2\)"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=what):
            list(read_lines(path, "a list"))


def test_json_and_bounds(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_text('{"a": [1, 2]}')
    assert read_json(path, "a table") == {"a": [1, 2]}
    for content in ("{", "[" * 100_000, "1" * 10_000, '"\udce9"'.encode(errors="surrogateescape")):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(DataError, match="no valid JSON"):
            read_json(path, "a table")
    with pytest.raises(DataError, match="too many"):
        read_bytes(path, "a table", max_bytes=2)
    with pytest.raises(DataError, match="no such file"):
        read_bytes(tmp_path / "none", "a table")
    with pytest.raises(DataError, match="is a folder"):
        read_bytes(tmp_path, "a table")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe"):  # and does not wait for a writer
        read_bytes(tmp_path / "pipe", "a table")


def test_numbers():
    assert whole_number(" -12 ", "f", 1, "n") == -12
    assert real_number("-inf", "f", 1, "n") == float("-inf")
    for text in ("1.5", "", "1" * 19, "\u0663", "1_000", "0x1", "\x1c46"):
        with pytest.raises(DataError, match="line 7"):
            whole_number(text, "f", 7, "n")
    with pytest.raises(DataError, match="line 7"):
        real_number("one", "f", 7, "n")
