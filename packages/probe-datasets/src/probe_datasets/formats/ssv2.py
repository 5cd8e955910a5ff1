"""Something-Something-v2: clips joined with their classes from two JSON files.

Axes: `N` clips of a split. A clip is `<id>.webm`; ids are text. A class is a template such as
"Holding [something]", whose index is found under its name without the brackets.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32
from numpy import ndarray

from probe_datasets.formats.files import FETCH_AGAIN, data_error, read_json, safe_path

__all__ = [
    "NUM_CLASSES",
    "ClipList",
    "find_annotations",
    "find_videos",
    "read_classes",
    "read_clips",
]

NUM_CLASSES = 174

_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")
_FOLDERS = ("20bn-something-something-v2", "videos", "")
_LIST_FOLDERS = ("", "labels", "annotations")
_EXTENSIONS = ("webm", "mp4")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ClipList:
    """Clips of a split and their classes."""

    ids: tuple[str, ...]
    """Names of the clips."""
    labels: Int32[ndarray, " N"]
    """Classes; -1 in the test split, whose file has none."""


def find_annotations(root: str | os.PathLike[str], kind: str) -> Path:
    """The JSON file of a split or of the labels, under any of its published names.

    Args:
        root: the folder of the data set.
        kind: "train", "validation", "test" or "labels".

    Raises:
        DataError: none is there.
    """
    names = [f"something-something-v2-{kind}.json", f"{kind}.json"]
    for path in (Path(root, folder, name) for name in names for folder in _LIST_FOLDERS):
        if path.is_file():
            return path
    expected = f"{' or '.join(names)}, there or in labels/ or annotations/"
    raise data_error(root, f"holds no annotations {kind!r}", expected, "copy them there")


def find_videos(root: str | os.PathLike[str]) -> dict[str, str]:
    """Every clip's file, from one listing of each folder that may hold them.

    The folders are `20bn-something-something-v2`, `videos` and the root itself. A clip that several
    hold is taken from the first, and as WebM before MP4.

    Args:
        root: the folder of the data set.

    Returns:
        Name of the clip -> path below the root.

    Raises:
        DataError: a folder cannot be listed, or a link leaves it.
    """
    found: dict[str, str] = {}
    for folder in _FOLDERS:
        for clip, name in _clips_in(Path(root, folder)).items():
            found.setdefault(clip, f"{folder}/{name}" if folder else name)
    return found


def read_classes(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Class names in the order of their indices, from `something-something-v2-labels.json`.

    Args:
        path: the file: an object of templates without brackets and indices as text.

    Raises:
        DataError: missing, no such object, or indices that do not count up from 0.
    """
    what = "labels: a JSON object of templates and indices"
    content = read_json(path, what, max_bytes=1 << 24)
    if not isinstance(content, dict) or not content:
        raise data_error(path, "holds no JSON object", what, FETCH_AGAIN)
    names: dict[int, str] = {}
    for name, index in content.items():
        text = str(index)
        if not (isinstance(index, str | int) and text.isascii() and text.isdigit()):
            problem = f"has {text[:40]!r} as the index of {name[:60]!r}"
            raise data_error(path, problem, "a whole number", FETCH_AGAIN)
        names[int(text[:9])] = name
    if sorted(names) != list(range(len(content))):
        problem = f"has {len(content)} names whose indices do not count up from 0"
        raise data_error(path, problem, f"0 to {len(content) - 1}, each once", FETCH_AGAIN)
    return tuple(names[i] for i in range(len(names)))


def read_clips(path: str | os.PathLike[str], classes: Sequence[str]) -> ClipList:
    """Clips and classes of a split.

    Args:
        path: the split's JSON file, a list of objects with `id` and, but for test, `template`.
        classes: what `read_classes` returned.

    Raises:
        DataError: missing, no such list, an id that is no file name or comes twice, or a template
            that is no class.
    """
    what = "a JSON list of clips with id and template"
    content = read_json(path, what)
    if not isinstance(content, list) or not content:
        raise data_error(path, "holds no JSON list of clips", what, FETCH_AGAIN)
    index = {name: i for i, name in enumerate(classes)}
    labels: dict[str, int] = {}
    labelled = isinstance(content[0], dict) and "template" in content[0]
    for number, entry in enumerate(content):
        clip, label = _clip(entry, index, labelled)
        if label is None or clip in labels:
            problem = f"has entry {number}, {str(entry)[:80]!r}, that does not fit"
            expected = f"ids that differ and templates of the {len(classes)} classes"
            raise data_error(path, problem, expected, FETCH_AGAIN)
        labels[clip] = label
    return ClipList(ids=tuple(labels), labels=np.array(list(labels.values()), np.int32))


def _clip(entry: Any, index: dict[str, int], labelled: bool) -> tuple[str, int | None]:
    """Name and class of an entry; None for the class where either is wrong."""
    clip = entry.get("id") if isinstance(entry, dict) else None
    clip = str(clip) if isinstance(clip, str | int) else ""
    if not _ID.fullmatch(clip):
        return clip, None
    if not labelled:
        return clip, -1 if "template" not in entry else None
    template = entry.get("template")
    if not isinstance(template, str):
        return clip, None
    return clip, index.get(template.replace("[", "").replace("]", ""))


def _clips_in(folder: Path) -> dict[str, str]:
    """Names of the clips in a folder and of their files; none where it does not exist."""
    found: dict[str, str] = {}
    if not folder.is_dir():
        return found
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                clip, _, extension = entry.name.rpartition(".")
                if extension not in _EXTENSIONS or not _ID.fullmatch(clip) or not entry.is_file():
                    continue
                if entry.is_symlink():
                    safe_path(folder, entry.name)
                if clip not in found or extension == _EXTENSIONS[0]:
                    found[clip] = entry.name
    except OSError as error:
        problem = f"cannot be listed ({error.strerror or error})"
        raise data_error(folder, problem, "a folder of videos", "check it") from error
    return found
