"""Features of a split: each clip once, in order, whatever the processes, the cache and the kills.

Axes: b clips, t h w feature grid, d width.
"""

import contextlib
import math
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from accelerate import Accelerator
from einops import rearrange, reduce
from torch import Tensor

from probe_datasets import ClipConfig, Coverage
from probe_datasets.moving_shapes import MovingShapes
from probe_eval.backbone import FrozenBackbone
from probe_eval.backbones.walt import load
from probe_eval.clock import Clock
from probe_eval.config import FeatureConfig
from probe_eval.storage import filling
from probe_eval.storage.features import SplitTables, extract_split
from probe_eval.storage.forwards import column_name, encode_batch, features_of_batch
from probe_eval.storage.tables import Table, TableWriter
from probe_eval.tasks.classification import Classification
from probe_eval.views import FirstClips

TASKS = {"action": Classification(labels=("action",)), "shape": Classification(labels=("shape",))}
COUNT = 70


class Plain:
    """Means of pixels, which depend on nothing but the clip; counts what goes through it."""

    name = "plain"
    num_blocks = 3
    width = 6
    num_parameters = 0
    weights_hash = "weights"
    side = 2
    """Rows and columns of latents and features."""

    def __init__(self, encoder_hash: str = "encoder") -> None:
        self.encoder_hash = encoder_hash
        self.encoded: list[int] = []
        self.forwarded: list[tuple[int, tuple[int, ...]]] = []

    def encode(self, video: Tensor) -> Tensor:
        if not self.encoder_hash:
            return video
        self.encoded.append(len(video))
        return reduce(video, "b c T (h k) (w l) -> b c T h w", "mean", h=self.side, w=self.side)

    def features(
        self,
        inputs: Tensor,
        *,
        blocks: Sequence[int],
        timestep: int,
        seed: int,
        sample_ids: Sequence[str],
    ) -> dict[int, Tensor]:
        self.forwarded.append((len(sample_ids), tuple(blocks)))
        assert len(inputs) == len(sample_ids)
        grid = reduce(inputs, "b c T (h k) (w l) -> b T h w c", "mean", h=self.side, w=self.side)
        noise = torch.tensor([len(name) * seed + timestep / 1000 for name in sample_ids])
        both = torch.cat([grid, rearrange(noise, "b -> b 1 1 1 1") - grid], -1)
        return {block: both * (block + 1) for block in blocks}

    def noise_level(self, timestep: int) -> dict[str, float]:
        return {"alpha": 1.0, "sigma": 0.0, "log_snr": math.inf}


class Clips:
    """Noise with labels, some of which cannot be read; counts what is."""

    classes: ClassVar[dict[str, tuple[str, ...]]] = {"action": ("a", "b"), "shape": ("c", "d", "e")}

    def __init__(
        self,
        count: int = COUNT,
        *,
        holes: tuple[int, ...] = (),
        frames: int = 5,
        size: int = 4,
        sign: int = 1,
    ) -> None:
        self.count, self.holes, self.frames, self.size = count, holes, frames, size
        self.sign = sign
        self.reads = 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.clip(index)

    def clip(self, index: int, draw: int = 0) -> Any:
        self.reads += 1
        if index in self.holes:
            return {"sample_id": self.sample_id(index), "problem": f"{index} is damaged"}
        generator = torch.Generator().manual_seed(index)
        shape = (3, self.frames, self.size, self.size)
        return {
            "sample_id": self.sample_id(index),
            "video": self.sign * (torch.rand(shape, generator=generator) * 2 - 1),
            "labels": {"action": index % 2, "shape": index % 3},
        }

    def sample_id(self, index: int) -> str:
        return f"clip/{index}"

    @property
    def fingerprint(self) -> str:
        return f"clips of {self.frames} x {self.size}"

    @property
    def coverage(self) -> Coverage:
        return Coverage(expected=self.count, found=self.count)


class Extract:
    """Calls of `extract_split` with the settings of a test."""

    def __init__(self, folder: Path, accelerator: Accelerator) -> None:
        self.folder, self.accelerator, self.clock = folder, accelerator, Clock()

    def __call__(
        self,
        backbone: FrozenBackbone | None = None,
        dataset: Any = None,
        *,
        blocks: Sequence[int] = (1, 3),
        tasks: Sequence[str] = ("action", "shape"),
        job: str = "job",
        num_workers: int = 0,
        accelerator: Accelerator | None = None,
        **settings: Any,
    ) -> SplitTables:
        chosen = {"batch_size": 20, "cache_folder": str(self.folder / "cache"), **settings}
        self.clock = Clock()
        return extract_split(
            backbone or Plain(),
            dataset or Clips(),
            FeatureConfig(**chosen),
            blocks=blocks,
            tasks={name: TASKS[name] for name in tasks},
            accelerator=accelerator or self.accelerator,
            folder=self.folder / job,
            num_workers=num_workers,
            clock=self.clock,
            title="t",
        )


@pytest.fixture
def extract(tmp_path: Path, accelerator: Accelerator) -> Extract:
    return Extract(tmp_path, accelerator)


def contents(table: Table) -> dict[str, Any]:
    """All rows of a table."""
    rows = table.rows(range(len(table)), list(table.columns))
    return {"ids": list(table.sample_ids), "failed": dict(table.failed), **rows}


def check_equal(one: SplitTables, other: SplitTables) -> None:
    """Checks that tables are the same to the bit."""
    for first, second in ((one.features, other.features), (one.targets, other.targets)):
        rows, same = contents(first), contents(second)
        assert rows.keys() == same.keys()
        for name, values in rows.items():
            if isinstance(values, Tensor):
                assert values.dtype == same[name].dtype
                assert torch.equal(values, same[name]), name
            else:
                assert values == same[name]


def files(folder: Path) -> dict[str, bytes]:
    """All shards below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("shard-*"))
    }


@pytest.mark.parametrize("encoder", ["encoder", ""])
@pytest.mark.parametrize("batch_size", [1, 3, 20, 32, 48, 100])
@pytest.mark.parametrize("holes", [(), (0, 5, 31, 32, 69)])
def test_the_tables_are_the_split_in_order(
    extract: Extract, encoder: str, batch_size: int, holes: tuple[int, ...]
) -> None:
    backbone, dataset = Plain(encoder), Clips(holes=holes)
    tables = extract(backbone, dataset, batch_size=batch_size, timestep=300, noise_seed=2)
    good = [index for index in range(COUNT) if index not in holes]
    names = [dataset.sample_id(index) for index in good]
    assert list(tables.features.sample_ids) == list(tables.targets.sample_ids) == names
    assert tables.features.failed == tables.targets.failed
    assert tables.features.failed == {dataset.sample_id(i): f"{i} is damaged" for i in holes}
    assert set(tables.targets.columns) == {"action/label", "shape/label"}
    labels = tables.targets.rows(range(len(good)), ["shape/label"])["shape/label"]
    assert labels.tolist() == [index % 3 for index in good]
    # One forward per clip, for both blocks at once, in whole batches.
    assert sum(count for count, _ in backbone.forwarded) == len(good)
    assert extract.clock.counts["forwards"] == len(good)
    assert max(count for count, _ in backbone.forwarded) <= batch_size
    assert {blocks for _, blocks in backbone.forwarded} == {(1, 3)}
    video = torch.stack([dataset[index]["video"] for index in good])
    alone = Plain(encoder)
    expected = alone.features(
        alone.encode(video), blocks=(1, 3), timestep=300, seed=2, sample_ids=names
    )
    found = tables.features.rows(range(len(good)), ["block-01", "block-03"])
    for block in (1, 3):
        torch.testing.assert_close(found[column_name(block)], expected[block])


def test_workers_change_nothing(extract: Extract) -> None:
    dataset = Clips(holes=(3, 40))
    alone = extract(dataset=dataset, job="a", cache="none")
    helped = extract(dataset=dataset, job="b", cache="none", num_workers=2)
    check_equal(alone, helped)
    assert files(extract.folder / "a") == files(extract.folder / "b")


class Rank(Accelerator):
    """One of several processes, which are threads here."""

    barrier: threading.Barrier
    told: list[Any]

    def __init__(self, index: int, world: int) -> None:
        self.index, self.world = index, world

    process_index = property(lambda self: self.index)
    num_processes = property(lambda self: self.world)
    is_main_process = property(lambda self: self.index == 0)
    mixed_precision = property(lambda self: "no")

    def wait_for_everyone(self) -> None:
        self.barrier.wait()

    def autocast(self, autocast_handler: Any = None) -> Any:
        return contextlib.nullcontext()


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[Rank], Any]], list[Any]]:
    """Function that runs a function on each of some processes, and gives what they return."""

    def gather(rank: Rank, items: list[Any]) -> list[Any]:
        rank.told[rank.index] = items
        rank.wait_for_everyone()
        everyone = [item for part in rank.told for item in part]
        rank.wait_for_everyone()
        return everyone

    def run(world: int, function: Callable[[Rank], Any]) -> list[Any]:
        barrier, told = threading.Barrier(world, timeout=60), [None] * world
        ranks = [Rank(index, world) for index in range(world)]
        results: list[Any] = [None] * world
        for rank in ranks:
            rank.barrier, rank.told = barrier, told

        def call(rank: Rank) -> None:
            try:
                results[rank.index] = function(rank)
            except BaseException as error:
                results[rank.index] = error
                barrier.abort()

        threads = [threading.Thread(target=call, args=[rank]) for rank in ranks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        errors = [result for result in results if isinstance(result, BaseException)]
        for error in sorted(errors, key=lambda e: isinstance(e, threading.BrokenBarrierError)):
            raise error  # the first cause, which the others only heard of
        return results

    monkeypatch.setattr(filling, "gather_items", gather)
    return run


@pytest.mark.parametrize("encoder", ["encoder", ""])
@pytest.mark.parametrize("world", [2, 3, 5])
def test_processes_share_the_work_and_make_the_same(
    extract: Extract, together: Callable, encoder: str, world: int
) -> None:
    """To the byte; each clip goes through the backbone of one of them."""
    dataset = Clips(holes=(3, 40))
    together(
        1,
        lambda rank: extract(Plain(encoder), dataset, accelerator=rank, job="alone", cache="none"),
    )
    backbones = [Plain(encoder) for _ in range(world)]

    def run(rank: Rank) -> SplitTables:
        return Extract(extract.folder, rank)(
            backbones[rank.index], dataset, job="many", cache="none"
        )

    for tables in together(world, run):
        assert len(tables.features) == COUNT - 2
    assert files(extract.folder / "alone") == files(extract.folder / "many")
    forwards = [sum(count for count, _ in backbone.forwarded) for backbone in backbones]
    assert sum(forwards) == COUNT - 2
    assert sum(count > 0 for count in forwards) == min(world, 2)  # shards of 40 clips


class Killed(Exception):
    """In the place of a signal."""


@pytest.mark.parametrize("encoder", ["encoder", ""])
@pytest.mark.parametrize("moment", [0, 2, 4, 7, 10, 13])
def test_an_extraction_that_was_killed_goes_on_at_the_shard(
    extract: Extract, monkeypatch: pytest.MonkeyPatch, encoder: str, moment: int
) -> None:
    dataset = Clips(holes=(3, 40))
    whole = extract(Plain(encoder), dataset, job="whole", cache="none")
    calls = 0
    real = TableWriter.write

    def kill(self: TableWriter, *arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == moment + 1:
            raise Killed
        real(self, *arguments)

    monkeypatch.setattr(TableWriter, "write", kill)
    first, second = Plain(encoder), Plain(encoder)
    settings: dict[str, Any] = {"dataset": dataset, "job": "cut", "cache": "none"}
    number = len(files(extract.folder / "whole"))
    assert number == (13 if encoder else 8)
    if moment < number:
        with pytest.raises(Killed):
            extract(first, **settings)
    else:
        extract(first, **settings)
    monkeypatch.setattr(TableWriter, "write", real)
    before = files(extract.folder / "cut")
    assert len(before) == min(moment, number)
    inodes = {name: (extract.folder / "cut" / name).stat().st_ino for name in before}
    check_equal(whole, extract(second, **settings))
    assert files(extract.folder / "whole") == files(extract.folder / "cut")
    assert all((extract.folder / "cut" / name).stat().st_ino == inodes[name] for name in before)
    # A unit is repeated only where one of its shards lacks.
    if moment >= number:
        assert second.forwarded == second.encoded == []
    check_equal(whole, extract(third := Plain(encoder), **settings))
    assert third.forwarded == third.encoded == []


def test_two_programs_that_fill_the_same_entry_share_it(extract: Extract) -> None:
    """Neither waits for the other, and both get the same."""
    ready = threading.Barrier(2, timeout=60)

    class Met(Plain):
        def encode(self, video: Tensor) -> Tensor:
            if not self.encoded:
                ready.wait()
            return super().encode(video)

    found: list[Any] = [None, None]

    def run(number: int) -> None:
        other = Extract(extract.folder, extract.accelerator)
        found[number] = other(Met(), job=f"job {number}")

    threads = [threading.Thread(target=run, args=[number]) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check_equal(found[0], found[1])
    check_equal(found[0], extract(job="alone", cache="none"))


def test_latents_and_targets_are_kept_for_later_runs(extract: Extract) -> None:
    first = extract(one := Plain(), dataset := Clips(), job="first")
    reads = dataset.reads
    assert sum(one.encoded) == COUNT
    again = extract(two := Plain(), dataset, job="second")
    check_equal(first, again)
    assert two.encoded == []
    assert sum(count for count, _ in two.forwarded) == COUNT
    assert dataset.reads == reads + 1  # one clip is looked at, to know that nothing has changed
    # Other features of the same latents.
    extract(three := Plain(), dataset, job="third", timestep=7, batch_size=9)
    assert three.encoded == []


def test_features_are_kept_on_request_block_by_block(extract: Extract) -> None:
    extract(job="first", cache="features", blocks=(0, 2))
    tables = extract(two := Plain(), job="second", cache="features", blocks=(2, 3))
    assert {blocks for _, blocks in two.forwarded} == {(3,)}
    assert list(tables.features.columns) == ["block-02", "block-03"]
    extract(three := Plain(), job="third", cache="features", blocks=(3, 0))
    assert three.forwarded == []
    assert not (extract.folder / "third").exists()
    check_equal(tables, extract(job="alone", cache="none", blocks=(2, 3)))


def test_nothing_is_kept_when_nothing_is_to_be(extract: Extract) -> None:
    extract(cache="none")
    assert not (extract.folder / "cache").exists()


def test_targets_of_another_task_are_read_without_encoding(extract: Extract) -> None:
    extract(tasks=("action",), job="first")
    dataset = Clips()
    tables = extract(two := Plain(), dataset, tasks=("action", "shape"), job="second")
    assert two.encoded == []
    assert dataset.reads == 1 + COUNT
    check_equal(tables, extract(job="alone", cache="none"))


class Other(Plain):
    weights_hash = "other weights"


@pytest.mark.parametrize(
    ("change", "encodes", "forwards"),
    [
        ({}, 0, 0),
        ({"backbone": Other()}, 0, COUNT),
        ({"backbone": Plain("other")}, COUNT, COUNT),
        ({"timestep": 1}, 0, COUNT),
        ({"noise_seed": 1}, 0, COUNT),
        ({"average_time": True}, 0, COUNT),
        ({"dtype": "bfloat16"}, 0, COUNT),
        ({"batch_size": 19}, 0, COUNT),
        ({"batch_size": 4}, COUNT, COUNT),
        ({"blocks": (2,)}, 0, COUNT),
        ({"dataset": Clips(COUNT - 1)}, COUNT - 1, COUNT - 1),
        ({"dataset": FirstClips(Clips(), 40)}, 40, 40),
        ({"dataset": Clips(frames=8)}, COUNT, COUNT),
        ({"dataset": Clips(sign=-1)}, COUNT, COUNT),
    ],
    ids=lambda value: None if isinstance(value, int) else "-".join(value) or "nothing",
)
def test_what_is_kept_serves_its_equal_alone(
    extract: Extract, change: dict[str, Any], encodes: int, forwards: int
) -> None:
    extract(cache="features")
    backbone = change.get("backbone", Plain())
    extract(**{**change, "backbone": backbone}, cache="features")
    assert sum(backbone.encoded) == encodes
    assert sum(count for count, _ in backbone.forwarded) == forwards


def test_a_limited_run_never_serves_a_full_one(extract: Extract) -> None:
    limited = extract(dataset=FirstClips(Clips(), 64), cache="features", job="limited")
    full = extract(dataset=Clips(), cache="features", job="full")
    assert (len(limited.features), len(full.features)) == (64, COUNT)
    check_equal(full, extract(job="alone", cache="none"))


def test_a_shard_that_was_cut_is_named_and_made_anew(
    extract: Extract, caplog: pytest.LogCaptureFixture
) -> None:
    whole = extract(job="first")
    (path, *_) = (extract.folder / "cache" / "inputs").rglob("shard-000001*")
    path.write_bytes(path.read_bytes()[:-1])
    check_equal(whole, extract(two := Plain(), job="second"))
    assert f"{path} has" in caplog.text
    assert sum(two.encoded) == 32


def test_a_row_that_was_changed_stops_the_run(extract: Extract) -> None:
    whole = extract(job="first")
    (path, *_) = (extract.folder / "cache" / "inputs").rglob("shard-000001*")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path.name} has other content in row 31 .* run again"):
        extract(job="second")
    path.unlink()  # as the message says
    check_equal(whole, extract(two := Plain(), job="third"))
    assert sum(two.encoded) == 32


def test_clips_that_come_and_go_are_noticed(extract: Extract) -> None:
    """Latents of some clips never meet the targets of others."""
    extract(dataset=Clips(holes=(3,)), tasks=("action",))
    with pytest.raises(ValueError, match=r"not of the same samples .* delete both folders"):
        extract(dataset=Clips(), tasks=("shape",))


def test_a_split_that_cannot_be_read_at_all_is_an_error(extract: Extract) -> None:
    dataset = Clips(3, holes=(0, 1, 2))
    with pytest.raises(
        ValueError, match="none of the 3 clips can be read, the first: 0 is damaged"
    ):
        extract(dataset=dataset)


def test_features_that_need_too_much_are_refused_before_they_are_written(extract: Extract) -> None:
    # 70 clips x 2 blocks x 5 x 2 x 2 x 6 numbers of 4 bytes.
    need = COUNT * 2 * 5 * 2 * 2 * 6 * 4
    with pytest.raises(
        ValueError, match=r"70 clips after 2 blocks need 6.72e-05 GB, more than disk_gb .*--data"
    ):
        extract(disk_gb=(need - 1) / 1e9, job="refused")
    assert files(extract.folder / "refused") == {}
    extract(disk_gb=need / 1e9)


def test_a_large_split_is_refused_before_it_is_decoded(extract: Extract) -> None:
    dataset = Clips(257)
    with pytest.raises(ValueError, match="257 clips after 2 blocks need"):
        extract(backbone := Plain(), dataset, disk_gb=1e-6)
    assert (dataset.reads, backbone.encoded) == (1, [1])


def test_the_cache_never_grows_above_its_cap(
    extract: Extract, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(job="first")
    kept = (extract.folder / "cache").rglob("*")
    size = sum(path.stat().st_size for path in kept if path.is_file())
    monkeypatch.setenv("PROBE_EVAL_CACHE_GB", str((size + 1000) / 1e9))
    with pytest.raises(ValueError, match=r"holds .* GB more would be above its cap of .* gc"):
        extract(Plain("other"), job="second")
    extract(Other(), job="third")  # what is there may be used
    extract(Plain("other"), job="fourth", cache="none")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_features_are_kept_in_the_type_asked_for(extract: Extract, dtype: str) -> None:
    found = extract(dtype=dtype, cache="none").features
    exact = extract(cache="none", job="exact").features
    assert found.columns["block-03"][0] == getattr(torch, dtype)
    rows = exact.rows(range(COUNT), ["block-03"])["block-03"]
    kept = found.rows(range(COUNT), ["block-03"])["block-03"]
    assert torch.equal(kept, rows.to(kept.dtype))


def test_features_may_be_averaged_over_time(extract: Extract) -> None:
    found = extract(cache="none", average_time=True).features
    exact = extract(cache="none", job="exact").features
    rows = exact.rows(range(COUNT), ["block-01"])["block-01"]
    mean = reduce(rows, "b t h w d -> b 1 h w d", "mean")
    assert torch.equal(found.rows(range(COUNT), ["block-01"])["block-01"], mean)


class Broken(Plain):
    value = math.nan

    def features(self, inputs: Tensor, **options: Any) -> dict[int, Tensor]:
        made = super().features(inputs, **options)
        for row, name in enumerate(options["sample_ids"]):
            if name == "clip/33":
                made[3][row, 0, 0, 0, 0] = self.value
        return made


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (math.nan, "float32", "are not finite; check the backbone"),
        (math.inf, "bfloat16", "are not finite; check the backbone"),
        (1e5, "float16", "torch.float16 cannot hold them; use --features.dtype bfloat16"),
    ],
)
def test_features_that_are_not_finite_are_named(
    extract: Extract, value: float, dtype: str, message: str
) -> None:
    backbone = Broken()
    backbone.value = value
    with pytest.raises(ValueError, match=rf"after block 3 of 'clip/33' by plain .*{message}"):
        extract(backbone, dtype=dtype)
    # Nothing of it is left: the next attempt finds it again.
    with pytest.raises(ValueError, match="after block 3"):
        extract(backbone, dtype=dtype)


@pytest.mark.parametrize("cause", ["features", "index"])
def test_what_one_process_meets_all_of_them_raise(
    extract: Extract, together: Callable, monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    """So that none waits for one that goes on with other work."""
    if cause == "index":

        def finish(*_: Any) -> None:
            raise ValueError("after block 3 of 'clip/33'")

        monkeypatch.setattr(TableWriter, "finish", finish)

    def run(rank: Rank) -> str:
        backbone = Broken() if cause == "features" else Plain()
        with pytest.raises(ValueError, match="after block 3 of 'clip/33'") as caught:
            Extract(extract.folder, rank)(backbone)
        return str(caught.value)

    one, other = together(2, run)
    assert one == other


def test_names_of_files_need_not_be_text(extract: Extract) -> None:
    """Linux has names that are no UTF-8, which Python writes with surrogates."""

    class Named(Clips):
        def sample_id(self, index: int) -> str:
            return f"clip/\udcff{index}"

    tables = extract(dataset=Named(4))
    assert list(tables.features.sample_ids) == [f"clip/\udcff{index}" for index in range(4)]


def test_large_features_are_no_infinite_ones(accelerator: Accelerator) -> None:
    """Although their sum is."""

    class Large(Plain):
        def features(self, inputs: Tensor, **options: Any) -> dict[int, Tensor]:
            return {0: torch.full((2, 1, 1, 1, 4), 3e38)}

    made = features_of_batch(
        Large(),
        torch.zeros(2, 3, 1, 2, 2),
        ["a", "b"],
        FeatureConfig(),
        [0],
        accelerator=accelerator,
        clock=Clock(),
    )
    assert bool((made[0] == 3e38).all())


def test_a_batch_is_made_as_the_tables_are(extract: Extract, twins: Path) -> None:
    """Features that are made while readouts train are those that would lie on disk."""
    backbone, dataset = (
        load("v-walt", str(twins)),
        MovingShapes("train", clip=ClipConfig(num_frames=5, size=16), num_clips=6),
    )
    clips = [dataset[index] for index in range(6)]
    settings = {"batch_size": 6, "dtype": "bfloat16", "average_time": True}
    tables = extract(backbone, dataset, blocks=(0, 2), cache="none", **settings)
    clock = Clock()
    made = features_of_batch(
        backbone,
        encode_batch(backbone, torch.stack([clip["video"] for clip in clips]), extract.accelerator),
        [clip["sample_id"] for clip in clips],
        FeatureConfig(**settings),
        (0, 2),
        accelerator=extract.accelerator,
        clock=clock,
    )
    assert clock.counts["forwards"] == 6
    for block, grid in made.items():
        assert not grid.is_inference()
        assert not grid.requires_grad
        rows = tables.features.rows(range(6), [column_name(block)])[column_name(block)]
        torch.testing.assert_close(rows, grid)


def test_time_is_told(extract: Extract) -> None:
    extract()
    spent = extract.clock.summary()
    assert spent["forwards"] == COUNT
    assert spent["seconds"]["data"] > 0
    assert extract.clock.seconds["backbone"] > 0
    assert extract.clock.seconds["heads"] == 0


PEAK = """
import sys
from pathlib import Path
from test_features import Clips, Extract, Plain
from accelerate import Accelerator
Plain.side = 12
tables = Extract(Path(sys.argv[1]), Accelerator(cpu=True))(
    Plain(sys.argv[3]), Clips(int(sys.argv[2]), frames=17, size=24), batch_size=8
)
for row in range(len(tables.features)):
    tables.features.rows([row], ["block-01"])
    tables.features.sample_ids[row]
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["VmHWM"].split()[0]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("encoder", ["encoder", ""])
def test_memory_does_not_grow_with_the_split(tmp_path: Path, encoder: str) -> None:
    """Peak memory of eight times as many clips."""
    peaks = []
    for count in (100, 800):
        command = [sys.executable, "-c", PEAK, str(tmp_path / str(count)), str(count), encoder]
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
        peaks.append(int(done.stdout))
    on_disk = sum(path.stat().st_size for path in (tmp_path / "800").rglob("shard-*"))
    assert on_disk > 80e6
    assert peaks[1] - peaks[0] < 20_000  # kB
