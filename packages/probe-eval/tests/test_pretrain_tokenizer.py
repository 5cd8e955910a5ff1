"""Whole trainings of a tokenizer, tiny: what they refuse, and what they leave."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

import walt_tokenizer
from probe_eval.backbones.walt import load_tokenizer
from probe_eval.config import DataConfig, OptimConfig
from probe_eval.data import open_split
from probe_eval.metrics.reconstruction import psnr, ssim
from probe_eval.pretrain import tokenizer as module
from probe_eval.pretrain.config import PretrainTokenizerConfig
from probe_eval.pretrain.config import TokenizerTrainingConfig as Training
from probe_eval.pretrain.evaluation import measure, numbers
from probe_eval.pretrain.models import create_tokenizer
from probe_eval.pretrain.samples import load_clips
from probe_eval.pretrain.tokenizer import describe_tokenizer, run_tokenizer
from probe_readouts import weights_hash

OPTIM = OptimConfig(steps=4, batch_size=4, peak_lr=1e-3, warmup_steps=1)
NETWORKS = """
def distance(pred, target):
    return (pred - target).abs().mean(dim=(1, 2, 3))

def features(clips):
    return clips.mean(dim=(2, 3, 4))
"""


@pytest.fixture
def config(
    minimal: walt_tokenizer.TokenizerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> PretrainTokenizerConfig:
    """A training of seconds, with everything but networks and videos."""
    image = dataclasses.replace(minimal, time_kernel=1, temporal_strides=(1, 1, 1))
    sizes = {
        "minimal": minimal,
        "minimal-lfq": dataclasses.replace(minimal, quantizer="lfq"),
        "minimal-image": image,
    }
    for name, size in sizes.items():
        monkeypatch.setitem(walt_tokenizer.TOKENIZERS, name, size)
    return PretrainTokenizerConfig(
        data=DataConfig(size=16, num_frames=9, limit=8),
        training=Training(
            size="minimal", optim=OPTIM, ema_decay=0.5, gan=True, discriminator_channels=2
        ),
        evaluate_every=3,
        evaluate_clips=5,
        sample_clips=2,
        checkpoint_every=2,
        output=str(tmp_path / "out"),
    )


def with_training(config: PretrainTokenizerConfig, **changes: Any) -> PretrainTokenizerConfig:
    return dataclasses.replace(config, training=dataclasses.replace(config.training, **changes))


def test_a_training_leaves_everything_that_is_promised(
    config: PretrainTokenizerConfig, accelerator: Accelerator
) -> None:
    record = run_tokenizer(config, accelerator)
    folder = Path(config.output)
    assert sorted(path.name for path in folder.iterdir()) == [
        "curve.csv",
        "curve.png",
        "discriminator.safetensors",
        "record.json",
        "run.json",
        "samples",
        "tokenizer",
    ]
    assert sorted(path.name for path in (folder / "samples").iterdir()) == [
        f"step-0000000{step}.{suffix}" for step in (3, 4) for suffix in ("mp4", "png")
    ]
    assert record == json.loads((folder / "record.json").read_text())
    assert record["perceptual_loss"] == "off: no perceptual network was given"
    assert record["adversarial_loss"] == "from step 0"
    assert record["environment"]["packages"]["torch"]
    assert [row["step"] for row in record["evaluations"]] == [3, 4]
    with (folder / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["3", "4"]
    assert float(rows[-1]["psnr"]) == record["final"]["psnr"]
    assert float(rows[-1]["r1"]) >= 0

    tokenizer = load_tokenizer(folder / "tokenizer")
    assert weights_hash(tokenizer) == record["tokenizer"]["weights_hash"]
    assert not torch.equal(tokenizer.latent_std, torch.ones(4))
    clips = load_clips(open_split(config.data, "validation"), range(5))
    with torch.no_grad():
        pred = tokenizer(clips)
    assert record["final"]["psnr"] == pytest.approx(psnr(pred, clips), rel=1e-6)
    assert record["final"]["ssim"] == pytest.approx(float(ssim(pred, clips).mean()), rel=1e-5)
    assert load_file(folder / "discriminator.safetensors").keys() >= {"logit.weight"}


def test_a_finished_training_is_read_back(
    config: PretrainTokenizerConfig, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = run_tokenizer(config, accelerator)
    monkeypatch.setattr(module, "train", None)
    assert run_tokenizer(config, accelerator) == record
    with pytest.raises(ValueError, match=r"another run .*training\.ema_decay is 0\.5 there, 0\.0"):
        run_tokenizer(with_training(config, ema_decay=0.0), accelerator)


@pytest.mark.slow
@pytest.mark.parametrize("gan", [False, True])
def test_averages_are_what_is_kept(
    config: PretrainTokenizerConfig, accelerator: Accelerator, tmp_path: Path, gan: bool
) -> None:
    hashes = set()
    for decay in (0.0, 0.9):
        given = with_training(config, ema_decay=decay, gan=gan)
        record = run_tokenizer(
            dataclasses.replace(given, output=str(tmp_path / str(decay))), accelerator
        )
        hashes.add(record["tokenizer"]["weights_hash"])
        assert (tmp_path / str(decay) / "discriminator.safetensors").exists() == gan
    assert len(hashes) == 2


@pytest.mark.slow
def test_given_networks_are_used(
    config: PretrainTokenizerConfig, accelerator: Accelerator, tmp_path: Path
) -> None:
    path = tmp_path / "networks.py"
    path.write_text(NETWORKS)
    given = with_training(config, perceptual=f"{path}:distance")
    given = dataclasses.replace(given, lpips=f"{path}:distance", video_features=f"{path}:features")
    record = run_tokenizer(given, accelerator)
    assert record["perceptual_loss"] == "on"
    assert record["losses"][-1]["perceptual"] > 0
    assert record["final"].keys() == {"step", "psnr", "ssim", "lpips", "rfvd"}
    assert record["final"]["lpips"] > 0
    assert record["final"]["rfvd"] > 0


@pytest.mark.slow
def test_a_quantising_tokenizer_is_trained_too(
    config: PretrainTokenizerConfig, accelerator: Accelerator
) -> None:
    record = run_tokenizer(with_training(config, size="minimal-lfq"), accelerator)
    assert {"entropy", "commitment"} < record["losses"][-1].keys()
    tokenizer = load_tokenizer(Path(config.output) / "tokenizer")
    assert torch.equal(tokenizer.latent_std, torch.ones(4))


@pytest.mark.slow
def test_a_tokenizer_of_images_becomes_one_of_videos(
    config: PretrainTokenizerConfig, accelerator: Accelerator, tmp_path: Path
) -> None:
    images = with_training(config, size="minimal-image", num_frames=1)
    run_tokenizer(dataclasses.replace(images, output=str(tmp_path / "images")), accelerator)
    place = str(tmp_path / "images" / "tokenizer")
    training = dataclasses.replace(config.training, start_from=place)
    start = create_tokenizer(training, 0)
    image, clip = load_tokenizer(place), torch.rand(1, 3, 1, 16, 16)
    with torch.no_grad():
        # 1e-5: the convolutions of three slices sum in another order.
        torch.testing.assert_close(start(clip), image(clip), atol=1e-5, rtol=1e-5)
    record = run_tokenizer(with_training(config, start_from=place), accelerator)
    claim = json.loads((Path(config.output) / "run.json").read_text())
    assert claim["config"]["training"]["start_from"] == weights_hash(image)
    assert record["config"]["training"]["start_from"] == place


@pytest.mark.slow
def test_a_tokenizer_is_trained_on(
    config: PretrainTokenizerConfig, accelerator: Accelerator, tmp_path: Path
) -> None:
    run_tokenizer(config, accelerator)
    place = str(Path(config.output) / "tokenizer")
    start = create_tokenizer(dataclasses.replace(config.training, start_from=place), 1)
    for name, value in load_tokenizer(place).state_dict().items():
        assert torch.equal(start.state_dict()[name], value), name
    more = with_training(config, start_from=place)
    run_tokenizer(dataclasses.replace(more, output=str(tmp_path / "more")), accelerator)
    assert weights_hash(load_tokenizer(tmp_path / "more" / "tokenizer")) != weights_hash(start)


@pytest.mark.slow
def test_videos_are_mixed_in_and_measured(
    config: PretrainTokenizerConfig, accelerator: Accelerator, tmp_path: Path
) -> None:
    from probe_eval.report.video import VideoWriter

    for number in range(3):
        with VideoWriter(tmp_path / "videos" / f"{number}.mp4", 10.0) as writer:
            frames = torch.arange(12 * 3 * 24 * 24).reshape(12, 3, 24, 24) // 97 % 256
            writer.write(frames.to(torch.uint8))
    given = dataclasses.replace(config, videos=str(tmp_path / "videos"), videos_share=0.5)
    samples = module.open_samples(given, module.open_data(given, accelerator))
    assert len(samples) == 16
    assert samples[0]["video"].shape == samples[15]["video"].shape == (3, 5, 16, 16)
    record = run_tokenizer(given, accelerator)
    assert record["final"].keys() == {"step", "psnr", "ssim", "videos_psnr", "videos_ssim"}
    assert record["dataset"]["videos"]


def test_numbers_do_not_depend_on_how_clips_are_divided(
    config: PretrainTokenizerConfig, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = walt_tokenizer.VideoTokenizer(walt_tokenizer.TOKENIZERS["minimal"]).eval()
    dataset = open_split(config.data, "validation")

    def features(clips: torch.Tensor) -> torch.Tensor:
        return clips.mean(dim=(2, 3, 4))

    rows = []
    for size in (16, 3):
        monkeypatch.setattr("probe_eval.pretrain.samples.CLIPS_AT_ONCE", size)
        rows.append(numbers(measure(tokenizer, dataset, range(8), accelerator, features=features)))
    # 1e-4: convolutions of other batches round in another way.
    assert rows[0] == pytest.approx(rows[1], rel=1e-4)


def test_a_dry_run_says_what_would_be_and_does_nothing(
    config: PretrainTokenizerConfig, accelerator: Accelerator
) -> None:
    text = describe_tokenizer(config, accelerator)
    count = sum(
        p.numel()
        for p in walt_tokenizer.VideoTokenizer(walt_tokenizer.TOKENIZERS["minimal"]).parameters()
    )
    assert f"minimal: {count:,} parameters" in text
    assert "4 x 4 = 1 processes x 1 micro-batches x 4 clips of 5 x 16 x 16" in text
    assert "8 of moving_shapes; 5 held out" in text
    assert config.output in text
    assert not Path(config.output).exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"size": "large"}, "unknown tokenizer size 'large'; known: .*tiny"),
        ({"num_frames": 13}, "num_frames 13 of the tokenizer's training must not exceed"),
        ({"num_frames": 4}, r"num_frames of the tokenizer's training 4 must be 1 \+ 4 \* k: 1, 5"),
        ({"perceptual": "lpips"}, "network 'lpips' has an unknown form"),
        ({"start_from": "no/such"}, "folder no/such has no config.json"),
        ({"optim": dataclasses.replace(OPTIM, accumulate=3)}, "batch_size 4 must be a multiple"),
    ],
)
@pytest.mark.parametrize("function", [run_tokenizer, describe_tokenizer])
def test_what_cannot_be_trained_leaves_nothing(
    config: PretrainTokenizerConfig,
    accelerator: Accelerator,
    changes: dict[str, Any],
    says: str,
    function: Any,
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        function(with_training(config, **changes), accelerator)
    assert not Path(config.output).exists()
