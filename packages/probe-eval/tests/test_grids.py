"""Clips beside one another: every pixel in its place, whole files."""

from pathlib import Path

import pytest
import torch

from probe_datasets import read_frames, scan_video
from probe_eval.report.grids import grid, write_clips
from probe_eval.report.reconstructions import GAP, GAP_LEVEL, frame_rows


def clips_of(number: int, frames: int) -> torch.Tensor:
    """Clips of 8 x 8 of one level each, which rises with clip and frame."""
    level = torch.linspace(-1, 1, number * frames).unflatten(0, (number, 1, frames, 1, 1))
    return level.expand(number, 3, frames, 8, 8)


def test_a_grid_has_every_clip_once_in_reading_order() -> None:
    clips = clips_of(5, 2)
    picture = grid(clips)
    side = 8 + GAP
    assert picture.shape == (2, 3, 2 * side - GAP, 3 * side - GAP)
    found = picture[:, 0, ::side, ::side]
    expected = ((clips[:, 0, :, 0, 0] + 1) * 127.5).round()
    assert torch.equal(found.flatten(1)[:, :5].float(), expected.T)
    assert bool((found[:, 1, 2] == GAP_LEVEL).all())
    assert bool((picture[:, :, 8 : 8 + GAP] == GAP_LEVEL).all())


def test_rows_have_the_first_and_the_last_frame() -> None:
    clips = clips_of(2, 17)
    picture = frame_rows(clips)
    side = 8 + GAP
    assert picture.shape == (3, 2 * side - GAP, 8 * side - GAP)
    assert picture[0, 0, 0] == 0
    assert picture[0, -1, -1] == 255


def test_videos_are_pictures_and_videos_and_images_only_pictures(tmp_path: Path) -> None:
    png, mp4 = write_clips(tmp_path, "many", clips_of(3, 5), fps=4)
    assert png.read_bytes().startswith(b"\x89PNG")
    info = scan_video(mp4)
    assert (info.num_frames, info.fps) == (5, 4)
    assert read_frames(mp4, [0]).shape == (1, 3, 20, 20)
    assert write_clips(tmp_path, "one", clips_of(3, 1)) == [tmp_path / "one.png"]
    assert {path.name for path in tmp_path.iterdir()} == {"many.png", "many.mp4", "one.png"}


def test_no_clips_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\(0, 3, 5, 8, 8\) make no picture"):
        write_clips(tmp_path, "none", torch.zeros(0, 3, 5, 8, 8))
