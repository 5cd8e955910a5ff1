"""Places365-Standard: photographs of 365 kinds of places."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from probe_datasets.formats.class_names import class_folders, file_names
from probe_datasets.formats.files import DataError, data_error
from probe_datasets.formats.listed_paths import LinkCheck
from probe_datasets.formats.places365 import (
    NUM_CLASSES,
    folder_classes,
    image_root,
    iterate_list,
    official_categories,
    read_categories,
)
from probe_datasets.index import Listing
from probe_datasets.picture_files import PictureFiles
from probe_datasets.scan import Row
from probe_datasets.spec import DatasetSpec

__all__ = ["SPEC", "Places365"]

SPEC = DatasetSpec(
    name="places365",
    summary="Places365-Standard: photographs of 365 kinds of places",
    builder="probe_datasets.places365:Places365",
    task="images",
    splits=("train", "validation"),
    expected={"train": 1_803_460, "validation": 36_500},
    labels=("place",),
    num_classes={"place": NUM_CLASSES},
    layouts=(
        "{data_256,data_256_standard,data_large,data_large_standard}/<path> and "
        "{val_256,val_large}/<path>, with places365_{train_standard,val}.txt there, in "
        "filelist_places365-standard/, lists/ or labels/",
        "places365_standard/{train,val}/<class>/*.jpg or {train,val}/<class>/*.jpg (easyformat)",
    ),
    obtain="download train_256_places365standard.tar, val_256.tar and "
    "filelist_places365-standard.tar, or places365standard_easyformat.tar, from "
    "http://places2.csail.mit.edu/download.html and unpack them in one folder",
    licence="for research and education, not for commerce, on the owner's terms; the rights to the "
    "photographs are their owners'",
    citation="Zhou et al., Places: A 10 Million Image Database for Scene Recognition, TPAMI 2018",
)

_PICTURES = ("jpg", "jpeg", "png")
_FOLDERS = {"train": "train", "validation": "val"}
_LISTS = {"train": "places365_train_standard.txt", "validation": "places365_val.txt"}
_CATEGORIES = "categories_places365.txt"
_LIST_FOLDERS = ("", "filelist_places365-standard", "lists", "labels")
_EASY = ("places365_standard", "")


class Places365(PictureFiles):
    """Pictures of one kind of place each, by the ids of the official list of categories.

    The list of categories is part of this package; where the folder has one too, it has to be the
    same. Where there are both small and large pictures, the small ones are read. There are no
    labels of the test pictures, so these are no split.

    Samples are named by category and file, such as `a/airfield/00000001.jpg`, in every layout.

    Reference: From Image to Video, App. D.1 (image classification).
    """

    spec: ClassVar[DatasetSpec] = SPEC
    listed = pa.schema([("label", pa.int32())])

    def watched(self) -> tuple[Path, ...]:
        """The folder of the split's pictures and the lists.

        Raises:
            DataError: there are no pictures of the split.
        """
        pictures, listing = self._locate()
        paths = (pictures, listing, _find(self.root, _CATEGORIES))
        return tuple(path for path in paths if path is not None)

    def list_samples(self) -> Listing:
        """Every picture of the split's list, or every one in the class folders.

        Raises:
            DataError: pictures or lists are not there, or do not fit the official categories.
        """
        pictures, listing = self._locate()
        below = pictures.relative_to(self.root).as_posix()
        categories = official_categories()
        if path := _find(self.root, _CATEGORIES):
            categories = read_categories(path)
        if listing is not None:
            lines = _rows_of_list(pictures, below, listing, categories)
            layout, rows, total = f"pictures in {below} by {listing.name}", lines, _lines(listing)
            expected = 0
        else:
            folders = folder_classes(categories, class_folders(pictures), pictures)
            rows = _rows_of_folders(pictures, below, folders, categories)
            layout, total = f"a folder for each of {len(folders)} classes in {below}", 0
            expected = SPEC.expected[self.split]
        return Listing(
            layout=layout,
            rows=rows,
            classes={"place": tuple(name[3:] for name in categories)},
            total=total,
            expected=expected,
        )

    def _locate(self) -> tuple[Path, Path | None]:
        """The folder of the pictures, and the list of them; None for the easyformat."""
        listing, split = _find(self.root, _LISTS[self.split]), _FOLDERS[self.split]
        try:
            pictures = image_root(self.root, split)
        except DataError:
            pictures = None
        if listing is not None and pictures is not None:
            return pictures, listing
        for easy in _EASY:
            folder = self.root / easy / split
            if folder.is_dir() and class_folders(folder):
                return folder, None
        if pictures is None:
            names = f"{SPEC.layouts[0]}; or {SPEC.layouts[1]}"
            problem = f"holds no folder of {split} pictures"
            raise data_error(self.root, problem, names, "unpack the archives there")
        problem = f"holds {pictures.name} without a list of its classes"
        fix = "unpack filelist_places365-standard.tar there"
        raise data_error(self.root, problem, _LISTS[self.split], fix)


def _rows_of_list(
    pictures: Path, below: str, listing: Path, categories: tuple[str, ...]
) -> Iterator[Row]:
    links = LinkCheck(pictures, listing)
    for relative, label in iterate_list(listing):
        folder, _, name = relative.rpartition("/")
        category = categories[label].removeprefix("/")
        if folder not in ("", category):
            problem = f"has a picture {relative[:80]!r} of the class {category}"
            fix = "take the list from its official source"
            raise data_error(listing, problem, "classes as in the paths", fix)
        yield {
            "sample_id": f"{category}/{name}",
            "path": f"{below}/{relative}",
            "problem": links.problem(relative),
            "label": label,
        }


def _rows_of_folders(
    pictures: Path, below: str, folders: Mapping[str, int], categories: tuple[str, ...]
) -> Iterator[Row]:
    for folder, label in folders.items():
        for name in file_names(pictures / folder, _PICTURES):
            yield {
                "sample_id": f"{categories[label].removeprefix('/')}/{name}",
                "path": f"{below}/{folder}/{name}",
                "label": label,
            }


def _lines(path: Path) -> int:
    """About how many pictures a list has."""
    with open(path, "rb") as file:
        return sum(part.count(b"\n") for part in iter(lambda: file.read(1 << 20), b""))


def _find(root: Path, name: str) -> Path | None:
    paths = (root / folder / name for folder in _LIST_FOLDERS)
    return next((path for path in paths if path.is_file()), None)
