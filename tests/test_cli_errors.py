"""Bad command lines: status 2, one line that says what is wrong, and nothing left behind.

Each case is a command line in which `{name}` stands for a file or folder that is made for it.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ERROR = "probe-eval: error: "
Main = Callable[..., int]
Refused = Callable[..., str]


# --- Names and numbers ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("demos", "unknown command 'demos'; known: .*; did you mean 'demo'"),
        ("--pretrained x", "unknown command '--pretrained'; known: cache, completion, demo, "),
        ("pretrain twin", "models to pretrain 'twin'; known: tokenizer, twins, walt; did you"),
        ("run moving-shape", "unknown recipe 'moving-shape'; known: imagenet, .*; did you mean"),
        ("run --optim.steps 3", "unknown recipe '--optim.steps'; known: imagenet, places365"),
        ("run ssv2 --preset long", "unknown preset 'long'; known: smoke, short, paper"),
        ("cache list", "unknown action 'list'; known: ls, verify, gc"),
        ("completion powershell", "unknown shell 'powershell'; known: bash, zsh, fish"),
    ],
)
def test_a_command_line_that_is_not_understood(refused: Refused, words: str, says: str) -> None:
    assert re.search(says, refused(*words.split()))


ADAPTER = """
from torch import nn
from probe_eval.backbone import ModuleBackbone, Submodules
def load(pretrained, device):
    read = Submodules("0", gives="b d t h w")
    return ModuleBackbone("mine", nn.Sequential(nn.Identity()), read, width=3)
def breaks(pretrained, device): return {}["weights"]
def forgets(pretrained): return None
"""


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--features.backbone w-walt", "unknown backbone 'w-walt'; known: i-walt, v-walt"),
        ("--task deep", "unknown task 'deep'; known: .*action, .*depth, "),
        ("--task depth", "no 'depth' in its examples; choose a data set and a task that fit"),
        (
            "--data.dataset shapes",
            "'shapes' must be one of davis, folder, .*; did you mean 'moving_shapes'",
        ),
        ("--data.dataset folder", "'folder' needs root"),
        ("--data.dataset folder --data.root no/such", "no/such: does not exist"),
        ("--data.root somewhere", "'moving_shapes' is generated; leave root='somewhere' out"),
        ("--data.limit -1", "limit -1 must not be negative"),
        ("--data.stride 0", "stride 0 must be at least 1"),
        ("--data.clips-per-video 2", "clips_per_video is for folders"),
        ("--features.timestep 1000", r"timestep 1000 must be 0 .*to 999"),
        ("--features.timestep -1", r"timestep -1 must be 0 .*to 999"),
        ("--features.block -1", r"block -1 must be 0 .*to 6"),
        ("--features.block 99", r"block 99 must be 0 .*to 6"),
        ("--features.pretrained no/such", "no/such has no tokenizer/config.json; .*pretrain twins"),
        ("--readout.num-heads 5", "num_heads 5 must divide width 64"),
        pytest.param("--data.num-frames 16", "16 .*13.*17|16.*1 \\+ 4"),
        pytest.param("--data.size 36", "36.*multiple"),
        pytest.param("--optim.accumulate 3", "batch_size 8 must"),
        ("--features.backbone {mine}:lod", "mine.py has no 'lod'; it has load, breaks, forgets"),
        ("--features.backbone no.py:load", "there is no file no.py to take a backbone from"),
        ("--features.backbone {mine}:load", "block 4 must be 0 .*to 0, the depth of .* 'mine'"),
        (
            "--features.backbone {mine}:load --features.block 0",
            "timestep 200 must be 0: backbone 'mine' knows no noise",
        ),
        ("--features.backbone {mine}:breaks", r"raised KeyError: 'weights' \(mine.py, line 7\)"),
        ("--features.backbone {mine}:forgets", "forgets' cannot be called .*def load\\(pretrained"),
    ],
)
def test_a_probe_that_cannot_run(
    refused: Refused,
    run_words: Callable[..., list[str]],
    tmp_path: Path,
    flags: str,
    says: str,
) -> None:
    (tmp_path / "mine.py").write_text(ADAPTER)
    words = run_words(tmp_path / "out")
    given, new = words, flags.format(mine=tmp_path / "mine.py").split()
    for flag in new[::2]:  # a flag is given once
        if flag in given:
            place = given.index(flag)
            given = given[:place] + given[place + 2 :]
    line = refused(*given, *new)
    assert re.search(says, line), line


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--tokenizer.size huge", "unknown tokenizer size 'huge'; known: .*tiny"),
        ("--walt-size huge", "unknown walt_size 'huge'; known: .*nano"),
        ("--data.num-frames 16", r"data.num_frames 16 must be 1 \+ 4 \* k"),
        ("--data.size 40", r"40 x 40 .* latent grid .*; use 17 frames and a multiple of 32"),
        (
            "--data.dataset shapes",
            "'shapes' must be one of davis, folder, .*; did you mean 'moving_shapes'",
        ),
        ("--tokenizer.num-frames 21", "num_frames 21 .*training must not exceed data.num_frames"),
        ("--tokenizer.num-frames 4", r"num_frames of the .*training 4 must be 1 \+ 4 \* k"),
        ("--tokenizer.size magvit2-128-lfq", "18 latent channels but 'nano' takes 8; choose"),
        ("--tokenizer-from no/such", "folder no/such has no config.json, so it holds no tokenizer"),
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
        ("--training.size huge", "unknown tokenizer size 'huge'; known: .*tiny"),
        ("--data.num-frames 16", r"data.num_frames 16 must be 1 \+ 4 \* k: 1, 5, 9"),
        ("--data.size 20", "data.size 20 must be a multiple of 8, such as 16"),
        (
            "--data.dataset shapes",
            "'shapes' must be one of davis, folder, .*; did you mean 'moving_shapes'",
        ),
        ("--training.num-frames 13", "num_frames 13 .* must not exceed data.num_frames 9"),
        ("--training.optim.accumulate 3", "batch_size 4 must"),
        ("--training.perceptual lpips", "network 'lpips' has an unknown form; expected"),
        ("--lpips no/such.py:net", "there is no file no/such.py"),
        ("--video-features nothing_here:net", "there is no module 'nothing_here'"),
        ("--training.start-from no/such", "folder no/such has no config.json"),
        ("--videos no/such", "no/such: does not exist"),
        ("--videos {folder} --videos-memory-gb 1e-6", "in .*folder need .* videos_memory_gb 1e-06"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_a_tokenizer_that_cannot_be_trained(
    refused: Refused,
    tokenizer_words: Callable[..., list[str]],
    write_video: Callable[..., Path],
    tmp_path: Path,
    flags: str,
    says: str,
    more: list[str],
) -> None:
    if "{folder}" in flags:
        if more:
            pytest.skip("a dry run reads no frames")
        for number in range(3):
            write_video(tmp_path / "folder" / f"{number}.mp4")
    words, new = tokenizer_words(tmp_path / "out"), flags.format(folder=tmp_path / "folder").split()
    for flag in new[::2]:  # a flag is given once
        if flag in words:
            place = words.index(flag)
            words = words[:place] + words[place + 2 :]
    line = refused(*words, *new, *more)
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


# --- Results folders -----------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["run", "pretrain twins", "pretrain tokenizer", "demo"])
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
    tokenizer_words: Callable[..., list[str]],
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
        "pretrain twins": pretrain_words(out),
        "pretrain tokenizer": tokenizer_words(out),
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


def test_programs_read_one_document(
    main: Main,
    pretrained: Path,
    write_video: Callable[..., Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture,
) -> None:
    video, out = write_video(tmp_path / "good.mp4"), tmp_path / "pictures"
    words = ["--pretrained", pretrained, "--output", out, "--size", "32", "--json"]
    assert main("show", video, *words) == 0
    assert json.loads(capfd.readouterr().out) == {"pictures": {str(video): f"{out}/good.png"}}
    assert main("show", video, *words, "--block", "99") == 2
    written, told = capfd.readouterr()
    assert json.loads(written) == {"error": told.removeprefix(ERROR).rstrip()}


def test_debug_shows_the_traceback(main: Main, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tokenizer/config\.json"):
        main("show", "no.mp4", "--pretrained", tmp_path, "--debug")
