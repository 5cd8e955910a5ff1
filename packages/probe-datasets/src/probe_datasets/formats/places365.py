"""Places365-Standard: the official lists, and the "easyformat" with a folder for each class."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from probe_datasets.formats.files import (
    FETCH_AGAIN,
    check_relative,
    data_error,
    read_bytes,
    read_lines,
    whole_number,
)

__all__ = [
    "CATEGORIES_MD5",
    "NUM_CLASSES",
    "folder_classes",
    "image_root",
    "iterate_list",
    "official_categories",
    "read_categories",
]

NUM_CLASSES = 365
CATEGORIES_MD5 = "06c963b85866bd0649f97cb43dd16673"
"""Of the official `categories_places365.txt`, which has no newline at its end."""

_ROOTS = {
    "train": ("data_256", "data_256_standard", "data_large", "data_large_standard"),
    "val": ("val_256", "val_large"),
    "test": ("test_256", "test_large"),
}


def read_categories(path: str | os.PathLike[str], *, official: bool = True) -> tuple[str, ...]:
    """Class names such as `/a/airfield`, in the order of their ids.

    Args:
        path: `categories_places365.txt`.
        official: require the very list that labels are published with, but for the newline at
            its end; another order would give wrong labels without a sign.

    Raises:
        DataError: missing, ids that do not count up from 0, or not the official list.
    """
    what = "the list of categories, '/a/airfield 0' and so on"
    names: list[str] = []
    for line, text in read_lines(path, what):
        name, _, number = text.rpartition(" ")
        if whole_number(number, path, line, "a class") != len(names) or name in names:
            problem = f"has {text[:60]!r} in line {line}"
            raise data_error(path, problem, f"another class with the id {len(names)}", FETCH_AGAIN)
        names.append(name)
    if official:
        content = read_bytes(path, what, max_bytes=1 << 20).replace(b"\r\n", b"\n").rstrip(b"\n")
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if found != CATEGORIES_MD5:
            problem = f"is not the official list (md5 {found})"
            raise data_error(path, problem, f"md5 {CATEGORIES_MD5}", FETCH_AGAIN)
    return tuple(names)


@cache
def official_categories() -> tuple[str, ...]:
    """Class names such as `/a/airfield` in the order of their ids: the official list.

    It comes with this package, for data whose lists are not at hand.
    """
    names = Path(__file__).with_name("places365_classes.txt").read_text().split()
    return tuple(f"/{name[0]}/{name}" for name in names)


def iterate_list(path: str | os.PathLike[str]) -> Iterator[tuple[str, int]]:
    """Pictures and classes of a list, `<path> <class>` a line, in memory that does not grow.

    A list that is cut within its last class cannot be told from a whole one, except in the train
    list, whose paths name the class: there a folder must have one class.

    Args:
        path: `places365_train_standard.txt` or `places365_val.txt`.

    Yields:
        Path below the folder of the split's pictures, without the slash that it begins with in the
        train list; and class.

    Raises:
        DataError: missing, a path that leaves the folder, a class that there is not, or two classes
            for one folder of the train list.
    """
    what = "a list of pictures and classes, '/a/airfield/00000001.jpg 0' and so on"
    by_folder: dict[str, int] = {}
    for line, text in read_lines(path, what):
        relative, _, number = text.strip().rpartition(" ")
        label = int(number) if number.isascii() and number.isdigit() and len(number) < 6 else -1
        if not relative or not 0 <= label < NUM_CLASSES:
            problem = f"has {text[:80]!r} in line {line}"
            raise data_error(path, problem, f"a path and a class below {NUM_CLASSES}", FETCH_AGAIN)
        if relative[0] == "/":
            first = by_folder.setdefault(relative.rpartition("/")[0], label)
            if first != label:
                problem = f"has class {label} in line {line} for a folder of class {first}"
                raise data_error(path, problem, "one class a folder", FETCH_AGAIN)
        yield check_relative(relative.removeprefix("/"), source=path), label


def folder_classes(
    categories: Sequence[str], folders: Sequence[str], path: str | os.PathLike[str]
) -> Mapping[str, int]:
    """Class of each folder of the easyformat, whose sorted order is not that of the ids.

    `/a/arena/hockey` is the folder `arena-hockey`; underscores and dashes count as the same.

    Args:
        categories: what `read_categories` returned.
        folders: names of the folders.
        path: the folder that holds them, for the message.

    Raises:
        DataError: a folder that fits no class, or two that fit one.
    """
    ids = {name[3:].replace("/", "-").replace("_", "-"): i for i, name in enumerate(categories)}
    if len(ids) != len(categories):
        raise ValueError(f"categories hold only {len(ids)} different names of {len(categories)}")
    result: dict[str, int] = {}
    for folder in folders:
        label = ids.get(folder.replace("_", "-"))
        if label is None or label in result.values():
            problem = f"holds a folder {folder[:60]!r} that fits no class, or one that another fits"
            expected = "folders such as airfield and arena-hockey"
            raise data_error(path, problem, expected, "remove or rename it")
        result[folder] = label
    return result


def image_root(root: str | os.PathLike[str], split: str) -> Path:
    """The folder of a split's pictures, as its archive unpacks.

    Args:
        root: the folder of the data set.
        split: "train", "val" or "test".

    Raises:
        ValueError: there is no such split.
        DataError: none of the folders is there.
    """
    if split not in _ROOTS:
        raise ValueError(f"split {split!r} must be one of {', '.join(_ROOTS)}")
    for name in _ROOTS[split]:
        path = Path(root, name)
        if path.is_dir():
            return path
    problem = f"holds no folder of {split} pictures"
    raise data_error(root, problem, " or ".join(_ROOTS[split]), "unpack the archive there")
