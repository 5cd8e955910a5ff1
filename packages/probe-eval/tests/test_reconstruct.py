"""`probe-eval reconstruct`: files, numbers and mistakes, on videos that the tests write."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from accelerate import Accelerator

from probe_datasets import VideoError, read_frames, scan_video, to_float
from probe_eval import cli
from probe_eval import reconstruct as module
from probe_eval.config import ReconstructConfig
from probe_eval.metrics.reconstruction import psnr, ssim
from probe_eval.reconstruct import run_reconstruct, summary
from probe_eval.report.reconstructions import GAP, to_bytes
from probe_eval.report.video import VideoWriter

if TYPE_CHECKING:
    from walt_tokenizer import VideoTokenizer

SHARED = [
    "kinetics/SOX5yA1l24A.mp4",
    "ssv2/166766.webm",
    "video_misc/01_dog.mp4",
    "video_misc/bikes.mp4",
    "video_misc/carphone_pristine.mp4",
]
REFUSED = {
    "corrupt/bitflip.mp4": "corrupt frames",
    "corrupt/empty.mp4": "is empty",
    "corrupt/text.mp4": "is a text file",
    "corrupt/trunc60.mp4": "is cut short",
    "corrupt/trunc60.webm": "is cut short",
    "corrupt/trunc60_faststart.mp4": "is cut short",
    "video_misc/v_SoccerJuggling_g23_c01.avi": "is an AVI file",
}


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> None:
    """Nothing that a command sets outlives the test."""
    logger = logging.getLogger("probe_eval")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture(scope="module")
def tokenizer() -> "VideoTokenizer":
    from walt_tokenizer import TokenizerConfig, VideoTokenizer

    torch.manual_seed(0)
    config = TokenizerConfig(
        base_channels=8, channel_multipliers=(1, 1, 1, 2), num_res_blocks=1, norm_groups=4
    )
    return VideoTokenizer(config).eval()


@pytest.fixture(scope="module")
def weights(tokenizer: "VideoTokenizer", tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of the tokenizer."""
    folder = tmp_path_factory.mktemp("weights") / "tokenizer"
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_video(path: Path, count: int, height: int = 26, width: int = 36) -> str:
    """Moving colours, frame after frame another picture."""
    t, y, x = torch.meshgrid(
        torch.arange(count) / 5,
        torch.linspace(0, 3, height),
        torch.linspace(0, 4, width),
        indexing="ij",
    )
    waves = torch.stack([torch.sin(x + t), torch.cos(y - t), torch.sin(x - y + 2 * t)], dim=1)
    with VideoWriter(path, 20) as writer:
        writer.write(to_bytes(waves))
    return str(path)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> str:
    """39 frames of 26 x 36: two more than 1 + 4 * 9, and no multiple of 8."""
    return write_video(tmp_path_factory.mktemp("video") / "waves.mp4", 39)


def expected(
    tokenizer: "VideoTokenizer", video: str, frames: range
) -> tuple[torch.Tensor, torch.Tensor]:
    """Original and reconstruction, cropped to 24 x 32 and passed through in one piece."""
    clip = to_float(read_frames(video, frames))[:, :, 1:25, 2:34].permute(1, 0, 2, 3)[None]
    with torch.inference_mode():
        return clip, tokenizer.decode(tokenizer.encode(clip))


def config(weights: str, output: Path, **settings: int) -> ReconstructConfig:
    return ReconstructConfig(tokenizer=weights, output=str(output), **settings)


@pytest.mark.slow
def test_the_numbers_are_those_of_the_whole_clip(
    tokenizer: "VideoTokenizer", weights: str, video: str, tmp_path: Path, accelerator: Accelerator
) -> None:
    record = run_reconstruct(video, config(weights, tmp_path / "out"), accelerator)
    clip, pred = expected(tokenizer, video, range(37))
    # Streaming sums convolutions in another order.
    assert record["metrics"]["psnr"] == pytest.approx(psnr(pred, clip), abs=1e-3)
    assert record["metrics"]["ssim"] == pytest.approx(float(ssim(pred, clip).mean()), abs=1e-4)
    written = json.loads((tmp_path / "out" / "record.json").read_text())
    assert written == json.loads(json.dumps(record))
    assert record["frames"] == {
        "first": 0,
        "used": 37,
        "left_out": 2,
        "time_stride": 4,
        "height": 24,
        "width": 32,
    }
    assert record["video"]["num_frames"] == 39
    assert written["tokenizer"]["config"] == json.loads(json.dumps(tokenizer.config.to_dict()))
    assert len(record["tokenizer"]["weights_hash"]) == 16
    assert record["environment"]["packages"]["torch"] == torch.__version__
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["record.json", "run.json", "side-by-side.mp4"]


def test_the_video_shows_both(
    tokenizer: "VideoTokenizer", weights: str, video: str, tmp_path: Path, accelerator: Accelerator
) -> None:
    run_reconstruct(video, config(weights, tmp_path, start=3, num_frames=9), accelerator)
    info = scan_video(tmp_path / "side-by-side.mp4")
    assert (info.num_frames, info.height, info.width) == (9, 24, 2 * 32 + GAP)
    assert info.fps == pytest.approx(20)
    shown = to_float(read_frames(info.path, range(9))).permute(1, 0, 2, 3)[None]
    clip, pred = expected(tokenizer, video, range(3, 12))
    assert psnr(shown[..., :32], clip) > 28
    # An untrained tokenizer draws noise, whose fine grain the codec does not keep.
    right, left = coarse(shown[..., -32:]), coarse(clip)
    assert psnr(right, coarse(pred.clamp(-1, 1))) > max(22, psnr(right, left) + 6)
    later, _ = expected(tokenizer, video, range(4, 13))
    assert psnr(shown[..., :32], clip) > psnr(shown[..., :32], later)


def coarse(clip: torch.Tensor) -> torch.Tensor:
    """Means over 8 x 8 pixels."""
    return torch.nn.functional.avg_pool3d(clip, (1, 8, 8))


def test_pieces_change_nothing(
    weights: str,
    video: str,
    tmp_path: Path,
    accelerator: Accelerator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = run_reconstruct(video, config(weights, tmp_path / "whole"), accelerator)
    sizes = []

    def read(path: Path, indices: range) -> torch.Tensor:
        sizes.append(len(indices))
        return read_frames(path, indices)

    monkeypatch.setattr(module, "read_frames", read)
    monkeypatch.setattr(module, "READ_BYTES", 3 * 26 * 36 * 7)
    monkeypatch.setattr(module, "PIECE_FRAMES", 3)
    pieces = run_reconstruct(video, config(weights, tmp_path / "pieces"), accelerator)
    assert sizes == [7, 7, 7, 7, 7, 2]
    for name, value in whole["metrics"].items():
        assert pieces["metrics"][name] == pytest.approx(value, abs=1e-3)


def test_the_command_line(
    weights: str, video: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = [video, "--tokenizer", weights, "--output", str(tmp_path / "out")]
    assert cli.main(["reconstruct", *words]) == 0
    out, _ = capsys.readouterr()
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert f"PSNR {record['metrics']['psnr']:.2f} dB" in out
    assert f"SSIM {record['metrics']['ssim']:.4f}" in out
    assert "on 37 frames (0 to 36, the last 2 left out to have 1 + 4k) of 24 x 32" in out
    # The same again is welcome, another run in the same folder is not.
    assert cli.main(["reconstruct", *words]) == 0
    assert cli.main(["reconstruct", *words, "--start", "1"]) == 2
    assert "already holds another run (start is 0 there, 1 here)" in capsys.readouterr().err
    assert cli.main(["reconstruct", "--help"]) == 0
    assert "--num-frames" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("height", "width", "count", "settings", "used", "size"),
    [
        (17, 41, 5, {}, 5, (16, 40)),  # odd sizes
        (16, 16, 1, {}, 1, (16, 16)),  # an image
        (9, 200, 4, {"size": 16}, 1, (16, 16)),  # enlarged
        (64, 48, 20, {"size": 24, "start": 2, "num_frames": 7}, 5, (24, 24)),
    ],
)
def test_sizes_and_stretches(
    height: int,
    width: int,
    count: int,
    settings: dict[str, int],
    used: int,
    size: tuple[int, int],
    weights: str,
    tmp_path: Path,
    accelerator: Accelerator,
) -> None:
    video = write_video(tmp_path / "video.mp4", count, height, width)
    record = run_reconstruct(video, config(weights, tmp_path / "out", **settings), accelerator)
    assert record["frames"]["used"] == used
    wanted = settings.get("num_frames") or count
    assert record["frames"]["left_out"] == wanted - used
    assert (record["frames"]["height"], record["frames"]["width"]) == size
    info = scan_video(tmp_path / "out" / "side-by-side.mp4")
    assert (info.num_frames, info.height, info.width) == (used, size[0], 2 * size[1] + GAP)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": 39}, "start 39 is behind the last of 39 frames"),
        (
            {"start": 30, "num_frames": 10},
            "has 9 frames from frame 30 on, fewer than num_frames 10",
        ),
        ({"size": 20}, "size 20 must be a multiple of 8; pass --size 16 or 24"),
        ({"size": 8}, "8 x 8 pixels are smaller than the window of SSIM"),
    ],
)
def test_settings_that_do_not_fit_the_video(
    settings: dict[str, int],
    message: str,
    weights: str,
    video: str,
    tmp_path: Path,
    accelerator: Accelerator,
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        run_reconstruct(video, config(weights, tmp_path / "out", **settings), accelerator)
    assert str(caught.value).startswith(video)
    assert not (tmp_path / "out").exists()


def test_negative_settings_are_refused(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["reconstruct", "a.mp4", "--start", "-1"]) == 2
    assert "start -1 must not be negative" in capsys.readouterr().err


def one_line(words: list[str], capsys: pytest.CaptureFixture) -> str:
    """The error of a command, after what it logged."""
    capsys.readouterr()
    assert cli.main(["reconstruct", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    errors = [line for line in err.splitlines() if line.startswith("probe-eval: error: ")]
    assert [err.splitlines()[-1]] == errors
    return errors[0]


def test_wrong_files_are_told_in_one_line(
    weights: str, video: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    output = ["--output", str(tmp_path / "out")]
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(Path(video).read_bytes()[:-500])
    assert str(cut) in one_line([str(cut), "--tokenizer", weights, *output], capsys)
    missing = str(tmp_path / "missing.mp4")
    assert missing in one_line([missing, "--tokenizer", weights, *output], capsys)
    nowhere = str(tmp_path / "nowhere")
    assert nowhere in one_line([video, "--tokenizer", nowhere, *output], capsys)
    half = tmp_path / "half"
    half.mkdir()
    for name in ("config.json", "model.safetensors"):
        (half / name).write_bytes((Path(weights) / name).read_bytes()[:200])
    assert str(half) in one_line([video, "--tokenizer", str(half), *output], capsys)
    assert not (tmp_path / "out").exists()


def test_a_failure_on_the_way_leaves_no_video(
    weights: str,
    video: str,
    tmp_path: Path,
    accelerator: Accelerator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "READ_BYTES", 1)

    def read(path: Path, indices: range) -> torch.Tensor:
        if indices[0] == 20:
            raise VideoError("frame 20 cannot be decoded")
        return read_frames(path, indices)

    monkeypatch.setattr(module, "read_frames", read)
    with pytest.raises(VideoError, match="frame 20"):
        run_reconstruct(video, config(weights, tmp_path / "out"), accelerator)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run.json"]


def test_a_perfect_reconstruction_is_said_to_be_at_least_so_good() -> None:
    frames = {"first": 0, "used": 5, "left_out": 0, "time_stride": 4, "height": 16, "width": 16}
    record = {"metrics": {"psnr": 100.0, "ssim": 1.0}, "frames": frames}
    line = "PSNR at least 100.00 dB, SSIM 1.0000 on 5 frames (0 to 4) of 16 x 16"
    assert summary(record) == line


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real files, `shared/data` beside the repository."""
    for parent in Path(__file__).resolve().parents:
        if (parent / "shared" / "data" / "expected" / "videos.json").is_file():
            return parent / "shared" / "data"
    pytest.skip("the real videos are not here: no shared/data beside the repository")


@pytest.mark.parametrize("name", SHARED)
def test_real_videos(
    name: str, shared: Path, weights: str, tmp_path: Path, accelerator: Accelerator
) -> None:
    settings = {"num_frames": 6, "size": 32, "start": 40}
    record = run_reconstruct(
        str(shared / name), config(weights, tmp_path / "out", **settings), accelerator
    )
    assert (record["frames"]["used"], record["frames"]["left_out"]) == (5, 1)
    assert scan_video(tmp_path / "out" / "side-by-side.mp4").num_frames == 5


@pytest.mark.parametrize("name", REFUSED)
def test_broken_files(
    name: str, shared: Path, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = [str(shared / name), "--tokenizer", weights, "--output", str(tmp_path / "out")]
    assert REFUSED[name] in one_line(words, capsys)
    assert not (tmp_path / "out").exists()
