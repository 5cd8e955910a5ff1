"""Annotations written here from the format's description."""

import json
from pathlib import Path
from typing import Any

import pytest

from probe_datasets.formats.files import DataError
from probe_datasets.formats.inat2018 import read_species


def annotations(**changes: Any) -> dict[str, Any]:
    content = {
        "info": {},
        "licenses": [],
        "images": [
            {"id": 20, "file_name": "train_val2018/Aves/1/b.jpg", "width": 800, "height": 600},
            {"id": 10, "file_name": "train_val2018/Plantae/0/a.jpg", "width": 800, "height": 600},
        ],
        "categories": [
            {"id": 1, "name": "Corvus corax", "supercategory": "Aves"},
            {"id": 0, "name": "Abies alba", "supercategory": "Plantae"},
        ],
        # In another order than the images.
        "annotations": [
            {"id": 1, "image_id": 10, "category_id": 0},
            {"id": 2, "image_id": 20, "category_id": 1},
        ],
    }
    return {**content, **changes}


def read(tmp_path: Path, content: Any) -> Any:
    (tmp_path / "val2018.json").write_text(json.dumps(content))
    return read_species(tmp_path / "val2018.json")


def test_pictures_are_joined_by_id(tmp_path: Path):
    found = read(tmp_path, annotations())
    assert found.classes == ("Abies alba", "Corvus corax")
    assert found.files == ["train_val2018/Aves/1/b.jpg", "train_val2018/Plantae/0/a.jpg"]
    assert found.labels.tolist() == [1, 0]


def test_a_test_split_has_no_labels(tmp_path: Path):
    content = annotations()
    del content["annotations"], content["categories"]
    assert read(tmp_path, content).labels.tolist() == [-1, -1]


def image(**changes: Any) -> list[dict[str, Any]]:
    first, second = annotations()["images"]
    return [{**first, **changes}, second]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": 3}, "no list of images"),
        ({"images": image(file_name="../../etc/passwd")}, "climbs"),
        ({"images": image(file_name="/etc/passwd")}, "absolute"),
        ({"images": image(file_name=7)}, "without a name"),
        ({"images": image(id=10)}, "image 10 twice"),
        ({"images": image(id=11)}, "no annotation for image 11"),
        ({"images": annotations()["images"][1:]}, "1 annotations of images"),
        ({"images": image(id="x")}, "as an id"),
        ({"categories": annotations()["categories"][:1]}, "count up from 0"),
        ({"annotations": [{"image_id": 10, "category_id": 2}]}, "category 2 of 2"),
        ({"annotations": [{"image_id": 10}]}, "KeyError"),
        (
            {"annotations": [{"image_id": 10, "category_id": c} for c in (0, 1)]},
            "two categories for image 10",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], message: str):
    with pytest.raises(DataError, match=message):
        read(tmp_path, annotations(**changes))
    with pytest.raises(DataError, match="no list of images"):
        read(tmp_path, [])
