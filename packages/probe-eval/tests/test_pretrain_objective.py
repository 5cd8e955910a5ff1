"""What a tokenizer is trained for, term by term, and that training with all of it holds."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import Dataset

import walt_tokenizer
from probe_eval.config import OptimConfig
from probe_eval.harness import Batch, History, Loss, train
from probe_eval.pretrain.config import LossWeights
from probe_eval.pretrain.config import TokenizerTrainingConfig as Training
from probe_eval.pretrain.models import discriminator_optim
from probe_eval.pretrain.objective import TokenizerObjective
from walt_tokenizer import Discriminator, DiscriminatorConfig, VideoTokenizer

FRAMES, SIZE = 5, 16
OPTIM = OptimConfig(steps=6, batch_size=4, peak_lr=1e-3, warmup_steps=1, beta2=0.99)
GAN = Training(num_frames=FRAMES, optim=OPTIM, gan=True, ema_decay=0.5, discriminator_channels=4)
PLAIN = dataclasses.replace(GAN, gan=False, ema_decay=0.0)
Make = Callable[..., TokenizerObjective]


class Clips(Dataset[Batch]):
    """Smooth clips; each is a function of its index."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Batch:
        generator = torch.Generator().manual_seed(index)
        coarse = torch.rand(1, 3, FRAMES, 4, 4, generator=generator) * 2 - 1
        video = torch.nn.functional.interpolate(coarse, (FRAMES, SIZE, SIZE))
        return {"video": video[0]}


@pytest.fixture
def make(accelerator: Accelerator, minimal: walt_tokenizer.TokenizerConfig) -> Make:
    """Function that makes an objective; keyword arguments change the tokenizer or go on."""

    def make(training: Training = GAN, *, sizes: dict[str, Any] | None = None, **more: Any) -> Any:
        torch.manual_seed(0)
        tokenizer = VideoTokenizer(dataclasses.replace(minimal, **(sizes or {})))
        discriminator = None
        if training.gan:
            discriminator = Discriminator(
                DiscriminatorConfig(
                    base_channels=training.discriminator_channels,
                    channel_multipliers=(1, 2),
                    num_frames=FRAMES,
                    height=SIZE,
                    width=SIZE,
                )
            )
        return TokenizerObjective(
            tokenizer, discriminator, Clips(), training, **{"accelerator": accelerator, **more}
        )

    return make


@pytest.fixture
def batch() -> Batch:
    """Two clips."""
    return {"video": torch.stack([Clips()[index]["video"] for index in range(2)])}


def all_losses(objective: TokenizerObjective, batch: Batch, step: int = 0) -> list[Loss]:
    return list(objective.losses(objective.models, batch, [], step))


def close(found: Tensor, expected: Tensor | float) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype))


# --- Terms ---------------------------------------------------------------------------------------


def test_without_more_it_is_the_squared_error(make: Make, batch: Batch) -> None:
    objective = make(PLAIN)
    (loss,) = all_losses(objective, batch)
    tokenizer = objective.models["tokenizer"].tokenizer
    error = (tokenizer(batch["video"]) - batch["video"]).square().mean()
    assert loss.parts.keys() == {"reconstruction"}
    assert objective.models.keys() == {"tokenizer"}
    close(loss.value, 5 * error)


@pytest.mark.parametrize(("step", "names"), [(0, 1), (2, 1), (3, 2), (5, 2)])
def test_the_discriminator_takes_part_from_its_start_on(
    make: Make, batch: Batch, step: int, names: int
) -> None:
    losses = all_losses(make(dataclasses.replace(GAN, gan_start_step=3)), batch, step)
    assert [loss.model for loss in losses] == ["tokenizer", "discriminator"][:names]
    assert ("adversarial" in losses[0].parts) == (names == 2)


def test_losses_are_the_weighted_sums_of_their_parts(make: Make, batch: Batch) -> None:
    objective = make()
    objective.lecam.real.fill_(0.5)
    first, second = all_losses(objective, batch)
    parts = first.parts
    close(first.value, 5 * parts["reconstruction"] + 0.1 * parts["adversarial"])
    parts = second.parts
    assert all(bool(part > 0) for part in parts.values())
    close(second.value, parts["discriminator"] + 10 * parts["r1"] + 0.001 * parts["lecam"])


def test_weights_are_settings(make: Make, batch: Batch) -> None:
    weights = LossWeights(reconstruction=1.0, adversarial=2.0, r1=0.0, lecam=0.0)
    first, second = all_losses(make(dataclasses.replace(GAN, weights=weights)), batch)
    close(first.value, first.parts["reconstruction"] + 2 * first.parts["adversarial"])
    close(second.value, second.parts["discriminator"])


def test_parts_are_what_the_tokenizer_package_computes(make: Make, batch: Batch) -> None:
    objective = make()
    first, second = all_losses(objective, batch)
    pred = objective.models["tokenizer"].tokenizer(batch["video"]).detach()
    judge = objective.discriminator
    assert judge is not None
    real, fake = judge(batch["video"]), judge(pred)
    close(first.parts["adversarial"], walt_tokenizer.generator_loss(fake))
    close(second.parts["discriminator"], walt_tokenizer.discriminator_loss(real, fake))
    close(second.parts["r1"], walt_tokenizer.r1_penalty(judge, batch["video"]))


def test_neither_model_gets_gradient_from_the_others_loss(make: Make, batch: Batch) -> None:
    objective = make()
    tokenizer, judge = objective.models.values()
    losses = objective.losses(objective.models, batch, [], 0)
    next(losses).value.backward()
    assert all(p.grad is not None for p in tokenizer.parameters())
    assert all(p.grad is None for p in judge.parameters())
    before = [p.grad.clone() for p in tokenizer.parameters()]
    next(losses).value.backward()
    assert all(p.grad is not None for p in judge.parameters())
    for parameter, gradient in zip(tokenizer.parameters(), before, strict=True):
        assert torch.equal(parameter.grad, gradient)


def test_adversarial_gradient_reaches_the_tokenizer(make: Make, batch: Batch) -> None:
    weights = LossWeights(reconstruction=0.0)
    objective = make(dataclasses.replace(GAN, weights=weights))
    next(objective.losses(objective.models, batch, [], 0)).value.backward()
    gradients = [p.grad.abs().sum() for p in objective.models["tokenizer"].parameters()]
    assert all(gradient > 0 for gradient in gradients)


def test_a_perceptual_network_compares_frames(make: Make, batch: Batch) -> None:
    seen = []

    def network(pred: Tensor, target: Tensor) -> Tensor:
        seen.append((pred.shape, target.shape, target.requires_grad))
        return (pred - target).abs().mean(dim=(1, 2, 3))

    objective = make(PLAIN, perceptual=network)
    (loss,) = all_losses(objective, batch)
    assert seen == [((10, 3, SIZE, SIZE), (10, 3, SIZE, SIZE), False)]
    parts = loss.parts
    assert parts["perceptual"] > 0
    close(loss.value, 5 * parts["reconstruction"] + 0.1 * parts["perceptual"])


def test_quantised_latents_have_their_own_terms(make: Make, batch: Batch) -> None:
    objective = make(PLAIN, sizes={"quantizer": "lfq"})
    (loss,) = all_losses(objective, batch)
    parts, tokenizer = loss.parts, objective.models["tokenizer"].tokenizer
    assert parts.keys() == {"reconstruction", "entropy", "commitment"}
    latents = tokenizer.encoder(batch["video"])
    codes = walt_tokenizer.quantize(latents)
    pred = tokenizer(batch["video"])
    close(parts["reconstruction"], (pred - batch["video"]).square().mean())
    close(parts["entropy"], walt_tokenizer.entropy_loss(latents))
    close(parts["commitment"], walt_tokenizer.commitment_loss(latents, codes))
    weighted = 5 * parts["reconstruction"] + 0.1 * parts["entropy"] + 0.25 * parts["commitment"]
    close(loss.value, weighted)
    parts["reconstruction"].backward()
    assert all(p.grad.abs().sum() > 0 for p in tokenizer.encoder.parameters())


# --- Averages ------------------------------------------------------------------------------------


def test_averages_of_weights_follow_the_decay(make: Make) -> None:
    objective = make()
    (first, *_) = objective.models["tokenizer"].parameters()
    expected = None
    for value in (1.0, 3.0, -2.0):
        with torch.no_grad():
            first.fill_(value)
        objective.after_step(1)
        expected = value if expected is None else 0.5 * expected + 0.5 * value
    (average, *_) = objective.result.parameters()
    close(average, torch.full_like(average, float(expected or 0)))
    assert not average.requires_grad
    assert bool((first == -2).all())


def test_without_averages_the_tokenizer_itself_is_the_result(make: Make) -> None:
    objective = make(PLAIN)
    assert objective.result is objective.models["tokenizer"].tokenizer
    assert make().result is not make().models["tokenizer"].tokenizer


def test_averages_of_logits_move_once_a_step(make: Make, batch: Batch) -> None:
    """By the mean over all micro-batches."""
    objective = make()
    for _ in range(3):
        all_losses(objective, batch)
    logits = list(objective.logits)
    assert len(logits) == 3
    assert float(objective.lecam.fake) == 0
    objective.after_step(1)
    fake = torch.cat([fake for _, fake in logits])
    close(objective.lecam.fake, 0.001 * fake.mean())
    before = objective.lecam.fake.clone()
    objective.after_step(2)
    assert torch.equal(objective.lecam.fake, before)


def test_what_a_checkpoint_holds_can_be_read_back(make: Make, batch: Batch) -> None:
    one, two = make(), make()
    all_losses(one, batch)
    with torch.no_grad():
        next(one.models["tokenizer"].parameters()).fill_(1.0)
    one.after_step(1)
    tensors = one.state_tensors()
    assert {"lecam.real", "lecam.fake", "ema.n_averaged"} <= tensors.keys()
    two.load_state_tensors(tensors)
    for name, value in two.state_tensors().items():
        assert torch.equal(value, tensors[name]), name
    assert bool((next(two.result.parameters()) == 1).all())


def test_evaluation_sees_the_averages_and_leaves_the_mode(make: Make) -> None:
    seen: list[tuple[VideoTokenizer, bool, int]] = []

    def evaluate(tokenizer: VideoTokenizer, step: int) -> dict[str, float]:
        seen.append((tokenizer, tokenizer.training, step))
        return {"psnr": 1.0}

    objective = make(evaluate=evaluate)
    objective.models["tokenizer"].train()
    assert objective.evaluate(7) == {"psnr": 1.0}
    assert seen == [(objective.result, False, 7)]
    assert objective.result.training
    assert objective.models["tokenizer"].training


# --- Training ------------------------------------------------------------------------------------

Run = Callable[..., History]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Function that trains an objective as a new process would."""

    def run(
        objective: TokenizerObjective,
        name: str = "run",
        optim: OptimConfig = OPTIM,
        accelerator: Accelerator | None = None,
    ) -> History:
        training = dataclasses.replace(objective.training, optim=optim)
        optims = {"tokenizer": optim, "discriminator": discriminator_optim(training)}
        return train(
            objective,
            optims,
            accelerator=accelerator or Accelerator(cpu=True),
            seed=1,
            folder=tmp_path / name,
            checkpoint_every=2 if optim.steps < 100 else 100,
        )

    return run


def everything(objective: TokenizerObjective) -> dict[str, Tensor]:
    """Every tensor that training changes."""
    tensors = dict(objective.state_tensors())
    for model, module in objective.models.items():
        tensors |= {f"{model}.{name}": value for name, value in module.state_dict().items()}
    return tensors


class Stopping(TokenizerObjective):
    """Is broken off between the two losses of a step."""

    stop = -1

    def losses(
        self,
        models: Mapping[str, torch.nn.Module],
        batch: Batch,
        generators: Sequence[torch.Generator],
        step: int,
    ) -> Iterator[Loss]:
        for loss in super().losses(models, batch, generators, step):
            yield loss
            if step == self.stop:
                raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("start", [0, 3])
def test_a_broken_run_ends_like_an_unbroken_one(make: Make, run: Run, start: int) -> None:
    training = dataclasses.replace(GAN, gan_start_step=start)
    whole, broken, resumed = make(training), make(training), make(training)
    history = run(whole, "whole")
    broken.__class__, broken.stop = Stopping, 4
    with pytest.raises(KeyboardInterrupt):
        run(broken, "broken")
    assert run(resumed, "broken") == history
    expected, found = everything(whole), everything(resumed)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.slow
def test_micro_batches_do_what_the_whole_batch_does(make: Make, run: Run) -> None:
    whole, divided = make(), make()
    run(whole, "whole")
    run(divided, "divided", dataclasses.replace(OPTIM, accumulate=2))
    for name, value in everything(whole).items():
        # 2e-3, the sum of the rates of all steps: AdamW divides by the size of a gradient, which
        # makes much of rounding where a gradient is almost 0.
        torch.testing.assert_close(everything(divided)[name], value, atol=2e-3, rtol=1e-2)
    close(divided.lecam.fake, whole.lecam.fake)


def test_activation_checkpointing_changes_nothing(make: Make, batch: Batch) -> None:
    gradients = []
    for value in (False, True):
        objective = make(PLAIN)
        tokenizer = objective.models["tokenizer"].tokenizer.train()
        tokenizer.gradient_checkpointing = value
        all_losses(objective, batch)[0].value.backward()
        gradients.append([p.grad for p in tokenizer.parameters()])
    for one, two in zip(*gradients, strict=True):
        assert torch.equal(one, two)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "steps"), [("fp32", 300), ("bf16", 100)])
def test_many_steps_with_a_discriminator_stay_finite(
    make: Make, run: Run, precision: str, steps: int, request: pytest.FixtureRequest
) -> None:
    mixed = request.getfixturevalue("bf16_accelerator") if precision == "bf16" else None
    shallow = {"channel_multipliers": (1, 2), "temporal_strides": (2,)}
    objective = make(sizes=shallow, accelerator=mixed or Accelerator(cpu=True))
    optim = dataclasses.replace(OPTIM, steps=steps, batch_size=2, warmup_steps=10, beta1=0.0)
    history = run(objective, optim=optim, accelerator=mixed)
    assert [row["step"] for row in history.losses] == list(range(10, steps + 1, 10))
    names = {"reconstruction", "adversarial", "discriminator", "r1", "lecam"}
    assert names < history.losses[-1].keys()
    for name, value in everything(objective).items():
        assert value.isfinite().all(), name
        assert value.dtype in (torch.float32, torch.int64), name
    assert history.losses[-1]["reconstruction"] < 0.7 * history.losses[0]["reconstruction"]
