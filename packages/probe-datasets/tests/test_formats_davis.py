"""Sequences written here from the format's description, and a real one."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from probe_datasets.formats.davis import find_sequence, read_mask, read_sequences
from probe_datasets.formats.files import DataError
from probe_datasets.formats.still_images import read_rgb


def write_mask(path: Path, indices: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(indices, "L").convert("P")
    picture.putdata(indices.ravel().tolist())
    picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [9] * (768 - 9))
    picture.save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    indices = np.zeros((4, 6), np.uint8)
    indices[1, 1:4], indices[2, 2], indices[3] = 1, 2, 255
    for number in (0, 1, 2):
        folder = tmp_path / "JPEGImages" / "480p" / "tennis"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4)).save(folder / f"{number:05d}.jpg")
        if number < 2:
            write_mask(tmp_path / "Annotations" / "480p" / "tennis" / f"{number:05d}.png", indices)
    for year, text in ((2017, "tennis\n"), (2016, "/JPEGImages/480p/tennis/00000.jpg /A\n" * 3)):
        path = tmp_path / "ImageSets" / str(year) / "val.txt"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return tmp_path


def test_a_sequence_with_its_masks(root: Path):
    assert read_sequences(root, "val") == read_sequences(root, "val", 2016) == ("tennis",)
    assert read_sequences(root, "all") == ("tennis",)
    sequence = find_sequence(root, "tennis")
    assert [path.name for path in sequence.frames] == ["00000.jpg", "00001.jpg", "00002.jpg"]
    assert sequence.masks[2] is None
    assert sequence.masks[0] is not None
    objects, valid = read_mask(sequence.masks[0], size=(4, 6))
    assert objects.tolist() == [[0] * 6, [0, 1, 1, 1, 0, 0], [0, 0, 2, 0, 0, 0], [0] * 6]
    assert valid.all(axis=1).tolist() == [True, True, True, False]
    with pytest.raises(DataError, match="4 x 6"):
        read_mask(sequence.masks[0], size=(6, 4))
    with pytest.raises(DataError, match="no PNG"):
        read_mask(sequence.frames[0])


def test_what_does_not_fit_is_refused(root: Path):
    for name in ("../tennis", "", "a/b", "unknown"):
        with pytest.raises(DataError, match="hold"):
            find_sequence(root, name)
    with pytest.raises(DataError, match=r"no list .* expected ImageSets/2017/train.*split 'all'"):
        read_sequences(root, "train")
    (root / "ImageSets" / "2017" / "val.txt").write_text("../tennis\n")
    with pytest.raises(DataError, match="in line 1"):
        read_sequences(root, "val")
    mask = root / "Annotations" / "480p" / "tennis" / "00001.png"
    mask.unlink()
    os.symlink("/etc/hostname", mask)
    with pytest.raises(DataError, match="leaves"):
        find_sequence(root, "tennis")
    mask.unlink()
    (root / "JPEGImages" / "480p" / "tennis" / "00000.jpg").unlink()
    with pytest.raises(DataError, match="2 pictures and 1 masks"):
        find_sequence(root, "tennis")


def test_the_real_sequence(shared: Path):
    root = shared / "davis" / "DAVIS"
    assert read_sequences(root, "all") == ("bear",)
    sequence = find_sequence(root, "bear")
    assert len(sequence.frames) == 2
    for frame, mask in zip(sequence.frames, sequence.masks, strict=True):
        assert mask is not None
        picture = read_rgb(frame)
        objects, valid = read_mask(mask, size=picture.shape[:2])
        assert picture.shape == (480, 854, 3)
        assert set(np.unique(objects)) == {0, 1}
        assert valid.all()
        # The bear fills a part of the picture and is another colour than the rest.
        assert 0.05 < (objects == 1).mean() < 0.5
        assert abs(picture[objects == 1].mean() - picture[objects == 0].mean()) > 5
