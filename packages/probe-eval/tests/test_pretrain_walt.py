"""Whole trainings of a denoiser, tiny: what they refuse, and what they leave."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

import walt_core
import walt_tokenizer
from probe_eval.backbones.walt import load_denoiser, load_tokenizer
from probe_eval.config import DataConfig, GenerateConfig, OptimConfig
from probe_eval.data import FirstClips, open_split
from probe_eval.generate import run_generate
from probe_eval.pretrain import walt as module
from probe_eval.pretrain.config import ConditionRates, PretrainWaltConfig
from probe_eval.pretrain.latents import encode_clips
from probe_eval.pretrain.walt import describe_walt, run_walt
from probe_eval.text import TextStates, write_states

OPTIM = OptimConfig(steps=4, batch_size=2, peak_lr=1e-3, warmup_steps=1)


@pytest.fixture
def config(
    walt_size: walt_core.WaltConfig, twins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> PretrainWaltConfig:
    """A training of a second, of clips with images, with classes and text."""
    monkeypatch.setitem(walt_core.WALT_SIZES, "minimal", walt_size)
    states = {f"a {action}": torch.rand(n, 6) for n, action in enumerate(ACTIONS, start=1)}
    write_states(tmp_path / "text.safetensors", TextStates.of(states, "made up"))
    return PretrainWaltConfig(
        data=DataConfig(size=16, num_frames=5, limit=8),
        tokenizer=str(twins / "tokenizer"),
        walt_size="minimal",
        image_batch_size=4,
        images_per_clip=3,
        class_label="shape",
        text=str(tmp_path / "text.safetensors"),
        prompt="a {action}",
        optim=OPTIM,
        ema_decay=0.5,
        evaluate_every=3,
        evaluate_clips=3,
        sample_clips=2,
        sample_steps=2,
        guidance=2.0,
        keep_every=2,
        checkpoint_every=2,
        output=str(tmp_path / "out"),
    )


ACTIONS = ("left", "right", "up", "down", "still")


def test_a_training_leaves_everything_that_is_promised(
    config: PretrainWaltConfig, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = run_walt(config, accelerator)
    folder = Path(config.output)
    check_files(config, folder, record)
    check_kept(folder)
    check_numbers(folder, record)
    monkeypatch.setattr(module, "train", None)
    assert run_walt(config, accelerator) == record  # read back
    other = dataclasses.replace(config, rates=ConditionRates(past=0.0))
    with pytest.raises(ValueError, match=r"rates\.past is 0\.25 there, 0\.0 here"):
        run_walt(other, accelerator)


def check_files(config: PretrainWaltConfig, folder: Path, record: dict[str, Any]) -> None:
    """The denoiser with all that it is to be used with, and nothing that was for the run alone."""
    assert {path.name for path in folder.iterdir()} == {
        *("walt", "kept", "samples", "run.json", "record.json", "curve.csv", "curve.png")
    }
    assert {path.name for path in (folder / "samples").iterdir()} == {
        f"step-0000000{step}.{kind}" for step in (3, 4) for kind in ("png", "mp4")
    }
    assert record["kept"] == [f"kept/step-0000000{step}" for step in (2, 4)]
    model = load_denoiser(folder / "walt")
    assert (model.config.num_classes, model.config.text_width) == (6, 6)
    assert model.config.windows == "spatiotemporal"
    tokenizer = load_tokenizer(config.tokenizer)
    assert torch.equal(model.latent_mean, tokenizer.latent_mean)
    assert torch.equal(model.latent_std, tokenizer.latent_std)
    said = json.loads((folder / "walt" / "model.json").read_text())
    assert said["weights_hash"] == record["walt"]["weights_hash"]
    assert said["classes"] == list(open_split(config.data, "train").classes["shape"])
    assert said["prompts"] == [f"a {action}" for action in ACTIONS]


def check_kept(folder: Path) -> None:
    """The models of steps 2 and 4, of which the last is the result."""
    early, late, result = (
        load_file(folder / name / "model.safetensors")
        for name in ("kept/step-00000002", "kept/step-00000004", "walt")
    )
    assert early.keys() == late.keys() == result.keys()
    assert all(torch.equal(late[name], result[name]) for name in late)
    assert any(not torch.equal(early[name], late[name]) for name in late)
    config = load_denoiser(folder / "kept" / "step-00000002").config
    assert config == load_denoiser(folder / "walt").config


def check_numbers(folder: Path, record: dict[str, Any]) -> None:
    """Losses of the training, and on held-out clips beside the best constant's."""
    final = record["final"]
    assert final["factor"] == pytest.approx(final["constant_loss"] / final["validation_loss"])
    with (folder / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {"step", "loss", "clips", "images", "validation_loss"} <= rows[-1].keys()
    # A clip has two images with it: the loss of the step weighs samples, not batches.
    last = {name: float(rows[-1][name]) for name in ("loss", "clips", "images")}
    assert last["loss"] == pytest.approx((last["clips"] + 2 * last["images"]) / 3, rel=1e-5)


@pytest.mark.slow
def test_training_fits(config: PretrainWaltConfig, accelerator: Accelerator) -> None:
    """Four clips, seen again and again, whose latents a network of 16 channels can learn."""
    config = dataclasses.replace(
        config,
        optim=OptimConfig(steps=100, batch_size=4, peak_lr=1e-2, warmup_steps=5),
        data=dataclasses.replace(config.data, limit=4),
        ema_decay=0.0,
        evaluate_every=100,
        keep_every=0,
        checkpoint_every=200,
    )
    losses = [row["loss"] for row in run_walt(config, accelerator)["losses"]]
    assert sum(losses[-5:]) / 5 < 0.7 * losses[0]  # each is of a few noise levels


def test_an_image_model_is_trained_on_frames_alone(
    config: PretrainWaltConfig, accelerator: Accelerator, tmp_path: Path
) -> None:
    config = dataclasses.replace(config, windows="spatial", image_batch_size=0)
    record = run_walt(config, accelerator)
    assert record["walt"]["model"]["windows"] == "spatial"
    assert not list((Path(config.output) / "samples").glob("*.mp4"))
    generated = run_generate(
        GenerateConfig(
            walt=f"{config.output}/walt",
            tokenizer=config.tokenizer,
            num_samples=2,
            steps=2,
            classes=("disc", "1"),
            guidance=3.0,
            output=str(tmp_path / "generated"),
        ),
        accelerator,
    )
    assert generated["files"] == ["samples.png"]
    assert generated["samples"]["frames"] == 1
    assert generated["samples"]["classes"] == [0, 1]


def test_latents_are_encoded_once_and_alike_in_any_batch(
    config: PretrainWaltConfig,
    accelerator: Accelerator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = load_tokenizer(config.tokenizer)
    dataset = open_split(config.data, "train")
    options = {"images_per_clip": 2, "seed": 3}
    path = tmp_path / "latents.safetensors"
    latents = encode_clips(tokenizer, dataset, accelerator, path=path, **options)
    assert latents["videos"].shape == (8, 4, 2, 2, 2)
    assert latents["images"].shape == (16, 4, 1, 2, 2)
    assert latents["label.action"].tolist() == [dataset[i]["labels"]["action"] for i in range(8)]
    few = encode_clips(tokenizer, FirstClips(dataset, 3), accelerator, **options)
    # 1e-5: the batch decides in which order the convolutions add.
    torch.testing.assert_close(few["images"], latents["images"][:6], atol=1e-5, rtol=1e-5)
    with monkeypatch.context() as patch:
        patch.setattr(walt_tokenizer.VideoTokenizer, "encode", None)
        read = encode_clips(tokenizer, dataset, accelerator, path=path, **options)
    assert all(torch.equal(read[name], value) for name, value in latents.items())
    path.write_bytes(path.read_bytes()[:-8])
    again = encode_clips(tokenizer, dataset, accelerator, path=path, **options)
    assert torch.equal(again["videos"], latents["videos"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"walt_size": "huge"}, "unknown walt_size 'huge'; known: nano"),
        ({"walt_size": "nano"}, "4 latent channels but 'nano' takes 8; choose another"),
        ({"tokenizer": "no/such"}, "no/such has no config.json, so it holds no tokenizer"),
        ({"class_label": "depth"}, "class_label names no label .*'depth'; known: action, shape"),
        ({"prompt": "a {depth}"}, "prompt names no label of the data set: 'depth'; known: action"),
        ({"prompt": "a shape"}, "prompt 'a shape' must name labels of the data set in braces"),
        ({"prompt": "a {shape"}, "prompt 'a {shape' has braces that do not match"),
        ({"prompt": "{shape}"}, "no text states of the prompt 'disc'; known: 'a left'"),
        ({"text": "no/such"}, "there is no file no/such of text states; make one with"),
        ({"data": DataConfig(size=16, num_frames=9)}, r"grid \(3, 2, 2\).*use 5 frames and a mul"),
        (
            {"memory_gb": 1e-6},
            "latents of 8 clips and 3 frames of each need .* memory_gb 1e-06",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_and_leaves_nothing(
    config: PretrainWaltConfig, accelerator: Accelerator, changes: dict[str, Any], says: str
) -> None:
    config = dataclasses.replace(config, **changes)
    for function in (run_walt, describe_walt):
        with pytest.raises((ValueError, FileNotFoundError), match=says):
            function(config, accelerator)
    assert not Path(config.output).exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"image_batch_size": 3}, r"must be 0 or a multiple of optim.batch_size 2, at most 2 x"),
        ({"image_batch_size": 8}, "at most 2 x images_per_clip 3"),
        ({"windows": "spatial"}, r"I-WALT \(windows spatial\) is trained on frames alone"),
        ({"prompt": ""}, "text .* and prompt .* go together"),
        ({"ema_decay": 1.0}, "ema_decay 1.0 must be 0"),
        ({"keep_every": -1}, "keep_every -1 must be 0"),
        ({"sample_steps": 1001}, "sample_steps 1001 must be 1 to 1000"),
        ({"evaluate_clips": 0}, "evaluate_clips 0 must be at least 1"),
        ({"class_label": "", "text": "", "prompt": ""}, "guidance 2.0 needs a condition"),
    ],
)
def test_settings_out_of_range_are_refused(
    config: PretrainWaltConfig, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(config, **changes)


def test_a_rate_is_a_probability() -> None:
    with pytest.raises(ValueError, match=r"rate drop 1\.5 must be a probability"):
        ConditionRates(drop=1.5)
    assert dataclasses.asdict(ConditionRates()) == dataclasses.asdict(walt_core.Rates())


def test_a_dry_run_says_what_would_be_trained(
    config: PretrainWaltConfig, accelerator: Accelerator
) -> None:
    text = describe_walt(config, accelerator)
    for part in (
        "V-WALT minimal:",
        "latent grid 2 x 2 x 2",
        "6 classes of 'shape', text of width 6, its own estimate, past frames",
        "of 8 clips of moving_shapes, and 4 frames a step",
        "at 4 noise levels",
        "kept/",
        "nothing was trained or written",
    ):
        assert part in text, part
    assert not Path(config.output).exists()
