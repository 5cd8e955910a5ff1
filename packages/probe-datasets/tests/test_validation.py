"""What `validate_split` counts."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from probe_datasets.validation import validate_split


@pytest.fixture
def clips(write_video: Callable[..., Path], tmp_path: Path) -> Path:
    """Something-Something-v2 with three good videos, one missing, one cut and one damaged."""
    names = [f"{i}" for i in range(6)]
    for name in names[:5]:
        write_video(tmp_path / "videos" / f"{name}.webm", codec="libvpx-vp9", num_frames=12)
    cut = tmp_path / "videos" / "3.webm"
    cut.write_bytes(cut.read_bytes()[:-40])
    damaged = tmp_path / "videos" / "4.webm"
    content = bytearray(damaged.read_bytes())
    content[-300:-200] = bytes(100)
    damaged.write_bytes(content)
    entries = [{"id": name, "template": "Holding [something]"} for name in names]
    (tmp_path / "train.json").write_text(json.dumps(entries))
    (tmp_path / "labels.json").write_text(json.dumps({"Holding something": "0"}))
    return tmp_path


def test_every_sample_is_counted_once(clips: Path):
    seen = []
    report = validate_split("ssv2", clips, "train", progress=lambda *state: seen.append(state))
    counts = report.coverage
    assert (counts.expected, counts.missing, counts.failed) == (6, 1, 1)
    assert counts.found == 4
    assert report.decoded == 0
    assert [name for name, _ in counts.reasons] == ["5", "3"]
    assert report.layout == "videos by id, annotations in train.json"
    assert report.published == 168_913
    assert report.share == 4 / 168_913
    assert seen[-1] == (6, 6)


def test_reading_finds_what_the_index_cannot(clips: Path):
    whole = validate_split("ssv2", clips, "train", decode=-1)
    assert whole.decoded == 4
    assert whole.coverage.found + whole.coverage.failed + whole.coverage.missing == 6
    with_workers = validate_split("ssv2", clips, "train", decode=-1, num_workers=1)
    assert with_workers == whole
    seen = []
    some = validate_split(
        "ssv2", clips, "train", decode=2, reading=lambda *state: seen.append(state)
    )
    assert some.decoded == 2
    assert seen == [(2, 2)]


def test_nothing_usable_is_a_report_and_not_an_error(clips: Path):
    for video in (clips / "videos").iterdir():
        video.write_bytes(b"text")
    report = validate_split("ssv2", clips, "train")
    assert (report.coverage.found, report.coverage.failed, report.coverage.missing) == (0, 5, 1)
    assert report.share == 0


def test_an_unknown_layout_is_told(tmp_path: Path):
    report = validate_split("ssv2", tmp_path, "train")
    assert "holds no annotations" in report.problem
    assert (report.coverage.expected, report.share) == (0, 0)


def test_generated_data_is_whole():
    report = validate_split("moving_shapes", None, "validation", decode=3)
    assert (report.coverage.found, report.decoded, report.share) == (600, 3, 1)


def test_unknown_names_raise(tmp_path: Path):
    with pytest.raises(ValueError, match="did you mean 'ssv2'"):
        validate_split("ssv", tmp_path, "train")
    with pytest.raises(ValueError, match="split 'test'"):
        validate_split("ssv2", tmp_path, "test")
