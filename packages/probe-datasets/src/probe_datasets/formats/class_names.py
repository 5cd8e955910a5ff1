"""Folders of files and of classes, listed by name."""

import os
from collections.abc import Iterator, Sequence

from probe_datasets.formats.files import data_error, walk_folder

__all__ = ["class_folders", "file_names", "folder_files"]


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

    They come in the order of `walk_folder`. A folder that does not exist has no files.

    Args:
        folder: where to look.
        extensions: in lower case and without the dot; files may have them in any case.

    Raises:
        DataError: a folder cannot be listed.
    """
    if not os.path.isdir(folder):
        return
    for below, names in walk_folder(folder):
        for name in names:
            stem, _, extension = name.rpartition(".")
            if stem and extension.lower() in extensions:
                yield f"{below}{name}", stem
