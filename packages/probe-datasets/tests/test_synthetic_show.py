"""The picture of a clip with its labels, and the command that draws it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from probe_datasets.clips import ClipConfig
from probe_datasets.synthetic import SyntheticWorld
from probe_datasets.synthetic.show import (
    CELL,
    GAP,
    LEFT,
    TOP,
    colour_depth,
    draw_strip,
    identity_colour,
    main,
    point_owners,
)

WORLD = SyntheticWorld(clip=ClipConfig(num_frames=5, size=CELL))


@pytest.fixture(scope="module")
def strip() -> np.ndarray:
    return np.asarray(draw_strip(WORLD, 7, num_columns=3))


def cell(strip: np.ndarray, row: int, column: int) -> np.ndarray:
    top, left = TOP + row * (CELL + GAP), LEFT + column * (CELL + GAP)
    return strip[top : top + CELL, left : left + CELL]


def test_each_row_shows_its_label(strip: np.ndarray) -> None:
    """Frames 0, 2 and 4: the video, depth, and the masks over a grey picture."""
    example = WORLD[7]
    for column, t in enumerate((0, 2, 4)):
        video = ((example["video"][:, t].permute(1, 2, 0).numpy() + 1) * 127.5).round()
        assert (cell(strip, 0, column) == video).all(-1).mean() > 0.8
        depth = colour_depth(example["depth"].numpy())[t]
        assert np.array_equal(cell(strip, 2, column), depth)
        masks = cell(strip, 3, column).astype(int)
        coloured = np.ptp(masks, axis=-1) > 12
        assert (coloured == (example["segments"][t].numpy() > 0)).mean() > 0.98


def test_boxes_have_the_colours_of_their_instances(strip: np.ndarray) -> None:
    example = WORLD[7]
    x0, y0, x1, y1 = (example["boxes"][0, 0].numpy() * CELL).round().astype(int)
    picture = cell(strip, 0, 0)
    for row, column in ((y0, x0), (y1 - 1, x1 - 1), (y0, x1 - 1), (y1 - 1, x0)):
        assert tuple(picture[row, column]) == identity_colour(0)


def test_points_belong_to_what_they_are_on() -> None:
    """In every frame in which a point is well inside, the mask there is that of its owner."""
    example = WORLD[7]
    owners = point_owners(example)
    assert (owners >= 0).any()
    assert (owners < 0).any()
    p, t = example["points_visible"].numpy().nonzero()
    column, row = (example["points"].numpy()[p, t] * CELL).astype(int).T
    there = example["segments"].numpy()[t, row, column].astype(int) - 1
    assert (there == owners[p]).mean() > 0.9


def test_what_is_nearer_is_paler() -> None:
    colours = colour_depth(np.linspace(1.0, 8.0, 50)).astype(int).sum(-1)
    assert (np.diff(colours) <= 0).all()


def test_the_command_writes_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "clip.png"
    flags = ["--size", "32", "--num-frames", "1", "--shadows", "--num-points", "0", "--index", "3"]
    assert main(["--show", str(path), *flags]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.height > 5 * CELL


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--index", "20000"], "clip 20000 is outside the split of 12960 clips"),
        (["--split", "all"], "split 'all' must be one of train, validation, test"),
        (["--ambient", "3"], "ambient 3.0 must be from 0 to 1"),
        (["--columns", "0"], "columns 0 must be at least 1"),
        (["--num-frames", "0"], "num_frames 0 must be at least 1"),
    ],
)
def test_wrong_arguments_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    path = tmp_path / "clip.png"
    assert main(["--show", str(path), "--size", "16", *flags]) == 2
    problem = capsys.readouterr().err
    assert problem.startswith(f"error: {words}")
    assert problem.count("\n") == 1
    assert not path.exists()


def test_a_folder_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "none" / "clip.png"
    assert main(["--show", str(path), "--size", "16"]) == 2
    assert capsys.readouterr().err == f"error: cannot write {path}: No such file or directory\n"
