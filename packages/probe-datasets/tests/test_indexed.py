"""What every dataset of files has in common, shown on the smallest of them."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from probe_datasets import ClipConfig, ClipDataset, Coverage, DataError, FolderDataset
from probe_datasets.huggingface import to_huggingface
from probe_datasets.indexed import EmptySplitError
from probe_datasets.ssv2 import SomethingSomethingV2

CLIP = ClipConfig(num_frames=3, stride=2, size=16)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Six pictures of two classes, each of one colour."""
    for i in range(6):
        folder = tmp_path / ("even" if i % 2 == 0 else "odd")
        folder.mkdir(exist_ok=True)
        Image.fromarray(np.full((20, 30, 3), 40 * i, np.uint8)).save(folder / f"{i}.png")
    return tmp_path


@pytest.fixture
def videos(write_video: Callable[..., Path], tmp_path: Path) -> Path:
    """Something-Something-v2 of four videos of 9, 12, 3 and 20 frames, and one that is missing."""
    entries = []
    for name, frames in (("1", 9), ("2", 12), ("3", 3), ("4", 20), ("5", 0)):
        entries.append({"id": name, "template": "Holding [something]"})
        if frames:
            write_video(tmp_path / f"{name}.webm", codec="libvpx-vp9", num_frames=frames)
    for split in ("train", "validation"):
        (tmp_path / f"{split}.json").write_text(json.dumps(entries))
    (tmp_path / "labels.json").write_text(json.dumps({"Holding something": "0"}))
    return tmp_path


def open_pictures(root: Path, **options: object) -> FolderDataset:
    settings: dict = {"clip": CLIP, "media": "images", "labels": "folders", **options}
    return FolderDataset(root, "all", **settings)


def test_short_videos_are_failures_or_are_filled_by_rule(videos: Path):
    def found(short: str, **options: object) -> SomethingSomethingV2:
        clip = ClipConfig(num_frames=5, stride=2, size=16, short=short)
        return SomethingSomethingV2(videos, "train", clip=clip, **options)

    with pytest.raises(DataError, match=r"1 of 5 samples.* 3: has 3 frames, a clip spans 9"):
        found("error")
    dataset = found("error", on_error="skip")
    assert [dataset.sample_id(i) for i in range(len(dataset))] == ["1", "2", "4"]
    coverage = dataset.coverage
    assert (coverage.found, coverage.missing, coverage.failed) == (3, 1, 1)
    assert [name for name, _ in coverage.reasons] == ["5", "3"]
    for short in ("clamp", "loop"):
        assert len(found(short)) == 4
        assert found(short)[2]["video"].shape == (3, 5, 16, 16)
    clamped = found("clamp", augment=False)[2]["video"]
    assert torch.equal(clamped[:, 1], clamped[:, 2])
    looped = found("loop", augment=False)[2]["video"]
    assert not torch.equal(looped[:, 1], looped[:, 2])


def test_evaluation_has_no_chance_and_training_has(videos: Path):
    clip = ClipConfig(num_frames=2, size=16)
    train = SomethingSomethingV2(videos, "train", clip=clip)
    held_out = SomethingSomethingV2(videos, "validation", clip=clip)
    assert isinstance(train, ClipDataset)

    def draws(dataset: SomethingSomethingV2) -> int:
        clips = [dataset.clip(3, draw)["video"] for draw in range(12)]
        assert torch.equal(clips[0], dataset[3]["video"])
        return len({tuple(clip.flatten().tolist()) for clip in clips})

    assert draws(train) > 3
    assert draws(held_out) == 1
    assert draws(SomethingSomethingV2(videos, "train", clip=clip, augment=False)) == 1
    fixed = ClipConfig(num_frames=2, size=16, start="first")
    assert draws(SomethingSomethingV2(videos, "train", clip=fixed)) == 1


def test_a_changed_file_is_noticed(pictures: Path):
    dataset = open_pictures(pictures)
    assert dataset[0]["labels"] == {"class": 0}
    os.utime(pictures / "even" / "0.png", ns=(1, 1))
    with pytest.raises(DataError, match=r"0\.png: changed since it was indexed"):
        dataset[0]
    (pictures / "even" / "0.png").unlink()
    with pytest.raises(DataError, match=r"0\.png: cannot be read any more"):
        dataset[0]
    assert len(open_pictures(pictures)) == 5


def test_skipping_names_what_failed(pictures: Path):
    (pictures / "odd" / "1.png").write_bytes((pictures / "odd" / "1.png").read_bytes()[:60])
    strict = open_pictures(pictures)
    number = [strict.sample_id(i) for i in range(6)].index("odd/1.png")
    with pytest.raises(DataError, match=r"odd/1\.png"):
        strict[number]
    lenient = open_pictures(pictures, on_error="skip")
    failed = lenient[number]
    assert failed.keys() == {"sample_id", "problem"}
    assert failed["sample_id"] == "odd/1.png"
    after = lenient.coverage.with_failed({failed["sample_id"]: failed["problem"]})
    assert (after.found, after.failed, after.expected) == (5, 1, 6)
    with pytest.raises(ValueError, match="2 samples cannot fail of 1"):
        Coverage(expected=1, found=1).with_failed({"a": "", "b": ""})


def test_empty_files_are_known_from_the_start(pictures: Path):
    (pictures / "odd" / "1.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 of 6 .*odd/1\.png: is empty"):
        open_pictures(pictures)
    assert len(open_pictures(pictures, on_error="skip")) == 5
    for file in pictures.rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(EmptySplitError, match="0 are missing and 6 unreadable") as caught:
        open_pictures(pictures, on_error="skip")
    assert caught.value.coverage.failed == 6


def test_the_fingerprint_tells_what_decides_the_examples(pictures: Path):
    prints = {
        open_pictures(pictures).fingerprint,
        open_pictures(pictures, seed=1).fingerprint,
        open_pictures(pictures, augment=False).fingerprint,
        open_pictures(pictures, labels="none").fingerprint,
        open_pictures(pictures, clip=ClipConfig(num_frames=3, size=16)).fingerprint,
        FolderDataset(pictures, "train", clip=CLIP, media="images", labels="folders").fingerprint,
    }
    assert len(prints) == 6
    assert open_pictures(pictures).fingerprint in prints
    (pictures / "odd").rename(pictures / "strange")
    assert open_pictures(pictures).fingerprint not in prints


def test_a_dataset_can_be_sent_to_other_processes(pictures: Path):
    dataset = open_pictures(pictures)
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[4]["video"], dataset[4]["video"])
    assert len(pickle.dumps(dataset)) < 10_000


def test_a_root_that_is_none(tmp_path: Path):
    with pytest.raises(DataError, match="does not exist; expected the folder of 'ssv2'"):
        SomethingSomethingV2(tmp_path / "no", "train")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is not a folder"):
        SomethingSomethingV2(tmp_path / "file", "train")
    with pytest.raises(ValueError, match="'raise' or 'skip'"):
        SomethingSomethingV2(tmp_path, "train", on_error="ignore")


def test_as_a_hugging_face_dataset(pictures: Path):
    pytest.importorskip("datasets", reason="datasets is not installed")
    (pictures / "odd" / "3.png").write_bytes((pictures / "odd" / "3.png").read_bytes()[:60])
    dataset = open_pictures(pictures, on_error="skip")
    table = to_huggingface(dataset)
    columns = table.with_format(None)
    assert columns.features["class"].names == ["even", "odd"]
    assert columns["sample_id"][:2] == ["even/0.png", "even/2.png"]
    odd = columns.filter(lambda row: row["class"] == 1).with_transform(
        table.format["format_kwargs"]["transform"]
    )
    assert len(odd) == 3
    assert odd[0]["sample_id"] == "odd/1.png"
    batch = odd[:]
    assert batch["video"][1] is None
    assert "3.png" in batch["problem"][1]
    assert torch.equal(batch["video"][2], dataset[5]["video"])
