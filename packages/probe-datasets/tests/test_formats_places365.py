"""Lists written here from the format's description, and the official categories."""

from pathlib import Path

import pytest

from probe_datasets.formats.files import DataError
from probe_datasets.formats.places365 import (
    NUM_CLASSES,
    folder_classes,
    image_root,
    iterate_list,
    read_categories,
)


def test_lists(tmp_path: Path):
    (tmp_path / "train.txt").write_text("/a/airfield/00000001.jpg 0\n/b/bar/a b.jpg 364\n")
    pairs = list(iterate_list(tmp_path / "train.txt"))
    assert pairs == [("a/airfield/00000001.jpg", 0), ("b/bar/a b.jpg", 364)]
    (tmp_path / "val.txt").write_text("Places365_val_00000001.jpg 165\n")
    assert list(iterate_list(tmp_path / "val.txt")) == [("Places365_val_00000001.jpg", 165)]


@pytest.mark.parametrize(
    "line",
    [
        "/a/../../b.jpg 1",
        "//etc/passwd 1",
        "../b.jpg 1",
        "a.jpg 365",
        "a.jpg -1",
        "a.jpg",
        " 3",
        "a b",
    ],
)
def test_bad_lines_are_refused(tmp_path: Path, line: str):
    (tmp_path / "list.txt").write_text(f"good.jpg 0\n{line}\n")
    with pytest.raises(DataError, match=r"list\.txt: (has|names)"):
        list(iterate_list(tmp_path / "list.txt"))


def test_categories_must_be_the_official_ones(tmp_path: Path):
    path = tmp_path / "categories.txt"
    path.write_text("/a/airfield 0\n/a/arena/hockey 1\n")
    assert read_categories(path, official=False) == ("/a/airfield", "/a/arena/hockey")
    with pytest.raises(DataError, match="not the official list"):
        read_categories(path)
    path.write_text("/a/airfield 1\n")
    with pytest.raises(DataError, match="line 1"):
        read_categories(path, official=False)


def test_folders_of_the_easyformat_are_not_in_the_order_of_ids(tmp_path: Path):
    categories = ("/a/arena_x/y", "/a/arena/hockey", "/b/bar")
    found = folder_classes(categories, ["arena-hockey", "arena_x-y", "bar"], tmp_path)
    assert found == {"arena-hockey": 1, "arena_x-y": 0, "bar": 2}
    for folders in (["pub"], ["bar", "arena_x-y", "arena-x-y"]):
        with pytest.raises(DataError, match="fits no class"):
            folder_classes(categories, folders, tmp_path)


def test_picture_folders(tmp_path: Path):
    with pytest.raises(DataError, match="data_256 or data_256_standard"):
        image_root(tmp_path, "train")
    (tmp_path / "data_large").mkdir()
    assert image_root(tmp_path, "train") == tmp_path / "data_large"
    with pytest.raises(ValueError, match="train, val, test"):
        image_root(tmp_path, "all")


def test_the_official_categories(shared: Path, tmp_path: Path):
    path = shared / "imagenet_meta" / "categories_places365.txt"
    names = read_categories(path)
    assert len(names) == NUM_CLASSES
    assert (names[0], names[8]) == ("/a/airfield", "/a/apartment_building/outdoor")
    (tmp_path / "categories.txt").write_bytes(path.read_bytes() + b"\n")
    assert read_categories(tmp_path / "categories.txt") == names
    swapped = path.read_bytes().replace(b"airfield", b"airfeild")
    (tmp_path / "categories.txt").write_bytes(swapped)
    with pytest.raises(DataError, match="md5"):
        read_categories(tmp_path / "categories.txt")
    folders = [name[3:].replace("/", "-") for name in names]
    assert list(folder_classes(names, folders, "").values()) == list(range(NUM_CLASSES))


def test_a_folder_of_the_train_list_has_one_class(tmp_path: Path):
    path = tmp_path / "train.txt"
    lines = "/a/airfield/1.jpg 0\n/z/zen_garden/1.jpg 364\n/z/zen_garden/2.jpg 36"
    path.write_text(lines + "4")
    assert [label for _, label in iterate_list(path)] == [0, 364, 364]
    path.write_text(lines)  # cut within its last class
    with pytest.raises(DataError, match="class 36 in line 3 for a folder of class 364"):
        list(iterate_list(path))
