"""What tells whether any file of a folder changed: names, sizes, times and modes."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from probe_datasets.formats.files import data_error

__all__ = ["describe_files"]


def describe_files(paths: Iterable[Path], root: Path) -> Iterator[bytes]:
    """Name, size, time of change and mode of each file, in an order that depends on names alone.

    Links are followed, those to folders once, and what begins with a dot is passed over. A million
    files are listed and looked at in some seconds, so nothing here is done twice.

    Args:
        paths: files, and folders with all below them.
        root: what their own names are relative to.

    Raises:
        DataError: a folder cannot be listed.
    """
    for path in paths:
        yield os.fsencode(os.path.relpath(path, root))
        if path.is_dir():
            yield from _below(path)
        else:
            yield _state(path, os.fsencode(path.name))


def _below(folder: Path) -> Iterator[bytes]:
    visited: set[str] = set()
    waiting = [(os.fspath(folder), b".")]
    while waiting:
        where, name = waiting.pop()
        real = os.path.realpath(where)
        if real in visited:  # a link back into the tree
            continue
        visited.add(real)
        try:
            with os.scandir(where) as entries:
                found = sorted((e.name, e) for e in entries if not e.name.startswith("."))
        except OSError as error:
            problem = f"cannot be listed ({error.strerror})"
            raise data_error(where, problem, "a readable folder", "check it") from error
        yield name
        folders = []
        for text, entry in found:
            if _is_folder(entry):
                folders.append((entry.path, name + b"/" + os.fsencode(text)))
            else:
                yield _state(entry, os.fsencode(text))
        waiting.extend(reversed(folders))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _state(file: Path | os.DirEntry[str], name: bytes) -> bytes:
    try:
        status = file.stat()
    except OSError:  # gone since it was listed, or a link to nowhere
        return name
    return b"%b\0%d %d %o" % (name, status.st_size, status.st_mtime_ns, status.st_mode)
