"""ImageNet-1k (ILSVRC2012): the ways in which its labels are written down.

A class is a WordNet id such as `n01440764`; its index is its rank among the sorted 1,000 ids. The
development kit numbers the classes from 1 in another order, so its numbers are never indices.
"""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from probe_datasets.formats.class_names import class_folders
from probe_datasets.formats.files import (
    FETCH_AGAIN,
    data_error,
    read_json,
    read_lines,
    whole_number,
)

__all__ = [
    "NUM_CLASSES",
    "NUM_IMAGES",
    "find_layout",
    "folder_wnids",
    "official_wnids",
    "read_class_index",
    "read_ground_truth",
    "read_kaggle_solution",
    "read_synset_mapping",
    "read_validation_wnids",
]

NUM_CLASSES = 1000
NUM_IMAGES = {"train": 1_281_167, "val": 50_000}

_WNID = re.compile(r"n\d{8}")
_KAGGLE = "ILSVRC/Data/CLS-LOC"


@cache
def official_wnids() -> tuple[str, ...]:
    """The ids of the 1,000 classes, sorted, so that a class's place is its index.

    The list comes with this package, so that parts of the data set have the labels of the whole.
    """
    return tuple(Path(__file__).with_name("imagenet_classes.txt").read_text().split())


def folder_wnids(folder: str | os.PathLike[str]) -> tuple[str, ...]:
    """Ids of the class folders in a folder, sorted; other folders are passed over.

    Args:
        folder: such as `train`.

    Raises:
        DataError: it cannot be listed.
    """
    return tuple(name for name in class_folders(folder) if _WNID.fullmatch(name))


def find_layout(root: str | os.PathLike[str], split: str) -> tuple[str, Path]:
    """How the pictures of a split are kept, and in which folder.

    Args:
        root: the folder of the data set.
        split: "train" or "val".

    Returns:
        "folders" (a folder for each class), "flat" or "kaggle" (all pictures in one folder, with
        labels in a file beside); and the folder of the pictures.

    Raises:
        DataError: nothing of the kind is there.
    """
    tried = [split, "validation"] if split == "val" else [split]
    kaggle = [_KAGGLE, _KAGGLE.removeprefix("ILSVRC/")]
    names = [*tried, *(f"{folder}/{split}" for folder in kaggle), f"ILSVRC2012_img_{split}"]
    for name in names:
        folder = Path(root, name)
        if folder.is_dir():
            if folder_wnids(folder):
                return "folders", folder
            return ("kaggle" if "CLS-LOC" in name else "flat"), folder
    problem = f"holds no folder of {split} pictures"
    raise data_error(root, problem, " or ".join(names), "unpack the archive there")


def read_validation_wnids(path: str | os.PathLike[str]) -> list[str]:
    """Ids of the validation pictures in the order of their names, one a line.

    Args:
        path: the file.

    Raises:
        DataError: missing, or not 50,000 ids, 50 of each class.
    """
    what = f"{NUM_IMAGES['val']} ids such as n01440764, one a line"
    wnids = []
    for line, text in read_lines(path, what):
        if not _WNID.fullmatch(text.strip()) or len(wnids) >= NUM_IMAGES["val"]:
            raise data_error(path, f"has {text[:60]!r} in line {line}", what, FETCH_AGAIN)
        wnids.append(text.strip())
    _check_balance(wnids, path, "ids", what)
    return wnids


def read_ground_truth(path: str | os.PathLike[str], devkit_order: Sequence[str]) -> list[str]:
    """Ids of the validation pictures, from the development kit's numbers.

    Args:
        path: `ILSVRC2012_validation_ground_truth.txt`, a number from 1 to 1,000 a line.
        devkit_order: id of each number from 1 on, as the kit's `meta.mat` has them.

    Raises:
        ValueError: the order is not of 1,000 different ids.
        DataError: missing, or not 50,000 such numbers, 50 of each class.
    """
    if len(set(devkit_order)) != NUM_CLASSES or len(devkit_order) != NUM_CLASSES:
        raise ValueError(f"devkit_order has {len(devkit_order)} ids; expected {NUM_CLASSES}")
    what = f"{NUM_IMAGES['val']} numbers from 1 to {NUM_CLASSES}, one a line"
    wnids = []
    for line, text in read_lines(path, what):
        number = whole_number(text, path, line, "a class")
        if not 1 <= number <= NUM_CLASSES or len(wnids) >= NUM_IMAGES["val"]:
            raise data_error(path, f"has {text[:40]!r} in line {line}", what, FETCH_AGAIN)
        wnids.append(devkit_order[number - 1])
    _check_balance(wnids, path, "numbers", what)
    return wnids


def _check_balance(
    wnids: Sequence[str], path: str | os.PathLike[str], lines: str, what: str
) -> None:
    """Refuse a list that is not all of the validation pictures, each class as often as any."""
    each, counts = NUM_IMAGES["val"] // NUM_CLASSES, Counter(wnids)
    if len(wnids) != NUM_IMAGES["val"]:
        raise data_error(path, f"holds {len(wnids)} {lines}", what, FETCH_AGAIN)
    if uneven := [wnid for wnid, count in counts.items() if count != each]:
        problem = f"has the class {uneven[0]} {counts[uneven[0]]} times"
        raise data_error(path, problem, f"{each} pictures of each class", FETCH_AGAIN)


def read_kaggle_solution(path: str | os.PathLike[str]) -> Mapping[str, str]:
    """Id of each validation picture by its name without extension.

    Args:
        path: `LOC_val_solution.csv` of lines `ImageId,PredictionString`, whose second column is
            the id and four corners, once or several times.

    Raises:
        DataError: missing, no such table, or a picture twice.
    """
    what = "a table of ImageId,PredictionString"
    wnids: dict[str, str] = {}
    for line, text in read_lines(path, what):
        name, _, prediction = text.partition(",")
        if line == 1 and name == "ImageId":
            continue
        fields = prediction.split()
        plain = name and not name.startswith(".") and "/" not in name and name not in wnids
        # One label a picture, however many boxes.
        if not plain or not _WNID.fullmatch(fields[0] if fields else "") or len(fields) % 5:
            raise data_error(path, f"has {text[:60]!r} in line {line}", what, FETCH_AGAIN)
        if len(set(fields[::5])) != 1:
            problem = f"gives {name} two classes in line {line}"
            raise data_error(path, problem, "one class a picture", FETCH_AGAIN)
        wnids[name] = fields[0]
    if not wnids:
        raise data_error(path, "holds no rows", what, FETCH_AGAIN)
    return wnids


def read_synset_mapping(path: str | os.PathLike[str]) -> Mapping[str, str]:
    """Names of the classes by id.

    Args:
        path: `LOC_synset_mapping.txt` of lines `n01440764 tench, Tinca tinca`, or a list of ids.

    Raises:
        DataError: missing, a line without an id, or an id twice.
    """
    what = "classes, 'n01440764 tench, Tinca tinca' and so on"
    names: dict[str, str] = {}
    for line, text in read_lines(path, what):
        wnid, _, name = text.strip().partition(" ")
        if not _WNID.fullmatch(wnid) or wnid in names:
            raise data_error(path, f"has {text[:60]!r} in line {line}", what, FETCH_AGAIN)
        names[wnid] = name or wnid
    return names


def read_class_index(path: str | os.PathLike[str]) -> Mapping[str, str]:
    """Names of the classes by id, from a file that many programs keep.

    Args:
        path: `imagenet_class_index.json`, `{"0": ["n01440764", "tench"], ...}`.

    Raises:
        DataError: missing, or no such file.
    """
    what = 'classes, {"0": ["n01440764", "tench"], ...}'
    content = read_json(path, what, max_bytes=1 << 24)
    entries = list(content.values()) if isinstance(content, dict) else [None]
    names: dict[str, str] = {}
    for entry in entries:
        pair = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
        wnid, name = pair
        plain = isinstance(wnid, str) and isinstance(name, str) and _WNID.fullmatch(wnid)
        if not plain or wnid in names:
            raise data_error(path, f"has {str(entry)[:60]!r}", what, FETCH_AGAIN)
        names[wnid] = name.replace("_", " ")
    return names
