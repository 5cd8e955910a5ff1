"""Reading the small files of a dataset: errors in one form, paths that stay inside, bounded text.

Lists, tables and JSON files of a dataset come from elsewhere. What they name is opened only below
the folder that the user gave, and what they claim is checked before anything is allocated. The
folders that a layout itself prescribes, such as `train`, may be links to anywhere: those are the
user's own arrangement.
"""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

__all__ = [
    "FETCH_AGAIN",
    "DataError",
    "check_relative",
    "data_error",
    "ends_a_line",
    "file_size",
    "read_bytes",
    "read_json",
    "read_lines",
    "real_number",
    "safe_path",
    "walk_folder",
    "whole_number",
]

FETCH_AGAIN = "copy or download the file again"
_MAX_TEXT = 1 << 30
_MAX_LINE = 1 << 16


class DataError(ValueError):
    """A file that cannot serve, in one line: path, what is wrong, what was expected, way out."""


def data_error(path: str | os.PathLike[str], problem: str, expected: str, fix: str) -> DataError:
    """The DataError of one file, on one line whatever characters its name and content hold.

    Args:
        path: the file.
        problem: what is wrong with it, as a verb phrase.
        expected: what would have been right.
        fix: what to do.
    """
    name = os.fsencode(path).decode("utf-8", "backslashreplace")
    text = f"{name}: {problem}; expected {expected}; {fix}"
    return DataError("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text))


def check_relative(
    relative: str, *, source: str | os.PathLike[str], below: str = "the dataset's folder"
) -> str:
    """A path that a list file names, unless it is absolute or climbs out of its folder.

    Args:
        relative: the path with forward slashes.
        source: the file that names it, for the message.
        below: what the path is relative to, for the message.

    Raises:
        DataError: it is empty, absolute, climbs with "..", or can name no file.
    """
    if not relative or "\0" in relative or not _can_be_named(relative):
        problem = f"names a file {relative[:80]!r} that cannot exist"
    elif relative.startswith(("/", "\\")) or relative[1:3] in (":/", ":\\"):
        problem = f"names the absolute path {relative[:80]!r}"
    elif ".." in relative.replace("\\", "/").split("/"):
        problem = f"names {relative[:80]!r}, which climbs out of its folder"
    else:
        return relative
    fix = "take the list from its official source"
    raise data_error(source, problem, f"a path below {below}", fix)


def _can_be_named(text: str) -> bool:
    """Whether a file can have this name, which half a character of JSON cannot be part of."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def safe_path(
    root: str | os.PathLike[str], relative: str, *, source: str | os.PathLike[str] | None = None
) -> Path:
    """The path below a root that a list, table, JSON file or archive names.

    The file need not exist. Links are followed, as long as they stay below the root; the root
    itself may be a link.

    Args:
        root: the folder that nothing may leave.
        relative: the path below it, with forward slashes.
        source: the file that names the path, for the message; the root by default.

    Raises:
        DataError: the path is empty, absolute, climbs with "..", or leaves the root by a link.
    """
    source = root if source is None else source
    parts = PurePosixPath(check_relative(relative, source=source, below=os.fspath(root))).parts
    path = Path(root, *parts)
    inside, real = os.path.realpath(root), os.path.realpath(path)
    if real != inside and not real.startswith(os.path.join(inside, "")):
        problem = f"names {relative[:80]!r}, a link that leaves {os.fspath(root)!r}"
        raise data_error(
            source, problem, "a file below that folder", "pass the folder that the link points into"
        )
    return path


def walk_folder(folder: str | os.PathLike[str]) -> Iterator[tuple[str, list[str]]]:
    """A folder and every folder below it, as (path that its files begin with, their names).

    The path is below the folder and ends with a slash, or is empty for the folder itself. All is
    sorted; links to folders are followed once, and what begins with a dot is passed over.

    Args:
        folder: where to begin.

    Raises:
        DataError: a folder cannot be listed.
    """

    def fail(error: OSError) -> None:
        problem = f"cannot be listed ({error.strerror or error})"
        raise data_error(error.filename, problem, "a readable folder", "check it") from error

    visited: set[str] = set()
    for where, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        real = os.path.realpath(where)
        if real in visited:  # a link back into the tree
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if name[0] != ".")
        below = os.path.relpath(where, folder)
        yield "" if below == "." else f"{below}/", sorted(name for name in names if name[0] != ".")


def file_size(path: str | os.PathLike[str], what: str) -> int:
    """Bytes in a regular file that is not empty.

    Args:
        path: the file.
        what: what it should be, with its article, for the message.

    Raises:
        DataError: missing, empty, or no regular file.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        problem = "there is no such file" if missing else f"cannot be read ({error})"
        raise data_error(path, problem, what, "check the path and its permissions") from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device, pipe or socket"
        raise data_error(path, f"is {kind}", what, "check the path")
    if status.st_size == 0:
        raise data_error(path, "is empty (0 bytes)", what, FETCH_AGAIN)
    return status.st_size


def read_bytes(path: str | os.PathLike[str], what: str, *, max_bytes: int = _MAX_TEXT) -> bytes:
    """All bytes of a regular file of bounded size.

    Args:
        path: the file.
        what: what it should be, with its article, for the message.
        max_bytes: size beyond which it cannot be that.

    Raises:
        DataError: missing, empty, too large, unreadable or no regular file.
    """
    size = file_size(path, what)
    if size > max_bytes:
        problem = f"has {size} bytes, too many for {what}"
        raise data_error(path, problem, f"at most {max_bytes}", "check that it is the right file")
    try:
        with open(path, "rb") as file:
            return file.read(size)  # not of max_bytes, which would be allocated
    except OSError as error:
        problem = f"cannot be read ({error.strerror or error})"
        raise data_error(path, problem, what, "see to its permissions") from error


def read_json(path: str | os.PathLike[str], what: str, *, max_bytes: int = _MAX_TEXT) -> Any:
    """Content of a JSON file.

    Args:
        path: the file.
        what: what it should be, with its article, for the message.
        max_bytes: size beyond which it cannot be that.

    Raises:
        DataError: missing, too large, or not JSON in UTF-8.
    """
    try:
        return json.loads(read_bytes(path, what, max_bytes=max_bytes))
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        problem = f"is no valid JSON ({error})"
        raise data_error(path, problem, what, FETCH_AGAIN) from error


def read_lines(path: str | os.PathLike[str], what: str) -> Iterator[tuple[int, str]]:
    """Lines of a text file that are not blank, one at a time, with their numbers from 1.

    Memory does not grow with the file. A byte order mark and the ends of lines are taken off.

    Args:
        path: the file.
        what: what it should be, with its article, for the message.

    Raises:
        DataError: missing, empty, not text in UTF-8, or with a line of more than 65,536 bytes.
    """
    file_size(path, what)
    number = 0
    try:
        with open(path, "rb") as file:
            while line := file.readline(_MAX_LINE + 1):
                number += 1
                if len(line) > _MAX_LINE or b"\0" in line:
                    problem = f"is no text file (line {number})"
                    raise data_error(path, problem, what, FETCH_AGAIN)
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                if text.strip():
                    yield number, text
    except OSError as error:
        problem = f"cannot be read ({error.strerror or error})"
        raise data_error(path, problem, what, "see to its permissions") from error
    except UnicodeDecodeError as error:
        problem = f"is not text in UTF-8 (line {number})"
        raise data_error(path, problem, what, FETCH_AGAIN) from error


def ends_a_line(path: str | os.PathLike[str]) -> bool:
    """Whether the last byte of a file ends a line.

    Args:
        path: the file.

    Raises:
        DataError: missing, empty, unreadable or no regular file.
    """
    size = file_size(path, "a text file")
    try:
        with open(path, "rb") as file:
            file.seek(size - 1)
            return file.read(1) in (b"\n", b"\r")
    except OSError as error:
        problem = f"cannot be read ({error.strerror or error})"
        raise data_error(path, problem, "a text file", "see to its permissions") from error


def whole_number(text: str, path: str | os.PathLike[str], line: int, what: str) -> int:
    """The whole number that a field of a text file spells, of at most 18 digits.

    Args:
        text: the field.
        path: the file, for the message.
        line: number of the line, for the message.
        what: what the field means, for the message.

    Raises:
        DataError: it is no such number.
    """
    digits = text.strip(" \t").removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 18):
        problem = f"has {text[:40]!r} as {what} in line {line}"
        raise data_error(path, problem, "a whole number", FETCH_AGAIN)
    return int(text)


def real_number(text: str, path: str | os.PathLike[str], line: int, what: str) -> float:
    """The number that a field of a text file spells; it may be infinite or NaN.

    Args:
        text: the field.
        path: the file, for the message.
        line: number of the line, for the message.
        what: what the field means, for the message.

    Raises:
        DataError: it is no number.
    """
    try:
        return float(text)
    except ValueError as error:
        problem = f"has {text[:40]!r} as {what} in line {line}"
        raise data_error(path, problem, "a number", FETCH_AGAIN) from error
