"""Fixtures: the program, called here or in processes of its own, and twins trained for 4 steps."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

# Before torch is imported: equal numbers of threads give equal bits here and in other processes.
os.environ["OMP_NUM_THREADS"] = "1"

import av
import numpy as np
import pytest
from av.video.stream import VideoStream

# What says that a process is one of many, and what makes each compile all of torch anew.
UNSET = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "ACCELERATE_USE_CPU", "PYTHONDONTWRITEBYTECODE")

ERROR = "probe-eval: error: "
Main = Callable[..., int]
Launch = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session", autouse=True)
def index_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Indexes and caches are kept away from the user's own, in child processes too."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("indexes")
        patch.setenv("PROBE_DATASETS_CACHE", str(folder))
        patch.setenv("PROBE_EVAL_CACHE", str(folder / "kept"))
        yield folder


@pytest.fixture(scope="session")
def main() -> Main:
    """Function that runs a command line in this process and returns its exit status."""
    import torch

    from probe_eval.cli import main

    torch.set_num_threads(1)

    def run(*words: object) -> int:
        return main([str(word) for word in words])

    return run


@pytest.fixture(scope="session")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """Function that runs a command in a process of its own, from an empty folder."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def run(
        *words: object, cwd: Path = elsewhere, env: dict[str, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        clean = {name: value for name, value in os.environ.items() if name not in UNSET}
        return subprocess.run(
            [str(word) for word in words],
            cwd=cwd,
            env={**clean, **(env or {})},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def tool() -> Callable[[str], str]:
    """Function that finds a console script of this environment."""

    def find(name: str) -> str:
        places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        found = shutil.which(name, path=places)
        if found is None:
            pytest.skip(f"the console script {name!r} is not installed here")
        return found

    return find


@pytest.fixture
def refused(main: Main, tmp_path: Path, capfd: pytest.CaptureFixture) -> Callable[..., str]:
    """Function that runs a command that must fail, and returns its one line."""

    def run(*words: object) -> str:
        before = contents(tmp_path)
        assert main(*words) == 2
        out, err = capfd.readouterr()
        lines = [line for line in err.splitlines() if line.startswith(ERROR)]
        assert len(lines) == 1, err
        assert "Traceback" not in err
        assert out == ""
        assert contents(tmp_path) == before, "something was left behind"
        return lines[0].removeprefix(ERROR)

    return run


def contents(folder: Path) -> list[Path]:
    """All that lies below a folder, but for what Python keeps of a file that it imported."""
    return sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts)


# --- Small runs ----------------------------------------------------------------------------------


def optim(name: str, batch_size: int, accumulate: int = 1, steps: int = 4) -> list[str]:
    """Flags for a few steps, with a warm-up of 1."""
    values = {"steps": steps, "batch-size": batch_size, "warmup-steps": 1, "accumulate": accumulate}
    return [word for key, value in values.items() for word in (f"--{name}.{key}", str(value))]


@pytest.fixture(scope="session")
def pretrain_words() -> Callable[..., list[str]]:
    """Function that makes the command line of a pretraining of seconds."""

    def words(
        output: object, *more: object, accumulate: int = 1, under: str = "", limit: int = 36
    ) -> list[str]:
        settings = [f"--{under}data.limit", str(limit), f"--{under}checkpoint-every", "2"]
        for name, size in (("tokenizer.optim", 4), ("image-walt", 8), ("video-walt", 4)):
            settings += optim(f"{under}{name}", size, accumulate)
        start = [] if under else ["pretrain", "twins"]
        return [*start, "--output", str(output), *settings, *map(str, more)]

    return words


@pytest.fixture(scope="session")
def tokenizer_words() -> Callable[..., list[str]]:
    """Function that makes the command line of a tokenizer's training of seconds.

    With a discriminator, averages of weights, evaluations and samples, on clips of 9 x 16 x 16.
    """

    def words(
        output: object, *more: object, steps: int = 4, accumulate: int = 1, size: str = "tiny"
    ) -> list[str]:
        data = {"size": 16, "num-frames": 9, "limit": 12}
        settings = [word for key, value in data.items() for word in (f"--data.{key}", str(value))]
        settings += ["--training.size", size, "--training.gan", "--training.gan-start-step", "1"]
        settings += ["--training.ema-decay", "0.9", "--training.discriminator-channels", "2"]
        settings += ["--evaluate-every", "3", "--evaluate-clips", "3", "--sample-clips", "1"]
        settings += ["--checkpoint-every", "2", *optim("training.optim", 4, accumulate, steps)]
        return ["pretrain", "tokenizer", "--output", str(output), *settings, *map(str, more)]

    return words


@pytest.fixture(scope="session")
def run_words(pretrained: Path) -> Callable[..., list[str]]:
    """Function that makes the command line of a probe of seconds on the shared twins."""

    def words(
        output: object,
        *more: object,
        recipe: str = "moving-shapes-action",
        accumulate: int = 1,
        weights: Path = pretrained,
    ) -> list[str]:
        return [
            *("run", recipe, "--output", str(output), "--features.pretrained", str(weights)),
            *("--data.limit", "36", "--checkpoint-every", "2", "--optim.peak-lr", "1e-2"),
            *optim("optim", 8, accumulate),
            *map(str, more),
        ]

    return words


@pytest.fixture(scope="session")
def pretrained(
    main: Main, pretrain_words: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with a tokenizer and both twins, trained in one go; nobody writes to it."""
    folder = tmp_path_factory.mktemp("twins") / "pretrained"
    assert main(*pretrain_words(folder)) == 0
    return folder


@pytest.fixture(scope="session")
def finished(
    main: Main, run_words: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of an unbroken probe; nobody writes to it."""
    folder = tmp_path_factory.mktemp("probe") / "unbroken"
    assert main(*run_words(folder)) == 0
    return folder


# --- Videos --------------------------------------------------------------------------------------

CODECS = {".mp4": "libx264", ".webm": "libvpx-vp9", ".avi": "mpeg4"}


@pytest.fixture(scope="session")
def write_video() -> Callable[..., Path]:
    """Function that writes a small video of a moving square; the suffix says which container."""

    def write(path: Path, num_frames: int = 20, size: tuple[int, int] = (48, 64)) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        codec = CODECS[path.suffix]
        options = {"deadline": "realtime", "cpu-used": "8"} if path.suffix == ".webm" else {}
        height, width = size
        texture = np.random.default_rng(0).integers(0, 90, (height, width, 3))
        with av.open(str(path), "w") as sink:
            stream = sink.add_stream(codec, rate=25, options=options)
            assert isinstance(stream, VideoStream)
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            for number in range(num_frames):
                picture = texture.astype(np.uint8)
                left = 2 * number % (width - 16)
                picture[8:24, left : left + 16] = (250, 200, 40)
                sink.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            sink.mux(stream.encode(None))
        return path

    return write


@pytest.fixture(scope="session")
def video_folder(
    write_video: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Six short videos in two folders."""
    root = tmp_path_factory.mktemp("videos")
    for number in range(6):
        suffix = ".webm" if number == 3 else ".mp4"
        write_video(root / "ab"[number % 2] / f"{number}{suffix}", num_frames=18 + number)
    return root


def shared_data() -> Path | None:
    """The folder of real files, `shared/data` beside the repository or in PROBE_SHARED."""
    candidates: Sequence[Path] = [Path(__file__).resolve().parents[2] / "shared"]
    if "PROBE_SHARED" in os.environ:
        candidates = [Path(os.environ["PROBE_SHARED"])]
    found = [folder / "data" for folder in candidates if (folder / "data" / "corrupt").is_dir()]
    return found[0] if found else None


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real files; skips where there is none."""
    folder = shared_data()
    if folder is None:
        pytest.skip("the real videos are not here: no shared/data beside the repository")
    return folder
