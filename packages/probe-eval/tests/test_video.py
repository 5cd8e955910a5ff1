"""Written videos decode again to what was given."""

from pathlib import Path

import pytest
import torch

from probe_datasets import read_frames, scan_video
from probe_eval.report.video import VideoWriter


def moving(count: int, height: int, width: int) -> torch.Tensor:
    """Smooth colours that move: what a codec keeps, and no two frames are alike."""
    t, y, x = torch.meshgrid(
        torch.arange(count) / 6,
        torch.linspace(0, 3, height),
        torch.linspace(0, 4, width),
        indexing="ij",
    )
    waves = torch.stack([torch.sin(x + t), torch.cos(y - t), torch.sin(x - y + 2 * t)], dim=1)
    return ((waves + 1) * 127.5).round().to(torch.uint8)


def psnr(first: torch.Tensor, second: torch.Tensor) -> float:
    error = (first.double() - second.double()).square().mean()
    return float(10 * torch.log10(255**2 / error))


@pytest.mark.parametrize("backend", ["pyav", "auto"])
def test_frames_come_back(tmp_path: Path, backend: str) -> None:
    frames = moving(20, 48, 64)
    path = tmp_path / "new" / "clip.mp4"
    with VideoWriter(path, 12.5) as writer:
        for part in frames.split([1, 12, 7]):
            writer.write(part)
            assert not path.exists()
    info = scan_video(path)
    assert (info.container, info.codec) == ("mp4", "h264")
    assert (info.num_frames, info.height, info.width) == (20, 48, 64)
    assert info.fps == pytest.approx(12.5)
    found = read_frames(path, range(20), backend=backend)
    quality = [psnr(a, b) for a, b in zip(found, frames, strict=True)]
    assert min(quality) > 34
    # In order: each frame is nearer to its own than to its neighbour.
    assert all(quality[i] > psnr(found[i], frames[i + 1]) for i in range(19))
    assert list(path.parent.iterdir()) == [path]


def test_plain_colours_are_kept(tmp_path: Path) -> None:
    """The file says which matrix it was written with; a wrong one shifts colours by 20 levels."""
    colours = torch.tensor([[200, 30, 60], [20, 180, 40], [30, 60, 220], [0, 0, 0], [255] * 3])
    frames = colours.to(torch.uint8)[:, :, None, None].expand(-1, -1, 32, 32)
    with VideoWriter(tmp_path / "clip.mp4", 5) as writer:
        writer.write(frames)
    found = read_frames(tmp_path / "clip.mp4", range(5))
    assert int((found.int() - frames.int()).abs().max()) <= 6


@pytest.mark.parametrize("size", [(33, 48), (48, 33), (17, 35), (1, 1)])
def test_odd_sizes_gain_a_row_or_column(tmp_path: Path, size: tuple[int, int]) -> None:
    frames = moving(4, *size)
    with VideoWriter(tmp_path / "clip.mp4", 10) as writer:
        writer.write(frames)
    height, width = size
    found = read_frames(tmp_path / "clip.mp4", range(4))
    assert found.shape == (4, 3, height + height % 2, width + width % 2)
    if min(size) > 1:
        assert psnr(found[..., :height, :width], frames) > 28  # coarse colours, steep at this size
        assert psnr(found[..., -1:, :width], frames[..., -1:, :]) > 25
        assert psnr(found[..., :height, -1:], frames[..., -1:]) > 25


def fail_after(frames: torch.Tensor, path: Path) -> None:
    with VideoWriter(path, 10) as writer:
        writer.write(frames)
        raise KeyError


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        fail_after(moving(3, 32, 32), tmp_path / "clip.mp4")
    assert list(tmp_path.iterdir()) == []


def test_an_exception_leaves_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, 10) as writer:
        writer.write(moving(3, 32, 32))
    before = path.read_bytes()
    with pytest.raises(KeyError):
        fail_after(moving(9, 64, 64), path)
    assert path.read_bytes() == before
    with VideoWriter(path, 10) as writer:
        writer.write(moving(9, 64, 64))
    assert scan_video(path).num_frames == 9
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, 10) as writer:
        writer.write(moving(1, 32, 32))
        with pytest.raises(ValueError, match="32 x 34 in a video of"):
            writer.write(moving(1, 32, 34))
    path.unlink()
    with pytest.raises(ValueError, match="no frame was written"), VideoWriter(path, 10):
        pass
    for fps in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="fps"):
            VideoWriter(path, fps)
    assert list(tmp_path.iterdir()) == []
