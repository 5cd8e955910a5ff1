from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from probe_datasets import DATASETS, ClipConfig, ClipDataset, DataError, open_dataset
from probe_datasets.indexed import IndexedDataset
from probe_datasets.spec import TASKS, DatasetSpec

CLIP = ClipConfig(num_frames=5, stride=2, size=32)
OF_FILES = [name for name, spec in DATASETS.items() if spec.needs_root]
PUBLISHED = [name for name in OF_FILES if name != "folder"]
OPENED = [name for name in DATASETS if name not in PUBLISHED]


@pytest.fixture
def root(write_video: Callable[..., Path], tmp_path: Path) -> Callable[[str], Path | None]:
    """Function from the name of a dataset that needs no download to its folder."""

    def build(name: str) -> Path | None:
        if not DATASETS[name].needs_root:
            return None
        for i in range(4):
            write_video(tmp_path / f"{i}.mp4", num_frames=20)
        return tmp_path

    return build


@pytest.mark.parametrize("name", OPENED)
def test_every_dataset_keeps_the_contract(name: str, root: Callable[[str], Path | None]):
    spec, folder = DATASETS[name], root(name)
    fingerprints = set()
    for split in spec.splits:
        dataset = open_dataset(name, folder, split, clip=CLIP, seed=3)
        again = open_dataset(name, folder, split, clip=CLIP, seed=3)
        assert isinstance(dataset, ClipDataset)
        assert len(dataset) == dataset.coverage.found > 0
        assert tuple(dataset.classes) == spec.labels
        for label, number in spec.num_classes.items():
            assert len(dataset.classes[label]) == number
        assert dataset.fingerprint == again.fingerprint
        fingerprints.add(dataset.fingerprint)
        for i in (0, len(dataset) - 1):
            example = dataset[i]
            assert example["video"].shape == (3, 5, 32, 32)
            assert example["video"].dtype == torch.float32
            assert example["video"].abs().max() <= 1
            assert example["sample_id"] == dataset.sample_id(i)
            assert torch.equal(example["video"], again.clip(i, 0)["video"])
            assert set(example.get("labels", {})) == set(spec.labels)
            for label, value in example.get("labels", {}).items():
                assert 0 <= value < len(dataset.classes[label])
        with pytest.raises(IndexError):
            dataset[len(dataset)]
    assert len(fingerprints) == len(spec.splits)


@pytest.mark.parametrize("name", DATASETS)
def test_every_record_is_complete(name: str):
    spec = DATASETS[name]
    assert spec.name == name
    assert spec.task in TASKS
    options = spec.options()
    assert {"split", "clip", "seed"} <= set(options)
    assert ("root" in options) == spec.needs_root
    if name in PUBLISHED:
        assert issubclass(spec.load_builder(), IndexedDataset)
        assert spec.citation
        assert spec.licence
        assert spec.obtain
        assert spec.layouts
        assert {"on_error", "augment", "progress", "workers"} <= set(options)


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_empty_folder_is_told_what_was_looked_for(name: str, tmp_path: Path):
    for split in DATASETS[name].splits:
        with pytest.raises(DataError, match="expected") as caught:
            open_dataset(name, tmp_path, split)
        assert str(tmp_path) in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_folder_of_other_things_is_refused(name: str, tmp_path: Path):
    (tmp_path / "train").mkdir()
    (tmp_path / "notes.txt").write_text("none of it")
    for split in DATASETS[name].splits:
        with pytest.raises(DataError):
            open_dataset(name, tmp_path, split)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "moving_shape", "split": "train"}, "moving_shapes, .*; did you mean"),
        ({"name": "chess", "split": "train"}, "must be one of .*waymo$"),
        ({"name": "folder", "split": "test", "root": "."}, "train, validation, all"),
        ({"name": "folder", "split": "train"}, "needs root"),
        ({"name": "moving_shapes", "split": "train", "root": "."}, "leave root='.' out"),
        (
            {"name": "folder", "root": ".", "on_eror": "skip"},
            "no option 'on_eror'; it has .*on_error",
        ),
    ],
)
def test_bad_requests(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        open_dataset(**options)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"task": "poetry"}, "task 'poetry'"),
        ({"expected": {"test": 3}}, r"splits that there are not: \['test'\]"),
        ({"num_classes": {"mood": 3}}, r"labels that there are not: \['mood'\]"),
    ],
)
def test_records_that_contradict_themselves_are_refused(changed: dict, message: str):
    given = {"name": "x", "summary": "", "builder": "", "task": "videos", "splits": ("train",)}
    with pytest.raises(ValueError, match=message):
        DatasetSpec(**(given | changed))
