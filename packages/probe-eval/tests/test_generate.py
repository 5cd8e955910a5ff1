"""Generating: the same samples in any batch, first frames, continuations, and what is refused."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import walt_core
from probe_datasets import scan_video
from probe_eval import sampling
from probe_eval.backbones.walt import load_denoiser, load_tokenizer
from probe_eval.config import GenerateConfig
from probe_eval.generate import run_generate
from probe_eval.report.video import VideoWriter
from probe_eval.sampling import Request, generate_clips, reencode
from probe_eval.text import TextStates, write_states


@pytest.fixture(scope="module")
def models(
    twins: Path, walt_size: walt_core.WaltConfig, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with `tokenizer/` and with denoisers of three latent frames, random in all weights.

    `walt/` knows two classes, text of width 6, its estimate and past frames; `plain/` nothing.
    """
    folder = tmp_path_factory.mktemp("models")
    tokenizer = load_tokenizer(twins / "tokenizer")
    tokenizer.save_pretrained(folder / "tokenizer")
    longer = dataclasses.replace(
        walt_size, latent_size=(3, 2, 2), spatiotemporal_window=(3, 2, 2), num_classes=2
    )
    sizes = {
        "walt": dataclasses.replace(longer, text_width=6),
        "plain": dataclasses.replace(
            longer, num_classes=0, self_conditioning=False, frame_conditioning=False
        ),
    }
    for name, size in sizes.items():
        torch.manual_seed(0)
        model = walt_core.Walt(size)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.latent_mean.copy_(tokenizer.latent_mean)
        model.latent_std.copy_(tokenizer.latent_std)
        model.save_pretrained(folder / name)
    (folder / "walt" / "model.json").write_text(json.dumps({"classes": ["disc", "ring"]}))
    states = {"a disc": torch.ones(2, 6), "a ring": torch.full((3, 6), 2.0)}
    write_states(folder / "text.safetensors", TextStates.of(states, "made up"))
    write_states(folder / "wide.safetensors", TextStates.of({"a": torch.ones(2, 7)}, "made up"))
    with VideoWriter(folder / "clip.mp4", 8) as writer:
        writer.write(torch.randint(0, 255, (8, 3, 20, 24), dtype=torch.uint8))
    return folder


@pytest.fixture
def config(models: Path, tmp_path: Path) -> GenerateConfig:
    """Three videos of 9 x 16 x 16 with everything that the denoiser knows."""
    return GenerateConfig(
        walt=str(models / "walt"),
        tokenizer=str(models / "tokenizer"),
        num_samples=3,
        steps=3,
        guidance=2.0,
        past_guidance=1.5,
        classes=("ring", "0"),
        prompts=("a disc", "a ring"),
        text=str(models / "text.safetensors"),
        video=str(models / "clip.mp4"),
        output=str(tmp_path / "out"),
    )


def test_samples_are_files_and_a_record_that_says_what_they_are(
    config: GenerateConfig, accelerator: Accelerator
) -> None:
    record = run_generate(dataclasses.replace(config, num_clips=2), accelerator)
    folder = Path(config.output)
    assert {path.name for path in folder.iterdir()} == {
        *("run.json", "record.json", "samples.png", "samples.mp4")
    }
    assert record["files"] == ["samples.png", "samples.mp4"]
    # 9 frames, and 4 more: the second clip begins with the last 5 of the first.
    assert record["samples"]["frames"] == scan_video(folder / "samples.mp4").num_frames == 13
    assert record["samples"]["classes"] == [1, 0]
    assert record["samples"]["prompts"] == ["a disc", "a ring"]
    assert record["samples"]["text_encoder"] == "made up"
    assert len(record["samples"]["video_hash"]) == 16
    assert record == run_generate(dataclasses.replace(config, num_clips=2), accelerator)
    with pytest.raises(ValueError, match=r"already holds another run .seed is 0 there, 1 here"):
        run_generate(dataclasses.replace(config, num_clips=2, seed=1), accelerator)


def pixels(config: GenerateConfig, accelerator: Accelerator, **changes: Any) -> torch.Tensor:
    """The samples of a run, as they come from the tokenizer."""
    seen: list[torch.Tensor] = []
    real = sampling.generate_clips

    def watch(*args: Any, **options: Any) -> Any:
        clips = real(*args, **options)
        seen.append(torch.stack(clips))
        return clips

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("probe_eval.sampling.generate_clips", watch)
        output = f"{config.output}-{len(list(Path(config.output).parent.glob('out*')))}"
        run_generate(dataclasses.replace(config, output=output, **changes), accelerator)
    return seen[0]


def test_a_sample_is_the_same_in_any_batch(
    config: GenerateConfig, accelerator: Accelerator
) -> None:
    whole = pixels(config, accelerator, num_clips=2)
    single = pixels(config, accelerator, num_clips=2, batch_size=1)
    # 1e-3: the batch decides in which order the matrix products add; guidance multiplies that, and
    # so does what is sampled from what was sampled. A quarter of a level of 8 bits.
    torch.testing.assert_close(single, whole, atol=1e-3, rtol=0)
    few = pixels(config, accelerator, num_clips=2, num_samples=2)
    torch.testing.assert_close(few, whole[:2], atol=1e-3, rtol=0)
    assert (whole[0] - whole[1]).abs().max() > 0.01


def test_every_setting_counts(config: GenerateConfig, accelerator: Accelerator) -> None:
    base = pixels(config, accelerator, num_samples=1)
    for changes in (
        {"seed": 1},
        {"classes": ("disc",)},
        {"prompts": ("a ring",)},
        {"guidance": 3.0},
        {"past_guidance": 1.0},
        {"first_frames": 1},
        {"steps": 4},
    ):
        other = pixels(config, accelerator, num_samples=1, **changes)
        assert (other - base).abs().max() > 1e-4, changes


def test_images_are_a_picture(config: GenerateConfig, accelerator: Accelerator) -> None:
    config = dataclasses.replace(config, num_frames=1, video="", past_guidance=1.0)
    record = run_generate(config, accelerator)
    assert record["files"] == ["samples.png"]
    assert record["samples"]["latent_grid"] == [1, 2, 2]


def test_a_continuation_knows_the_last_frames_of_the_clip_before(
    models: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = load_denoiser(models / "walt"), load_tokenizer(models / "tokenizer")
    request = Request(number=2, seed=0, grid=(3, 2, 2), steps=2, num_clips=3)
    known = []
    real = sampling.walt_core.continue_video

    def watch(model: Any, latents: Any, again: Callable, *args: Any, **options: Any) -> Any:
        clips = real(model, latents, again, *args, **options)
        known.extend((again(clip), clip) for clip in [latents, *clips[:-1]])
        return clips

    monkeypatch.setattr(sampling.walt_core, "continue_video", watch)
    clips = generate_clips(model, tokenizer, request, [0, 1], accelerator)
    assert [clip.shape for clip in clips] == [(3, 17, 16, 16)] * 2
    first, latents = known[0]
    frames = torch.stack([clip[:, 4:9] for clip in clips])
    # 1e-4: encoded once in another batch.
    expected = tokenizer.encode(frames, normalize=True)
    torch.testing.assert_close(first, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(reencode(tokenizer, latents), first)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"walt": "no/such"}, "no/such has no config.json, so it holds no denoiser; make one"),
        ({"tokenizer": "no/such"}, "no/such has no config.json, so it holds no tokenizer"),
        ({"classes": ("square",)}, "unknown class 'square'; 0 to 1; known: disc, ring"),
        ({"classes": ("2",)}, "unknown class '2'; 0 to 1"),
        ({"prompts": ("a cross",)}, "no text states of the prompt 'a cross'; known: 'a disc'"),
        ({"text": "{models}/wide.safetensors", "prompts": ("a",)}, "have width 7 but .* takes 6"),
        ({"num_frames": 8}, r"num_frames 8 must be 1 \+ 4 \* k"),
        ({"num_frames": 13}, r"grid \(4, 2, 2\), which window \(3, 2, 2\) of the denoiser"),
        ({"size": 20}, "size 20 must be a multiple of 8"),
        ({"size": 24}, r"grid \(3, 3, 3\), which window"),
        ({"first_frames": 9}, r"first_frames 9 must be 1 \+ 4 \* k, and fewer than the 9"),
        ({"video": "no.mp4"}, "no.mp4"),
        ({"video": ""}, "past_guidance 1.5 needs first frames to follow"),
        ({"classes": (), "prompts": (), "text": ""}, "guidance 2.0 needs something to follow"),
    ],
)
def test_what_cannot_be_generated_is_refused_and_leaves_nothing(
    config: GenerateConfig,
    accelerator: Accelerator,
    models: Path,
    changes: dict[str, Any],
    says: str,
) -> None:
    if "text" in changes:
        changes = {**changes, "text": changes["text"].format(models=models)}
    with pytest.raises((ValueError, OSError), match=says):
        run_generate(dataclasses.replace(config, **changes), accelerator)
    assert not Path(config.output).exists()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"classes": ("0",)}, "classes are asked of a denoiser that was trained without"),
        ({"prompts": ("a disc",), "text": "{}"}, "prompts are asked of a denoiser .* without text"),
        ({"num_clips": 2}, "num_clips 2 needs a denoiser with frame conditioning"),
        ({"video": "clip.mp4"}, "video needs a denoiser with frame conditioning"),
    ],
)
def test_a_plain_denoiser_is_asked_for_nothing_more(
    models: Path, accelerator: Accelerator, tmp_path: Path, given: dict[str, Any], says: str
) -> None:
    config = GenerateConfig(
        walt=str(models / "plain"),
        tokenizer=str(models / "tokenizer"),
        output=str(tmp_path / "out"),
        **given,
    )
    with pytest.raises(ValueError, match=says):
        run_generate(config, accelerator)


def test_a_tokenizer_of_other_statistics_is_refused(
    config: GenerateConfig, accelerator: Accelerator, models: Path, tmp_path: Path
) -> None:
    other = tmp_path / "tokenizer"
    load_tokenizer(models / "tokenizer").save_pretrained(other)
    weights = load_file(other / "model.safetensors")
    with safe_open(other / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    weights["latent_mean"] += 0.1
    save_file(weights, other / "model.safetensors", metadata)
    with pytest.raises(ValueError, match="trained on latents of other mean and standard deviation"):
        run_generate(dataclasses.replace(config, tokenizer=str(other)), accelerator)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"prompts": ("a",)}, "prompts need either text, a file of their states, or an encoder"),
        ({"prompts": ("a",), "text": "b", "encoder": "c"}, "prompts need either text"),
        ({"encoder": "c"}, "text and encoder are for prompts; give --prompts"),
        ({"steps": 0}, "steps 0 must be 1 to 1000"),
        ({"num_samples": 0}, "num_samples 0 must be at least 1"),
        ({"fps": 0.0}, "fps 0.0 must be above 0"),
        ({"size": -8}, "size -8 must not be negative"),
    ],
)
def test_settings_out_of_range_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        GenerateConfig(**given)
