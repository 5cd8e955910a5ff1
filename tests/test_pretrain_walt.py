"""A denoiser trained by two processes, or in shards, is the same denoiser."""

import json
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import walt_core
import walt_tokenizer

PROCESS = Path(__file__).parent / "walt_process.py"
SIZES = Path(__file__).parent / "minimal_sizes.py"
SHARDED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
}
Train = Callable[..., Any]
Words = Callable[..., list[str]]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Words:
    """Function that makes the command line of a training of 50 steps of milliseconds.

    Of clips with their frames, with classes, averages of weights, samples and kept models.
    """
    tokenizer = tmp_path_factory.mktemp("tokenizer")
    torch.manual_seed(0)
    sizes = runpy.run_path(str(SIZES))
    walt_tokenizer.VideoTokenizer(sizes["TOKENIZER"]).save_pretrained(tokenizer)
    settings = {
        "tokenizer": tokenizer,
        "walt-size": "minimal",
        "data.size": 16,
        "data.num-frames": 5,
        "data.limit": 12,
        "class-label": "action",
        "image-batch-size": 4,
        "images-per-clip": 3,
        "ema-decay": 0.9,
        "optim.steps": 50,
        "optim.batch-size": 4,
        "optim.warmup-steps": 5,
        "optim.clip-norm": 0.3,
        "evaluate-every": 25,
        "evaluate-clips": 3,
        "sample-clips": 2,
        "sample-steps": 2,
        "keep-every": 25,
        "checkpoint-every": 20,
    }

    def make(output: Path, **more: object) -> list[str]:
        given = settings | {
            name.replace("__", ".").replace("_", "-"): v for name, v in more.items()
        }
        flags = [word for name, value in given.items() for word in (f"--{name}", str(value))]
        return ["pretrain", "walt", "--output", str(output), *flags]

    return make


@pytest.fixture(scope="module")
def train(launch: Callable, tool: Callable[[str], str]) -> Train:
    """Function that runs a command line in one process or in two."""

    def run(words: list[str], *, processes: int = 2, env: dict[str, str] | None = None) -> Any:
        start = [sys.executable]
        if processes > 1:
            start = [tool("torchrun"), "--standalone", "--nproc-per-node", str(processes)]
        return launch(*start, PROCESS, *words, env={"ACCELERATE_USE_CPU": "true", **(env or {})})

    return run


@pytest.fixture(scope="module")
def here(main: Callable[..., int]) -> Iterator[Callable[[list[str]], int]]:
    """Function that runs a command line in this process."""
    walt_core.WALT_SIZES["minimal"] = runpy.run_path(str(SIZES))["WALT"]
    yield lambda words: main(*words)
    del walt_core.WALT_SIZES["minimal"]


@pytest.fixture(scope="module")
def one(here: Callable, words: Words, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process that takes as many clips a step, in two parts."""
    folder = tmp_path_factory.mktemp("one") / "run"
    assert here(words(folder, optim__accumulate=2)) == 0
    return folder


def assert_equal_runs(folder: Path, other: Path, tolerance: float) -> None:
    """Equal files, and weights and numbers that are equal up to a tolerance, 0 for to the bit."""
    files = [
        sorted(str(path.relative_to(run)) for path in run.rglob("*")) for run in (folder, other)
    ]
    assert files[0] == files[1]
    models = [name for name in files[0] if name.endswith("model.safetensors")]
    assert models == [
        *(f"kept/step-000000{step}/model.safetensors" for step in (25, 50)),
        "walt/model.safetensors",
    ]
    for name in models:
        first, second = (load_file(run / name) for run in (folder, other))
        assert first.keys() == second.keys()
        for key, tensor in first.items():
            torch.testing.assert_close(tensor, second[key], atol=tolerance, rtol=0, msg=key)
    one, two = (json.loads((run / "record.json").read_text()) for run in (folder, other))
    for name in ("losses", "evaluations"):
        for row, same in zip(one[name], two[name], strict=True):
            assert row == pytest.approx(same, rel=tolerance, abs=0)


def test_fifty_steps_of_two_processes_are_those_of_one(
    train: Train, words: Words, one: Path, tmp_path: Path
) -> None:
    done = train(words(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    # To the bit: the same micro-batches, and a sum of two has no order.
    assert_equal_runs(tmp_path / "two", one, 0.0)


def test_a_sharded_run_that_is_stopped_ends_like_one_that_is_whole(
    train: Train, words: Words, one: Path, tmp_path: Path
) -> None:
    """Its weights, optimiser and averages lie in two processes, and in two files each."""
    folder = tmp_path / "sharded"
    done = train(words(folder), env={**SHARDED, "STOPPED_AT": "44"})
    assert done.returncode == 0, done.stderr
    assert "stopped; the same command resumes" in done.stderr
    assert "unreadable" not in done.stderr
    assert "goes on at step 41\n" in done.stdout
    # 1e-4: the norm that clips is summed over the shards, in another order.
    assert_equal_runs(folder, one, 1e-4)
