"""The page: one file that needs no network and says what the records say."""

import copy
import dataclasses
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from probe_eval.config import OptimConfig
from probe_eval.report.page import summarise, write_page
from probe_eval.runs import write_json

Make = Callable[..., dict[str, Any]]
SCORES = {
    ("action", "i-walt", False): [0.25, 0.5, 0.375],
    ("action", "v-walt", False): [0.9, 0.8, 1.0],
    ("action", "v-walt", True): [0.125],
    ("shape", "v-walt", False): [0.5, 0.75],
}
NASTY = "<b>dog & 'cat' {{ 7 }}"


def plant(folder: Path, make_record: Make) -> None:
    """The records of SCORES, as a demo would leave them."""
    for (task, backbone, shuffled), values in SCORES.items():
        for seed, value in enumerate(values):
            record = make_record(task=task, seed=seed, shuffled_labels=shuffled)
            record["metric"]["value"] = value
            record["backbone"]["name"] = backbone
            record["config"]["seed"] = seed
            write_json(folder / f"{task}-{backbone}-{shuffled}-{seed}" / "record.json", record)


@pytest.fixture
def results(tmp_path: Path, make_record: Make) -> Path:
    """A results folder with everything that the page shows."""
    plant(tmp_path / "probes", make_record)
    optim = dataclasses.asdict(OptimConfig(steps=10, batch_size=2, warmup_steps=1))
    for name in ("tokenizer", "i-walt", "v-walt"):
        model = {
            "name": name,
            "num_parameters": 12345,
            "optim": optim,
            "losses": [[1, 1.0], [10, 0.25]],
            "seconds_since_start_or_resume": 2.5,
            "psnr": 21.5,
        }
        write_json(tmp_path / "pretrained" / name / "model.json", model)
    (tmp_path / "show").mkdir()
    matplotlib.image.imsave(tmp_path / "show" / f"{NASTY}.png", np.eye(4))
    return tmp_path


class Reader(HTMLParser):
    """Links, text, and the rows of tables."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.rows: list[list[str]] = []
        self.text = ""
        self.in_cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        kinds = ("src", "href", "srcset", "action", "data", "poster")
        self.links += [value or "" for name, value in attrs if name in kinds]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

        self.in_cell = tag in ("td", "th")

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.in_cell:
            self.rows[-1][-1] += data


@pytest.fixture
def page(results: Path) -> tuple[str, Reader]:
    """The page as text, and as its reader sees it."""
    write_page(results, results / "index.html")
    html = (results / "index.html").read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(html)
    return html, reader


def test_the_page_needs_nothing_else(page: tuple[str, Reader]) -> None:
    html, reader = page
    assert len(reader.links) == 3
    assert all(link.startswith("data:image/png;base64,") for link in reader.links)
    markup = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", html)
    assert not re.search(r"https?:|//|@import|url\(", markup)
    assert reader.tags.isdisjoint({"script", "link", "iframe", "object"})


def test_names_are_escaped(page: tuple[str, Reader]) -> None:
    html, reader = page
    assert "b" not in reader.tags
    assert NASTY not in html
    assert NASTY in reader.text


def test_rows_are_the_statistics_of_the_records(page: tuple[str, Reader]) -> None:
    _, reader = page
    names = {"i-walt": "I-WALT", "v-walt": "V-WALT"}
    expected = []
    for (task, backbone, shuffled), values in SCORES.items():
        spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
        expected.append(
            [
                task,
                names[backbone],
                "shuffled" if shuffled else "true",
                str(len(values)),
                f"{np.mean(values):.3f} \N{PLUS-MINUS SIGN} {spread:.3f}",
                "0.250",
            ]
        )
    assert [row for row in reader.rows if row[0] in ("action", "shape")] == expected


def test_summary_holds_numpys_statistics(tmp_path: Path, make_record: Make) -> None:
    plant(tmp_path, make_record)
    rows = summarise(tmp_path)
    assert [(row["task"], row["backbone"], row["shuffled"]) for row in rows] == list(SCORES)
    for row, values in zip(rows, SCORES.values(), strict=True):
        assert row["count"] == len(values)
        assert row["mean"] == pytest.approx(np.mean(values))
        assert row["std"] == pytest.approx(np.std(values, ddof=1) if len(values) > 1 else 0.0)


CHANGES = [
    ("dataset", "train", "fingerprint"),
    ("dataset", "validation", "evaluated"),
    ("backbone", "weights_hash"),
    ("features", "block"),
    ("features", "timestep"),
    ("features", "noise_seed"),
    ("readout", "num_parameters"),
    ("metric", "name"),
    ("metric", "chance"),
    ("config", "optim", "peak_lr"),
    ("config", "optim", "steps"),
    ("config", "readout", "num_heads"),
    ("config", "readout", "time"),
]


@pytest.mark.parametrize("path", CHANGES, ids=".".join)
def test_records_that_differ_in_more_than_the_seed_are_not_mixed(
    tmp_path: Path, make_record: Make, path: tuple[str, ...]
) -> None:
    write_json(tmp_path / "a" / "record.json", make_record(seed=0))
    other = copy.deepcopy(make_record(seed=1))
    place: Any = other
    for name in path[:-1]:
        place = place[name]
    old = place[path[-1]]
    place[path[-1]] = f"{old} too" if isinstance(old, str) else old + 1
    write_json(tmp_path / "b" / "record.json", other)
    with pytest.raises(ValueError, match=r"action on v-walt .*differ in more than the seed"):
        summarise(tmp_path)


def test_the_seed_and_where_results_lie_may_differ(tmp_path: Path, make_record: Make) -> None:
    for seed in range(2):
        record = make_record(seed=seed)
        record["config"] |= {"seed": seed, "output": f"run{seed}", "checkpoint_every": seed + 1}
        record["metric"]["value"] = 0.25 * seed
        write_json(tmp_path / str(seed) / "record.json", record)
    (row,) = summarise(tmp_path)
    assert (row["count"], row["mean"]) == (2, 0.125)


@pytest.mark.parametrize("field", ["shuffled_labels", "seed"])
def test_a_record_without_a_field_is_named(tmp_path: Path, make_record: Make, field: str) -> None:
    record = make_record()
    del record[field]
    write_json(tmp_path / "a" / "record.json", record)
    with pytest.raises(ValueError, match=rf"record\.json.*{field}"):
        summarise(tmp_path)


def test_a_damaged_record_is_named(results: Path) -> None:
    (results / "probes" / "bad").mkdir()
    (results / "probes" / "bad" / "record.json").write_text(json.dumps({"schema_version": 1}))
    with pytest.raises(ValueError, match=r"bad/record\.json lacks the field"):
        write_page(results, results / "index.html")
    assert not (results / "index.html").exists()


def test_no_records_at_all_are_an_error(results: Path, tmp_path: Path) -> None:
    for path in (results / "probes").rglob("record.json"):
        path.unlink()
    with pytest.raises(ValueError, match="there is no record below"):
        write_page(results, results / "index.html")
