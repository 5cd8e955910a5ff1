"""Two processes on the CPU do what one does: the same steps, the same score, one voice."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from probe_eval.records import read_record

MODELS = ("tokenizer", "i-walt", "v-walt")
Words = Callable[..., list[str]]
Torchrun = Callable[..., Any]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def torchrun(launch: Callable, tool: Callable[[str], str]) -> Torchrun:
    """Function that runs a command in two processes, which write to `logs` by rank if given."""

    def run(words: list[str], *, logs: Path | None = None, cpu: bool = True) -> Any:
        by_rank = ["--log-dir", logs, "--redirects", "3"] if logs else []
        launcher = [tool("torchrun"), "--standalone", "--nproc-per-node", 2, *by_rank]
        env = {"ACCELERATE_USE_CPU": "true"} if cpu else {}
        return launch(*launcher, "-m", "probe_eval", *words, env=env)

    return run


def said(logs: Path, rank: int) -> dict[str, str]:
    """What a process wrote, by stream."""
    return {
        name: next(logs.rglob(f"{rank}/{name}.log")).read_text() for name in ("stdout", "stderr")
    }


# --- Probes --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(torchrun: Torchrun, run_words: Words, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A probe by two processes: its folder `run`, and what each of them said in `logs`."""
    folder = tmp_path_factory.mktemp("two")
    done = torchrun(run_words(folder / "run"), logs=folder / "logs")
    assert done.returncode == 0, said(folder / "logs", 0)["stderr"]
    return folder


def test_two_processes_are_one_that_accumulates(
    two: Path, main: Callable, run_words: Words, tmp_path: Path
) -> None:
    """To the bit: the same micro-batches, and a sum of two has no order."""
    assert main(*run_words(tmp_path / "one", accumulate=2)) == 0
    one, other = (load_file(p / "readout.safetensors") for p in (tmp_path / "one", two / "run"))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
    first, second = (read_record(p / "record.json") for p in (tmp_path / "one", two / "run"))
    assert first["metric"] == second["metric"]
    assert first["final_loss"] == pytest.approx(second["final_loss"], rel=1e-6)


def test_two_processes_score_like_one(
    two: Path, main: Callable, run_words: Words, tmp_path: Path
) -> None:
    assert main(*run_words(tmp_path / "one")) == 0
    one, other = (read_record(p / "record.json") for p in (tmp_path / "one", two / "run"))
    assert one["metric"] == other["metric"]
    assert one["dataset"] == other["dataset"]
    assert one["backbone"] == other["backbone"]
    # 1e-5: the gradient of a batch is summed in another order than those of its halves.
    assert one["final_loss"] == pytest.approx(other["final_loss"], rel=1e-5)
    assert (one["environment"]["processes"], other["environment"]["processes"]) == (1, 2)


def test_only_the_first_process_speaks(two: Path) -> None:
    first, second = (said(two / "logs", rank) for rank in (0, 1))
    assert "top1" in first["stdout"]
    assert "readout action v-walt seed 0  4/4" in first["stderr"]
    assert second["stdout"] == ""
    assert "4/4" not in second["stderr"]
    assert "probe" not in second["stderr"]


def test_a_finished_run_of_one_process_is_one_of_two(
    two: Path, main: Callable, run_words: Words
) -> None:
    before = (two / "run" / "record.json").stat().st_mtime_ns
    assert main(*run_words(two / "run")) == 0
    assert (two / "run" / "record.json").stat().st_mtime_ns == before


@pytest.fixture
def heads(launch: Callable, tool: Callable[[str], str], tmp_path: Path) -> Callable[..., Path]:
    """Function that trains heads in some processes, and checks that all of them know the same."""

    def train(processes: int, spoiled: int = 0, started: Path | None = None) -> Path:
        folder = tmp_path / f"{processes}-{spoiled}-{started is not None}"
        folder.mkdir()
        if started:
            checkpoint = Path("checkpoints", "step-00000003")
            shutil.copytree(started / checkpoint, folder / checkpoint)
        launcher = [tool("torchrun"), "--standalone", "--nproc-per-node", processes]
        script = Path(__file__).parent / "heads_process.py"
        env = {"ACCELERATE_USE_CPU": "true"}
        done = launch(*launcher, script, folder, spoiled, env=env)
        assert done.returncode == 0, done.stderr
        first = (folder / "0.json").read_text()
        for rank in range(1, processes):
            assert (folder / f"{rank}.json").read_text() == first
            assert_equal(folder / "0.safetensors", folder / f"{rank}.safetensors")
        return folder

    return train


def assert_equal(one: Path, two: Path) -> None:
    """Every tensor of two files is equal to the bit."""
    first, second = load_file(one), load_file(two)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_heads_of_two_processes_are_those_of_one(heads: Callable[..., Path]) -> None:
    """To the bit, as one accumulates: the same micro-batches, and a sum of two has no order.

    Also when one number of processes goes on where another was.
    """
    one, two = heads(1), heads(2)
    assert_equal(one / "0.safetensors", two / "0.safetensors")
    for processes, started in ((1, two), (2, one)):
        resumed = heads(processes, started=started)
        assert_equal(one / "0.safetensors", resumed / "0.safetensors")
    expected, found = (json.loads((folder / "0.json").read_text()) for folder in (one, two))
    assert found["reasons"] == expected["reasons"] == {}
    assert found["numbers"] == expected["numbers"]
    for row, other in zip(found["losses"], expected["losses"], strict=True):
        assert row == pytest.approx(other, rel=1e-6)
    assert all(numbers["samples"] == 21 for numbers in found["numbers"].values())


def test_a_head_that_fails_in_one_process_fails_in_all(heads: Callable[..., Path]) -> None:
    """And the others are what they would be without it."""
    good, bad = heads(2), heads(2, spoiled=4)
    told = json.loads((bad / "0.json").read_text())
    assert told["reasons"].keys() == {"torn"}
    assert told["reasons"]["torn"].startswith("loss is nan at step 4")
    expected = json.loads((good / "0.json").read_text())
    first, second = (load_file(folder / "0.safetensors") for folder in (good, bad))
    for name in ("plain", "clipped"):
        assert told["numbers"][name] == expected["numbers"][name]
    for name, tensor in first.items():
        assert torch.equal(second[name], tensor) != name.startswith("readouts.1."), name


# --- Pretraining ---------------------------------------------------------------------------------


def test_two_processes_pretrain_like_one(
    torchrun: Torchrun, pretrain_words: Words, pretrained: Path, tmp_path: Path
) -> None:
    done = torchrun(pretrain_words(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "two").iterdir()}
    assert names == {path.name for path in pretrained.iterdir()}
    for name in MODELS:
        one, two = (
            json.loads((f / name / "model.json").read_text())
            for f in (pretrained, tmp_path / "two")
        )
        # 1e-3: gradients are summed in another order, and AdamW divides by their size, which
        # makes much of little where a gradient is almost 0.
        assert one["losses"][-1][1] == pytest.approx(two["losses"][-1][1], rel=1e-3)
        first, second = (
            load_file(f / name / "model.safetensors") for f in (pretrained, tmp_path / "two")
        )
        assert first.keys() == second.keys()
        for key, tensor in first.items():
            torch.testing.assert_close(tensor, second[key], atol=2e-3, rtol=1e-2)


def test_two_processes_train_a_tokenizer_against_a_discriminator_like_one(
    torchrun: Torchrun, main: Callable, tokenizer_words: Words, tmp_path: Path
) -> None:
    """Which accumulates: the same micro-batches, and a sum of two has no order."""
    done = torchrun(tokenizer_words(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert main(*tokenizer_words(tmp_path / "one", accumulate=2)) == 0
    for name in ("tokenizer/model.safetensors", "discriminator.safetensors"):
        one, two = (load_file(tmp_path / folder / name) for folder in ("one", "two"))
        assert one.keys() == two.keys()
        for key, tensor in one.items():
            assert torch.equal(tensor, two[key]), key
    one, two = (
        json.loads((tmp_path / folder / "record.json").read_text()) for folder in ("one", "two")
    )
    assert two["environment"]["processes"] == 2
    for name in ("losses", "evaluations"):
        for first, second in zip(one[name], two[name], strict=True):
            assert first == pytest.approx(second, rel=1e-6)


# --- What cannot work ----------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there Accelerate sees both processes")
def test_processes_that_do_not_see_each_other_are_an_error(
    torchrun: Torchrun, run_words: Words, tmp_path: Path
) -> None:
    """And not two silent runs of one process."""
    done = torchrun(run_words(tmp_path / "run"), cpu=False)
    assert done.returncode != 0
    assert "probe-eval: error: 2 processes were launched but Accelerate sees 1" in done.stderr
    assert "set ACCELERATE_USE_CPU=true" in done.stderr
    assert "top1" not in done.stdout
    assert not (tmp_path / "run").exists()


# --- Data ----------------------------------------------------------------------------------------


def test_processes_and_workers_share_the_same_epochs(
    launch: Callable, tool: Callable[[str], str], video_folder: Path, tmp_path: Path
) -> None:
    def epochs(name: str, processes: int, workers: int) -> list[list[tuple[str, float]]]:
        output = tmp_path / name
        output.mkdir()
        launcher = [tool("torchrun"), "--standalone", "--nproc-per-node", processes]
        script = Path(__file__).parent / "loader_process.py"
        done = launch(*launcher, script, video_folder, output, workers)
        assert done.returncode == 0, done.stderr
        parts = [json.loads((output / f"{rank}.json").read_text()) for rank in range(processes)]
        steps = zip(*parts, strict=True)
        return [sorted(map(tuple, [clip for part in step for clip in part])) for step in steps]

    one = epochs("one", 1, 0)
    names = [name for batch in one for name, _ in batch]
    assert len(set(names)) == len(names) / 2
    assert epochs("two", 2, 0) == one
    assert epochs("two-by-two", 2, 2) == one
