"""Labels written here from the formats' descriptions, and the real class ids."""

import json
import os
from pathlib import Path

import pytest

from probe_datasets.formats.files import DataError
from probe_datasets.formats.imagenet import (
    find_layout,
    folder_wnids,
    read_ground_truth,
    read_kaggle_solution,
    read_synset_mapping,
    read_validation_wnids,
)

WNIDS = [f"n{i * 7:08d}" for i in range(1000)]


def test_the_kit_counts_in_another_order(tmp_path: Path):
    order = [WNIDS[(3 * i) % 1000] for i in range(1000)]
    path = tmp_path / "ground_truth.txt"
    path.write_text("".join(f"{i % 1000 + 1}\n" for i in range(50_000)))
    wnids = read_ground_truth(path, order)
    assert wnids[:3] == [WNIDS[0], WNIDS[3], WNIDS[6]]
    assert wnids[49_999] == order[999]
    for text in ("0\n", "1001\n", "1\n", "x\n"):
        path.write_text(text)
        with pytest.raises(DataError, match=r"ground_truth\.txt"):
            read_ground_truth(path, order)
    with pytest.raises(ValueError, match="devkit_order"):
        read_ground_truth(path, order[:5])


def test_kaggle_tables(tmp_path: Path):
    path = tmp_path / "LOC_val_solution.csv"
    path.write_text(
        "ImageId,PredictionString\n"
        "ILSVRC2012_val_00048981,n03995372 85 1 499 272\n"
        "ILSVRC2012_val_00037956,n03481172 131 0 499 254 n03481172 1 2 3 4 \n"
    )
    assert read_kaggle_solution(path) == {
        "ILSVRC2012_val_00048981": "n03995372",
        "ILSVRC2012_val_00037956": "n03481172",
    }
    for row in (
        "../a,n03995372 1 2 3 4",
        "a,tench 1 2 3 4",
        "a,n03995372 1 2 3",
        "a,",
        "a,n03995372 1 2 3 4 n03481172 1 2 3 4",
    ):
        path.write_text(f"ImageId,PredictionString\n{row}\n")
        with pytest.raises(DataError, match="line 2"):
            read_kaggle_solution(path)
    mapping = tmp_path / "LOC_synset_mapping.txt"
    mapping.write_text("n01440764 tench, Tinca tinca\nn01443537 goldfish\n")
    assert read_synset_mapping(mapping)["n01440764"] == "tench, Tinca tinca"
    mapping.write_text("n01440764 tench\nn01440764 tench\n")
    with pytest.raises(DataError, match="line 2"):
        read_synset_mapping(mapping)


def test_layouts(tmp_path: Path):
    with pytest.raises(DataError, match="no folder of val pictures"):
        find_layout(tmp_path, "val")
    kaggle = tmp_path / "ILSVRC" / "Data" / "CLS-LOC" / "val"
    kaggle.mkdir(parents=True)
    assert find_layout(tmp_path, "val") == ("kaggle", kaggle)
    (tmp_path / "val").mkdir()
    assert find_layout(tmp_path, "val") == ("flat", tmp_path / "val")
    for name in ("n01443537", "n01440764", "other", ".n01440764"):
        (tmp_path / "val" / name).mkdir()
    assert find_layout(tmp_path, "val") == ("folders", tmp_path / "val")
    assert folder_wnids(tmp_path / "val") == ("n01440764", "n01443537")
    os.symlink(tmp_path / "val", tmp_path / "train")  # the user's own arrangement
    assert find_layout(tmp_path, "train") == ("folders", tmp_path / "train")


def test_the_real_ids(shared: Path, tmp_path: Path):
    folder = shared / "imagenet_meta"
    indices = {wnid: i for i, wnid in enumerate(read_synset_mapping(folder / "labels.txt"))}
    truth = json.loads((folder / "imagenet_class_index.json").read_text())
    assert {wnid: int(i) for i, (wnid, _) in truth.items()} == indices
    wnids = read_validation_wnids(folder / "validation_labels.txt")
    assert (len(wnids), indices[wnids[0]]) == (50_000, 65)  # the first picture is a sea snake
    assert all(wnids.count(wnid) == 50 for wnid in ("n01440764", "n15075141"))
    (tmp_path / "short.txt").write_text("n01440764\n")
    with pytest.raises(DataError, match="holds 1 ids"):
        read_validation_wnids(tmp_path / "short.txt")


def test_each_class_comes_as_often_as_any(tmp_path: Path):
    path = tmp_path / "truth.txt"
    numbers = [i % 1000 + 1 for i in range(50_000)]
    path.write_text("\n".join(map(str, numbers)))
    assert len(read_ground_truth(path, WNIDS)) == 50_000
    path.write_text("\n".join(map(str, numbers))[:-1])  # 1000 becomes 100
    with pytest.raises(DataError, match="50 pictures of each class"):
        read_ground_truth(path, WNIDS)
