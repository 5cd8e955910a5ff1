from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from probe_datasets import DATASETS, ClipDataset, open_dataset


@pytest.fixture
def options(write_video: Callable[..., Path], tmp_path: Path) -> Callable[[str], dict]:
    """Function from the name of a dataset to what opening it takes beside the split."""

    def build(name: str) -> dict:
        if not DATASETS[name].needs_root:
            return {}
        for i in range(4):
            write_video(tmp_path / f"{i}.mp4", num_frames=20)
        return {"root": tmp_path}

    return build


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_every_dataset_keeps_the_contract(name: str, options: Callable[[str], dict]):
    spec, extra = DATASETS[name], options(name)
    fingerprints = set()
    for split in spec.splits:
        dataset = open_dataset(name, split=split, num_frames=5, stride=2, size=32, seed=3, **extra)
        again = open_dataset(name, split=split, num_frames=5, stride=2, size=32, seed=3, **extra)
        assert isinstance(dataset, ClipDataset)
        assert len(dataset) == dataset.coverage.found > 0
        assert tuple(dataset.classes) == spec.labels
        assert dataset.fingerprint == again.fingerprint
        fingerprints.add(dataset.fingerprint)
        for i in (0, len(dataset) - 1):
            example = dataset[i]
            assert example["video"].shape == (3, 5, 32, 32)
            assert example["video"].dtype == torch.float32
            assert example["video"].abs().max() <= 1
            assert example["sample_id"] == dataset.sample_id(i)
            assert torch.equal(example["video"], again[i]["video"])
            assert set(example.get("labels", {})) == set(spec.labels)
            for label, value in example.get("labels", {}).items():
                assert 0 <= value < len(dataset.classes[label])
        with pytest.raises(IndexError):
            dataset[len(dataset)]
    assert len(fingerprints) == len(spec.splits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "moving_shape", "split": "train"}, "folder, moving_shapes; did you mean"),
        ({"name": "imagenet-21k-video", "split": "train"}, "must be one of folder, moving_shapes$"),
        ({"name": "folder", "split": "test", "root": "."}, "train, validation, all"),
        ({"name": "folder", "split": "train"}, "needs root"),
        ({"name": "moving_shapes", "split": "train", "root": "."}, "leave root='.' out"),
    ],
)
def test_bad_requests(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        open_dataset(**options)
