"""Curves of a training as a table and as a picture."""

import csv
from pathlib import Path

import matplotlib.image

from probe_eval.report.curves import draw_curves, merge_rows, write_csv

LOSSES = [{"step": 10, "loss": 0.5}, {"step": 20, "loss": 0.25, "r1": 0.0}]
EVALUATIONS = [{"step": 15, "psnr": 20.0, "ssim": 0.5}, {"step": 20, "psnr": 25.0, "ssim": 0.75}]


def test_rows_of_one_step_are_one_row() -> None:
    assert merge_rows(LOSSES, EVALUATIONS) == [
        {"step": 10, "loss": 0.5},
        {"step": 15, "psnr": 20.0, "ssim": 0.5},
        {"step": 20, "loss": 0.25, "r1": 0.0, "psnr": 25.0, "ssim": 0.75},
    ]


def test_the_table_has_a_column_for_each_name(tmp_path: Path) -> None:
    write_csv(merge_rows(LOSSES, EVALUATIONS), tmp_path / "curve.csv")
    with (tmp_path / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "loss", "psnr", "ssim", "r1"]
    assert [row["step"] for row in rows] == ["10", "15", "20"]
    assert (rows[0]["psnr"], rows[2]["psnr"]) == ("", "25.0")


def test_the_picture_shows_something(tmp_path: Path) -> None:
    draw_curves(LOSSES, EVALUATIONS, tmp_path / "a" / "curve.png")
    draw_curves(LOSSES, [], tmp_path / "a" / "empty.png")
    full, empty = (matplotlib.image.imread(p) for p in sorted((tmp_path / "a").iterdir()))
    assert full.shape == empty.shape
    assert (full != empty).any()
    assert [path.name for path in sorted((tmp_path / "a").iterdir())] == ["curve.png", "empty.png"]
