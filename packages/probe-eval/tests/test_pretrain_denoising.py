"""The objective of denoisers: joint batches, chance, averages, and what is measured."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import walt_core
from probe_eval.config import OptimConfig
from probe_eval.harness import stream, train
from probe_eval.pretrain.averages import Averages
from probe_eval.pretrain.denoising import WaltObjective
from probe_eval.pretrain.latents import Latents
from probe_eval.pretrain.validation import HeldOutLoss
from walt_core import Rates, Walt, denoising_loss, draw

Make = Callable[..., WaltObjective]


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    """Latents of eight clips with three images and a class each."""
    generator = torch.Generator().manual_seed(0)
    return {
        "latents": torch.randn(8, 4, 2, 2, 2, generator=generator),
        "images": torch.randn(8, 3, 4, 1, 2, 2, generator=generator),
        "classes": torch.arange(8) % 3,
    }


@pytest.fixture
def make(
    walt_size: walt_core.WaltConfig, tensors: dict[str, torch.Tensor], accelerator: Accelerator
) -> Make:
    """Function that makes the objective of an untrained denoiser whose every weight counts."""

    def objective(images_per_step: int = 2, **options: object) -> WaltObjective:
        torch.manual_seed(0)
        model = Walt(dataclasses.replace(walt_size, num_classes=3))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        data = Latents(tensors)
        options = {"accelerator": accelerator, "images_per_step": images_per_step, **options}
        return WaltObjective("walt", model, data, **options)

    return objective


def batch_of(tensors: dict[str, torch.Tensor], rows: range) -> dict[str, torch.Tensor]:
    return {name: value[rows] for name, value in tensors.items()}


def test_clips_alone_are_trained_as_if_there_were_no_images(
    make: Make, tensors: dict[str, torch.Tensor]
) -> None:
    """Timestep first, then noise: the loss is that of the plain functions, to the bit."""
    objective = make(images_per_step=0)
    batch = batch_of(tensors, range(4))
    (loss,) = objective.losses(objective.models, batch, [stream(0, "n", i) for i in range(4)], 0)
    draws = draw(batch["latents"], [stream(0, "n", i) for i in range(4)], objective.config, Rates())
    generator = stream(0, "n", 2)
    assert draws.timestep[2] == torch.randint(1000, (), generator=generator)
    assert torch.equal(draws.noise[2], torch.randn(4, 2, 2, 2, generator=generator))
    model = objective.averages.model
    conditions = walt_core.Conditions(classes=batch["classes"])
    assert loss.value == denoising_loss(model, batch["latents"], draws, conditions)
    assert loss.parts == {}


def test_a_joint_batch_weighs_samples_and_draws_each_clips_chance_alone(
    make: Make, tensors: dict[str, torch.Tensor]
) -> None:
    objective = make()
    whole, *halves = (
        next(
            objective.losses(
                objective.models, batch_of(tensors, rows), [stream(0, "n", i) for i in rows], 0
            )
        )
        for rows in (range(4), range(2), range(2, 4))
    )
    parts = whole.parts
    # 1e-6: fp32 sums of another order.
    expected = (4 * parts["clips"] + 8 * parts["images"]) / 12
    torch.testing.assert_close(whole.value, expected, rtol=1e-6, atol=0)
    # 1e-5: likewise, through the whole model.
    mean = (halves[0].value + halves[1].value) / 2
    torch.testing.assert_close(whole.value, mean, rtol=1e-5, atol=0)
    whole.value.backward()
    unused = [n for n, p in objective.averages.model.named_parameters() if p.grad is None]
    assert unused == []  # as DistributedDataParallel demands


def test_images_are_those_of_the_clip_and_none_comes_twice(
    make: Make, tensors: dict[str, torch.Tensor]
) -> None:
    objective = make(images_per_step=3)
    generators = [stream(0, "n", i) for i in range(2)]
    conditions = walt_core.Conditions(classes=torch.tensor([2, 0]))
    part = objective.draw_images(tensors["images"][:2], generators, conditions)
    for clip in range(2):
        drawn = part.latents[3 * clip : 3 * clip + 3].sum(dim=0)
        torch.testing.assert_close(drawn, tensors["images"][clip].sum(dim=0))
    assert part.conditions.classes is not None
    assert part.conditions.classes.tolist() == [2, 2, 2, 0, 0, 0]
    assert len({tuple(noise.flatten().tolist()) for noise in part.draws.noise}) == 6


def test_activation_checkpointing_changes_no_gradient(
    make: Make, tensors: dict[str, torch.Tensor]
) -> None:
    gradients = []
    for on in (False, True):
        objective = make()
        model = objective.averages.model
        model.gradient_checkpointing = on
        generators = [stream(0, "n", i) for i in range(4)]
        (loss,) = objective.losses(objective.models, batch_of(tensors, range(4)), generators, 0)
        loss.value.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*gradients, strict=True))


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_averages_are_those_of_torch(decay: float) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    averages = Averages(model, decay, torch.device("cpu"))
    reference = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    for step in range(100, 103):  # later than the first steps, which keep less
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.rand_like(parameter))
        averages.update(step)
        reference.update_parameters(model)
    expected = reference.module if decay else model
    for one, two in zip(averages.gather().parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, two)
    assert bool(averages.tensors()) == bool(decay)


def test_averages_of_the_first_steps_are_young() -> None:
    """The weights are the number of the step, and their average lies in its second half."""
    model = torch.nn.Linear(1, 1, bias=False)
    averages = Averages(model, 0.999, torch.device("cpu"))
    for step in range(1, 101):
        torch.nn.init.constant_(model.weight, step)
        averages.update(step)
    assert 50 < averages.gather().weight.item() < 100


def test_averages_of_another_model_are_refused() -> None:
    averages = Averages(torch.nn.Linear(3, 2), 0.9, torch.device("cpu"))
    with pytest.raises(ValueError, match="averages of another model: bias, weight differ"):
        averages.load({})
    averages.load({"weight": torch.ones(2, 3), "bias": torch.zeros(2)})
    assert torch.equal(averages.gather().weight, torch.ones(2, 3))


@pytest.mark.slow
def test_a_resumed_run_has_the_averages_of_an_unbroken_one(
    make: Make, accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(folder: Path) -> torch.Tensor:
        objective = make(ema_decay=0.9)
        optim = OptimConfig(steps=6, batch_size=2, warmup_steps=1, peak_lr=1e-2)
        train(
            objective,
            {"walt": optim},
            accelerator=accelerator,
            seed=0,
            folder=folder,
            checkpoint_every=2,
        )
        return torch.cat([p.flatten() for p in objective.result.parameters()])

    whole = run(tmp_path / "whole")
    calls = []
    update = Averages.update

    def broken(self: Averages, step: int) -> None:
        calls.append(self)
        if len(calls) == 5:
            raise KeyboardInterrupt
        update(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Averages, "update", broken)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "broken")
    assert torch.equal(run(tmp_path / "broken"), whole)


# --- What is measured ----------------------------------------------------------------------------


class Constant(Walt):
    """A denoiser that predicts the best constant of each timestep."""

    mean: torch.Tensor

    def forward(self, latents, timestep, conditions=None, estimate=None):
        mean = self.mean.expand_as(latents)
        return self.schedule.v_target(mean, torch.zeros_like(mean), timestep)


def test_the_loss_of_the_best_constant_is_that_of_a_model_that_predicts_it(
    walt_size: walt_core.WaltConfig, tensors: dict[str, torch.Tensor], accelerator: Accelerator
) -> None:
    samples = Latents({"latents": tensors["latents"] + 2})
    model = Constant(walt_size)
    model.mean = samples.tensors["latents"].mean(dim=0)
    measure = HeldOutLoss(samples, model.mean, None, seed=0, accelerator=accelerator)
    row = measure(model)
    assert row["validation_loss"] == pytest.approx(row["constant_loss"], rel=1e-6)
    assert row["factor"] == pytest.approx(1, rel=1e-6)
    # Any other constant of a timestep is worse.
    off = HeldOutLoss(samples, model.mean + 0.5, None, seed=0, accelerator=accelerator)
    assert off(model)["constant_loss"] > row["constant_loss"]


def test_the_held_out_loss_is_the_same_at_every_call_and_spreads_over_all_levels(
    make: Make, tensors: dict[str, torch.Tensor], accelerator: Accelerator
) -> None:
    samples = Latents({name: tensors[name] for name in ("latents", "classes")})
    mean = tensors["latents"].mean(dim=0)
    measure = HeldOutLoss(samples, mean, None, seed=0, accelerator=accelerator)
    model = make().averages.model
    levels: list[int] = []
    model.register_forward_hook(lambda module, args, out: levels.extend(args[1].tolist()))
    assert measure(model) == measure(model)
    assert levels[:32] == levels[32:]
    assert sorted({level // 100 for level in levels}) == list(range(10))
