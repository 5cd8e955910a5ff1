"""Batches of tables and of clips: the same numbers, in the order that is asked for."""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from einops import reduce
from torch import Tensor

from probe_datasets import Coverage
from probe_datasets.loader import load_batches
from probe_eval.clock import Clock
from probe_eval.config import DataConfig, FeatureConfig, OptimConfig, ProbeConfig, ReadoutConfig
from probe_eval.harness import train
from probe_eval.order import StepSampler, Streams
from probe_eval.probing.cells import cell_name
from probe_eval.probing.heads import Head, HeadsObjective, create_readout
from probe_eval.probing.sources import ClipSource, Places, Source, TableSource
from probe_eval.storage.features import SplitTables, extract_split
from probe_eval.tasks import TASKS

CLIPS = 10
OPTIM = OptimConfig(steps=6, batch_size=4, peak_lr=1e-2, warmup_steps=1, accumulate=2)


class Clips:
    """Noise whose chance is its draw, of which some cannot be read."""

    classes: Mapping[str, tuple[str, ...]] = {"shape": ("a", "b"), "action": ("a", "b", "c")}
    fingerprint = "noise"
    coverage = Coverage(expected=CLIPS, found=CLIPS)

    def __init__(self, unreadable: Sequence[int] = (), *, chance: bool = True) -> None:
        self.unreadable, self.chance = unreadable, chance

    def __len__(self) -> int:
        return CLIPS

    def __getitem__(self, index: int) -> Any:
        return self.clip(index)

    def sample_id(self, index: int) -> str:
        return f"s{index}"

    def clip(self, index: int, draw: int = 0) -> Any:
        if index in self.unreadable:
            return {"sample_id": f"s{index}", "problem": "is torn"}
        seed = 1000 * index + (draw if self.chance else 0)
        generator = torch.Generator().manual_seed(seed)
        return {
            "video": torch.rand(3, 5, 8, 8, generator=generator),
            "sample_id": f"s{index}",
            "labels": {"shape": index % 2, "action": index % 3},
        }


class Pixels:
    """Averages of pixels."""

    name, num_blocks, width, num_parameters, encoder_hash = "pixels", 2, 3, 0, ""
    weights_hash = "0123"

    def encode(self, video: Tensor) -> Tensor:
        return video

    def features(
        self,
        inputs: Tensor,
        *,
        blocks: Sequence[int],
        timestep: int,
        seed: int,
        sample_ids: Sequence[str],
    ) -> dict[int, Tensor]:
        grid = reduce(inputs, "b c t (h 4) (w 4) -> b t h w c", "mean")
        return {block: grid + block for block in blocks}

    def noise_level(self, timestep: int) -> dict[str, float]:
        return {}


def cell(task: str = "shape", block: int = 1, **settings: Any) -> ProbeConfig:
    return ProbeConfig(
        task=task,
        data=DataConfig(draws=0, workers=0, num_frames=5),
        features=FeatureConfig(block=block, batch_size=3, cache="none"),
        readout=ReadoutConfig(width=8, num_heads=2),
        optim=OPTIM,
        **settings,
    )


CELLS = (cell(), cell("action", 2))


def sampler(steps: int = 6, **settings: int) -> StepSampler:
    values = {"seed": 0, "start": 0, "rank": 0, "world": 1, **settings}
    config = OptimConfig(steps=steps, batch_size=4, accumulate=2, warmup_steps=0)
    return StepSampler(CLIPS, config, **values)


Tables = Callable[..., SplitTables]


@pytest.fixture(autouse=True, scope="module")
def frozen_garbage() -> Iterator[None]:
    """Every training collects garbage; what was there before is not gone through each time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    """Function that makes the tables of clips."""
    return lambda clips, **features: extract_split(
        Pixels(),
        clips,
        FeatureConfig(batch_size=3, cache="none", **features),
        blocks=[1, 2],
        tasks={name: TASKS[name] for name in ("shape", "action")},
        accelerator=Accelerator(cpu=True),
        folder=tmp_path / "tables",
        num_workers=0,
        clock=Clock(),
        title="",
    )


def stream(clips: Clips, cells: Sequence[ProbeConfig] = CELLS) -> ClipSource:
    return ClipSource(
        clips,
        Pixels(),
        cells,
        {name: TASKS[name] for name in sorted({cell.task for cell in cells})},
        accelerator=Accelerator(cpu=True),
        clock=Clock(),
    )


def assert_same(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> None:
    """To the bit."""
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.equal(value, two[name]), name


# --- Places --------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, 2])
def test_places_are_those_of_the_sampler(start: int) -> None:
    order = sampler(9, start=start)
    places = Places(order)
    assert [[index for index, _ in batch] for batch in places] == list(order)
    assert len(places) == len(list(places)) == 2 * (9 - start)
    epochs = [epoch for batch in places for _, epoch in batch]
    assert epochs == [place // CLIPS for place in range(4 * start, 4 * 9)]
    for skip in (0, 1, 5):
        assert list(places[skip:]) == list(places)[skip:]
        assert list(places[skip:][2:]) == list(places)[skip + 2 :]
        assert len(places[skip:]) == len(places) - skip
        assert places[skip] == list(places)[skip]
    with pytest.raises(ValueError, match="a start alone"):
        places[:3]


# --- Tables --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_rows_come_in_the_order_of_the_sampler(tables: Tables, ahead: int) -> None:
    clips = Clips()
    source = TableSource(tables(clips), CELLS, ahead=ahead)
    batches = list(source.batches(sampler()))
    assert len(batches) == 12
    for indices, batch in zip(sampler(), batches, strict=True):
        assert batch.keys() == {"block-01", "block-02", "shape/label", "action/label"}
        assert batch["shape/label"].tolist() == [index % 2 for index in indices]
        assert batch["action/label"].tolist() == [index % 3 for index in indices]
        video = torch.stack([clips.clip(index)["video"] for index in indices])
        expected = reduce(video, "b c t (h 4) (w 4) -> b t h w c", "mean")
        torch.testing.assert_close(batch["block-01"], expected + 1)
        torch.testing.assert_close(batch["block-02"], expected + 2)


def test_only_what_cells_need_is_read(tables: Tables) -> None:
    source = TableSource(tables(Clips()), [cell("action", 2)])
    assert source.rows([3, 3]).keys() == {"block-02", "action/label"}


def test_what_cannot_be_read_ahead_is_an_error_where_it_is_wanted(
    tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = TableSource(tables(Clips()), CELLS)
    rows = source.rows
    monkeypatch.setattr(
        source, "rows", lambda indices: rows(indices) if 7 not in indices else rows([99])
    )
    order = list(sampler())
    first = next(number for number, indices in enumerate(order) if 7 in indices)
    batches = source.batches(sampler())
    for _ in range(first):
        next(batches)
    with pytest.raises(IndexError, match="row 99"):
        next(batches)


def test_shuffled_labels_are_a_permutation_by_seed(tables: Tables) -> None:
    cells = [cell(), *(cell(seed=seed, shuffle_labels=True) for seed in (3, 4))]
    source = TableSource(tables(Clips()), cells)
    batch = source.rows(range(CLIPS))
    true, three, four = (
        batch[f"{name}/label"].tolist() for name in ("shape", "shape@3", "shape@4")
    )
    assert true == [index % 2 for index in range(CLIPS)]
    assert sorted(three) == sorted(four) == sorted(true)
    assert len({tuple(true), tuple(three), tuple(four)}) == 3
    again = TableSource(source.tables, cells[1:2]).rows([7, 2])
    assert again["shape@3/label"].tolist() == [three[7], three[2]]
    assert_same({"f": again["block-01"]}, {"f": batch["block-01"][[7, 2]]})


# --- Clips ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_clips_without_chance_are_the_rows_of_tables(tables: Tables, workers: int) -> None:
    clips = Clips(chance=False)
    live = stream(clips)
    live.workers = workers
    kept = TableSource(tables(clips), CELLS)
    for one, two in zip(live.batches(sampler()), kept.batches(sampler()), strict=True):
        assert_same(one, two)


@pytest.mark.parametrize(
    "features", [{"average_time": True}, {"dtype": "bfloat16"}], ids=["averaged", "bfloat16"]
)
def test_features_of_clips_are_kept_as_those_of_tables(tables: Tables, features: dict) -> None:
    clips = Clips(chance=False)
    live = stream(clips)
    live.settings = FeatureConfig(**features)
    kept = TableSource(tables(clips, **features), CELLS)
    assert_same(next(live.batches(sampler())), next(kept.batches(sampler())))


def test_clips_are_new_in_every_epoch() -> None:
    batches = list(stream(Clips()).batches(sampler(6)))
    seen = {}
    for places, batch in zip(Places(sampler(6)), batches, strict=True):
        for (index, epoch), grid in zip(places, batch["block-01"], strict=True):
            seen[index, epoch] = grid
    for index in range(CLIPS):
        assert not torch.equal(seen[index, 0], seen[index, 1])


def test_every_draw_has_noise_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    source, names = stream(Clips()), []
    features = source.backbone.features
    monkeypatch.setattr(
        source.backbone,
        "features",
        lambda inputs, *, sample_ids, **more: (
            names.extend(sample_ids) or features(inputs, sample_ids=sample_ids, **more)
        ),
    )
    list(source.batches(sampler(5)))
    assert sorted(names) == sorted(f"s{index}#{draw}" for index in range(CLIPS) for draw in (0, 1))
    assert source.clock.counts["forwards"] == 2 * CLIPS


# --- Training on either --------------------------------------------------------------------------


def trained(source: Source, folder: Path) -> dict[str, Tensor]:
    """Weights of readouts after training on a source."""
    heads = [
        Head(
            name=cell_name(config),
            cell=config,
            task=TASKS[config.task],
            readout=create_readout(config, TASKS[config.task], Clips(), feature_dim=3),
            num_frames=5,
        )
        for config in CELLS
    ]
    accelerator = Accelerator(cpu=True)
    objective = HeadsObjective("", heads, source, accelerator=accelerator)
    optims = {head.name: head.cell.optim for head in heads}
    train(
        objective,
        optims,
        accelerator=accelerator,
        seed=0,
        folder=folder,
        checkpoint_every=99,
    )
    assert objective.unreadable() == source.failed
    return {key: value.detach() for key, value in objective.bank.state_dict().items()}


def test_training_on_clips_is_training_on_tables(tables: Tables, tmp_path: Path) -> None:
    clips = Clips(chance=False)
    one = trained(stream(clips), tmp_path / "clips")
    two = trained(TableSource(tables(clips), CELLS), tmp_path / "rows")
    assert_same(one, two)
    three = trained(stream(Clips()), tmp_path / "new")
    assert any(not torch.equal(value, one[name]) for name, value in three.items())


def test_a_clip_that_cannot_be_read_counts_as_no_loss(tmp_path: Path) -> None:
    """Alone in its micro-batch, or with others; its batch is as large as it was."""
    some = stream(Clips(unreadable=(1, 4)))
    trained(some, tmp_path / "some")
    assert some.failed == {"s1": "is torn", "s4": "is torn"}
    heads = [
        Head(
            name="shape",
            cell=CELLS[0],
            task=TASKS["shape"],
            readout=create_readout(CELLS[0], TASKS["shape"], Clips(), feature_dim=3),
            num_frames=5,
        )
    ]
    objective = HeadsObjective("", heads, some, accelerator=Accelerator(cpu=True))
    places = [[(0, 0), (1, 0), (2, 0), (4, 0)], [(0, 0), (2, 0)], [(1, 0), (4, 0)]]
    sums = []
    for batch in places:
        loaded = some.forward(batch, {**collated(some, batch)})
        streams = Streams(0, "noise", range(len(batch)))
        loss = next(objective.losses({"heads": objective.bank}, loaded, streams, 0))
        sums.append(float(loss.value.detach()) * len(batch))
    # 1e-6: the mean of two and of four is rounded differently.
    assert sums[0] == pytest.approx(sums[1], rel=1e-6)
    assert sums[2] == 0


def collated(source: ClipSource, places: Sequence[tuple[int, int]]) -> dict[str, Any]:
    return next(load_batches(source.clips, [list(places)]))
