"""The order of samples, the sources of chance, and steps of one and of several models."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.utils.data import Dataset

from probe_eval import harness
from probe_eval.config import OptimConfig
from probe_eval.distributed import create_accelerator
from probe_eval.harness import Batch, History, Loss, Objective, Row, StepSampler, stream, train


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


class Fit(Objective):
    """A linear map fitted to noise, with as much noise on its input; can spoil itself.

    With a judge, a second map learns how far off the first is, from its output.
    """

    title = "fit"

    def __init__(self, number: int = 10, *, judge: bool = False, spoil: int = -1) -> None:
        torch.manual_seed(0)
        self.models = {"pupil": nn.Linear(3, 1)}
        if judge:
            self.models["judge"] = nn.Linear(1, 1)
        self.dataset = Points(number)
        self.calls, self.spoil = 0, spoil
        self.events: list[str] = []

    def losses(
        self,
        models: Mapping[str, nn.Module],
        batch: Batch,
        generators: Sequence[torch.Generator],
        step: int,
    ) -> Iterator[Loss]:
        self.calls += 1
        pupil = models["pupil"]
        noise = torch.stack([torch.randn(3, generator=g) for g in generators])
        answer, right = pupil(batch["x"] + noise), batch["x"].sum(1, keepdim=True)
        loss = (answer - right).square().mean()
        loss = loss * float("nan") if self.calls >= self.spoil > 0 else loss
        yield Loss("pupil", loss, {"half": loss / 2})
        self.events.append("gradient" if pupil.weight.grad is not None else "no gradient")
        if "judge" in models:
            far = (models["judge"](answer.detach()) - (answer - right).detach()).square().mean()
            yield Loss("judge", far)

    def after_step(self, step: int) -> None:
        assert all(p.grad is None for model in self.models.values() for p in model.parameters())
        self.events.append(f"after {step}")

    def evaluate(self, step: int) -> Row:
        self.events.append(f"evaluate {step}")
        return {"norm": float(self.models["pupil"].weight.detach().norm())}


CONFIG = OptimConfig(steps=12, batch_size=4, peak_lr=0.1, warmup_steps=2, clip_norm=1.0)
Run = Callable[..., History]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Function that trains an objective as a new process would: with an accelerator of its own."""

    def run(
        objective: Fit,
        config: OptimConfig = CONFIG,
        name: str = "run",
        judge: OptimConfig = CONFIG,
        evaluate_every: int = 0,
        accelerator: Accelerator | None = None,
    ) -> History:
        return train(
            objective,
            {"pupil": config, "judge": judge},
            accelerator=accelerator or Accelerator(cpu=True),
            seed=1,
            folder=tmp_path / name,
            checkpoint_every=3,
            evaluate_every=evaluate_every,
        )

    return run


def weights(objective: Fit, model: str = "pupil") -> list[Tensor]:
    return [p.detach().clone() for p in objective.models[model].parameters()]


def test_training_fits(run: Run) -> None:
    objective = Fit()
    before = weights(objective)
    history = run(objective)
    assert [step for step, _ in history.curve] == [10, 12]
    assert not torch.equal(weights(objective)[0], before[0])
    assert not objective.models["pupil"].training


def test_parts_of_losses_are_logged(run: Run) -> None:
    history = run(Fit(judge=True))
    for row in history.losses:
        assert row.keys() == {"step", "loss", "half", "judge_loss"}
        assert row["half"] == pytest.approx(row["loss"] / 2)
    assert history.evaluations == []


def test_each_loss_is_worked_off_before_the_next_is_asked_for(run: Run) -> None:
    objective = Fit(judge=True)
    run(objective, dataclasses.replace(CONFIG, steps=2), evaluate_every=1)
    assert objective.events == [
        *("gradient", "after 1", "evaluate 1"),
        *("gradient", "after 2", "evaluate 2"),
    ]


def test_evaluations_come_when_due_and_at_the_end(run: Run) -> None:
    objective = Fit()
    history = run(objective, evaluate_every=5)
    assert [row["step"] for row in history.evaluations] == [5, 10, 12]
    assert history.evaluations[-1]["norm"] == float(weights(objective)[0].norm())


def test_a_second_model_changes_nothing_for_the_first(run: Run) -> None:
    """It sees the first one's output, and gives it no gradient."""
    alone, watched = Fit(), Fit(judge=True)
    before = weights(watched, "judge")
    first, second = run(alone, name="alone").curve, run(watched, name="watched").curve
    assert first == second
    for expected, found in zip(weights(alone), weights(watched), strict=True):
        assert torch.equal(expected, found)
    assert not torch.equal(weights(watched, "judge")[0], before[0])


def test_every_model_has_its_own_optimizer(run: Run) -> None:
    still = dataclasses.replace(CONFIG, peak_lr=0.0, end_lr=0.0, weight_decay=0.0)
    objective = Fit(judge=True)
    before = weights(objective, "judge")
    run(objective, judge=still)
    assert torch.equal(weights(objective, "judge")[0], before[0])
    assert not torch.equal(weights(objective)[0], weights(Fit())[0])


@pytest.mark.parametrize("accumulate", [2, 4])
def test_micro_batches_see_the_samples_and_the_noise_of_the_whole(
    run: Run, accumulate: int
) -> None:
    whole, divided = Fit(judge=True), Fit(judge=True)
    expected = run(whole, name="whole").losses
    found = run(divided, dataclasses.replace(CONFIG, accumulate=accumulate), "divided").losses
    for model in whole.models:
        for one, two in zip(weights(whole, model), weights(divided, model), strict=True):
            # 1e-5: the gradient is summed in another order.
            torch.testing.assert_close(two, one, atol=1e-5, rtol=1e-5)
    for one, two in zip(expected, found, strict=True):
        assert two == pytest.approx(one, rel=1e-4)


def test_mixed_precision_ends_with_the_training(run: Run, bf16_accelerator: Accelerator) -> None:
    """Models return fp32, and compute in fp32 again once they are trained."""
    objective = Fit()
    run(objective, accelerator=bf16_accelerator)
    model, x = objective.models["pupil"], torch.rand(4, 3)
    assert torch.equal(model(x), nn.functional.linear(x, model.weight, model.bias))


def test_a_loss_that_is_not_finite_ends_the_run(run: Run) -> None:
    with pytest.raises(ValueError, match=r"loss of 'fit' is nan at step 10; lower peak_lr"):
        run(Fit(spoil=5))


def test_no_samples_are_refused(run: Run) -> None:
    with pytest.raises(ValueError, match="no samples"):
        run(Fit(number=0))


# --- Sharding ------------------------------------------------------------------------------------


Shard = Callable[..., SimpleNamespace]


@pytest.fixture
def shard(accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch) -> Shard:
    """Function that has the Accelerate handle say that it shards, as the real one does on GPUs."""

    def say(version: int = 2) -> SimpleNamespace:
        kind = torch.bfloat16
        policy = MixedPrecisionPolicy(param_dtype=kind, reduce_dtype=kind, output_dtype=kind)
        plugin = SimpleNamespace(fsdp_version=version, mixed_precision_policy=policy)
        monkeypatch.setitem(AcceleratorState._shared_state, "fsdp_plugin", plugin)
        for state in (AcceleratorState, PartialState):
            monkeypatch.setitem(state._shared_state, "distributed_type", DistributedType.FSDP)
        return plugin

    return say


@pytest.mark.parametrize(
    ("version", "shards", "name", "says"),
    [
        (1, True, "adamw", "FSDP of version 1 is not supported; set FSDP_VERSION=2"),
        (2, False, "adamw", "FSDP is for denoisers; 'fit' needs its weights whole: launch without"),
        (2, True, "adafactor", "torch's Adafactor cannot read sharded weights"),
    ],
)
def test_what_cannot_be_sharded_is_refused(
    run: Run, shard: Shard, version: int, shards: bool, name: Any, says: str
) -> None:
    shard(version)
    objective = Fit()
    objective.shards = shards
    with pytest.raises(ValueError, match=says):
        run(objective, dataclasses.replace(CONFIG, name=name))


def test_sharded_gradients_and_losses_are_in_full_precision(
    shard: Shard, accelerator: Accelerator
) -> None:
    plugin, objective = shard(), Fit()
    objective.shards = True
    harness.prepare_sharding(objective, {"pupil": CONFIG}, accelerator)
    policy = plugin.mixed_precision_policy
    assert policy.param_dtype == torch.bfloat16
    assert (policy.reduce_dtype, policy.output_dtype) == (torch.float32, None)


def test_sharding_that_accelerate_would_leave_out_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="FSDP was asked for, but Accelerate shards only between"):
        create_accelerator()
