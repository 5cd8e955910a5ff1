"""Frozen features of a split: every clip once, in order, and computed only once."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from probe_datasets import ClipConfig, FailedExample
from probe_datasets.moving_shapes import MovingShapes
from probe_eval import distributed
from probe_eval.backbones.walt import WaltBackbone, load
from probe_eval.config import FeatureConfig
from probe_eval.features import FeatureStore, check_memory, extract_features


@pytest.fixture(scope="module")
def backbone(twins: Path) -> WaltBackbone:
    return load("v-walt", str(twins))


@pytest.fixture
def shapes() -> MovingShapes:
    return MovingShapes(split="train", clip=ClipConfig(num_frames=5, size=16), num_clips=7)


def config(batch_size: int = 3, block: int = 2, **settings: float) -> FeatureConfig:
    return FeatureConfig(batch_size=batch_size, block=block, **settings)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_the_table_is_the_split_in_order(
    backbone: WaltBackbone, shapes: MovingShapes, accelerator: Accelerator, batch_size: int
) -> None:
    table = extract_features(backbone, shapes, config(batch_size), accelerator, title="t")
    assert table.features.shape == (7, 2, 2, 2, 16)
    assert [example["sample_id"] for example in table.examples] == [
        shapes.sample_id(index) for index in range(7)
    ]
    assert [example["labels"] for example in table.examples] == [
        shapes.labels(index) for index in range(7)
    ]
    assert not any("video" in example for example in table.examples)
    expected = backbone.features(
        torch.stack([shapes[4]["video"]]),
        blocks=(2,),
        timestep=200,
        seed=0,
        sample_ids=[shapes.sample_id(4)],
    )
    # The default tolerance: sums run in another order in another batch.
    torch.testing.assert_close(table.features[4], expected[2][0])


@pytest.mark.parametrize("world", [2, 3, 5])
def test_processes_share_the_chunks(
    backbone: WaltBackbone,
    shapes: MovingShapes,
    accelerator: Accelerator,
    world: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each of several processes does its part, and what they gather is what one would make."""

    class Rank:
        def __init__(self, index: int) -> None:
            self.process_index, self.num_processes = index, world

    alone = extract_features(backbone, shapes, config(2), accelerator, title="t")
    parts: list = []

    def keep(_: object, items: Sequence) -> list:
        parts.extend(items)
        return list(parts)

    monkeypatch.setattr(distributed, "gather_items", keep)
    extract = inspect.unwrap(extract_features)  # a Rank is no Accelerator
    for rank in range(world):
        table = extract(backbone, shapes, config(2), Rank(rank), title="t")
    assert torch.equal(table.features, alone.features)
    assert table.examples == alone.examples


class Holey(MovingShapes):
    """Every third clip cannot be read."""

    def __getitem__(self, index: int) -> Any:
        if index % 3 == 1:
            return FailedExample(sample_id=self.sample_id(index), problem=f"{index} is damaged")
        return super().__getitem__(index)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_clips_that_cannot_be_read_have_no_row_and_are_named(
    backbone: WaltBackbone,
    accelerator: Accelerator,
    batch_size: int,
) -> None:
    clip = ClipConfig(num_frames=5, size=16)
    holey = Holey("train", clip=clip, num_clips=7)
    whole = MovingShapes("train", clip=clip, num_clips=7)
    kept = [0, 2, 3, 5, 6]
    table = extract_features(backbone, holey, config(batch_size), accelerator, title="t")
    assert [e["sample_id"] for e in table.examples] == [whole.sample_id(i) for i in kept]
    assert table.failed == {whole.sample_id(i): f"{i} is damaged" for i in (1, 4)}
    complete = extract_features(backbone, whole, config(batch_size), accelerator, title="t")
    # The default tolerance: sums run in another order in another batch.
    torch.testing.assert_close(table.features, complete.features[kept])


def test_a_split_that_cannot_be_read_at_all_is_an_error(
    backbone: WaltBackbone, accelerator: Accelerator
) -> None:
    class Hollow(Holey):
        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(1)

    hollow = Hollow("train", clip=ClipConfig(num_frames=5, size=16), num_clips=4)
    with pytest.raises(
        ValueError, match="none of the 4 clips can be read, the first: 1 is damaged"
    ):
        extract_features(backbone, hollow, config(), accelerator, title="t")


def test_too_much_memory_is_refused_before_it_is_used(
    backbone: WaltBackbone, shapes: MovingShapes, accelerator: Accelerator
) -> None:
    with pytest.raises(ValueError, match=r"7 clips need .* GB, more than memory_gb 1e-09; .*limit"):
        extract_features(backbone, shapes, config(memory_gb=1e-9), accelerator, title="t")


def test_memory_is_that_of_all_clips() -> None:
    one = torch.zeros(1000)  # 4000 bytes
    check_memory(one, 250_000, 1.0)
    with pytest.raises(ValueError, match=r"250001 clips need 1\.0 GB"):
        check_memory(one, 250_001, 1.0)


def test_the_store_computes_equal_requests_once(
    backbone: WaltBackbone,
    twins: Path,
    shapes: MovingShapes,
    accelerator: Accelerator,
) -> None:
    store = FeatureStore(accelerator)
    first = store.get(backbone, shapes, config(), title="t")
    assert store.get(backbone, shapes, config(), title="again") is first
    others = [
        store.get(load("i-walt", str(twins)), shapes, config(), title="t"),
        store.get(backbone, shapes, config(block=1), title="t"),
        store.get(backbone, shapes, config(timestep=201), title="t"),
        store.get(backbone, shapes, config(noise_seed=1), title="t"),
        store.get(
            backbone,
            MovingShapes(split="validation", clip=ClipConfig(num_frames=5, size=16), num_clips=7),
            config(),
            title="t",
        ),
    ]
    assert len(store.tables) == 6
    assert not any(torch.equal(other.features, first.features) for other in others)
