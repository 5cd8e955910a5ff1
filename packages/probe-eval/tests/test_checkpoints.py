"""Runs that are broken off and go on, and checkpoints that are damaged."""

import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import Dataset

from probe_eval import checkpoints, harness
from probe_eval.config import OptimConfig
from probe_eval.harness import Batch, History, Loss, Objective, Row

FILES = (
    "manifest.json",
    "model.safetensors",
    "model_1.safetensors",
    "objective.safetensors",
    "optimizer.bin",
    "optimizer_1.bin",
    "progress.json",
    "random_states_0.pkl",
)


class Points(Dataset[Batch]):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Batch:
        return {"x": torch.randn(3, generator=torch.Generator().manual_seed(index))}


class Pair(Objective):
    """Two maps, the second of the first one's output, and an average of the first's weights."""

    title = "pair"

    def __init__(self, stop: int = -1) -> None:
        torch.manual_seed(0)
        self.models = {"first": nn.Linear(3, 1), "second": nn.Linear(1, 1)}
        self.dataset = Points()
        self.average = torch.zeros(1, 3)
        self.calls, self.stop = 0, stop

    def losses(
        self,
        models: Mapping[str, nn.Module],
        batch: Batch,
        generators: Sequence[torch.Generator],
        step: int,
    ) -> Iterator[Loss]:
        self.calls += 1
        noise = torch.stack([torch.randn(3, generator=g) for g in generators])
        out = models["first"](batch["x"] + noise)
        yield Loss("first", (out - batch["x"].sum(1, keepdim=True)).square().mean())
        if self.calls == self.stop:
            raise KeyboardInterrupt
        yield Loss("second", (models["second"](out.detach()) - 1).square().mean())

    def after_step(self, step: int) -> None:
        self.average = self.average.lerp(self.models["first"].weight.detach(), 0.1)

    def evaluate(self, step: int) -> Row:
        return {"average": float(self.average.sum())}

    def state_tensors(self) -> dict[str, Tensor]:
        return {"average": self.average}

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        self.average = tensors["average"]

    def tensors(self) -> list[Tensor]:
        """Everything that training changes."""
        return [
            self.average,
            *(p.detach() for model in self.models.values() for p in model.parameters()),
        ]


Run = Callable[..., History]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Function that trains for 12 steps, as a new process would, with a checkpoint every 3."""
    elsewhere = tmp_path_factory.mktemp("runs")

    def run(objective: Pair, folder: Path | None = None, accumulate: int = 1) -> History:
        config = OptimConfig(
            steps=12, batch_size=4, peak_lr=0.1, warmup_steps=2, accumulate=accumulate
        )
        return harness.train(
            objective,
            {"first": config, "second": config},
            accelerator=Accelerator(cpu=True),
            seed=1,
            folder=folder or elsewhere / "whole" / str(accumulate),
            checkpoint_every=3,
            evaluate_every=2,
        )

    return run


@pytest.fixture(scope="module")
def whole(run: Run) -> tuple[Pair, History]:
    """The unbroken run."""
    objective = Pair()
    return objective, run(objective)


@pytest.fixture(scope="module")
def stopped(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was broken off in step 8; nobody writes to it."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(KeyboardInterrupt):
        run(Pair(stop=8), folder)
    return folder


@pytest.fixture
def broken(stopped: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(stopped, tmp_path / "broken"))


def newest(folder: Path) -> Path:
    """The newest checkpoint of a run."""
    return sorted((folder / "checkpoints").iterdir())[-1]


def assert_equal(one: Pair, two: Pair) -> None:
    for expected, found in zip(one.tensors(), two.tensors(), strict=True):
        assert torch.equal(expected, found)


@pytest.mark.parametrize("stop", [5, 8, 12])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_broken_run_ends_like_an_unbroken_one(
    run: Run, tmp_path: Path, stop: int, accumulate: int
) -> None:
    unbroken = Pair()
    history = run(unbroken, tmp_path / "whole", accumulate)
    with pytest.raises(KeyboardInterrupt):
        run(Pair(stop=stop * accumulate), tmp_path / "broken", accumulate)
    resumed = Pair()
    assert run(resumed, tmp_path / "broken", accumulate) == history
    assert resumed.calls == (12 - (stop - 1) // 3 * 3) * accumulate
    assert_equal(unbroken, resumed)


def test_a_checkpoint_names_all_its_files(stopped: Path) -> None:
    names = [path.name for path in sorted((stopped / "checkpoints").iterdir())]
    assert names == ["step-00000003", "step-00000006"]
    checkpoint = newest(stopped)
    assert tuple(sorted(path.name for path in checkpoint.iterdir())) == FILES
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    assert manifest.keys() == set(FILES) - {"manifest.json"}
    for name, entry in manifest.items():
        assert entry["bytes"] == (checkpoint / name).stat().st_size > 0
        assert len(entry["sha256"]) == 64
    checkpoints.verify(checkpoint)


# --- Damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_at_any_byte_is_noticed(broken: Path, name: str) -> None:
    """At the first and the last byte, and at 30 in between."""
    path = newest(broken) / name
    content = path.read_bytes()
    cuts = random.Random(name).sample(range(len(content)), min(30, len(content)))
    for cut in {0, 1, len(content) - 1, *cuts}:
        path.write_bytes(content[:cut])
        with pytest.raises(ValueError, match=rf"^{name} "):
            checkpoints.verify(path.parent)
    path.write_bytes(content)
    checkpoints.verify(path.parent)


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_is_noticed(broken: Path, name: str) -> None:
    path = newest(broken) / name
    content = path.read_bytes()
    chance = random.Random(name)
    for place in (0, len(content) - 1, *(chance.randrange(len(content)) for _ in range(30))):
        changed = bytearray(content)
        changed[place] ^= 1 << chance.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=r" is cut short|content|bytes|missing|is not in"):
            checkpoints.verify(path.parent)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(broken: Path, name: str) -> None:
    (newest(broken) / name).unlink()
    with pytest.raises(ValueError, match=f"^{name} is missing$"):
        checkpoints.verify(newest(broken))


def test_a_file_too_many_is_named(broken: Path) -> None:
    (newest(broken) / "model_2.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"^model_2\.safetensors is not in manifest\.json$"):
        checkpoints.verify(newest(broken))


@pytest.mark.parametrize("how", ["first byte", "last byte", "half", "gone"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_gives_way_to_an_older_one(
    run: Run,
    broken: Path,
    whole: tuple[Pair, History],
    name: str,
    how: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = newest(broken) / name
    content = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        size = {"first byte": 1, "last byte": len(content) - 1, "half": len(content) // 2}[how]
        path.write_bytes(content[:size])
    resumed = Pair()
    assert run(resumed, broken) == whole[1]
    assert resumed.calls == 12 - 3
    assert_equal(whole[0], resumed)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"checkpoint step-00000006 is unreadable ({name} ")
    assert line.endswith("; trying older")


def test_only_damaged_checkpoints_are_an_error(run: Run, broken: Path) -> None:
    for checkpoint in (broken / "checkpoints").iterdir():
        (checkpoint / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no readable checkpoint in .*checkpoints; delete"):
        run(Pair(), broken)


@pytest.mark.parametrize("function", ["write_json", "write_text", "manifest_text"])
def test_an_unfinished_checkpoint_is_not_resumed(
    run: Run,
    tmp_path: Path,
    whole: tuple[Pair, History],
    monkeypatch: pytest.MonkeyPatch,
    function: str,
) -> None:
    """A process that dies while it saves leaves a hidden folder, which the next one replaces."""

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, function, die)
    with pytest.raises(KeyboardInterrupt):
        run(Pair(), tmp_path / "run")
    monkeypatch.undo()
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == [".partial"]
    resumed = Pair()
    run(resumed, tmp_path / "run")
    assert resumed.calls == 12
    assert_equal(whole[0], resumed)


def test_finish_removes_the_checkpoints(run: Run, accelerator: Accelerator, tmp_path: Path) -> None:
    run(Pair(), tmp_path / "run")
    kept = len(list((tmp_path / "run" / "checkpoints").iterdir()))
    assert kept == checkpoints.KEPT_CHECKPOINTS
    checkpoints.finish(accelerator, tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []
    shutil.rmtree(tmp_path / "run")
    checkpoints.finish(accelerator, tmp_path / "run")
