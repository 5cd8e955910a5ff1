"""Sweeps that are killed end like an unbroken one, and repeat nothing that is finished.

A process is killed by SIGKILL at a call or return that is drawn: while clips are encoded and kept,
features made, readouts trained and measured, records written. `SWEEP_KILLS=20` kills it so often.
"""

import dataclasses
import json
import os
import random
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import walt_core
import walt_tokenizer
from probe_eval.backbones.walt import WINDOWS
from probe_eval.records import read_record

KILLS = int(os.environ.get("SWEEP_KILLS", "3"))
SEED = int(os.environ.get("SWEEP_SEED", "20"))
SIZES = Path(__file__).parent / "minimal_sizes.py"
NO_LIMIT = -1
WHERE = " ".join(
    (
        "sweeps.sweep sweeps.plan sweeps.selection sweeps.execution harness checkpoints order",
        "probing.jobs probing.training probing.heads probing.sources probing.measuring",
        "probing.results records runs storage.features storage.filling storage.forwards",
        "storage.chunks storage.shards storage.tables storage.cache",
    )
)
"""Modules of probe_eval in which processes die; what they call is killed with them."""
CELLS = 8

pytestmark = pytest.mark.slow

RUNNER = """
import json, os, signal, sys
from pathlib import Path
import jsonschema
import probe_eval.probing.jobs, probe_eval.sweeps.plan
import probe_eval.sweeps.survey, probe_eval.sweeps.selection
from probe_eval.cli import main

def attempt(limit, words):
    events = 0
    if limit == "second job":
        first = probe_eval.sweeps.plan.write_job
        def write_job(*args):
            if any(args[0].rglob("record.json")):
                os.write(out, b"second job\\n")
                os.kill(os.getpid(), signal.SIGKILL)
            return first(*args)
        probe_eval.sweeps.plan.write_job = write_job
    def watch(frame, event, argument):
        nonlocal events
        if frame.f_globals.get("__name__") not in modules:
            return
        events += 1
        if events == limit:
            places = []
            while frame is not None:
                module = frame.f_globals.get("__name__", "")
                if module.startswith("probe_eval.") and ".cli" not in module:
                    places.append(module.removeprefix("probe_eval.") + ":" + frame.f_code.co_name)
                frame = frame.f_back
            os.write(out, (" < ".join(places[:3]) + "\\\\n").encode())
            os.kill(os.getpid(), signal.SIGKILL)
    sys.setprofile(watch)
    status = main(words)
    sys.setprofile(None)
    os.write(out, f"{events}\\\\n".encode())
    os._exit(status)

modules = {"probe_eval." + name for name in sys.argv[1].split()}
out = os.dup(1)
os.dup2(2, 1)
answers = os.fdopen(os.dup(out), "w")
for line in sys.stdin:
    limit, words = json.loads(line)
    child = os.fork()
    if not child:
        attempt(limit, words)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    answers.write(json.dumps(status) + "\\\\n")
    answers.flush()
""".replace("\\\\n", "\\n")
"""Runs the command of each line of its input in a process that dies at the given call or return,
or before its second job; answers with where it died or how many there were, and with the exit
status."""

Attempt = Callable[[int | str, list[str]], tuple[int, str]]
Words = Callable[..., list[str]]


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained twins for clips of 5 x 16 x 16."""
    folder = tmp_path_factory.mktemp("twins")
    sizes = runpy.run_path(str(SIZES))
    torch.manual_seed(0)
    tokenizer = walt_tokenizer.VideoTokenizer(sizes["TOKENIZER"])
    tokenizer.save_pretrained(folder / "tokenizer")
    for name, windows in WINDOWS.items():
        model = walt_core.Walt(dataclasses.replace(sizes["WALT"], windows=windows))
        model.latent_mean.copy_(tokenizer.latent_mean)
        model.latent_std.copy_(tokenizer.latent_std)
        model.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def sweep_words(twins: Path) -> Words:
    """Function that makes the command line of a sweep of seconds: 8 cells, 2 jobs, then tests."""

    def words(folder: Path, *more: str) -> list[str]:
        settings = {
            "data.size": 16,
            "data.num_frames": 5,
            "data.limit": 20,
            "data.workers": 0,
            "optim.steps": 8,
            "optim.batch_size": 4,
            "optim.warmup_steps": 2,
            "checkpoint_every": 3,
            "evaluate_every": 4,
            "readout.width": 8,
            "readout.num_heads": 2,
            "features.batch_size": 4,
            "features.cache_folder": folder / "cache",
        }
        return [
            *("sweep", "--tasks", "moving-shapes-action,moving-shapes-shape"),
            *("--preset", "smoke", "--backbones", "v-walt", "--pretrained", str(twins)),
            *("--blocks", "0,2", "--timesteps", "0,200", "--seeds", "0", "--held-out", "0.3"),
            *("--output", str(folder / "sweep"), *more, "--set"),
            *(f"{name}={value}" for name, value in settings.items()),
        ]

    return words


@pytest.fixture(scope="module")
def attempt() -> Iterator[Attempt]:
    """Function that runs a command in a process of its own, which dies at a call or return."""
    with subprocess.Popen(
        [sys.executable, "-c", RUNNER, WHERE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def run(limit: int | str, words: list[str]) -> tuple[int, str]:
            process.stdin.write(json.dumps([limit, words]) + "\n")
            process.stdin.flush()
            place = process.stdout.readline().strip()
            return int(process.stdout.readline()), place

        yield run
        process.stdin.close()


@pytest.fixture(scope="module")
def unbroken(
    attempt: Attempt, sweep_words: Words, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, int]:
    """The folder of a sweep that nobody killed, and how many calls and returns it took."""
    folder = tmp_path_factory.mktemp("unbroken")
    status, events = attempt(NO_LIMIT, sweep_words(folder))
    assert status == 0
    assert len(results(folder)) == CELLS + 2
    return folder, int(events)


def results(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every record of a sweep, by its place."""
    cells = folder / "sweep" / "cells"
    paths = [*cells.rglob("record.json"), *cells.rglob("test.json")]
    return {
        str(path.relative_to(cells)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in paths
    }


def files(folder: Path) -> set[str]:
    """Every file of a sweep, with its name alone."""
    paths = (folder / "sweep").rglob("*")
    return {str(path.relative_to(folder)) for path in paths if path.is_file()}


def content(path: Path) -> dict[str, Any]:
    """A record without what differs between runs: time, machine, and where it lies.

    Of the readout's file the hash differs as well, as the order of its metadata is by chance.
    """
    record = read_record(path)
    del record["readout"]["sha256"]
    for name in ("time", "environment", "sha256"):
        del record[name]
    del record["config"]["output"], record["config"]["features"]["cache_folder"]
    return record


def assert_like(folder: Path, unbroken: Path) -> None:
    """Two sweeps have the same files, records, choices, and weights to the bit."""
    assert files(folder) == files(unbroken)
    for name in results(unbroken):
        one, two = (place / "sweep" / "cells" / name for place in (folder, unbroken))
        assert content(one) == content(two), name
        found, wanted = (load_file(path.parent / "readout.safetensors") for path in (one, two))
        assert found.keys() == wanted.keys()
        for key, tensor in wanted.items():
            assert torch.equal(found[key], tensor), (name, key)
    one, two = (place / "sweep" / "selection.json" for place in (folder, unbroken))
    assert one.read_text() == two.read_text()


def test_a_sweep_killed_again_and_again_ends_like_an_unbroken_one(
    attempt: Attempt, sweep_words: Words, unbroken: tuple[Path, int], tmp_path: Path
) -> None:
    whole, total = unbroken
    chance = random.Random(SEED)
    kills, sweeps = 0, 0
    while kills < KILLS:
        folder = tmp_path / str(sweeps)
        status, place, before = -1, "", {}
        while status:
            limit = chance.randrange(total) if kills < KILLS else NO_LIMIT
            status, place = attempt(limit, sweep_words(folder))
            after = results(folder)
            assert {name: after.get(name) for name in before} == before, "something was repeated"
            before = after
            if status:
                assert status == -signal.SIGKILL, place
                kills += 1
                print(f"kill {kills} of sweep {sweeps} at {limit}: {place}")  # noqa: T201
        print(f"sweep {sweeps} ended after {place} calls and returns")  # noqa: T201
        assert_like(folder, whole)
        sweeps += 1


def test_cells_that_had_not_started_may_be_run_by_more_processes(
    attempt: Attempt,
    launch: Callable[..., "subprocess.CompletedProcess[str]"],
    sweep_words: Words,
    unbroken: tuple[Path, int],
    tmp_path: Path,
) -> None:
    whole, _ = unbroken
    assert attempt("second job", sweep_words(tmp_path)) == (-signal.SIGKILL, "second job")
    before = results(tmp_path)
    assert len(before) == CELLS // 2
    done = launch(
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "probe_eval", *sweep_words(tmp_path)),
        env={"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    after = results(tmp_path)
    assert {name: after[name] for name in before} == before
    assert files(tmp_path) == files(whole)
    processes = set()
    for name in results(whole):
        one, two = (read_record(place / "sweep" / "cells" / name) for place in (tmp_path, whole))
        processes.add(one["environment"]["processes"])
        assert one["metric"]["value"] == pytest.approx(two["metric"]["value"], abs=1e-6)
        assert one["final_loss"] == pytest.approx(two["final_loss"], rel=1e-4)
        assert one["dataset"] == two["dataset"]
    assert processes == {1, 2}
