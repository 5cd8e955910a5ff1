"""Whatever is registered fits together: data sets, backbones, tasks, readouts and recipes."""

import dataclasses
import re
import typing
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from probe_datasets import (
    DATASETS,
    BoxTrackExample,
    CameraExample,
    ClipConfig,
    ClipDataset,
    DepthExample,
    LabelledVideoExample,
    PointTrackExample,
    VideoExample,
    open_dataset,
)
from probe_datasets.synthetic import WorldExample
from probe_eval.backbone import BACKBONES, FrozenBackbone, check_features, load_backbone
from probe_eval.config import DataConfig, ReadoutConfig
from probe_eval.data import open_split, open_splits
from probe_eval.metrics.state import ReadoutState
from probe_eval.recipes import RECIPES, recipe
from probe_eval.tasks import TASKS, load_task
from probe_eval.tasks.base import GIVEN

FRAMES, SIZE = 17, 32
OPENED = [name for name, spec in DATASETS.items() if name == "folder" or not spec.needs_root]
SPLITS = [(name, split) for name in OPENED for split in DATASETS[name].splits]
each_split = pytest.mark.parametrize(("name", "split"), SPLITS)
each_backbone = pytest.mark.parametrize("name", BACKBONES)

Open = Callable[[str, str], ClipDataset]


@pytest.fixture(scope="session")
def open_any(video_folder: Path) -> Open:
    """Function that opens a split of any data set; those of files get a folder of videos."""

    def open_any(name: str, split: str) -> ClipDataset:
        root = video_folder if DATASETS[name].needs_root else None
        return open_dataset(name, root, split, clip=ClipConfig(num_frames=FRAMES, size=SIZE))

    return open_any


# --- Data sets -----------------------------------------------------------------------------------


@each_split
def test_a_split_gives_examples_of_the_schema(open_any: Open, name: str, split: str) -> None:
    dataset = open_any(name, split)
    assert isinstance(dataset, ClipDataset)
    assert tuple(dataset.classes) == DATASETS[name].labels
    schema = LabelledVideoExample if dataset.classes else VideoExample
    schema = WorldExample if name == "synthetic" else schema
    for index in {0, len(dataset) // 2, len(dataset) - 1}:
        example = dataset[index]
        assert example.keys() == typing.get_type_hints(schema).keys()
        video = example["video"]
        assert (video.dtype, video.shape) == (torch.float32, (3, FRAMES, SIZE, SIZE))
        assert -1 <= video.min() < video.max() <= 1
        assert example["sample_id"] == dataset.sample_id(index)
        labels = typing.cast(dict[str, int], example.get("labels", {}))
        assert labels.keys() == dataset.classes.keys()
        for label, number in labels.items():
            assert 0 <= number < len(dataset.classes[label])
        assert torch.equal(dataset[index]["video"], video)
    with pytest.raises(IndexError):
        dataset[len(dataset)]


@each_split
def test_a_split_says_what_it_is(open_any: Open, name: str, split: str) -> None:
    dataset = open_any(name, split)
    ids = [dataset.sample_id(index) for index in range(len(dataset))]
    assert len(set(ids)) == len(ids) > 0
    assert dataset.coverage.found == len(dataset)
    assert dataset.fingerprint == open_any(name, split).fingerprint
    prints = {open_any(name, other).fingerprint for other in DATASETS[name].splits}
    assert len(prints) == len(DATASETS[name].splits)


@pytest.mark.parametrize("name", OPENED)
def test_train_and_validation_share_no_sample(open_any: Open, name: str) -> None:
    train, validation = (open_any(name, split) for split in ("train", "validation"))
    ids = [{data.sample_id(i) for i in range(len(data))} for data in (train, validation)]
    assert ids[0].isdisjoint(ids[1])


@pytest.mark.parametrize("name", OPENED)
@pytest.mark.parametrize("limit", [0, 1])
def test_a_run_opens_every_data_set(video_folder: Path, name: str, limit: int) -> None:
    root = str(video_folder) if DATASETS[name].needs_root else ""
    config = DataConfig(dataset=name, root=root, num_frames=5, size=16, limit=limit)
    dataset = open_split(config, "train")
    assert isinstance(dataset, ClipDataset)
    assert dataset[0]["video"].shape == (3, 5, 16, 16)
    assert limit == 0 or len(dataset) == limit


def test_several_clips_of_a_video_differ(video_folder: Path) -> None:
    config = DataConfig(dataset="folder", root=str(video_folder), num_frames=5, size=16)
    one = open_split(config, "train")
    many = open_split(dataclasses.replace(config, clips_per_video=3), "train")
    assert isinstance(many, ClipDataset)
    assert len(many) == 3 * len(one)
    ids = [many.sample_id(index) for index in range(len(many))]
    assert len(set(ids)) == len(many)
    assert [many[index]["sample_id"] for index in range(3)] == ids[:3]
    assert len({many[index]["video"].sum().item() for index in range(6)}) > 2
    assert many.fingerprint != one.fingerprint
    with pytest.raises(IndexError):
        many[len(many)]


# --- Backbones -----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def clips() -> torch.Tensor:
    """Two rendered clips."""
    dataset = open_dataset("moving_shapes", clip=ClipConfig(num_frames=FRAMES, size=SIZE))
    return torch.stack([dataset[index]["video"] for index in (0, 9)])


@each_backbone
def test_a_backbone_gives_features_of_every_block(
    pretrained: Path, clips: torch.Tensor, name: str
) -> None:
    backbone = load_backbone(name, str(pretrained))
    assert isinstance(backbone, FrozenBackbone)
    assert backbone.name == name
    assert backbone.num_parameters > 0
    blocks = tuple(range(backbone.num_blocks + 1))
    ids = ["one", "two"]
    inputs = backbone.encode(clips)
    features = backbone.features(inputs, blocks=blocks, timestep=200, seed=0, sample_ids=ids)
    assert tuple(sorted(features)) == blocks
    shapes = {tuple(grid.shape) for grid in features.values()}
    assert len(shapes) == 1
    batch, *grid, width = shapes.pop()
    assert (batch, width) == (2, backbone.width)
    assert len(grid) == 3
    for values in features.values():
        assert torch.isfinite(values).all()
        assert not values.requires_grad
        assert not torch.equal(values[0], values[1])


@each_backbone
def test_features_depend_on_what_they_say(pretrained: Path, clips: torch.Tensor, name: str) -> None:
    backbone = load_backbone(name, str(pretrained))
    block = backbone.num_blocks
    inputs = backbone.encode(clips)

    def features(timestep: int = 200, seed: int = 0, second: str = "two") -> torch.Tensor:
        return backbone.features(
            inputs, blocks=(block,), timestep=timestep, seed=seed, sample_ids=["one", second]
        )[block]

    first = features()
    assert torch.equal(features(), first)
    assert torch.equal(features(second="three")[0], first[0])
    alone = backbone.features(
        inputs[1:], blocks=(block,), timestep=200, seed=0, sample_ids=["two"]
    )[block]
    # 1e-4: another batch size sums in another order.
    torch.testing.assert_close(alone[0], first[1], atol=1e-4, rtol=1e-4)
    for other in (features(timestep=201), features(seed=1)):
        assert not torch.equal(other, first)


@each_backbone
def test_weights_are_hashed(pretrained: Path, name: str) -> None:
    hashes = [load_backbone(each, str(pretrained)).weights_hash for each in (*BACKBONES, name)]
    assert len(set(hashes)) == len(BACKBONES)


@each_backbone
def test_the_range_of_blocks_and_timesteps_is_checked(pretrained: Path, name: str) -> None:
    backbone = load_backbone(name, str(pretrained))
    for block in (0, backbone.num_blocks):
        check_features(backbone, block=block, timestep=0)
    for block in (-1, backbone.num_blocks + 1):
        with pytest.raises(ValueError, match=f"block {block}"):
            check_features(backbone, block=block, timestep=0)
    level = backbone.noise_level(200)
    assert level["alpha"] ** 2 + level["sigma"] ** 2 == pytest.approx(1)


# --- Tasks and recipes ---------------------------------------------------------------------------


@pytest.fixture(scope="session")
def class_folders(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """Configuration of a folder of pictures, of two classes."""
    root = tmp_path_factory.mktemp("classes")
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / name).mkdir()
        for number in range(8):
            pixels = generator.integers(0, 255, (40, 36, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return DataConfig(
        dataset="folder",
        root=str(root),
        options=("media='images'", "labels='folders'"),
        limit=2,
    )


def why_not(task: str, data: ClipDataset) -> str:
    """Why a task refuses a data set; empty where it takes it."""
    try:
        load_task(task, data)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("task", TASKS)
def test_a_task_takes_a_data_set_or_says_why_not(
    open_any: Open, class_folders: DataConfig, task: str
) -> None:
    taken = 0
    for data in (*(open_any(name, "train") for name in OPENED), open_split(class_folders, "train")):
        reason = why_not(task, data)
        if reason:
            assert re.search(r"data set has no .*; choose", reason)
        else:
            taken += 1
            targets = TASKS[task].targets(data[0])
            assert all(isinstance(target, torch.Tensor) for target in targets.values())
            chance = TASKS[task].chance(data)
            assert chance is None or 0 < chance < 1
    assert taken


def test_what_data_sets_are_for_says_what_their_examples_have() -> None:
    schemas = {
        "depth": DepthExample,
        "camera pose": CameraExample,
        "point tracks": PointTrackExample,
        "box tracks": BoxTrackExample,
    }
    assert schemas.keys() == GIVEN.keys() <= {spec.task for spec in DATASETS.values()}
    for kind, fields in GIVEN.items():
        assert set(fields) < typing.get_type_hints(schemas[kind]).keys()


TIMES = typing.get_args(typing.get_type_hints(ReadoutConfig)["time"])
RENDERED = [name for name in RECIPES if not DATASETS[recipe(name, "smoke").data.dataset].needs_root]


@pytest.mark.parametrize(
    ("name", "time"),
    [("imagenet", "paper"), *((name, TIMES[i % 3]) for i, name in enumerate(RENDERED))],
)
def test_a_recipe_fits_from_pixels_to_score(
    pretrained: Path,
    class_folders: DataConfig,
    name: str,
    time: typing.Literal["paper", "causal", "nearest"],
) -> None:
    config = recipe(name, "smoke")
    data = dataclasses.replace(config.data, limit=2)
    splits = open_splits(data if name in RENDERED else class_folders, 0.0)
    task = load_task(config.task, splits.train)
    backbone = load_backbone(config.features.backbone, str(pretrained))
    check_features(backbone, block=config.features.block, timestep=config.features.timestep)
    examples = [splits.train[index] for index in range(2)]
    ids = [example["sample_id"] for example in examples]
    features = backbone.features(
        backbone.encode(torch.stack([example["video"] for example in examples])),
        blocks=(config.features.block,),
        timestep=config.features.timestep,
        seed=0,
        sample_ids=ids,
    )[config.features.block].clone()
    num_frames = config.data.num_frames
    if config.features.average_time:
        features, num_frames = features.mean(dim=1, keepdim=True), 1
    readout = task.create_readout(
        splits.train,
        dataclasses.replace(config.readout, time=time),
        feature_dim=backbone.width,
        num_frames=num_frames,
    )
    targets = [task.targets(example) for example in examples]
    batch = {key: torch.stack([target[key] for target in targets]) for key in targets[0]}
    generators = [torch.Generator().manual_seed(number) for number in range(2)]
    loss = task.loss(readout, features, batch, num_frames=num_frames, generators=generators)
    loss.backward()
    trained = [p.grad for p in readout.parameters() if p.requires_grad]
    assert all(grad is not None and torch.isfinite(grad).all() for grad in trained)
    with torch.no_grad():
        found = task.measure(readout, features, batch, num_frames=num_frames, sample_ids=ids)
    assert task.metric in ReadoutState.of(ids, found).compute()
