"""Bad input: status 2, one line that names what is wrong and the way out, and nothing left behind.

Each case is a command line in which `{name}` stands for a file or folder that is made for it.
"""

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

from probe_eval.backbones import walt

ERROR = "probe-eval: error: "
Main = Callable[..., int]
Refused = Callable[..., str]


@pytest.fixture
def refused(main: Main, tmp_path: Path, capfd: pytest.CaptureFixture) -> Refused:
    """Function that runs a command that must fail, and returns its one line."""

    def run(*words: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        assert main(*words) == 2
        out, err = capfd.readouterr()
        lines = [line for line in err.splitlines() if line.startswith(ERROR)]
        assert len(lines) == 1, err
        assert "Traceback" not in err
        assert out == ""
        assert sorted(tmp_path.rglob("*")) == before, "something was left behind"
        return lines[0].removeprefix(ERROR)

    return run


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


# --- Names and numbers ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("demos", "unknown command 'demos'; known: .*; did you mean 'demo'"),
        ("--pretrained x", "unknown command '--pretrained'; known: demo, "),
        ("run moving-shape", "unknown recipe 'moving-shape'; known: moving-shapes-action"),
        ("run --optim.steps 3", "unknown recipe '--optim.steps'; known: moving-shapes-action"),
    ],
)
def test_a_command_line_that_is_not_understood(refused: Refused, words: str, says: str) -> None:
    assert re.search(says, refused(*words.split()))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--features.backbone w-walt", "unknown backbone 'w-walt'; known: i-walt, v-walt"),
        ("--task depth", "unknown task 'depth'; known: action, shape"),
        ("--data.dataset shapes", "'shapes' must be one of folder, moving_shapes"),
        ("--data.dataset folder", "'folder' needs root"),
        ("--data.dataset folder --data.root no/such", "'no/such' does not exist"),
        ("--data.root somewhere", "'moving_shapes' is generated; leave root='somewhere' out"),
        ("--data.limit -1", "limit -1 must be 0"),
        ("--data.stride 0", "stride 0 must be at least 1"),
        ("--data.clips-per-video 2", "clips_per_video is for folders"),
        ("--features.timestep 1000", r"timestep 1000 must be 0 .* to 999"),
        ("--features.timestep -1", r"timestep -1 must be 0 .* to 999"),
        ("--features.block -1", r"block -1 must be 0 .* to 6"),
        ("--features.block 99", r"block 99 must be 0 .* to 6"),
        ("--features.pretrained no/such", "no/such has no tokenizer.safetensors; .*pretrain"),
        ("--readout.num-heads 5", "num_heads 5 must divide width 64"),
        pytest.param("--data.num-frames 16", "16 .*13.*17|16.*1 \\+ 4"),
        pytest.param("--data.size 36", "36.*multiple"),
        pytest.param("--optim.accumulate 3", "batch_size 8 must"),
        pytest.param("--features.memory-gb 0", "memory_gb 0"),
    ],
)
def test_a_probe_that_cannot_run(
    refused: Refused,
    run_words: Callable[..., list[str]],
    tmp_path: Path,
    flags: str,
    says: str,
) -> None:
    words = run_words(tmp_path / "out")
    given, new = words, flags.split()
    for flag in new[::2]:  # a flag is given once
        if flag in given:
            place = given.index(flag)
            given = given[:place] + given[place + 2 :]
    line = refused(*given, *new)
    assert re.search(says, line), line


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--tokenizer-size huge", "unknown tokenizer_size 'huge'; known: .*tiny"),
        ("--walt-size huge", "unknown walt_size 'huge'; known: .*tiny"),
        ("--data.num-frames 16", r"data.num_frames 16 must be 1 \+ 4 \* k"),
        ("--data.size 40", r"40 x 40 .* latent grid .*; use 17 frames and a multiple of 32"),
        ("--data.dataset shapes", "'shapes' must be one of folder, moving_shapes"),
        ("--tokenizer-frames 21", "tokenizer_frames 21 must not exceed data.num_frames 17"),
        ("--tokenizer-frames 4", r"tokenizer_frames 4 must be 1 \+ 4 \* k"),
        pytest.param("--video-walt.accumulate 3", "batch_size 4 must"),
    ],
)
def test_pretraining_that_cannot_run(
    refused: Refused,
    pretrain_words: Callable[..., list[str]],
    tmp_path: Path,
    flags: str,
    says: str,
) -> None:
    words, new = pretrain_words(tmp_path / "out"), flags.split()
    if new[0] in words:
        place = words.index(new[0])
        words = words[:place] + words[place + 2 :]
    line = refused(*words, *new)
    assert re.search(says, line), line


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--block 99", "block 99 must be 0"),
        ("--block -1", "block -1 must be 0"),
        ("--timestep 1000", "timestep 1000 must be 0"),
        ("--timestep -1", "timestep -1 must be 0"),
        ("--num-frames 16", r"16.*(1 \+ 4|13.*17)"),
        ("--num-frames 21", "21 .* has 20"),
        ("--stride 2", "stride 2 .* has 20"),
        ("--start 20", "start 20"),
        ("--size 30", "30.*multiple"),
        ("--size 0", "size 0"),
        ("--output {file}", "file is a file; choose"),
    ],
)
def test_pictures_that_cannot_be_drawn(
    refused: Refused,
    pretrained: Path,
    write_video: Callable[..., Path],
    tmp_path: Path,
    flags: str,
    says: str,
) -> None:
    video = write_video(tmp_path / "good.mp4")
    (tmp_path / "file").write_text("kept")
    words = [word.format(file=tmp_path / "file") for word in flags.split()]
    if "--output" not in words:
        words += ["--output", str(tmp_path / "pictures")]
    if "--size" not in words:
        words += ["--size", "32"]
    line = refused("show", video, "--pretrained", pretrained, *words)
    assert re.search(says, line), line


# --- Weights -------------------------------------------------------------------------------------


@pytest.fixture
def spoilt(pretrained: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Function that copies the twins and spoils them."""

    def make(how: str) -> Path:
        folder = tmp_path / "twins"
        folder.mkdir()
        for path in pretrained.glob("*.safetensors"):
            shutil.copy(path, folder)
        weights = folder / "v-walt.safetensors"
        match how:
            case "missing":
                weights.unlink()
            case "cut":
                cut(weights, weights)
            case "text":
                weights.write_text("not weights")
            case "other twin":
                shutil.copy(folder / "i-walt.safetensors", weights)
            case "tokenizer":
                shutil.copy(folder / "tokenizer.safetensors", weights)
            case "tokenizer cut":
                cut(folder / "tokenizer.safetensors", folder / "tokenizer.safetensors")
        return folder

    return make


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("missing", "has no v-walt.safetensors; make it with `probe-eval pretrain"),
        ("cut", "v-walt.safetensors .*damaged or cut short"),
        ("text", "v-walt.safetensors .*damaged or cut short"),
        ("other twin", "v-walt.safetensors .*another configuration"),
        ("tokenizer", "v-walt.safetensors .*walt-tokenizer/1.* expected"),
        ("tokenizer cut", "tokenizer.safetensors .*damaged or cut short"),
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


# --- Results folders -----------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["run", "pretrain", "demo"])
@pytest.mark.parametrize(
    ("there", "says"),
    [
        ("file", "out is a file; choose another --output"),
        ("foreign", "out holds files that are not a run of probe-eval; choose"),
        ("other run", "out already holds another run .*choose another --output"),
        ("damaged", "run.json is not valid JSON"),
    ],
)
def test_a_results_folder_that_is_taken(
    refused: Refused,
    run_words: Callable[..., list[str]],
    pretrain_words: Callable[..., list[str]],
    tmp_path: Path,
    command: str,
    there: str,
    says: str,
) -> None:
    out = tmp_path / "out"
    if there == "file":
        out.write_text("kept")
    else:
        out.mkdir()
        names = {"foreign": "thesis.tex", "other run": "run.json", "damaged": "run.json"}
        text = {"other run": '{"kind": "other"}', "damaged": '{"kind":'}.get(there, "kept")
        (out / names[there]).write_text(text)
    words = {
        "run": run_words(out),
        "pretrain": pretrain_words(out),
        "demo": ["demo", *pretrain_words(out, under="pretrain.")],
    }
    content = [path.read_bytes() for path in (out, *out.glob("*")) if path.is_file()]
    assert re.search(says, refused(*words[command]))
    assert content == [path.read_bytes() for path in (out, *out.glob("*")) if path.is_file()]


# --- As a user sees it ---------------------------------------------------------------------------


def test_one_line_is_all_that_a_user_sees(launch: Callable, pretrained: Path) -> None:
    words = ["show", "no.mp4", "--pretrained", pretrained]
    done = launch(sys.executable, "-m", "probe_eval", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"{ERROR}no\.mp4[^\n]+\n", done.stderr)


def test_debug_shows_the_traceback(main: Main, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.safetensors"):
        main("show", "no.mp4", "--pretrained", tmp_path, "--debug")
