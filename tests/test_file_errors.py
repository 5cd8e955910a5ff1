"""Files that do not serve: status 2, one line that names the file, and nothing left behind."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

from probe_eval.backbones import walt

Refused = Callable[..., str]


# --- Videos --------------------------------------------------------------------------------------


def cut(source: Path, target: Path) -> Path:
    """The first 60 % of a file."""
    content = source.read_bytes()
    target.write_bytes(content[: len(content) * 6 // 10])
    return target


@pytest.fixture
def bad_video(write_video: Callable[..., Path], tmp_path: Path) -> Callable[[str], Path]:
    """Function that makes a file that `show` must refuse."""

    def make(kind: str) -> Path:
        path = tmp_path / kind
        match kind:
            case "empty.mp4":
                path.write_bytes(b"")
            case "text.mp4":
                path.write_text("not a video\n")
            case "cut.mp4" | "cut.webm":
                cut(write_video(tmp_path / f"whole{path.suffix}"), path)
            case "short.mp4":
                write_video(path, num_frames=16)
            case "picture.png" | "picture.mp4":
                matplotlib.image.imsave(path, np.eye(64), format="png")
            case "old.avi":
                write_video(path)
            case "renamed.mp4":
                write_video(tmp_path / "old.avi").rename(path)
            case "folder.mp4":
                path.mkdir()
            case "missing.mp4":
                pass
        return path

    return make


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing.mp4", r"(?i)no such file|does not exist|not found"),
        ("empty.mp4", "empty"),
        ("text.mp4", "not a|no video|text"),
        ("cut.mp4", "cut|incomplete|truncated|ends|short"),
        ("cut.webm", "cut|incomplete|truncated|ends|short"),
        ("short.mp4", r"needs 17 frames, but the video has 16; use fewer frames"),
        ("picture.png", "PNG image"),
        ("picture.mp4", "PNG image"),
        ("old.avi", "AVI file.*ffmpeg"),
        ("renamed.mp4", "AVI file.*ffmpeg"),
        ("folder.mp4", "folder|directory"),
    ],
)
def test_a_file_that_is_no_good_video(
    refused: Refused,
    bad_video: Callable[[str], Path],
    pretrained: Path,
    write_video: Callable[..., Path],
    tmp_path: Path,
    kind: str,
    says: str,
) -> None:
    """Also after a good one, of which no picture is drawn."""
    good, bad = write_video(tmp_path / "good.mp4"), bad_video(kind)
    words = ["--pretrained", pretrained, "--size", 32, "--output", tmp_path / "pictures"]
    line = refused("show", good, bad, *words)
    assert str(bad) in line
    assert re.search(says, line), line


CORRUPT = (
    "bitflip.mp4",
    "empty.mp4",
    "text.mp4",
    "trunc60.mp4",
    "trunc60.webm",
    "trunc60_faststart.mp4",
)


@pytest.mark.parametrize("name", CORRUPT)
def test_a_real_video_that_is_damaged(
    refused: Refused, shared: Path, pretrained: Path, tmp_path: Path, name: str
) -> None:
    path = shared / "corrupt" / name
    line = refused("show", path, "--pretrained", pretrained, "--output", tmp_path / "pictures")
    assert str(path) in line


def test_all_damaged_real_videos_are_tried(shared: Path) -> None:
    assert {path.name for path in (shared / "corrupt").iterdir()} == set(CORRUPT)


def test_a_folder_with_a_bad_video(
    refused: Refused,
    pretrain_words: Callable[..., list[str]],
    write_video: Callable[..., Path],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "videos"
    for number in range(4):
        write_video(folder / f"{number}.mp4")
    for path in sorted(folder.iterdir()):
        cut(path, path)
    words = pretrain_words(tmp_path / "out", "--data.dataset", "folder", "--data.root", folder)
    line = refused(*words)
    assert str(folder) in line
    assert ".mp4" in line


# --- Weights -------------------------------------------------------------------------------------


@pytest.fixture
def spoilt(pretrained: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Function that copies the twins and spoils them."""

    def make(how: str) -> Path:
        folder = Path(shutil.copytree(pretrained, tmp_path / "twins"))
        weights, tokenizer = folder / "v-walt" / "model.safetensors", folder / "tokenizer"
        match how:
            case "missing":
                weights.unlink()
            case "cut":
                cut(weights, weights)
            case "text":
                weights.write_text("not weights")
            case "other twin":
                shutil.copytree(folder / "i-walt", folder / "v-walt", dirs_exist_ok=True)
            case "other twin's weights":
                shutil.copy(folder / "i-walt" / "model.safetensors", weights)
            case "other tokenizer":
                retrained = walt.load_tokenizer(tokenizer)
                retrained.latent_std *= 2
                retrained.save_pretrained(tokenizer)
            case "tokenizer":
                shutil.copy(tokenizer / "model.safetensors", weights)
            case "tokenizer cut":
                cut(tokenizer / "model.safetensors", tokenizer / "model.safetensors")
            case "configuration cut":
                cut(tokenizer / "config.json", tokenizer / "config.json")
            case "no configuration":
                (tokenizer / "config.json").unlink()
        return folder

    return make


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("missing", "has no v-walt/model.safetensors; make it with `probe-eval pretrain twins"),
        ("cut", "v-walt/model.safetensors .*damaged or cut short"),
        ("text", "v-walt/model.safetensors .*damaged or cut short"),
        ("other twin", "v-walt has windows 'spatial' but v-walt needs .*another configuration"),
        ("other twin's weights", "v-walt/model.safetensors was saved with another configuration"),
        ("tokenizer", "v-walt/model.safetensors was saved with another configuration"),
        ("other tokenizer", "-walt was trained on latents of other mean and standard deviation"),
        ("tokenizer cut", "tokenizer/model.safetensors .*damaged or cut short"),
        ("configuration cut", "tokenizer/config.json is not valid JSON"),
        ("no configuration", "has no tokenizer/config.json; make it with"),
    ],
)
@pytest.mark.parametrize("command", ["run", "show"])
def test_weights_that_do_not_serve(
    refused: Refused,
    spoilt: Callable[[str], Path],
    run_words: Callable[..., list[str]],
    write_video: Callable[..., Path],
    tmp_path: Path,
    command: str,
    how: str,
    says: str,
) -> None:
    weights = spoilt(how)
    if command == "run":
        line = refused(*run_words(tmp_path / "out", weights=weights))
    else:
        video = write_video(tmp_path / "good.mp4")
        line = refused("show", video, "--pretrained", weights, "--output", tmp_path / "out")
    assert re.search(says, line), line


@pytest.mark.parametrize("name", ["i-walt", "v-walt"])
def test_values_that_are_not_finite_stop_at_the_backbone(pretrained: Path, name: str) -> None:
    backbone = walt.load(name, str(pretrained))
    video = torch.zeros(1, 3, 17, 32, 32)
    latents = torch.zeros(1, 8, 5, 4, 4)
    for bad in (float("nan"), float("inf")):
        video[0, 0, 3, 4, 5] = latents[0, 1, 2, 3, 0] = bad
        with pytest.raises(ValueError, match=r"(?i)nan|finite"):
            backbone.features(video, blocks=(1,), timestep=0, seed=0, sample_ids=["a"])
        with pytest.raises(ValueError, match="latents hold NaN or infinite values; check"):
            backbone.denoiser.features(latents, blocks=(1,), timestep=0, seed=0, sample_ids=["a"])


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("tokenizer cut", "tokenizer/model.safetensors .*damaged or cut short"),
        ("no configuration", "tokenizer has no config.json, so it holds no tokenizer"),
    ],
)
@pytest.mark.parametrize("flag", ["--tokenizer-from", "--training.start-from"])
def test_a_tokenizer_that_cannot_be_started_from(
    refused: Refused,
    spoilt: Callable[[str], Path],
    pretrain_words: Callable[..., list[str]],
    tokenizer_words: Callable[..., list[str]],
    tmp_path: Path,
    flag: str,
    how: str,
    says: str,
) -> None:
    words = pretrain_words if flag == "--tokenizer-from" else tokenizer_words
    line = refused(*words(tmp_path / "out", flag, spoilt(how) / "tokenizer"))
    assert re.search(says, line), line
