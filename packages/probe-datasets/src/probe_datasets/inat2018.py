"""iNaturalist 2018: photographs of 8,142 species."""

from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from probe_datasets.formats.files import data_error
from probe_datasets.formats.inat2018 import (
    NUM_CLASSES,
    PICTURES,
    find_annotations,
    picture_folder,
    read_species,
    read_species_names,
)
from probe_datasets.formats.listed_paths import LinkCheck
from probe_datasets.index import Listing
from probe_datasets.picture_files import PictureFiles
from probe_datasets.spec import DatasetSpec

__all__ = ["SPEC", "INaturalist2018"]

SPEC = DatasetSpec(
    name="inat2018",
    summary="iNaturalist 2018: photographs of 8,142 species, few of most of them",
    builder="probe_datasets.inat2018:INaturalist2018",
    task="images",
    splits=("train", "validation"),
    expected={"train": 437_513, "validation": 24_426},
    labels=("species",),
    num_classes={"species": NUM_CLASSES},
    layouts=(
        f"{PICTURES}/<supercategory>/<species>/<hash>.jpg (or the same in images/, or in 2018/), "
        "with train2018.json and val2018.json there or in annotations/",
    ),
    obtain="download train_val2018.tar.gz, train2018.json.tar.gz and val2018.json.tar.gz by the "
    "links in https://github.com/visipedia/inat_comp/tree/master/2018 and unpack them together",
    licence="for non-commercial research and education; each photograph has a licence of its own, "
    "given in the annotations",
    citation="Van Horn et al., The iNaturalist Species Classification and Detection Dataset, "
    "CVPR 2018",
)

_ANNOTATIONS = {"train": "train2018.json", "validation": "val2018.json"}
_NAMES = "categories.json"


class INaturalist2018(PictureFiles):
    """Pictures of one species each, as the annotations of the split list them.

    Species have the names of `categories.json` where that is there too, since the annotations may
    withhold them. Samples are named by their path below the folder of the pictures.

    Reference: From Image to Video, App. D.1 (image classification).
    """

    spec: ClassVar[DatasetSpec] = SPEC
    listed = pa.schema([("label", pa.int32())])

    def watched(self) -> tuple[Path, ...]:
        """The folder of the pictures, which both splits share, and the annotations.

        Raises:
            DataError: there is no such folder.
        """
        names = (_ANNOTATIONS[self.split], _NAMES)
        found = (find_annotations(self.root, name) for name in names)
        return (picture_folder(self.root), *(path for path in found if path is not None))

    def list_samples(self) -> Listing:
        """Every picture of the split's annotations.

        Raises:
            DataError: pictures or annotations are not there, or do not fit together.
        """
        pictures = picture_folder(self.root)
        name = _ANNOTATIONS[self.split]
        path = find_annotations(self.root, name)
        if path is None:
            problem = f"holds no annotations of split {self.split!r}"
            raise data_error(
                self.root, problem, f"{name} there or in annotations/", "copy it there"
            )
        species = read_species(path)
        if len(species.labels) and species.labels.min() < 0:
            problem = "has no annotations of its pictures"
            raise data_error(path, problem, "a species for each", "take the official file")
        classes = species.classes
        if names := find_annotations(self.root, _NAMES):
            classes = read_species_names(names)
            if len(classes) != len(species.classes):
                problem = f"names {len(classes)} species"
                fix = "remove it, or take the one of 2018"
                raise data_error(names, problem, f"{len(species.classes)} as in {path.name}", fix)
        below, links = pictures.relative_to(self.root).as_posix(), LinkCheck(pictures, path)
        relative = (file.removeprefix(f"{PICTURES}/") for file in species.files)
        rows = (
            {
                "sample_id": file,
                "path": f"{below}/{file}",
                "problem": links.problem(file),
                "label": label,
            }
            for file, label in zip(relative, species.labels.tolist(), strict=True)
        )
        return Listing(
            layout=f"pictures in {below} by {path.relative_to(self.root).as_posix()}",
            rows=rows,
            classes={"species": classes},
            total=len(species.files),
        )
