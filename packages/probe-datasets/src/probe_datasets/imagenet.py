"""ImageNet-1k (ILSVRC2012): photographs of 1,000 classes of things and animals."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from probe_datasets.formats.class_names import class_folders, file_names
from probe_datasets.formats.files import data_error
from probe_datasets.formats.imagenet import (
    NUM_CLASSES,
    NUM_IMAGES,
    find_layout,
    folder_wnids,
    official_wnids,
    read_class_index,
    read_ground_truth,
    read_kaggle_solution,
    read_synset_mapping,
    read_validation_wnids,
)
from probe_datasets.formats.imagenet_devkit import read_devkit_order
from probe_datasets.index import Listing
from probe_datasets.picture_files import PictureFiles
from probe_datasets.scan import Row
from probe_datasets.spec import DatasetSpec

__all__ = ["SPEC", "ImageNet"]

SPEC = DatasetSpec(
    name="imagenet",
    summary="ImageNet-1k (ILSVRC2012): photographs of 1,000 classes of things and animals",
    builder="probe_datasets.imagenet:ImageNet",
    task="images",
    splits=("train", "validation"),
    expected={"train": NUM_IMAGES["train"], "validation": NUM_IMAGES["val"]},
    labels=("class",),
    num_classes={"class": NUM_CLASSES},
    layouts=(
        "{train,val}/<wnid>/*.JPEG: a folder for each class",
        "val/ or ILSVRC2012_img_val/ of ILSVRC2012_val_<number>.JPEG, with the development kit "
        "(ILSVRC2012_devkit_t12/data/{ILSVRC2012_validation_ground_truth.txt,meta.mat}) or "
        "validation_labels.txt (a wnid a line) beside",
        "ILSVRC/Data/CLS-LOC/{train,val} with LOC_val_solution.csv beside, as Kaggle has it",
    ),
    obtain="register at https://image-net.org and unpack ILSVRC2012_img_train.tar (and the 1,000 "
    "archives in it, each into a folder of its name), ILSVRC2012_img_val.tar and "
    "ILSVRC2012_devkit_t12.tar.gz; or use kaggle.com's imagenet-object-localization-challenge",
    licence="for non-commercial research and education on the owner's terms; not to be "
    "redistributed; the rights to the photographs are their owners'",
    citation="Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV 2015",
)

_PICTURES = ("jpeg", "jpg", "png")
_META = (
    *("", "ILSVRC", "ILSVRC2012_devkit_t12/data", "ILSVRC2012_devkit_t12", "devkit/data", "devkit"),
    *("data", "meta", "labels", "annotations"),
)
_CSV = "LOC_val_solution.csv"
_ID_LISTS = ("validation_labels.txt", "imagenet_2012_validation_synset_labels.txt")
_KIT_LISTS = ("ILSVRC2012_validation_ground_truth.txt", "validation_ground_truth.txt")
_KIT_ORDER = "meta.mat"
_MAPPING, _CLASS_INDEX = "LOC_synset_mapping.txt", "imagenet_class_index.json"


class ImageNet(PictureFiles):
    """Pictures of one class each, the index of a class being its rank among the 1,000 WordNet ids.

    Labels come from the names of the class folders, or from a list of the validation pictures; the
    1,000 ids are part of this package, so that a folder with a few of the classes has the same
    labels as the whole. Classes have the names of `LOC_synset_mapping.txt` or
    `imagenet_class_index.json` where one of them is there, and else their ids.

    Samples are named `<wnid>/<file>`, such as `n01440764/n01440764_10026.JPEG`, in every layout.

    Reference: From Image to Video, App. D.1 (image classification).
    """

    spec: ClassVar[DatasetSpec] = SPEC
    listed = pa.schema([("label", pa.int32())])

    def watched(self) -> tuple[Path, ...]:
        """The folder of the split's pictures, and all lists of labels and names.

        Raises:
            DataError: there are no pictures of the split.
        """
        names = (_CSV, *_ID_LISTS, *_KIT_LISTS, _KIT_ORDER, _MAPPING, _CLASS_INDEX)
        places = (self.root / below / name for below in _META for name in names)
        _, folder = find_layout(self.root, self._folder_name())
        return (folder, *(path for path in places if path.is_file()))

    def list_samples(self) -> Listing:
        """Every picture in the class folders, or every one whose class a list gives.

        Raises:
            DataError: pictures are not there, are in folders that are no classes, or have no list
                of their classes.
        """
        layout, folder = find_layout(self.root, self._folder_name())
        below = folder.relative_to(self.root).as_posix()
        classes = {"class": _class_names(self.root)}
        expected = NUM_IMAGES[self._folder_name()]
        if layout == "folders":
            wnids = folder_wnids(folder)
            if strange := sorted(set(wnids) - set(official_wnids())):
                problem = f"holds a class folder {strange[0]}, which is none of ImageNet-1k's"
                fix = "move it elsewhere; other classes than the 1,000 have no label"
                raise data_error(folder, problem, f"folders of the {NUM_CLASSES} classes", fix)
            others = len(class_folders(folder)) - len(wnids)
            return Listing(
                layout=f"a folder for each of {len(wnids)} classes in {below}",
                rows=_folder_rows(folder, below, wnids),
                classes=classes,
                expected=expected,
                ignored=others + len(file_names(folder, _PICTURES)),
            )
        if self.split == "train":
            problem = "holds no class folders such as n01440764"
            fix = "unpack each of its 1,000 archives into a folder of its name"
            raise data_error(folder, problem, f"{NUM_CLASSES} folders of pictures", fix)
        source, wnid_of = _validation_labels(self.root)
        files = {name.rpartition(".")[0]: name for name in file_names(folder, _PICTURES)}
        return Listing(
            layout=f"pictures in {below}, classes in {source.relative_to(self.root).as_posix()}",
            rows=_listed_rows(below, wnid_of, files),
            classes=classes,
            total=len(wnid_of),
            expected=expected,
            ignored=len(files.keys() - wnid_of.keys()),
        )

    def _folder_name(self) -> str:
        return "train" if self.split == "train" else "val"


def _folder_rows(folder: Path, below: str, wnids: tuple[str, ...]) -> Iterator[Row]:
    indices = {wnid: i for i, wnid in enumerate(official_wnids())}
    for wnid in wnids:
        for name in file_names(folder / wnid, _PICTURES):
            path = f"{below}/{wnid}/{name}"
            yield {"sample_id": f"{wnid}/{name}", "path": path, "label": indices[wnid]}


def _listed_rows(below: str, wnid_of: Mapping[str, str], files: Mapping[str, str]) -> Iterator[Row]:
    indices = {wnid: i for i, wnid in enumerate(official_wnids())}
    for stem in sorted(wnid_of):
        wnid, name = wnid_of[stem], files.get(stem, f"{stem}.JPEG")
        path = f"{below}/{name}" if stem in files else None
        yield {"sample_id": f"{wnid}/{name}", "path": path, "label": indices[wnid]}


def _validation_labels(root: Path) -> tuple[Path, Mapping[str, str]]:
    """The list of the validation pictures' classes, and the id of each by its name."""
    if path := _find(root, _CSV):
        wnid_of = read_kaggle_solution(path)
    elif path := next(filter(None, (_find(root, name) for name in _ID_LISTS)), None):
        wnid_of = _numbered(read_validation_wnids(path))
    elif path := next(filter(None, (_find(root, name) for name in _KIT_LISTS)), None):
        beside = path.parent / _KIT_ORDER
        order = beside if beside.is_file() else _find(root, _KIT_ORDER)
        if order is None:
            problem = f"numbers classes as the development kit does, whose {_KIT_ORDER} is missing"
            raise data_error(path, problem, f"{_KIT_ORDER} beside it", "copy it there")
        wnid_of = _numbered(read_ground_truth(path, read_devkit_order(order)))
    else:
        names = ", ".join((_CSV, _ID_LISTS[0], f"{_KIT_LISTS[0]} with {_KIT_ORDER}"))
        fix = "copy one of them into it, or sort the pictures into class folders"
        problem = "holds validation pictures without a list of their classes"
        raise data_error(root, problem, f"one of {names}", fix)
    if strange := sorted(set(wnid_of.values()) - set(official_wnids())):
        problem = f"names the class {strange[0]}, which is none of ImageNet-1k's"
        raise data_error(path, problem, f"the {NUM_CLASSES} classes", "take the official list")
    return path, wnid_of


def _numbered(wnids: list[str]) -> dict[str, str]:
    return {f"ILSVRC2012_val_{i:08d}": wnid for i, wnid in enumerate(wnids, start=1)}


def _class_names(root: Path) -> tuple[str, ...]:
    """Names that differ, for people: with the id where two classes are called the same."""
    names: Mapping[str, str] = {}
    if path := _find(root, _MAPPING):
        names = read_synset_mapping(path)
    elif path := _find(root, _CLASS_INDEX):
        names = read_class_index(path)
    count = Counter(names.values())
    named = ((wnid, names.get(wnid, wnid)) for wnid in official_wnids())
    return tuple(name if count[name] < 2 else f"{name} ({wnid})" for wnid, name in named)


def _find(root: Path, name: str) -> Path | None:
    paths = (root / folder / name for folder in _META)
    return next((path for path in paths if path.is_file()), None)
