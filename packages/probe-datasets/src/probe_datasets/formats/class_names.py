"""Class names of image and video data sets, and the class folders that files are sorted into."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from probe_datasets.formats.files import FETCH_AGAIN, data_error, read_lines

__all__ = ["class_folders", "file_names", "folder_files", "read_label_map"]

_MAX_CLASSES = 100_000


def read_label_map(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Class names of a text file with one name a line; the index is the rank of the line.

    Args:
        path: the file, such as a Kinetics label map.

    Raises:
        DataError: missing, a name twice, or more lines than there can be classes.
    """
    what = "a list of class names, one a line"
    names: dict[str, int] = {}
    for line, text in read_lines(path, what):
        name = text.strip()
        if name in names or len(names) >= _MAX_CLASSES:
            problem = f"has {name[:60]!r} in line {names.get(name, line)} and again in line {line}"
            raise data_error(path, problem, "each class once", FETCH_AGAIN)
        names[name] = line
    return tuple(names)


def class_folders(folder: str | os.PathLike[str]) -> tuple[str, ...]:
    """Names of the folders in a folder, sorted; those that begin with a dot are passed over.

    Args:
        folder: the folder whose folders are classes.

    Raises:
        DataError: it cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return tuple(sorted(e.name for e in entries if e.name[0] != "." and e.is_dir()))
    except OSError as error:
        problem = f"cannot be listed ({error.strerror or error})"
        raise data_error(folder, problem, "a folder of class folders", "check it") from error


def file_names(folder: str | os.PathLike[str], extensions: Sequence[str]) -> list[str]:
    """Names of the files in a folder, not below it, with one of some extensions, sorted.

    Args:
        folder: where to look; what begins with a dot is passed over.
        extensions: in lower case and without the dot; files may have them in any case.

    Raises:
        DataError: it cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(
                e.name
                for e in entries
                if e.name[0] != "."
                and e.name.rpartition(".")[2].lower() in extensions
                and not e.is_dir()
            )
    except OSError as error:
        problem = f"cannot be listed ({error.strerror or error})"
        raise data_error(folder, problem, "a folder of files", "check it") from error


def folder_files(
    folder: str | os.PathLike[str], extensions: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """Every file with one of some extensions at any depth, as (path below the folder, stem).

    Folders and files come in sorted order, links to folders are followed once, and what begins
    with a dot is passed over. A folder that does not exist has no files.

    Args:
        folder: where to look.
        extensions: in lower case and without the dot; files may have them in any case.
    """
    visited: set[str] = set()
    for where, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = Path(where).relative_to(folder).as_posix()
        for name in sorted(files):
            stem, _, extension = name.rpartition(".")
            if stem and stem[0] != "." and extension.lower() in extensions:
                yield (name if below == "." else f"{below}/{name}"), stem
