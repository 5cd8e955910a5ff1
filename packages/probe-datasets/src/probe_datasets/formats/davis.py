"""DAVIS 2016 and 2017: frames of a sequence with the masks of its objects.

Axes: `H W` pixels. A mask holds palette indices: 0 background, 1 and on the objects, 255 void.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Bool, UInt8
from numpy import ndarray

from probe_datasets.formats.class_names import class_folders
from probe_datasets.formats.files import FETCH_AGAIN, data_error, read_bytes, read_lines, safe_path
from probe_datasets.formats.still_images import MAX_BYTES, decode_indices

__all__ = ["VOID", "Sequence", "find_sequence", "read_mask", "read_sequences"]

VOID = 255
"""The mask value that counts as neither object nor background."""

_NAME = re.compile(r"[0-9A-Za-z_-]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sequence:
    """Frames of one sequence, by number."""

    name: str
    """Name of its folder."""
    frames: tuple[Path, ...]
    """The pictures."""
    masks: tuple[Path | None, ...]
    """The mask of each picture; None where there is none."""


def read_sequences(
    root: str | os.PathLike[str], split: str, year: int = 2017, resolution: str = "480p"
) -> tuple[str, ...]:
    """Names of a split's sequences, from `ImageSets/<year>/<split>.txt`.

    Args:
        root: the folder `DAVIS`.
        split: "train", "val", "trainval" and so on; or "all" for every folder of pictures.
        year: 2016, whose lists name every frame, or 2017, whose lists name sequences.
        resolution: "480p" or "Full-Resolution", for "all".

    Raises:
        DataError: missing, or a line that names no sequence.
    """
    if split == "all":
        return class_folders(Path(root, "JPEGImages", resolution))
    path = Path(root, "ImageSets", str(year), f"{split}.txt")
    if not path.exists():
        fix = "unpack the whole archive, or take the split 'all', which needs no list"
        raise data_error(root, "holds no list of the split", f"{path.relative_to(root)}", fix)
    what = "a list of sequences, or of frames such as /JPEGImages/480p/bear/00000.jpg"
    names: dict[str, None] = {}
    for line, text in read_lines(path, what):
        first = text.split()[0]
        parts = first.strip("/").split("/")
        frame = len(parts) == 4 and parts[0] == "JPEGImages"
        name = parts[2] if frame else first
        if not _NAME.fullmatch(name):
            raise data_error(path, f"has {text[:80]!r} in line {line}", what, FETCH_AGAIN)
        names[name] = None
    return tuple(names)


def find_sequence(root: str | os.PathLike[str], name: str, resolution: str = "480p") -> Sequence:
    """Pictures and masks of a sequence.

    Args:
        root: the folder `DAVIS`.
        name: name of the sequence.
        resolution: "480p" or "Full-Resolution".

    Raises:
        DataError: the name is none, a link leaves the root, there is no picture, or a mask that
            belongs to no picture.
    """
    if not _NAME.fullmatch(name) or not _NAME.fullmatch(resolution):
        problem = f"cannot hold a sequence {name[:60]!r} at {resolution[:60]!r}"
        raise data_error(root, problem, "plain names", "check the list")
    frames = _numbered(Path(root, "JPEGImages", resolution), name, ("jpg", "jpeg"))
    masks = _numbered(Path(root, "Annotations", resolution), name, ("png",))
    if not frames or masks.keys() - frames.keys():
        problem = f"holds {len(frames)} pictures and {len(masks)} masks of {name}"
        expected = f"a picture for each mask, in JPEGImages/{resolution}/{name}"
        raise data_error(root, problem, expected, FETCH_AGAIN)
    return Sequence(
        name=name,
        frames=tuple(frames[n] for n in sorted(frames)),
        masks=tuple(masks.get(n) for n in sorted(frames)),
    )


def read_mask(
    path: str | os.PathLike[str], *, size: tuple[int, int] | None = None
) -> tuple[UInt8[ndarray, "H W"], Bool[ndarray, "H W"]]:
    """Object of each pixel, and where that is known.

    Args:
        path: the PNG.
        size: (height, width) that it must have.

    Returns:
        0 background and void, 1 and on the objects; and False where void.

    Raises:
        DataError: missing, damaged, without indices, or of another size.
    """
    data = read_bytes(path, "a mask in a palette PNG", max_bytes=MAX_BYTES)
    indices = decode_indices(data, path, size=size).copy()
    valid = indices != VOID
    indices[~valid] = 0
    return indices, valid


def _numbered(root: Path, name: str, extensions: tuple[str, ...]) -> dict[int, Path]:
    """Files of a sequence that are named by a number, by that number."""
    folder = safe_path(root, name)
    try:
        entries = sorted(os.listdir(folder))
    except OSError:
        return {}
    found: dict[int, Path] = {}
    for entry in entries:
        stem, _, extension = entry.rpartition(".")
        if extension.lower() in extensions and stem.isascii() and stem.isdigit() and len(stem) < 10:
            if int(stem) in found:
                problem = f"holds two files for frame {int(stem)}"
                raise data_error(folder, problem, "one file a frame", "remove one of them")
            found[int(stem)] = safe_path(root, f"{name}/{entry}")
    return found
