"""`probe-eval ls`: every record is a line, and what is wrong with the others is said."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from probe_eval.cli import main
from probe_eval.records import comparable_key, write_record

Make = Callable[..., dict[str, Any]]


@pytest.fixture
def results(make_record: Make, tmp_path: Path) -> Path:
    """Four records, one of which compares to no other."""
    for place, fields in enumerate(
        (
            {"features.block": 8, "metric.value": 0.25},
            {"features.block": 4, "metric.value": 0.75},
            {"task": "depth", "metric.direction": "down", "metric.chance": None},
            {"optim.steps": 9, "backbone.name": "i-walt"},
        )
    ):
        write_record(tmp_path / "r" / str(place) / "record.json", make_record(fields))
    return tmp_path / "r"


def listed(capsys: pytest.CaptureFixture, *words: str | Path) -> dict[str, Any]:
    """What `ls --json` says."""
    main(["ls", *map(str, words), "--json"])
    return json.loads(capsys.readouterr().out)


def test_every_record_is_a_line(
    results: Path, make_record: Make, capsys: pytest.CaptureFixture
) -> None:
    assert main(["ls", str(results)]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if "0.7500" in line]
    assert line.split()[:-2] == [
        *("action", "test", "v-walt", "4", "200", "0.0003", "0", "top1", "\N{UPWARDS ARROW}"),
        *("0.7500", "0.2500", comparable_key(make_record())[:6]),
    ]
    assert sum("top1" in line for line in lines) == 4
    assert any("depth" in line and "\N{DOWNWARDS ARROW}" in line for line in lines)


def test_why_records_do_not_compare_is_said(results: Path, capsys: pytest.CaptureFixture) -> None:
    said = listed(capsys, results)["not_comparable"]
    assert [(item["task"], item["differences"]) for item in said] == [
        ("action", ["optim.steps is 4 in one, 9 in the other"])
    ]
    main(["ls", str(results)])
    first, second = (key[:6] for key in said[0]["keys"])
    out = capsys.readouterr().out
    assert f"not comparable: action {first} and {second}: optim.steps is 4 in one, 9" in out


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ("", [0.5, 0.75, 0.25, 0.5]),
        ("--sort value", [0.25, 0.5, 0.5, 0.75]),
        ("--sort value --reverse", [0.75, 0.5, 0.5, 0.25]),
        ("--task depth", [0.5]),
        ("--backbone v-walt --task action --sort block", [0.75, 0.25]),
        ("--block 4 --backbone v-walt --task action", [0.75]),
        ("--timestep 0", []),
        ("--split held-out", []),
    ],
)
def test_lines_are_sorted_and_chosen(
    results: Path, capsys: pytest.CaptureFixture, words: str, values: list[float]
) -> None:
    said = listed(capsys, results, *words.split())
    assert [line["value"] for line in said["records"]] == values


def test_what_is_unusable_is_listed_with_its_reason(
    results: Path, capsys: pytest.CaptureFixture
) -> None:
    path = results / "0" / "record.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1', 1))
    (results / "1" / "record.json").write_text("{")
    assert main(["ls", str(results)]) == 1
    out = capsys.readouterr().out
    assert f"unusable: {path} was edited after it was written" in out
    assert "1/record.json is not valid JSON" in out
    said = listed(capsys, results)
    assert (len(said["records"]), len(said["unusable"])) == (2, 2)


def test_a_folder_without_records(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["ls", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == "no records"
    assert main(["ls", str(tmp_path / "nothing")]) == 2
    assert "nothing does not exist" in capsys.readouterr().err
