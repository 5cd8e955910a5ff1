"""Places365 as people keep it, written here from the descriptions of the layouts."""

import hashlib
import os
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from probe_datasets.clips import ClipConfig
from probe_datasets.formats.files import DataError
from probe_datasets.formats.places365 import CATEGORIES_MD5, official_categories
from probe_datasets.places365 import SPEC, Places365

WRITE = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "picture_writers.py")))
CLIP = ClipConfig(num_frames=2, size=32)
# A class whose name has a second slash, one whose folder sorts elsewhere than its id, and others.
TRAIN = (("/a/airfield", 0), ("/a/apartment_building/outdoor", 8), ("/z/zen_garden", 364))
VALIDATION = (165, 0, 8, 364)


def write_standard(root: Path, *, lists: str = "", large: bool = False) -> Path:
    """The official archives unpacked: two pictures a class, and four to validate with."""
    train, val = ("data_large", "val_large") if large else ("data_256", "val_256")
    lines = []
    for name, label in TRAIN:
        for i in (1, 2):
            WRITE.write_picture(root / train / name[1:] / f"{i:08d}.jpg", height=32, width=32 + i)
            lines.append(f"{name}/{i:08d}.jpg {label}\n")
    folder = root / lists
    folder.mkdir(exist_ok=True)
    (folder / "places365_train_standard.txt").write_text("".join(lines))
    lines = []
    for i, label in enumerate(VALIDATION, start=1):
        name = f"Places365_val_{i:08d}.jpg"
        WRITE.write_picture(root / val / name, height=32, width=32 + i)
        lines.append(f"{name} {label}\n")
    (folder / "places365_val.txt").write_text("".join(lines))
    return root


def write_easy(root: Path, source: Path) -> Path:
    """The same pictures sorted into a folder for each class, whose name is the class's, flat."""
    for name, _ in TRAIN:
        flat = name[3:].replace("/", "-")
        shutil.copytree(source / "data_256" / name[1:], root / "train" / flat)
    for i, label in enumerate(VALIDATION, start=1):
        flat = official_categories()[label][3:].replace("/", "-")
        picture = f"Places365_val_{i:08d}.jpg"
        (root / "val" / flat).mkdir(parents=True)
        shutil.copy2(source / "val_256" / picture, root / "val" / flat / picture)
    return root


def samples(dataset: Places365) -> dict[str, int]:
    return {dataset.sample_id(i): dataset[i]["labels"]["place"] for i in range(len(dataset))}


def test_the_list_of_categories_is_the_official_one(shared: Path, tmp_path: Path):
    names = official_categories()
    content = "\n".join(f"{name} {i}" for i, name in enumerate(names)).encode()
    assert hashlib.md5(content, usedforsecurity=False).hexdigest() == CATEGORIES_MD5
    official = shared / "imagenet_meta" / "categories_places365.txt"
    assert official.read_bytes() == content
    write_standard(tmp_path)
    shutil.copy(official, tmp_path)
    dataset = Places365(tmp_path, "train")
    assert dataset.classes["place"][8] == "apartment_building/outdoor"
    assert len(dataset.classes["place"]) == 365
    swapped = content.replace(b"airfield", b"air_field")
    (tmp_path / "categories_places365.txt").write_bytes(swapped)
    with pytest.raises(DataError, match=r"categories_places365\.txt: is not the official list"):
        Places365(tmp_path, "train")


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("lists", ["", "filelist_places365-standard"])
def test_standard_lists(tmp_path: Path, lists: str, large: bool):
    write_standard(tmp_path, lists=lists, large=large)
    train = Places365(tmp_path, "train", clip=CLIP)
    assert samples(train) == {
        f"{name[1:]}/{i:08d}.jpg": label for name, label in TRAIN for i in (1, 2)
    }
    assert train.coverage.expected == 6
    validation = Places365(tmp_path, "validation", clip=CLIP)
    assert samples(validation) == {
        f"{official_categories()[label][1:]}/Places365_val_{i:08d}.jpg": label
        for i, label in enumerate(VALIDATION, start=1)
    }
    video = validation[0]["video"]
    assert video.shape == (3, 2, 32, 32)
    assert WRITE.is_colour(video, 16, 4, WRITE.RED)
    assert WRITE.is_colour(video, 16, 28, WRITE.GREEN)


@pytest.mark.parametrize("folder", ["", "places365_standard"])
def test_the_easyformat_has_the_same_samples(tmp_path: Path, folder: str):
    standard = write_standard(tmp_path / "standard")
    root = tmp_path / "easy"
    write_easy(root / folder, standard)
    for split in SPEC.splits:
        easy, listed = Places365(root, split, clip=CLIP), Places365(standard, split, clip=CLIP)
        assert samples(easy) == samples(listed)
        assert easy.coverage.expected == SPEC.expected[split]
    (root / folder / "train" / "pub_crawl").mkdir()
    with pytest.raises(DataError, match="pub_crawl' that fits no class"):
        Places365(root, "train")


def test_what_is_not_there_is_counted_or_said(tmp_path: Path):
    write_standard(tmp_path)
    (tmp_path / "data_256" / "a" / "airfield" / "00000002.jpg").unlink()
    damaged = tmp_path / "data_256" / "z" / "zen_garden" / "00000001.jpg"
    damaged.write_bytes(damaged.read_bytes()[:300])
    dataset = Places365(tmp_path, "train", clip=CLIP, on_error="skip")
    coverage = dataset.coverage
    assert (coverage.expected, coverage.found, coverage.missing, coverage.failed) == (6, 5, 1, 0)
    assert coverage.reasons[0][0] == "a/airfield/00000002.jpg"
    assert "problem" in dataset[3]
    with pytest.raises(DataError, match=r"zen_garden/00000001\.jpg: "):
        Places365(tmp_path, "train", clip=CLIP)[3]
    (tmp_path / "places365_val.txt").unlink()
    with pytest.raises(DataError, match=r"holds val_256 without a list .* places365_val\.txt"):
        Places365(tmp_path, "validation")
    with pytest.raises(DataError, match="holds no folder of val pictures"):
        Places365(tmp_path / "data_256", "validation")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/a/airfield/../../../b.jpg 0", "climbs"),
        ("//etc/hostname 0", "absolute"),
        ("/a/airfield/00000009.jpg 1", "class 1 in line 7 for a folder of class 0"),
        ("/b/bar/00000001.jpg 1", "of the class a/airplane_cabin"),
        ("/a/airfield/00000001.jpg 0", "two samples named"),
        ("/a/airfield/00000009.jpg 365", "line 7"),
    ],
)
def test_lists_that_lie_are_refused(tmp_path: Path, line: str, message: str):
    path = write_standard(tmp_path) / "places365_train_standard.txt"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match=message):
        Places365(tmp_path, "train", on_error="skip")


def test_links_that_leave_the_pictures_are_refused(tmp_path: Path):
    write_standard(tmp_path / "root")
    outside = WRITE.write_picture(tmp_path / "outside" / "00000001.jpg")
    pictures = tmp_path / "root" / "data_256"
    (pictures / "a" / "airfield" / "00000001.jpg").unlink()
    os.symlink(outside, pictures / "a" / "airfield" / "00000001.jpg")
    shutil.rmtree(pictures / "z" / "zen_garden")
    os.symlink(outside.parent, pictures / "z" / "zen_garden")
    with pytest.raises(DataError, match="a link that leaves"):
        Places365(tmp_path / "root", "train")
    dataset = Places365(tmp_path / "root", "train", on_error="skip", clip=CLIP)
    coverage = dataset.coverage
    assert (coverage.found, coverage.failed, coverage.missing) == (3, 2, 1)
    assert "z/zen_garden/00000001.jpg" not in samples(dataset)
    pictures.rename(tmp_path / "elsewhere")  # but the folder itself may be anywhere
    os.symlink(tmp_path / "elsewhere", pictures)
    assert len(Places365(tmp_path / "root", "train", on_error="skip")) == 3


MEASURE = """
import re, sys, time
from pathlib import Path
from probe_datasets.places365 import Places365

def memory(name):
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{name}:\\s+(\\d+)", status)[1]) / 1024

before = memory("VmRSS")
for root in sys.argv[1:]:
    start = time.process_time()
    dataset = Places365(root, "train")
    print(time.process_time() - start, dataset.coverage.expected, memory("VmHWM") - before)
"""


@pytest.mark.slow
def test_many_lines_take_little_memory_and_linear_time(tmp_path: Path):
    names = official_categories()
    for count in (3_000, 30_000):
        root = tmp_path / str(count)
        WRITE.write_picture(root / "data_256" / "a" / "airfield" / "00000000.jpg")
        with open(root / "places365_train_standard.txt", "w") as file:
            for i in range(count):
                label = i % 365
                file.write(f"{names[label]}/{i // 365:08d}.jpg {label}\n")
    roots = [str(tmp_path / "3000"), str(tmp_path / "30000")]
    command = [sys.executable, "-c", MEASURE, *roots]
    result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    few, many = (line.split() for line in result.stdout.splitlines())
    assert (int(few[1]), int(many[1])) == (3_000, 30_000)
    assert float(many[2]) < 100  # MiB beyond what the imports take
    # Ten times the lines; 25 leaves room for a busy machine, quadratic time would be 100.
    assert float(many[0]) < 25 * float(few[0])
    start = time.process_time()
    again = Places365(tmp_path / "30000", "train", clip=CLIP)
    assert time.process_time() - start < 5  # from the cache, which the other process shares
    assert again[0]["labels"] == {"place": 0}


def test_the_record_builds_the_dataset():
    assert SPEC.load_builder() is Places365
    with pytest.raises(ValueError, match="must be one of train, validation"):
        Places365(".", "test")
