"""iNaturalist 2018 as it is unpacked, written here from the format's description."""

import json
import os
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from probe_datasets.clips import ClipConfig
from probe_datasets.formats.files import DataError
from probe_datasets.inat2018 import SPEC, INaturalist2018

WRITE = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "picture_writers.py")))
CLIP = ClipConfig(num_frames=2, size=32)
SPECIES = [("Plantae", "Abies alba"), ("Aves", "Corvus corax"), ("Fungi", "Boletus edulis")]
# Split -> (id, species) of its pictures; both splits lie in one tree.
SPLITS = {"train": [(40, 2), (10, 0), (30, 1), (20, 2)], "val": [(3, 1), (1, 0)]}


def write_annotations(root: Path, split: str, *, folder: str = "", **changes: Any) -> Path:
    """The JSON file of a split, its lists in different orders."""
    pictures = [
        {"id": i, "file_name": file_name(i, species), "width": 80, "height": 40, "license": 1}
        for i, species in SPLITS[split]
    ]
    pairs = [{"id": i, "image_id": i, "category_id": k} for i, k in sorted(SPLITS[split])]
    categories = [
        {"id": k, "name": name, "supercategory": group} for k, (group, name) in enumerate(SPECIES)
    ]
    content = {"info": {"year": 2018}, "images": pictures, "licenses": [], "annotations": pairs}
    content |= {"categories": categories[::-1], **changes}
    (root / folder).mkdir(parents=True, exist_ok=True)
    path = root / folder / f"{split}2018.json"
    path.write_text(json.dumps(content))
    return path


def file_name(number: int, species: int) -> str:
    return f"train_val2018/{SPECIES[species][0]}/{species}/{number:032x}.jpg"


def write_tree(root: Path, *, folder: str = "") -> Path:
    """Both splits."""
    for split, pictures in SPLITS.items():
        write_annotations(root, split, folder=folder)
        for number, species in pictures:
            WRITE.write_picture(root / file_name(number, species))
    return root


def sample(number: int, species: int) -> str:
    return file_name(number, species).removeprefix("train_val2018/")


@pytest.mark.parametrize("folder", ["", "annotations"])
def test_splits_are_what_the_annotations_list(tmp_path: Path, folder: str):
    write_tree(tmp_path, folder=folder)
    for split, key in (("train", "train"), ("validation", "val")):
        dataset = INaturalist2018(tmp_path, split, clip=CLIP)
        found = [(dataset[i]["sample_id"], dataset[i]["labels"]) for i in range(len(dataset))]
        assert found == [(sample(n, k), {"species": k}) for n, k in SPLITS[key]]
        assert dataset.classes == {"species": tuple(name for _, name in SPECIES)}
        coverage = dataset.coverage
        assert (coverage.expected, coverage.found) == (len(found), len(found))
    video = dataset[0]["video"]
    assert video.shape == (3, 2, 32, 32)
    assert WRITE.is_colour(video, 16, 4, WRITE.RED)
    assert WRITE.is_colour(video, 16, 28, WRITE.GREEN)


@pytest.mark.parametrize("folder", ["2018", "images/train_val2018"])
def test_the_pictures_under_another_name(tmp_path: Path, folder: str):
    write_tree(tmp_path)
    (tmp_path / folder).parent.mkdir(exist_ok=True)
    (tmp_path / "train_val2018").rename(tmp_path / folder)
    dataset = INaturalist2018(tmp_path, "validation", clip=CLIP)
    assert dataset[0]["labels"] == {"species": 1}
    assert dataset.sample_id(0) == sample(3, 1)


def test_names_that_the_annotations_withhold(tmp_path: Path):
    write_tree(tmp_path)
    hidden = [{"id": k, "name": str(9000 + k), "supercategory": "x"} for k in range(3)]
    write_annotations(tmp_path, "train", categories=hidden)
    assert INaturalist2018(tmp_path, "train").classes["species"] == ("9000", "9001", "9002")
    names = [{"id": k, "name": name, "genus": "x"} for k, (_, name) in enumerate(SPECIES)]
    (tmp_path / "categories.json").write_text(json.dumps(names[::-1]))
    named = INaturalist2018(tmp_path, "train").classes["species"]
    assert named == ("Abies alba", "Corvus corax", "Boletus edulis")
    for content in (names[:2], names[1:], {"a": 1}, [3]):
        (tmp_path / "categories.json").write_text(json.dumps(content))
        with pytest.raises(DataError, match=r"categories\.json: "):
            INaturalist2018(tmp_path, "train")


def test_missing_and_damaged_pictures(tmp_path: Path):
    write_tree(tmp_path)
    (tmp_path / file_name(40, 2)).unlink()
    damaged = tmp_path / file_name(30, 1)
    damaged.write_bytes(damaged.read_bytes()[:300])
    (tmp_path / file_name(20, 2)).write_bytes(b"")
    with pytest.raises(DataError, match="1 of 4 samples of split 'train' cannot be used"):
        INaturalist2018(tmp_path, "train")
    dataset = INaturalist2018(tmp_path, "train", clip=CLIP, on_error="skip")
    coverage = dataset.coverage
    assert (coverage.expected, coverage.found, coverage.missing, coverage.failed) == (4, 2, 1, 1)
    assert [name for name, _ in coverage.reasons] == [sample(40, 2), sample(20, 2)]
    assert "labels" in dataset[0]
    assert dataset[1]["sample_id"] == sample(30, 1)
    assert f"{30:032x}.jpg: " in dataset[1]["problem"]


def test_links_that_leave_the_pictures_are_refused(tmp_path: Path):
    root = write_tree(tmp_path / "root")
    outside = WRITE.write_picture(tmp_path / "outside.jpg")
    (root / file_name(40, 2)).unlink()
    os.symlink(outside, root / file_name(40, 2))
    with pytest.raises(DataError, match="a link that leaves"):
        INaturalist2018(root, "train")
    dataset = INaturalist2018(root, "train", on_error="skip")
    assert (len(dataset), dataset.coverage.failed) == (3, 1)


def test_what_does_not_fit_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="no folder of pictures; expected train_val2018 or"):
        INaturalist2018(tmp_path, "train")
    write_tree(tmp_path)
    (tmp_path / "val2018.json").unlink()
    with pytest.raises(DataError, match=r"no annotations of split 'validation'; expected val2018"):
        INaturalist2018(tmp_path, "validation")
    write_annotations(tmp_path, "train", annotations=[])
    with pytest.raises(DataError, match="no annotations of its pictures"):
        INaturalist2018(tmp_path, "train")
    for name in ("/etc/hostname", "train_val2018/../../x.jpg"):
        pictures = [{"id": 1, "file_name": name}]
        pair = [{"id": 1, "image_id": 1, "category_id": 0}]
        write_annotations(tmp_path, "train", images=pictures, annotations=pair)
        with pytest.raises(DataError, match=r"climbs|absolute"):
            INaturalist2018(tmp_path, "train")


def test_the_record_builds_the_dataset():
    assert SPEC.load_builder() is INaturalist2018
    assert sum(SPEC.expected.values()) == 461_939
