"""Sequences written here from the format's description, and a real one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from probe_datasets.clips import ClipConfig
from probe_datasets.davis import SPEC, Davis
from probe_datasets.formats.files import DataError

HEIGHT, WIDTH = 16, 32
SMALL = ClipConfig(num_frames=3, size=16)


def write_mask(path: Path, indices: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(indices)
    picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [9] * (768 - 9))
    picture.save(path)


def outline(number: int) -> np.ndarray:
    """Object 1 is 4 x 4 pixels that go right, object 2 stays, and a row is void."""
    indices = np.zeros((HEIGHT, WIDTH), np.uint8)
    indices[4:8, 8 + number : 12 + number] = 1
    indices[10:12, 20:24] = 2
    indices[15] = 255
    return indices


def write_sequence(
    root: Path, name: str, count: int, resolution: str = "480p", binary: bool = False
) -> None:
    folder = root / "JPEGImages" / resolution / name
    folder.mkdir(parents=True)
    for i in range(count):
        indices = outline(i)
        # Where the first object is, the picture is red.
        pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        pixels[indices == 1] = (255, 0, 0)
        Image.fromarray(pixels).save(folder / f"{i:05d}.jpg", quality=95, subsampling=0)
        mask = root / "Annotations" / resolution / name / f"{i:05d}.png"
        if binary:
            mask.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.where(indices == 1, 255, 0).astype(np.uint8)).save(mask)
        else:
            write_mask(mask, indices)


def write_list(root: Path, split: str, text: str, year: int = 2017) -> None:
    path = root / "ImageSets" / str(year) / f"{split}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("bear", "tennis"):
        write_sequence(tmp_path, name, 6)
    write_list(tmp_path, "train", "bear\n")
    write_list(tmp_path, "val", "tennis\n")
    write_list(tmp_path, "val", "/JPEGImages/480p/bear/00000.jpg /Annotations/x.png\n" * 3, 2016)
    return tmp_path


def open_clips(root: Path, split: str = "validation", **options: Any) -> Davis:
    return Davis(root, split, **{"clip": SMALL, **options})


def ids(dataset: Davis) -> list[str]:
    return [dataset.sample_id(i) for i in range(len(dataset))]


def test_masks_and_pictures_are_cut_alike(root: Path):
    example = open_clips(root)[0]
    assert example["sample_id"] == "tennis"
    # 32 columns: the central 16 are 8 to 23.
    expected = np.stack([outline(i)[:, 8:24] for i in range(3)])
    assert example["segments"].dtype == torch.uint8
    np.testing.assert_array_equal(example["segments"], expected)
    assert {0, 1, 2, 255} == set(example["segments"].unique().tolist())
    red = example["video"][0] > 0
    assert torch.equal(red, torch.from_numpy(expected == 1))


def test_masks_are_never_blended(root: Path):
    """Half the size: each pixel is that under its centre, of the lower or right of four."""
    segments = open_clips(root, clip=ClipConfig(num_frames=2, size=8))[0]["segments"]
    np.testing.assert_array_equal(segments[1], outline(1)[1::2, 9:24:2])


def test_splits_years_and_resolutions(root: Path):
    assert ids(open_clips(root)) == ["tennis"]
    assert ids(open_clips(root, "train")) == ["bear"]
    assert ids(open_clips(root, "all")) == ["bear", "tennis"]
    assert ids(open_clips(root, year=2016)) == ["bear"]
    with pytest.raises(DataError, match="JPEGImages/Full-Resolution there or in DAVIS/"):
        open_clips(root, resolution="Full-Resolution")
    write_sequence(root, "tennis", 4, "Full-Resolution")
    dataset = open_clips(root, resolution="Full-Resolution")
    assert dataset.row(0)["pictures"][0] == "JPEGImages/Full-Resolution/tennis/00000.jpg"
    assert ids(open_clips(root, "all", resolution="Full-Resolution")) == ["tennis"]
    for options in ({"year": 2018}, {"resolution": "720p"}):
        with pytest.raises(ValueError, match="must be one of"):
            open_clips(root, **options)
    assert (SPEC.clip.num_frames, SPEC.clip.stride) == (17, 1)


def test_the_folder_that_holds_davis(tmp_path: Path):
    write_sequence(tmp_path / "DAVIS", "bear", 3)
    dataset = open_clips(tmp_path, "all")
    assert dataset.row(0)["masks"][0] == "DAVIS/Annotations/480p/bear/00000.png"
    assert dataset[0]["video"].shape == (3, 3, 16, 16)


def test_masks_of_2016_that_call_the_object_255(root: Path):
    write_sequence(root, "swan", 3, binary=True)
    write_list(root, "val", "/JPEGImages/480p/swan/0.jpg\n/JPEGImages/480p/bear/0.jpg\n", 2016)
    (root / "Annotations/480p/swan/00002.png").unlink()
    swan, bear = (open_clips(root, year=2016)[i]["segments"] for i in range(2))
    np.testing.assert_array_equal(swan[1], outline(1)[:, 8:24] == 1)
    assert (swan[2] == 255).all()  # there is no mask
    np.testing.assert_array_equal(bear[1], outline(1)[:, 8:24])


def test_no_chance_unless_it_is_asked_for(root: Path):
    dataset = open_clips(root, "train")
    first = dataset.clip(0, 0)["segments"]
    np.testing.assert_array_equal(first[0], outline(0)[:, 8:24])
    assert torch.equal(dataset.clip(0, 5)["segments"], first)
    random = open_clips(root, "train", augment=True)
    draws = [random.clip(0, draw)["segments"] for draw in range(8)]
    assert any(not torch.equal(draw, first) for draw in draws)
    again = open_clips(root, "train", augment=True)
    assert torch.equal(again.clip(0, 7)["segments"], draws[7])


def test_only_the_clip_is_decoded(root: Path):
    for name in ("JPEGImages/480p/tennis/00003.jpg", "Annotations/480p/tennis/00004.png"):
        (root / name).write_bytes(b"no picture")
    dataset = open_clips(root)
    assert dataset[0]["video"].shape[1] == 3
    last = open_clips(root, clip=ClipConfig(num_frames=4, size=16), on_error="skip")
    assert "00003.jpg: is no JPEG" in last[0]["problem"]


def test_bad_and_missing_sequences_are_counted(root: Path):
    write_list(root, "val", "tennis\nbear\nghost\ncut\n")
    write_sequence(root, "cut", 2)
    coverage = open_clips(root, on_error="skip").coverage
    assert (coverage.expected, coverage.found, coverage.missing, coverage.failed) == (4, 2, 1, 1)
    reasons = dict(coverage.reasons)
    assert reasons["ghost"] == "there is no file of this sample"
    assert "cut: has 2 frames, a clip spans 3" in reasons["cut"]
    (root / "JPEGImages/480p/bear/00001.jpg").unlink()  # its mask is left over
    with pytest.raises(DataError, match="holds 5 pictures and 6 masks of bear"):
        open_clips(root, clip=ClipConfig(num_frames=2, size=16))
    dataset = open_clips(root, on_error="skip")
    assert ids(dataset) == ["tennis"]
    write_mask(root / "Annotations/480p/tennis/00001.png", np.zeros((4, 4), np.uint8))
    write_list(root, "val", "tennis\n")
    with pytest.raises(DataError, match=r"00001\.png: has a picture of 4 x 4 pixels"):
        open_clips(root)[0]


def test_a_changed_mask_is_another_fingerprint(root: Path):
    before = open_clips(root).fingerprint
    path = root / "Annotations/480p/tennis/00001.png"
    path.write_bytes(path.read_bytes() + b"\0")
    assert open_clips(root).fingerprint != before


def test_the_real_sequence(shared: Path):
    dataset = open_clips(shared / "davis", "all", clip=ClipConfig(num_frames=2, size=480))
    example = dataset[0]
    assert example["sample_id"] == "bear"
    assert example["video"].shape == (3, 2, 480, 480)
    segments = example["segments"]
    assert set(segments.unique().tolist()) == {0, 1}
    with Image.open(shared / "davis/DAVIS/Annotations/480p/bear/00001.png") as picture:
        truth = np.asarray(picture)
    assert truth.shape == (480, 854)
    np.testing.assert_array_equal(segments[1], truth[:, 187 : 187 + 480])
