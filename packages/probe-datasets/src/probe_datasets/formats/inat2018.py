"""iNaturalist 2018: pictures joined with their species from one JSON file a split.

Axes: `N` pictures of a split. All splits but the test split share the folder `train_val2018`.
"""

import os
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64
from numpy import ndarray

from probe_datasets.formats.files import (
    FETCH_AGAIN,
    DataError,
    check_relative,
    data_error,
    read_json,
)
from probe_datasets.formats.json_lists import read_json_lists

__all__ = [
    "NUM_CLASSES",
    "PICTURES",
    "SpeciesList",
    "find_annotations",
    "picture_folder",
    "read_species",
    "read_species_names",
]

NUM_CLASSES = 8142
PICTURES = "train_val2018"
"""The folder that paths begin with."""

_WHAT = "iNaturalist annotations with images, annotations and categories"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SpeciesList:
    """Pictures of a split and their species."""

    classes: tuple[str, ...]
    """Names of the species in the order of their ids; numbers where the names are withheld."""
    files: list[str]
    """Paths below the folder that holds `train_val2018`."""
    labels: Int32[ndarray, " N"]
    """Species; -1 in a split without annotations."""


def read_species(path: str | os.PathLike[str]) -> SpeciesList:
    """Pictures and species of `train2018.json`, `val2018.json` or `test2018.json`.

    The two lists of the file are joined by the id of the picture, not by their order. The file is
    read entry by entry, since as objects it would take many times its size.

    Args:
        path: the file.

    Raises:
        DataError: missing, no such file, a path that leaves the folder, a picture without a species
            or with two, or a species that there is not.
    """
    try:
        return _join(path)
    except DataError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        problem = f"has an entry that does not fit ({type(error).__name__}: {error})"
        raise data_error(path, problem, _WHAT, FETCH_AGAIN) from error


def read_species_names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Names of the species in the order of their ids, published apart from the annotations.

    Args:
        path: `categories.json`, a list of objects with `id` and `name`.

    Raises:
        DataError: missing, no such list, or ids that do not count up from 0.
    """
    what = "a JSON list of categories with id and name"
    content = read_json(path, what, max_bytes=1 << 26)
    try:
        return _names(content)
    except (KeyError, TypeError, ValueError) as error:
        problem = f"has an entry that does not fit ({type(error).__name__}: {error})"
        raise data_error(path, problem, what, FETCH_AGAIN) from error


def picture_folder(root: str | os.PathLike[str]) -> Path:
    """The folder of the pictures of train and validation.

    Args:
        root: the folder of the data set.

    Raises:
        DataError: it is not there.
    """
    names = [PICTURES, f"images/{PICTURES}", "2018"]
    for name in names:
        path = Path(root, name)
        if path.is_dir():
            return path
    problem = "holds no folder of pictures"
    raise data_error(root, problem, " or ".join(names), f"unpack {PICTURES}.tar.gz there")


def find_annotations(root: str | os.PathLike[str], name: str) -> Path | None:
    """A file of annotations; None where it is not there.

    Args:
        root: the folder of the data set.
        name: such as `val2018.json`.
    """
    paths = (Path(root, folder, name) for folder in ("", "annotations", "2018"))
    return next((path for path in paths if path.is_file()), None)


def _join(path: str | os.PathLike[str]) -> SpeciesList:
    images, files = array("q"), list[str]()
    pairs = array("q"), array("q")
    categories = list[dict[str, Any]]()
    listed = False
    for key, entry in read_json_lists(path, _WHAT, ("images", "annotations", "categories")):
        if key == "images":
            listed = True
            images.append(_number(entry["id"]))
            files.append(_file(entry["file_name"], path))
        elif key == "annotations":
            pairs[0].append(_number(entry["image_id"]))
            pairs[1].append(_number(entry["category_id"]))
        else:
            categories.append({"id": entry["id"], "name": entry["name"]})
    if not listed:
        raise data_error(path, "has no list of images", _WHAT, FETCH_AGAIN)
    classes = _names(categories)
    ids = np.frombuffer(images, np.int64)
    order = np.argsort(ids, kind="stable")
    ranked = ids[order]
    if (twice := ranked[1:][ranked[1:] == ranked[:-1]]).size:
        raise ValueError(f"image {twice[0]} twice")
    labels = np.full(len(ids), -1, np.int32)
    if len(pairs[0]):
        annotated, species = (np.frombuffer(column, np.int64) for column in pairs)
        labels[order] = _labels(ranked, annotated, species, len(classes))
    return SpeciesList(classes=classes, files=files, labels=labels)


def _labels(
    images: Int64[ndarray, " N"],
    annotated: Int64[ndarray, " M"],
    species: Int64[ndarray, " M"],
    num_classes: int,
) -> Int32[ndarray, " N"]:
    """Species of pictures whose ids ascend, from pairs in any order."""
    if species.max() >= num_classes:
        raise ValueError(f"category {species.max()} of {num_classes}")
    order = np.argsort(annotated, kind="stable")
    annotated, species = annotated[order], species[order]
    again = annotated[1:] == annotated[:-1]
    if (differing := again & (species[1:] != species[:-1])).any():
        raise ValueError(f"two categories for image {annotated[1:][differing][0]}")
    place = np.searchsorted(annotated, images)
    found = annotated[np.minimum(place, len(annotated) - 1)] == images
    if not found.all():
        raise ValueError(f"no annotation for image {images[~found][0]}")
    strangers = len(annotated) - int(again.sum()) - len(images)
    if strangers:
        raise ValueError(f"{strangers} annotations of images that are not listed")
    return species[place].astype(np.int32)


def _names(categories: Any) -> tuple[str, ...]:
    if not isinstance(categories, list):
        raise ValueError("no list")
    names = {_number(entry["id"]): str(entry["name"]) for entry in categories}
    if sorted(names) != list(range(len(categories))):
        raise ValueError("ids of categories that do not count up from 0")
    return tuple(names[i] for i in range(len(names)))


def _file(name: Any, path: str | os.PathLike[str]) -> str:
    if not isinstance(name, str):
        raise ValueError("an image without a name")
    os.fsencode(name)  # half of a surrogate pair is no file's name
    return check_relative(name, source=path)


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 40:
        raise ValueError(f"{str(value)[:40]!r} as an id")
    return value
