"""The order of samples, the sources of chance, and runs that are broken off and go on."""

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import Dataset

from probe_eval import harness
from probe_eval.config import OptimConfig
from probe_eval.harness import Batch, StepSampler, stream, train


def sampler(
    num_samples: int,
    *,
    batch: int,
    steps: int,
    rank: int = 0,
    world: int = 1,
    accumulate: int = 1,
    seed: int = 0,
    start: int = 0,
) -> StepSampler:
    config = OptimConfig(steps=steps, batch_size=batch, accumulate=accumulate, warmup_steps=0)
    return StepSampler(num_samples, config, seed=seed, start=start, rank=rank, world=world)


@pytest.mark.parametrize(("num_samples", "batch"), [(10, 4), (12, 4), (3, 8), (1, 2), (7, 7)])
def test_every_epoch_is_a_permutation(num_samples: int, batch: int) -> None:
    steps = 4 * num_samples
    order = [i for indices in sampler(num_samples, batch=batch, steps=steps) for i in indices]
    assert len(order) == batch * steps
    epochs = [order[k : k + num_samples] for k in range(0, len(order), num_samples)]
    for epoch in epochs:
        assert len(set(epoch)) == len(epoch)
        assert set(epoch) <= set(range(num_samples))
    assert num_samples < 3 or len({tuple(epoch) for epoch in epochs}) > 1


def test_order_depends_on_the_seed() -> None:
    assert list(sampler(50, batch=5, steps=3)) == list(sampler(50, batch=5, steps=3))
    assert list(sampler(50, batch=5, steps=3)) != list(sampler(50, batch=5, steps=3, seed=1))


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (1, 2), (2, 2), (4, 1)])
def test_processes_and_accumulation_cut_the_same_batch(world: int, accumulate: int) -> None:
    """Rank after rank, micro-batch after micro-batch, they make up the undivided batch."""
    whole = list(sampler(10, batch=8, steps=5))
    parts = [
        list(sampler(10, batch=8, steps=5, rank=rank, world=world, accumulate=accumulate))
        for rank in range(world)
    ]
    for step in range(5):
        micro = [indices for part in parts for indices in part[step * accumulate :][:accumulate]]
        assert len({len(indices) for indices in micro}) == 1
        assert [i for indices in micro for i in indices] == whole[step]


def test_two_processes_see_the_micro_batches_of_one() -> None:
    one = sampler(10, batch=8, steps=5, accumulate=2)
    two = [sampler(10, batch=8, steps=5, rank=rank, world=2) for rank in range(2)]
    indices = list(one)
    assert indices[0::2] == list(two[0])
    assert indices[1::2] == list(two[1])
    for step in range(5):
        places = [one.positions(step, micro) for micro in range(2)]
        assert places == [part.positions(step, 0) for part in two]
        assert [p for place in places for p in place] == list(range(8 * step, 8 * step + 8))


@pytest.mark.parametrize(("batch", "world", "accumulate"), [(5, 2, 1), (6, 2, 2), (2, 1, 4)])
def test_a_batch_that_does_not_divide_is_refused(batch: int, world: int, accumulate: int) -> None:
    with pytest.raises(ValueError, match=rf"batch_size {batch} .* {world} x {accumulate}"):
        sampler(10, batch=batch, steps=1, world=world, accumulate=accumulate)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("start", [0, 1, 4, 9])
def test_resuming_gives_the_tail(start: int, accumulate: int) -> None:
    whole = sampler(7, batch=4, steps=9, accumulate=accumulate)
    tail = sampler(7, batch=4, steps=9, accumulate=accumulate, start=start)
    assert list(tail) == list(whole)[start * accumulate :]
    assert len(tail) == len(list(tail))


def test_stream_depends_on_its_names_alone() -> None:
    def draw(seed: int, name: str, number: int) -> Tensor:
        return torch.randn(1000, generator=stream(seed, name, number))

    first = draw(0, "noise", 0)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert torch.equal(draw(0, "noise", 0), first)
    assert torch.equal(torch.get_rng_state(), before)
    others = [draw(1, "noise", 0), draw(0, "order", 0), *(draw(0, "noise", n) for n in range(1, 9))]
    numbers = torch.corrcoef(torch.stack([first, *others])) - torch.eye(10 + 1)
    # 0.15 is 4.7 standard errors of the correlation of 1000 independent pairs.
    assert numbers.abs().max() < 0.15


# --- Training ------------------------------------------------------------------------------------


class Points(Dataset[Batch]):
    def __init__(self, number: int) -> None:
        self.values = torch.randn(number, 3, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> Batch:
        return {"x": self.values[index]}


class Fit:
    """A linear map fitted to noise, with as much noise on its input; can stop or spoil itself."""

    title = "fit"

    def __init__(self, number: int = 10, stop: int = -1, spoil: int = -1) -> None:
        torch.manual_seed(0)
        self.model, self.dataset = nn.Linear(3, 1), Points(number)
        self.calls, self.stop, self.spoil = 0, stop, spoil

    def loss(self, model: nn.Module, batch: Batch, generators: Sequence[torch.Generator]) -> Tensor:
        self.calls += 1
        if self.calls == self.stop:
            raise KeyboardInterrupt
        noise = torch.stack([torch.randn(3, generator=g) for g in generators])
        loss = (model(batch["x"] + noise) - batch["x"].sum(1, keepdim=True)).square().mean()
        return loss * float("nan") if self.calls >= self.spoil > 0 else loss


CONFIG = OptimConfig(steps=12, batch_size=4, peak_lr=0.1, warmup_steps=2, clip_norm=1.0)
Run = Callable[..., list[tuple[int, float]]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Function that trains an objective as a new process would: with an accelerator of its own."""

    def run(objective: Fit, config: OptimConfig = CONFIG, name: str = "run") -> list:
        return train(
            objective,
            config,
            accelerator=Accelerator(cpu=True),
            seed=1,
            folder=tmp_path / name,
            checkpoint_every=3,
        )

    return run


def weights(objective: Fit) -> list[Tensor]:
    return [p.detach().clone() for p in objective.model.parameters()]


def test_training_fits(run: Run) -> None:
    objective = Fit()
    before = weights(objective)
    losses = run(objective)
    assert [step for step, _ in losses] == [10, 12]
    assert not torch.equal(weights(objective)[0], before[0])
    assert not objective.model.training


@pytest.mark.parametrize("accumulate", [2, 4])
def test_micro_batches_see_the_samples_and_the_noise_of_the_whole(
    run: Run, accumulate: int
) -> None:
    whole, divided = Fit(), Fit()
    run(whole, name="whole")
    run(divided, dataclasses.replace(CONFIG, accumulate=accumulate), "divided")
    for expected, found in zip(weights(whole), weights(divided), strict=True):
        # 1e-5: the gradient is summed in another order.
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("stop", [5, 8, 12])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_broken_run_ends_like_an_unbroken_one(run: Run, stop: int, accumulate: int) -> None:
    config = OptimConfig(steps=12, batch_size=4, peak_lr=0.1, warmup_steps=2, accumulate=accumulate)
    whole = Fit()
    losses = run(whole, config, "whole")
    with pytest.raises(KeyboardInterrupt):
        run(Fit(stop=stop * accumulate), config, "broken")
    resumed = Fit()
    assert run(resumed, config, "broken") == losses
    assert resumed.calls == (12 - (stop - 1) // 3 * 3) * accumulate
    for expected, found in zip(weights(whole), weights(resumed), strict=True):
        assert torch.equal(expected, found)


def damage(checkpoint: Path, how: str) -> None:
    """Spoils a checkpoint as a full disk or an edit would."""
    weights = checkpoint / "model.safetensors"
    match how:
        case "weights cut":
            weights.write_bytes(weights.read_bytes()[:20])
        case "weights gone":
            weights.unlink()
        case "progress cut":
            (checkpoint / "progress.json").write_text('{"step": 1')
        case "progress gone":
            (checkpoint / "progress.json").unlink()
        case "optimizer cut":
            (checkpoint / "optimizer.bin").write_bytes(b"PK")


@pytest.mark.parametrize(
    "how", ["weights cut", "weights gone", "progress cut", "progress gone", "optimizer cut"]
)
def test_a_damaged_checkpoint_gives_way_to_an_older_one(
    run: Run, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = Fit()
    losses = run(whole, name="whole")
    with pytest.raises(KeyboardInterrupt):
        run(Fit(stop=8), name="broken")
    checkpoints = sorted((tmp_path / "broken" / "checkpoints").iterdir())
    assert [path.name for path in checkpoints] == ["step-00000003", "step-00000006"]
    damage(checkpoints[-1], how)
    resumed = Fit()
    assert run(resumed, name="broken") == losses
    assert resumed.calls == 9
    assert "step-00000006 is unreadable" in caplog.text
    for expected, found in zip(weights(whole), weights(resumed), strict=True):
        assert torch.equal(expected, found)


def test_only_damaged_checkpoints_are_an_error(run: Run, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(Fit(stop=8))
    for checkpoint in (tmp_path / "run" / "checkpoints").iterdir():
        damage(checkpoint, "weights cut")
    with pytest.raises(ValueError, match=r"no readable checkpoint in .*checkpoints; delete"):
        run(Fit())


def test_an_unfinished_checkpoint_is_not_resumed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that dies while it saves leaves a hidden folder, which the next one replaces."""
    whole = Fit()
    run(whole, name="whole")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(harness, "write_json", die)
    with pytest.raises(KeyboardInterrupt):
        run(Fit(), name="broken")
    monkeypatch.undo()
    assert [p.name for p in (tmp_path / "broken" / "checkpoints").iterdir()] == [".partial"]
    resumed = Fit()
    run(resumed, name="broken")
    assert resumed.calls == CONFIG.steps
    assert torch.equal(weights(resumed)[0], weights(whole)[0])


def test_finish_removes_the_checkpoints(run: Run, accelerator: Accelerator, tmp_path: Path) -> None:
    run(Fit())
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == harness.KEPT_CHECKPOINTS
    harness.finish(accelerator, tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []
    shutil.rmtree(tmp_path / "run")
    harness.finish(accelerator, tmp_path / "run")


def test_a_loss_that_is_not_finite_ends_the_run(run: Run) -> None:
    with pytest.raises(ValueError, match=r"loss of 'fit' is nan at step 10; lower peak_lr 0.1"):
        run(Fit(spoil=5))


def test_no_samples_are_refused(run: Run) -> None:
    with pytest.raises(ValueError, match="no samples"):
        run(Fit(number=0))
