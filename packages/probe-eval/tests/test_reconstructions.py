"""Pictures of clips beside their reconstructions show the right pixels in the right places."""

from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import matplotlib.image
import pytest
import torch

from probe_datasets import read_frames, scan_video, to_float
from probe_eval.report.reconstructions import (
    GAP,
    GAP_LEVEL,
    SAMPLE_FRAMES,
    side_by_side,
    strip,
    to_bytes,
    write_samples,
)


@pytest.fixture
def clips() -> torch.Tensor:
    return torch.rand(2, 3, 17, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def _unchecked_shapes() -> Iterator[None]:
    """Turn off jaxtyping's checks, which speak before our errors."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_bytes_survive_the_way_to_floats_and_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(to_float(levels)), levels)
    assert to_bytes(torch.tensor([-7.0, 7.0])).tolist() == [0, 255]


def test_original_left_reconstruction_right(clips: torch.Tensor) -> None:
    frames = side_by_side(clips[0], clips[1])
    assert frames.shape == (17, 3, 16, 24 + GAP + 24)
    assert torch.equal(frames[3, :, :, :24], to_bytes(clips[0, :, 3]))
    assert torch.equal(frames[3, :, :, -24:], to_bytes(clips[1, :, 3]))
    assert frames[:, :, :, 24:-24].unique().tolist() == [GAP_LEVEL]


def test_a_strip_has_two_rows_a_clip(clips: torch.Tensor) -> None:
    picture = strip(clips, -clips)
    rows, columns = 16 + GAP, 24 + GAP
    assert picture.shape == (3, 4 * rows - GAP, SAMPLE_FRAMES * columns - GAP)
    for row, (clip, sign) in enumerate([(0, 1), (0, -1), (1, 1), (1, -1)]):
        for column, frame in ((0, 0), (3, 7), (7, 16)):  # first, between, last
            top, left = row * rows, column * columns
            found = picture[:, top : top + 16, left : left + 24]
            assert torch.equal(found, to_bytes(sign * clips[clip, :, frame]))


def test_samples_are_a_png_and_a_video(tmp_path: Path, clips: torch.Tensor) -> None:
    png, mp4 = write_samples(tmp_path / "samples", "step-100", clips, clips * 0.5, fps=5)
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == [
        "step-100.mp4",
        "step-100.png",
    ]
    pixels = torch.from_numpy(matplotlib.image.imread(png)[..., :3])
    expected = strip(clips, clips * 0.5).permute(1, 2, 0).float() / 255
    torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-6)
    info = scan_video(mp4)
    assert (info.num_frames, info.height, info.width) == (17, 2 * 16, 2 * 24 + GAP)


def test_the_video_has_each_clip_in_its_place(tmp_path: Path) -> None:
    levels = torch.tensor([[-0.8, -0.3], [0.2, 0.7]])  # of each clip and of its reconstruction
    clips, reconstructions = (
        level[:, None, None, None, None].expand(2, 3, 5, 16, 24) for level in levels.T
    )
    _, mp4 = write_samples(tmp_path, "x", clips, reconstructions)
    frame = read_frames(mp4, [2])[0].float()
    for row in range(2):
        for column, left in enumerate((0, 24 + GAP)):
            patch = frame[:, row * 16 + 2 : row * 16 + 14, left + 2 : left + 22]
            expected = float(to_bytes(levels[row, column]))
            assert float((patch - expected).abs().max()) < 6


def test_one_image_is_a_sample_too(tmp_path: Path, clips: torch.Tensor) -> None:
    png, mp4 = write_samples(tmp_path, "image", clips[:1, :, :1], clips[:1, :, :1])
    assert matplotlib.image.imread(png).shape[:2] == (32 + GAP, 24)
    assert scan_video(mp4).num_frames == 1


@pytest.mark.usefixtures("_unchecked_shapes")
def test_shapes_must_agree(tmp_path: Path, clips: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="expected equal shapes"):
        write_samples(tmp_path, "x", clips, clips[:, :, :4])
    with pytest.raises(ValueError, match="no empty axis"):
        write_samples(tmp_path, "x", clips[:0], clips[:0])
    assert list(tmp_path.iterdir()) == []
