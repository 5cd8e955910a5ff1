"""An epoch is the same for any number of workers and processes, through deaths and resumes."""

import itertools
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from probe_datasets import ClipConfig, FolderDataset, open_dataset
from probe_datasets.loader import Batch, ClipLoader, collate, load_batches
from probe_datasets.moving_shapes import MovingShapes

CLIP = ClipConfig(num_frames=3, size=16)


@pytest.fixture(scope="module")
def shapes() -> MovingShapes:
    return MovingShapes("validation", clip=CLIP, num_clips=23)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Seven pictures, of which one breaks when it is read."""
    rng = np.random.default_rng(0)
    for i in range(7):
        pixels = rng.integers(0, 255, (20, 30, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    content = bytearray((tmp_path / "4.png").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "4.png").write_bytes(content)
    return tmp_path


def content(batch: Batch) -> list[tuple[str, float]]:
    """Names and pixels of a batch."""
    if not batch["sample_id"]:
        return []
    sums = batch["video"].double().sum(dim=(1, 2, 3, 4)).tolist()
    return sorted(zip(batch["sample_id"], sums, strict=True))


def epoch(*loaders: ClipLoader) -> list[list[tuple[str, float]]]:
    """The batches of all processes, put together."""
    parts = zip(*loaders, strict=True)
    return [sorted(itertools.chain.from_iterable(map(content, step))) for step in parts]


def test_batches_do_not_depend_on_workers_or_processes(shapes: MovingShapes):
    alone = ClipLoader(shapes, 4, seed=5)
    first, second = epoch(alone), epoch(alone)
    names = [name for batch in first for name, _ in batch]
    assert sorted(names) == sorted(shapes.sample_id(i) for i in range(23))
    assert [len(batch) for batch in first] == [4, 4, 4, 4, 4, 3]
    assert first != second
    for workers in (1, 2):
        loader = ClipLoader(shapes, 4, seed=5, num_workers=workers)
        assert [epoch(loader), epoch(loader)] == [first, second]
    for world in (2, 4):
        loaders = [ClipLoader(shapes, 4, seed=5, rank=r, world_size=world) for r in range(world)]
        assert [epoch(*loaders), epoch(*loaders)] == [first, second]
    two = [ClipLoader(shapes, 4, seed=5, num_workers=2, rank=r, world_size=2) for r in range(2)]
    assert epoch(*two) == first
    assert epoch(ClipLoader(shapes, 4, seed=6)) != first
    ordered = epoch(ClipLoader(shapes, 4, shuffle=False))
    assert sorted(ordered[1]) == ordered[1]
    assert {name for name, _ in ordered[0]} == {shapes.sample_id(i) for i in range(4)}


def test_random_clips_are_the_same_for_any_workers(pictures: Path):
    dataset = FolderDataset(pictures, "all", clip=CLIP, media="images", on_error="skip")
    loaders = [ClipLoader(dataset, 3, num_workers=workers) for workers in (0, 1, 2)]
    assert epoch(loaders[0]) == epoch(loaders[1]) == epoch(loaders[2])


class Held(MovingShapes):
    """Workers reach the last clip only when the test has named those that never do.

    So whenever one of the first workers is killed, work is left.
    """

    named: Path

    def clip(self, index: int, draw: int = 0):
        if index == len(self) - 1 and multiprocessing.parent_process() is not None:
            for _ in range(6000):
                if self.named.exists():
                    break
                time.sleep(0.01)
            if str(os.getpid()) in self.named.read_text().split():
                time.sleep(60)
        return super().clip(index, draw)


@pytest.fixture
def held(tmp_path: Path) -> Held:
    dataset = Held("validation", clip=CLIP, num_clips=23)
    dataset.named = tmp_path / "first workers"
    return dataset


def kill_after(batches: int, dataset: MovingShapes, named: Path) -> Iterator[Batch]:
    """The batches of an epoch of two workers, of whom one is killed after some of them."""
    others = set(multiprocessing.active_children())  # of earlier tests, on their way out
    loader = ClipLoader(dataset, 4, shuffle=False, num_workers=2)
    for number, batch in enumerate(loader, start=1):
        yield batch
        if number == batches:
            workers = set(multiprocessing.active_children()) - others
            partial = named.with_suffix(".partial")
            partial.write_text(" ".join(str(worker.pid) for worker in workers))
            partial.rename(named)
            victim = workers.pop()
            victim.kill()
            victim.join()


@pytest.mark.parametrize("after", [1, 3])
def test_a_killed_worker_costs_neither_loss_nor_repetition(
    held: Held, after: int, caplog: pytest.LogCaptureFixture
):
    whole = epoch(ClipLoader(held, 4, shuffle=False))
    with caplog.at_level(logging.WARNING):
        got = [content(batch) for batch in kill_after(after, held, held.named)]
    assert got == whole
    assert caplog.text.count("a worker died; new ones go on at batch") == 1


def test_a_worker_killed_after_the_last_batch_is_not_missed(
    shapes: MovingShapes, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    whole = epoch(ClipLoader(shapes, 4, shuffle=False))
    others = set(multiprocessing.active_children())
    with caplog.at_level(logging.WARNING):
        got = [content(batch) for batch in kill_after(len(whole), shapes, tmp_path / "first")]
    assert got == whole
    assert caplog.text == ""
    # The other worker does not wait for what the dead one held, and the program for it.
    for worker in set(multiprocessing.active_children()) - others:
        worker.join(20)
        assert not worker.is_alive()


class Deadly(MovingShapes):
    """Kills whoever reads its last clip."""

    def clip(self, index: int, draw: int = 0):
        if index == len(self) - 1 and multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().clip(index, draw)


def test_workers_that_die_again_and_again_are_an_error():
    dataset = Deadly("validation", clip=CLIP, num_clips=5)
    loader = ClipLoader(dataset, 1, shuffle=False, num_workers=1)
    got: list[str] = []
    with pytest.raises(BrokenProcessPool):
        got.extend(batch["sample_id"][0] for batch in loader)
    assert got == [dataset.sample_id(i) for i in range(len(got))]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2])
def test_a_resume_goes_on_after_the_last_batch(workers: int, world: int):
    few = MovingShapes("validation", clip=CLIP, num_clips=11)
    reference = ClipLoader(few, 4, seed=1)
    whole = [*epoch(reference), *epoch(reference)]
    for stop in (1, 3, 4):
        loader = ClipLoader(few, 4, seed=1, num_workers=workers)
        steps = itertools.chain(loader, loader)
        seen = [content(batch) for batch in itertools.islice(steps, stop)]
        state = loader.state_dict()
        others = [ClipLoader(few, 4, seed=1, rank=r, world_size=world) for r in range(world)]
        for other in others:
            other.load_state_dict(state)
        rest = epoch(*others)
        while len(seen) + len(rest) < len(whole):
            rest += epoch(*others)
        assert seen + rest == whole


def test_a_state_of_other_data_is_refused(shapes: MovingShapes):
    state = ClipLoader(shapes, 4).state_dict()
    for other in (
        ClipLoader(shapes, 8),
        ClipLoader(shapes, 4, seed=1),
        ClipLoader(shapes, 4, shuffle=False),
        ClipLoader(MovingShapes("validation", clip=CLIP, num_clips=22), 4),
    ):
        with pytest.raises(ValueError, match="cannot go on there"):
            other.load_state_dict(state)
    with pytest.raises(ValueError, match="batch 7 of 6"):
        ClipLoader(shapes, 4).load_state_dict({**state, "batch": 7})


def test_failed_samples_are_set_apart_and_never_replaced(pictures: Path):
    dataset = FolderDataset(pictures, "all", clip=CLIP, media="images", on_error="skip")
    for workers in (0, 1):
        batches = list(ClipLoader(dataset, 3, shuffle=False, num_workers=workers))
        names = [batch["sample_id"] for batch in batches]
        assert names == [["0.png", "1.png", "2.png"], ["3.png", "5.png"], ["6.png"]]
        failed = [example for batch in batches for example in batch["failed"]]
        assert [example["sample_id"] for example in failed] == ["4.png"]
        assert "4.png" in failed[0]["problem"]
    assert collate([dataset[4]])["sample_id"] == []
    strict = FolderDataset(pictures, "all", clip=CLIP, media="images")
    with pytest.raises(ValueError, match=r"4\.png"):
        list(load_batches(strict, [[(4, 0)]], num_workers=1))


def test_batches_have_the_keys_of_their_examples(shapes: MovingShapes):
    batch = next(iter(ClipLoader(shapes, 4, shuffle=False)))
    assert batch["video"].shape == (4, 3, 3, 16, 16)
    assert batch["labels"]["action"].tolist() == [0, 1, 2, 3]
    assert batch["failed"] == []
    assert torch.equal(batch["video"][2], shapes[2]["video"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size 0"),
        ({"batch_size": 4, "num_workers": -1}, "num_workers -1"),
        ({"batch_size": 4, "rank": 2, "world_size": 2}, "rank 2"),
        ({"batch_size": 5, "world_size": 2}, "multiple of world_size 2"),
    ],
)
def test_bad_arguments(shapes: MovingShapes, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        ClipLoader(shapes, **options)


def test_a_rendered_dataset_is_read_too():
    dataset = open_dataset("moving_shapes", split="validation", clip=CLIP)
    assert len(ClipLoader(dataset, 32)) == 19


ORPHANS = """
import multiprocessing, os, signal
from probe_datasets.loader import load_batches
from probe_datasets.moving_shapes import MovingShapes

batches = load_batches(MovingShapes("train"), [[(0, 0)]] * 9, num_workers=2)
next(batches)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_a_killed_program():
    done = subprocess.run(
        [sys.executable, "-c", ORPHANS], capture_output=True, text=True, check=False, timeout=60
    )
    workers = [Path("/proc", pid) for pid in done.stdout.split()]
    assert len(workers) == 2
    end = time.monotonic() + 20
    while any(map(is_running, workers)):
        assert time.monotonic() < end, "a worker outlives its program"
        time.sleep(0.2)


def is_running(process: Path) -> bool:
    """Whether a process is there, and not a zombie that nobody waits for."""
    try:
        return "\nState:\tZ" not in (process / "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
