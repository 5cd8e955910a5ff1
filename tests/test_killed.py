"""Killed runs end like unbroken ones.

A process is killed by SIGKILL, at a call that is named or drawn: nothing in it can clean up.
"""

import itertools
import json
import os
import random
import re
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
from probe_eval import checkpoints, harness
from probe_eval.records import read_record

MODELS = ("tokenizer", "i-walt", "v-walt")
Words = Callable[..., list[str]]
Main = Callable[..., int]

pytestmark = pytest.mark.slow


def names(folder: Path) -> set[str]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def assert_equal_weights(one: Path, two: Path) -> None:
    """Every tensor of two safetensors files is equal to the bit."""
    first, second = load_file(one), load_file(two)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


KILLER = """
import importlib, os, signal, sys
from probe_eval.cli import main
place, number = sys.argv[1].split("#")
module, name = place.split(":")
module, calls = importlib.import_module(module), []
real = getattr(module, name)
def deadly(*args, **kwargs):
    calls.append(name)
    if len(calls) == int(number):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)
setattr(module, name, deadly)
raise SystemExit(main(sys.argv[2:]))
"""
"""Runs a command until call `#number` of `module:function`, and dies at it."""

Kill = Callable[[str, list[str]], None]


@pytest.fixture
def kill(launch: Callable) -> Kill:
    """Function that runs a command in a process that is killed at a call."""

    def run(call: str, words: list[str]) -> None:
        done = launch(sys.executable, "-c", KILLER, call, *words)
        assert done.returncode == -signal.SIGKILL, done.stderr

    return run


@pytest.mark.parametrize(
    ("call", "left", "whole", "lacking"),
    [
        # In step 4, after the checkpoint of step 2.
        ("probe_eval.harness:learning_rate#4", set(), [2], [2, 3]),
        # While the only checkpoint is being written: it is not there yet.
        ("probe_eval.checkpoints:write_json#1", set(), [], [0, 1, 2, 3]),
        # Trained and measured, but the record is not written.
        (
            "probe_eval.records:write_record#1",
            {"losses.json", "readout.safetensors", "tensorboard"},
            [2, 4],
            [],
        ),
    ],
    ids=["in a step", "in a checkpoint", "before the record"],
)
def test_a_killed_probe_ends_like_an_unbroken_one(
    main: Main,
    run_words: Words,
    kill: Kill,
    finished: Path,
    tmp_path: Path,
    call: str,
    left: set[str],
    whole: list[int],
    lacking: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "killed"
    kill(call, run_words(folder))
    assert {path.name for path in folder.iterdir()} == {"run.json", "work", *left}
    found = sorted(path.name for path in (folder / "work" / "checkpoints").glob("step-*"))
    assert found == [f"step-{step:08d}" for step in whole]

    steps = []
    rate = harness.learning_rate
    monkeypatch.setattr(
        harness, "learning_rate", lambda config, step: steps.append(step) or rate(config, step)
    )
    assert main(*run_words(folder)) == 0
    assert steps == lacking
    assert_equal_weights(folder / "readout.safetensors", finished / "readout.safetensors")
    record, other = (read_record(path / "record.json") for path in (folder, finished))
    assert record["metric"] == other["metric"]
    assert record["final_loss"] == other["final_loss"]
    assert record["readout"] == other["readout"]
    assert (folder / "losses.json").read_text() == (finished / "losses.json").read_text()
    assert not (folder / "work").exists()


def test_killed_pretraining_ends_like_an_unbroken_one(
    main: Main, pretrain_words: Words, kill: Kill, pretrained: Path, tmp_path: Path
) -> None:
    """Killed twice: in the tokenizer, and in the second twin."""
    folder = tmp_path / "killed"
    kill("probe_eval.harness:learning_rate#4", pretrain_words(folder))
    assert {path.name for path in folder.iterdir()} == {"run.json", "tokenizer"}
    # Two more steps of the tokenizer, four of I-WALT, and the fourth of V-WALT.
    kill("probe_eval.harness:learning_rate#10", pretrain_words(folder))
    assert [path.name for path in (folder / "v-walt").iterdir()] == ["checkpoints"]
    assert [path.name for path in (folder / "v-walt" / "checkpoints").iterdir()] == [
        "step-00000002"
    ]
    assert main(*pretrain_words(folder)) == 0
    assert names(folder) == names(pretrained)
    for name in MODELS:
        assert_equal_weights(*(f / name / "model.safetensors" for f in (folder, pretrained)))
        one, two = (json.loads((f / name / "model.json").read_text()) for f in (folder, pretrained))
        assert one["losses"] == two["losses"]
        assert one["weights_hash"] == two["weights_hash"]
        assert one.get("psnr") == two.get("psnr")


RANDOMLY = """
import importlib, json, os, runpy, signal, sys
import av, matplotlib.image, torchmetrics.functional.image  # not what is to be killed
from probe_eval.cli import main

runpy.run_path(sys.argv[1])["register"]()
module = importlib.import_module(sys.argv[2])
limit, events, real = -1, 0, module.train
def watch(frame, event, argument):
    global events
    events += 1
    if events == limit:
        os.kill(os.getpid(), signal.SIGKILL)
def train(*args, **kwargs):
    sys.setprofile(watch)
    try:
        return real(*args, **kwargs)
    finally:
        sys.setprofile(None)
        print("events", events, flush=True)
module.train = train
for limit, words in json.loads(sys.argv[3]):
    child = os.fork()
    if not child:
        os._exit(main(words))
    print("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Runs commands, each in a process that dies at the given call or return during training."""
SIZES = Path(__file__).parent / "minimal_sizes.py"
POINTS = int(os.environ.get("PROBE_KILLS", "4"))
"""At how many points; more find more."""


@pytest.fixture
def minimal() -> Iterator[dict[str, Any]]:
    """The sizes of milliseconds, which this process knows by name."""
    sizes = runpy.run_path(str(SIZES))
    sizes["register"]()
    yield sizes
    del walt_tokenizer.TOKENIZERS["minimal"], walt_core.WALT_SIZES["minimal"]


@pytest.fixture
def words_of(
    minimal: dict[str, Any], tokenizer_words: Words, tmp_path: Path
) -> dict[str, Callable[[Path], list[str]]]:
    """Functions that make the command lines of trainings of 7 steps."""
    torch.manual_seed(0)
    tokenizer = tmp_path / "given"
    walt_tokenizer.VideoTokenizer(minimal["TOKENIZER"]).save_pretrained(tokenizer)

    def walt_words(folder: Path) -> list[str]:
        settings = {
            "tokenizer": tokenizer,
            "walt-size": "minimal",
            "data.size": 16,
            "data.num-frames": 5,
            "data.limit": 6,
            "image-batch-size": 2,
            "ema-decay": 0.9,
            "optim.steps": 7,
            "optim.batch-size": 2,
            "optim.warmup-steps": 1,
            "evaluate-every": 3,
            "evaluate-clips": 2,
            "sample-clips": 1,
            "sample-steps": 1,
            "keep-every": 3,
            "checkpoint-every": 2,
        }
        flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        return ["pretrain", "walt", "--output", str(folder), *flags]

    return {
        "tokenizer": lambda folder: tokenizer_words(folder, size="minimal", steps=7),
        "walt": walt_words,
    }


@pytest.mark.parametrize(
    ("kind", "weights"),
    [
        ("tokenizer", ["tokenizer/model.safetensors", "discriminator.safetensors"]),
        ("walt", [f"{folder}/model.safetensors" for folder in ("walt", "kept/step-00000006")]),
    ],
)
def test_a_training_killed_at_random_points_ends_like_an_unbroken_one(
    kind: str,
    weights: list[str],
    main: Main,
    launch: Callable,
    words_of: dict[str, Callable[[Path], list[str]]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Between any two lines of Python: in a step, in an evaluation, in a checkpoint."""
    words = words_of[kind]

    def run_until(points: list[int], folders: list[Path]) -> "subprocess.CompletedProcess[str]":
        runs = [(point, words(folder)) for point, folder in zip(points, folders, strict=True)]
        module = f"probe_eval.pretrain.{kind}"
        return launch(sys.executable, "-c", RANDOMLY, SIZES, module, json.dumps(runs))

    done = run_until([-1], [tmp_path / "whole"])
    assert done.stdout.endswith("ended 0\n"), done.stderr
    (total,) = map(int, re.findall(r"events (\d+)", done.stdout))
    chance = random.Random(20)  # one point in each part of the training
    ends = [total * k // POINTS for k in range(POINTS + 1)]
    points = [chance.randrange(*part) for part in itertools.pairwise(ends)]
    print("killed at", points, "of", total)  # noqa: T201
    record = json.loads((tmp_path / "whole" / "record.json").read_text())
    folders = [tmp_path / str(point) for point in points]
    done = run_until(points, folders)
    deaths = [line for line in done.stdout.splitlines() if line.startswith("ended")]
    assert deaths == [f"ended {-signal.SIGKILL}"] * POINTS, done.stderr
    for point, folder in zip(points, folders, strict=True):
        for checkpoint in (folder / "checkpoints").glob("step-*"):
            checkpoints.verify(checkpoint)
        assert main(*words(folder)) == 0
        assert names(folder) == names(tmp_path / "whole")
        for name in weights:
            assert_equal_weights(folder / name, tmp_path / "whole" / name)
        found = json.loads((folder / "record.json").read_text())
        for name in ("losses", "evaluations", kind):
            assert found[name] == record[name], (point, name)
    assert "unreadable" not in caplog.text
