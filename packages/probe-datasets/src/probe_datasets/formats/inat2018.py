"""iNaturalist 2018: pictures joined with their species from one JSON file a split.

Axes: `N` pictures of a split. All splits but the test split share the folder `train_val2018`.
"""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int32
from numpy import ndarray

from probe_datasets.formats.files import (
    FETCH_AGAIN,
    DataError,
    check_relative,
    data_error,
    read_json,
)

__all__ = ["NUM_CLASSES", "SpeciesList", "read_species"]

NUM_CLASSES = 8142

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

    The two lists of the file are joined by the id of the picture, not by their order.

    Args:
        path: the file.

    Raises:
        DataError: missing, no such file, a path that leaves the folder, a picture without a species
            or with two, or a species that there is not.
    """
    content = read_json(path, _WHAT)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise data_error(path, "has no list of images", _WHAT, FETCH_AGAIN)
    try:
        return _join(content, path)
    except DataError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        problem = f"has an entry that does not fit ({type(error).__name__}: {error})"
        raise data_error(path, problem, _WHAT, FETCH_AGAIN) from error


def _join(content: dict[str, Any], path: str | os.PathLike[str]) -> SpeciesList:
    images = content["images"]
    categories, annotations = content.get("categories", []), content.get("annotations", [])
    names = {_number(entry["id"]): str(entry["name"]) for entry in categories}
    if sorted(names) != list(range(len(categories))):
        raise ValueError("ids of categories that do not count up from 0")
    species: dict[int, int] = {}
    for entry in annotations:
        image, category = _number(entry["image_id"]), _number(entry["category_id"])
        if category not in names:
            raise ValueError(f"category {category} of {len(names)}")
        if species.setdefault(image, category) != category:
            raise ValueError(f"two categories for image {image}")
    files, labels, seen = [], [], set()
    for entry in images:
        image, file = _number(entry["id"]), entry["file_name"]
        if image in seen or not isinstance(file, str):
            raise ValueError(f"image {image} twice or without a name")
        if annotations and image not in species:
            raise ValueError(f"no annotation for image {image}")
        seen.add(image)
        files.append(check_relative(file, source=path))
        labels.append(species.get(image, -1))
    strangers = species.keys() - seen
    if strangers or not files:
        raise ValueError(f"{len(strangers)} annotations of images that are not listed")
    return SpeciesList(
        classes=tuple(names[i] for i in range(len(names))),
        files=files,
        labels=np.array(labels, np.int32),
    )


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 40:
        raise ValueError(f"{str(value)[:40]!r} as an id")
    return value
