"""Readouts beside others are what they would be alone, and fail alone."""

import dataclasses
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from probe_eval.config import FeatureConfig, OptimConfig, ProbeConfig, ReadoutConfig
from probe_eval.harness import History, train
from probe_eval.metrics.functional.sums import Measured, Sums
from probe_eval.probing.heads import Head, HeadBank, HeadsObjective, create_readout
from probe_eval.probing.sources import TableSource
from probe_eval.storage.features import SplitTables
from probe_eval.storage.tables import TableWriter, open_table
from probe_readouts import Readout

ROWS, STEPS = 10, 12
OPTIM = OptimConfig(steps=STEPS, batch_size=4, peak_lr=1e-2, warmup_steps=2)


class Means(Readout):
    """Numbers from the mean of the features."""

    def __init__(self, feature_dim: int, width: int) -> None:
        super().__init__(feature_dim, "paper", {"width": width})
        self.layers = nn.Sequential(nn.Linear(feature_dim, width), nn.GELU(), nn.Linear(width, 1))

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features.mean(dim=(1, 2, 3)))[:, 0]


class Noisy:
    """A number of each sample, read from features with noise on it."""

    metric = "error"
    direction = "down"

    def check(self, dataset: Any) -> None: ...

    def create_readout(
        self, dataset: Any, config: ReadoutConfig, *, feature_dim: int, num_frames: int
    ) -> Readout:
        return Means(feature_dim, config.width)

    def targets(self, example: Mapping[str, Any]) -> dict[str, Tensor]:
        return {"number": torch.tensor(float(example["number"]))}

    def loss(
        self,
        readout: nn.Module,
        features: Tensor,
        targets: Mapping[str, Tensor],
        *,
        num_frames: int,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        noise = torch.cat([torch.randn(1, generator=generator) for generator in generators])
        return (readout(features) + noise - targets["number"]).square().mean()

    def measure(
        self,
        readout: nn.Module,
        features: Tensor,
        targets: Mapping[str, Tensor],
        *,
        num_frames: int,
        sample_ids: Sequence[str],
    ) -> Measured:
        errors = (readout(features) - targets["number"]).abs().double().tolist()
        return Measured("plain", {"error": Sums(errors, [1] * len(errors))})

    def chance(self, dataset: Any) -> float | None:
        return None


class Spoiled(Noisy):
    """Its loss is no number from some call on; with a gradient, or without."""

    def __init__(self, call: int, by: float = float("nan")) -> None:
        self.calls, self.call, self.by = 0, call, by

    def loss(self, *args: Any, **kwargs: Any) -> Tensor:
        self.calls += 1
        loss = super().loss(*args, **kwargs)
        return loss * self.by if self.calls >= self.call else loss


@pytest.fixture(autouse=True, scope="module")
def frozen_garbage() -> Iterator[None]:
    """Every training collects garbage; what was there before is not gone through each time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def tables(tmp_path: Path) -> SplitTables:
    """Features of two blocks, and the number of each sample."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.arange(float(ROWS)) / ROWS
    columns = {
        "features": {
            f"block-{block:02d}": torch.randn(ROWS, 2, 2, 2, 8, generator=generator)
            + numbers[:, None, None, None, None]
            for block in (1, 2)
        },
        "targets": {"noisy/number": numbers, "other/number": -numbers},
    }
    for name, values in columns.items():
        writer = TableWriter(tmp_path / name, {"of": name}, 1)
        writer.start()
        writer.write(0, [f"s{row}" for row in range(ROWS)], values, {})
        writer.finish()
    return SplitTables(
        features=open_table(tmp_path / "features"), targets=open_table(tmp_path / "targets")
    )


def cell(name: str = "noisy", block: int = 1, seed: int = 0, **optim: Any) -> ProbeConfig:
    return ProbeConfig(
        task=name,
        features=FeatureConfig(block=block),
        readout=ReadoutConfig(width=8, num_heads=2),
        optim=dataclasses.replace(OPTIM, **optim),
        seed=seed,
    )


CELLS = {
    "plain": cell(),
    "slow": cell(peak_lr=1e-4, warmup_steps=5),
    "deep": cell(block=2),
    "other": cell("other", weight_decay=0.1, beta1=0.5),
    "seed": cell(seed=1),
    "clipped": cell(clip_norm=0.01),
}


def make(cells: Mapping[str, ProbeConfig], **tasks: Noisy) -> list[Head]:
    """Heads of cells, some with tasks of their own."""
    return [
        Head(
            name=name,
            cell=config,
            task=tasks.get(name, Noisy()),
            readout=create_readout(config, Noisy(), None, feature_dim=8),
            num_frames=config.data.num_frames,
        )
        for name, config in cells.items()
    ]


Run = Callable[..., tuple[HeadsObjective, History]]


@pytest.fixture
def run(tables: SplitTables, tmp_path: Path) -> Run:
    """Function that trains heads as a new process would."""

    def run(heads: Sequence[Head], name: str, **settings: Any) -> tuple[HeadsObjective, History]:
        accelerator = Accelerator(cpu=True)
        source = settings.pop("source", TableSource(tables, [head.cell for head in heads]))
        evaluate_every = settings.pop("evaluate_every", 0)
        objective = HeadsObjective("heads", heads, source, accelerator=accelerator, **settings)
        optims = {head.name: head.cell.optim for head in heads}
        history = train(
            objective,
            optims,
            accelerator=accelerator,
            seed=0,
            folder=tmp_path / "runs" / name,
            checkpoint_every=5,
            evaluate_every=evaluate_every,
        )
        return objective, history

    return run


def weights(heads: Sequence[Head], name: str) -> dict[str, Tensor]:
    head = next(head for head in heads if head.name == name)
    return {key: value.detach().clone() for key, value in head.readout.state_dict().items()}


def assert_equal(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> None:
    """To the bit."""
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.equal(value, two[name]), name


# --- Beside others -------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_readout_beside_others_is_what_it_would_be_alone(run: Run, accumulate: int) -> None:
    """To the bit: the same operations on the same numbers, and nothing is summed over readouts."""
    cells = {
        name: dataclasses.replace(
            config, optim=dataclasses.replace(config.optim, accumulate=accumulate)
        )
        for name, config in CELLS.items()
    }
    together = make(cells)
    before = {name: weights(together, name) for name in cells}
    _, history = run(together, "together")
    for name in cells:
        alone = make({name: cells[name]})
        assert_equal(weights(alone, name), before[name])
        _, own = run(alone, f"alone-{name}")
        assert_equal(weights(together, name), weights(alone, name))
        assert [row[name] for row in history.losses] == [row[name] for row in own.losses]
        assert [row["loss"] for row in own.losses] == [row[name] for row in own.losses]


def test_what_readouts_differ_in_makes_a_difference(run: Run) -> None:
    heads = make(CELLS)
    run(heads, "together")
    plain = weights(heads, "plain")
    for name in CELLS.keys() - {"plain"}:
        assert any(
            not torch.equal(value, plain[key]) for key, value in weights(heads, name).items()
        )


def test_the_order_of_readouts_changes_nothing(run: Run) -> None:
    heads = make(CELLS)
    other = make(dict(reversed(CELLS.items())))
    run(heads, "one")
    run(other, "other")
    for name in CELLS:
        assert_equal(weights(heads, name), weights(other, name))


def test_what_is_random_before_a_readout_is_made_does_not_change_it() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = weights(make({"a": CELLS["plain"]}), "a")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert_equal(weights(make({"a": CELLS["plain"]}), "a"), first)


def test_each_readout_has_its_own_rate(run: Run) -> None:
    cells = {"still": cell(peak_lr=0.0, end_lr=0.0), "moving": cell()}
    heads = make(cells)
    before = {name: weights(heads, name) for name in cells}
    run(heads, "rates")
    assert_equal(weights(heads, "still"), before["still"])
    assert any(
        not torch.equal(value, before["moving"][key])
        for key, value in weights(heads, "moving").items()
    )


def test_chance_depends_on_cell_and_place_alone() -> None:
    heads = make({"plain": CELLS["plain"], "seed": CELLS["seed"], "again": CELLS["plain"]})
    for head in heads:
        with torch.no_grad():
            for parameter in head.readout.parameters():
                parameter.zero_().requires_grad_(False)
    bank = HeadBank(heads)
    batch = {"block-01": torch.zeros(4, 2, 2, 2, 8), "noisy/number": torch.zeros(4)}
    first, seed, again = bank(batch, range(4)).tolist()
    assert first == again != seed
    assert bank(batch, range(4)).tolist() == [first, seed, again]
    assert bank(batch, range(4, 8))[0] != first
    # The mean over places is that over the halves: no sample's chance is another's.
    halves = [
        bank({name: value[rows] for name, value in batch.items()}, [*range(4)][rows])[0]
        for rows in (slice(0, 2), slice(2, 4))
    ]
    assert float(sum(halves) / 2) == pytest.approx(first, rel=1e-6)


def test_gradients_are_those_of_each_loss() -> None:
    heads = make({"plain": CELLS["plain"], "deep": CELLS["deep"]})
    bank = HeadBank(heads)
    batch = {
        "block-01": torch.randn(4, 2, 2, 2, 8),
        "block-02": torch.randn(4, 2, 2, 2, 8),
        "noisy/number": torch.arange(4.0),
    }
    bank(batch, range(4)).sum().backward()
    both = [[p.grad.clone() for p in head.readout.parameters()] for head in heads]
    for number, head in enumerate(heads):
        bank.zero_grad()
        bank(batch, range(4))[number].backward()
        for found, parameter in zip(both[number], head.readout.parameters(), strict=True):
            assert torch.equal(found, parameter.grad)
        assert not any(
            p.grad is not None and p.grad.any() for p in heads[1 - number].readout.parameters()
        )


# --- Failing alone -------------------------------------------------------------------------------


@pytest.mark.parametrize("by", [float("nan"), float("inf")])
def test_a_readout_that_fails_fails_alone(run: Run, by: float) -> None:
    cells = {"good": CELLS["plain"], "bad": CELLS["deep"], "clipped": CELLS["clipped"]}
    heads = make(cells, bad=Spoiled(8, by))
    objective, history = run(heads, "spoiled")
    reasons = objective.reasons()
    assert reasons.keys() == {"bad"}
    assert reasons["bad"].startswith(f"loss is {'nan' if by != by else 'inf'} at step 8; lower")
    for name in ("good", "clipped"):
        alone = make({name: cells[name]})
        run(alone, name)
        assert_equal(weights(heads, name), weights(alone, name))
    assert [row.keys() for row in history.losses] == [{"step", "loss", "good", "clipped"}] * 2
    # It stays where it was before the step that failed.
    short = make({"bad": dataclasses.replace(cells["bad"])})
    steps = Spoiled(8, by)
    run([dataclasses.replace(short[0], task=steps)], "again")
    assert_equal(weights(heads, "bad"), weights(short, "bad"))
    assert all(value.isfinite().all() for value in weights(heads, "bad").values())
    assert steps.calls == 8


def test_a_readout_whose_last_step_spoils_it_has_failed(run: Run) -> None:
    heads = make({"good": CELLS["plain"], "bad": CELLS["deep"]})
    objective, _ = run(heads, "spoiled")
    assert objective.reasons() == {}
    with torch.no_grad():
        next(heads[1].readout.parameters()).fill_(float("inf"))
    assert objective.reasons().keys() == {"bad"}
    assert "after the last step" in objective.reasons()["bad"]


def test_all_may_fail(run: Run) -> None:
    heads = make({"one": CELLS["plain"], "two": CELLS["deep"]}, one=Spoiled(1), two=Spoiled(3))
    before = weights(heads, "one")
    objective, history = run(heads, "spoiled")
    assert objective.reasons().keys() == {"one", "two"}
    assert_equal(weights(heads, "one"), before)
    assert history.losses[-1] == {"step": STEPS, "loss": 0.0}


# --- Resuming ------------------------------------------------------------------------------------


class Deadly(TableSource):
    """Ends the run when so many batches were given."""

    def __init__(self, *args: Any, after: int) -> None:
        super().__init__(*args, ahead=0)
        self.left = after

    def rows(self, indices: Sequence[int]) -> Any:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().rows(indices)


@pytest.mark.parametrize("after", [3, 7, 11])
def test_a_resumed_run_is_an_unbroken_one(run: Run, tables: SplitTables, after: int) -> None:
    """Also when a readout failed before, or fails after."""
    cells = {"good": CELLS["plain"], "bad": CELLS["deep"], "slow": CELLS["slow"]}
    whole = make(cells, bad=Spoiled(4))
    expected, history = run(whole, "whole")
    heads = make(cells, bad=Spoiled(4))
    deadly = Deadly(tables, [head.cell for head in heads], after=after)
    with pytest.raises(KeyboardInterrupt):
        run(heads, "broken", source=deadly)
    again = make(cells, bad=Spoiled(4))
    objective, found = run(again, "broken")
    assert found == history
    assert objective.reasons() == expected.reasons()
    for name in cells:
        assert_equal(weights(again, name), weights(whole, name))


def test_a_finished_training_is_kept_for_what_comes_after(run: Run, tables: SplitTables) -> None:
    heads, again = make(CELLS), make(CELLS)
    _, history = run(heads, "run")
    _, found = run(again, "run", source=Deadly(tables, list(CELLS.values()), after=0))
    assert found == history
    for name in CELLS:
        assert_equal(weights(again, name), weights(heads, name))


# --- Rows that are handed on ---------------------------------------------------------------------


def test_evaluations_are_of_those_that_did_not_fail(run: Run) -> None:
    rows, asked = [], []

    def measure(heads: Sequence[Head]) -> dict[str, dict[str, float]]:
        asked.append([head.name for head in heads])
        assert not any(head.readout.training for head in heads)
        return {head.name: {"error": 0.5} for head in heads}

    heads = make({"good": CELLS["plain"], "bad": CELLS["deep"]}, bad=Spoiled(7))
    _, history = run(heads, "run", measure=measure, log=rows.append, evaluate_every=6)
    assert asked == [["good", "bad"], ["good"]]
    assert history.evaluations == [
        {"step": 6, "good/error": 0.5, "bad/error": 0.5},
        {"step": 12, "good/error": 0.5},
    ]
    assert rows == [
        history.evaluations[0],
        *history.losses,
        history.evaluations[1],
    ]


def test_mixed_precision_ends_with_the_training(
    tables: SplitTables, bf16_accelerator: Accelerator, tmp_path: Path
) -> None:
    heads = make({"plain": CELLS["plain"]})
    seen = set()
    heads[0].readout.register_forward_hook(lambda _, __, out: seen.add(out.dtype))
    source = TableSource(tables, [heads[0].cell])
    objective = HeadsObjective("heads", heads, source, accelerator=bf16_accelerator)
    optims = {"plain": heads[0].cell.optim}
    train(
        objective,
        optims,
        accelerator=bf16_accelerator,
        seed=0,
        folder=tmp_path / "run",
        checkpoint_every=99,
    )
    full = make({"plain": CELLS["plain"]})
    assert seen == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in heads[0].readout.parameters())
    assert any(
        not torch.equal(value, weights(full, "plain")[key])
        for key, value in weights(heads, "plain").items()
    )
    assert heads[0].readout(torch.randn(2, 2, 2, 2, 8)).dtype == torch.float32
