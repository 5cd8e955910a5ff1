"""`probe-eval validate`: its counts, its words and its exit status."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from probe_eval import cli


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twenty pictures in ImageNet's layout of one class, of which one is empty and one is cut."""
    for split, count in (("train", 14), ("val", 6)):
        folder = tmp_path / split / "n01440764"
        folder.mkdir(parents=True)
        for i in range(count):
            pixels = np.random.default_rng(i).integers(0, 255, (20, 30, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"n01440764_{i}.JPEG")
    (tmp_path / "train" / "n01440764" / "n01440764_3.JPEG").write_bytes(b"")
    cut = tmp_path / "train" / "n01440764" / "n01440764_5.JPEG"
    cut.write_bytes(cut.read_bytes()[:200])
    return tmp_path


def test_the_table_counts_and_names(pictures: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["validate", "folder", str(pictures), "--splits", "all"]
    assert cli.main(words) == 1
    out = capsys.readouterr().out
    assert "holds none of the files looked for" in out
    words = ["validate", "imagenet", str(pictures), "--decode", "-1", "--splits", "train"]
    assert cli.main([*words, "--threshold", "0"]) == 0
    head, row, *rest = capsys.readouterr().out.splitlines()
    assert head.split()[:5] == ["split", "found", "expected", "missing", "unreadable"]
    assert row.split()[0:2] == ["train", "12"]
    assert row.split()[4] == "2"
    assert row.split()[-1] == "1,281,167"
    assert rest[0].startswith("train: layout: ")
    assert any("n01440764_3" in line and "is empty" in line for line in rest)
    assert any("n01440764_5" in line for line in rest)


def test_too_little_is_exit_status_1(pictures: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["validate", "imagenet", str(pictures), "--splits", "validation"]) == 1
    out = capsys.readouterr().out
    assert "0.0% is below the threshold of 95.0%" in out
    assert "49,994 more that were published are not there" in out


def test_a_split_that_cannot_be_opened_has_no_counts(
    pictures: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.rmtree(pictures / "val")
    assert cli.main(["validate", "imagenet", str(pictures), "--splits", "validation"]) == 1
    _, row, problem = capsys.readouterr().out.splitlines()
    assert row.split() == ["validation", *"-" * 6, "50,000"]
    assert "holds no folder of val pictures" in problem


def test_options_reach_the_data_set(pictures: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["validate", "folder", str(pictures), "--splits", "all"]
    assert cli.main([*words, "--options", "media=images", "workers=1", "--threshold", "0"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:3] == ["all", "18", "20"]


def test_programs_read_json(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["validate", "moving_shapes", "--decode", "2", "--json"]) == 0
    reports = json.loads(capsys.readouterr().out)
    assert [report["split"] for report in reports] == ["train", "validation"]
    assert reports[1]["coverage"]["found"] == reports[1]["published"] == 600
    assert reports[0]["decoded"] == 2
    assert reports[0]["share"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["imagenets"], "imagenet"),
        (["imagenet"], "needs root"),
        (["moving_shapes", "--threshold", "2"], "threshold 2"),
        (["moving_shapes", "--splits", "test"], "split 'test'"),
        (["moving_shapes", "--options", "fast"], "NAME=VALUE"),
        (["moving_shapes", "--options", "decode=1"], "NAME=VALUE of a data set's own"),
        (["moving_shapes", "--options", "fast=1"], "no option 'fast'; it has num_clips"),
    ],
)
def test_mistakes_are_told_in_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    assert cli.main(["validate", *words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
