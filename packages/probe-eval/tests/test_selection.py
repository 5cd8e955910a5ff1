"""Choosing on held-out clips, and what is said of it."""

import dataclasses
import io
import itertools
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from probe_eval import records
from probe_eval.sweeps.selection import (
    Score,
    choose,
    choose_all,
    chosen_cells,
    results_table,
    summarise,
    write_selection,
)

MakeRecord = Callable[..., dict[str, Any]]
Values = dict[tuple[int, int, float], Sequence[float | None]]


@pytest.fixture
def held_out(make_record: MakeRecord) -> Callable[..., list[dict[str, Any]]]:
    """Function that makes records of (block, timestep, rate) -> value of each seed."""

    def make(values: Values, direction: str = "up", **more: Any) -> list[dict[str, Any]]:
        return [
            make_record(
                {
                    "split": "held-out",
                    "held_out": 0.1,
                    "features.block": block,
                    "features.timestep": timestep,
                    "optim.peak_lr": rate,
                    "seed": seed,
                    "metric.value": value,
                    "metric.direction": direction,
                    **more,
                }
            )
            for (block, timestep, rate), of_seeds in values.items()
            for seed, value in enumerate(of_seeds)
            if value is not None
        ]

    return make


def picked(found: Any) -> tuple[int, int, float]:
    return found.block, found.timestep, found.peak_lr


@pytest.mark.parametrize("direction", ["up", "down"])
def test_the_best_mean_over_all_seeds_is_chosen(held_out: Callable, direction: str) -> None:
    """Against NumPy, on random scores, in any order of the records."""
    chance = random.Random(0)
    for _ in range(20):
        settings = list(itertools.product((0, 2, 4), (0, 200), (1e-3, 3e-3)))
        values = {setting: [chance.random() for _ in range(3)] for setting in settings}
        records = held_out(values, direction)
        chance.shuffle(records)
        found = choose("recipe", "v-walt", records, (0, 1, 2))
        means = np.array([np.mean(values[setting]) for setting in settings])
        best = means.argmax() if direction == "up" else means.argmin()
        assert found is not None
        assert picked(found) == settings[best]
        assert found.score.mean == pytest.approx(means[best], rel=1e-12)
        assert found.score.std == pytest.approx(np.std(values[settings[best]], ddof=1), rel=1e-9)
        assert (found.candidates, found.incomplete) == (12, 0)


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_tie_goes_to_the_smaller_block_then_timestep_then_rate(
    held_out: Callable, direction: str
) -> None:
    settings = [(4, 0, 1e-3), (2, 200, 1e-4), (2, 50, 1e-2), (2, 50, 1e-3)]
    for order in itertools.permutations(settings):
        records = held_out({setting: [0.5, 0.25, 0.125] for setting in order}, direction)
        assert picked(choose("r", "b", records, (0, 1, 2))) == (2, 50, 1e-3)


def test_a_mean_does_not_depend_on_the_order_of_the_seeds() -> None:
    values = [0.1, 0.2, 0.3, 1e-17, 0.7]
    means = {Score.of(order).mean for order in itertools.permutations(values)}
    assert len(means) == 1


def test_a_setting_that_lacks_a_seed_is_not_looked_at(held_out: Callable) -> None:
    """Else a lucky seed of an unfinished setting would win."""
    values: Values = {(0, 0, 1e-3): [0.1, 0.2, 0.3], (2, 0, 1e-3): [0.9, None, 0.9]}
    found = choose("r", "b", held_out(values), (0, 1, 2))
    assert picked(found) == (0, 0, 1e-3)
    assert (found.candidates, found.incomplete) == (1, 1)
    assert picked(choose("r", "b", held_out(values), (0, 2))) == (2, 0, 1e-3)
    assert choose("r", "b", held_out(values), (0, 1, 2, 3)) is None
    assert choose("r", "b", [], (0, 1, 2)) is None


def test_seeds_beyond_those_asked_for_do_not_count(held_out: Callable) -> None:
    values: Values = {(0, 0, 1e-3): [0.1, 0.1, 0.1, 0.9], (2, 0, 1e-3): [0.2, 0.2, 0.2, 0.0]}
    found = choose("r", "b", held_out(values), (0, 1, 2))
    assert picked(found) == (2, 0, 1e-3)
    assert found.score.seeds == 3


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dataset.train.fingerprint", "other", "fingerprint"),
        ("metric.variant", "strided", "variant"),
        ("metric.direction", "down", "direction"),
        ("shuffled_labels", True, "shuffled"),
        ("backbone.weights_hash", "def", "has weights abc in one and def in another"),
        ("split", "test", "split"),
    ],
)
def test_scores_of_different_things_are_not_ranked(
    held_out: Callable, field: str, value: Any, message: str
) -> None:
    mixed = held_out({(0, 0, 1e-3): [0.1]}) + held_out({(2, 0, 1e-3): [0.2]}, **{field: value})
    with pytest.raises(ValueError, match=message):
        choose("r", "b", mixed, (0,))


def test_nothing_is_chosen_by_the_test_split(held_out: Callable) -> None:
    with pytest.raises(ValueError, match="would tell the test split's number twice"):
        choose("r", "b", held_out({(0, 0, 1e-3): [0.1]}, split="test"), (0,))


# --- With cells and files ------------------------------------------------------------------------


@pytest.fixture
def sweep(config: Any, held_out: Callable, tmp_path: Path) -> Callable[..., list[Any]]:
    """Function that writes the records of a sweep of one recipe, and returns its cells."""
    from probe_eval.sweeps.sweep import Cell

    def make(values: Values, **more: Any) -> list[Any]:
        cells = []
        for record in held_out(values, **more):
            features, optim = record["features"], record["optim"]
            place = (
                f"{features['block']}-{features['timestep']}-{optim['peak_lr']}-{record['seed']}"
            )
            cell = dataclasses.replace(
                config,
                features=dataclasses.replace(
                    config.features, block=features["block"], timestep=features["timestep"]
                ),
                optim=dataclasses.replace(config.optim, peak_lr=optim["peak_lr"]),
                seed=record["seed"],
                output=str(tmp_path / "cells" / place),
            )
            cells.append(Cell(recipe="synthetic-action", backbone="v-walt", config=cell))
            records.write_record(Path(cell.output, "record.json"), record)
        return cells

    return make


def write_tests(cells: Sequence[Any], values: Sequence[float]) -> None:
    """Test records of cells."""
    for cell, value in zip(cells, values, strict=True):
        record = records.read_record(cell.output / "record.json")
        record["split"] = "test"
        record["metric"]["value"] = value
        records.write_record(cell.output / "test.json", record)


def test_all_seeds_of_the_choice_are_tested_and_summed_up(sweep: Callable) -> None:
    cells = sweep({(0, 0, 1e-3): [0.1, 0.2, 0.3], (2, 50, 1e-3): [0.5, 0.6, 0.7]})
    choices = choose_all(cells, (0, 1, 2))
    chosen = chosen_cells(cells, choices)
    assert [(cell.config.features.block, cell.config.seed) for cell in chosen] == [
        (2, 0),
        (2, 1),
        (2, 2),
    ]
    (row,) = summarise(cells, choices)
    assert row["test"] is None
    write_tests(chosen, [0.25, 0.5, 0.75])
    (row,) = summarise(cells, choices)
    assert (row["block"], row["timestep"], row["peak_lr"]) == (2, 50, 1e-3)
    assert row["held_out"]["mean"] == pytest.approx(0.6)
    assert row["test"] == {"mean": 0.5, "std": 0.25, "seeds": 3}
    assert row["chance"] == 0.25


def test_without_held_out_clips_every_setting_is_a_row(sweep: Callable) -> None:
    values: Values = {(0, 0, 1e-3): [0.25, 0.75], (2, 0, 1e-3): [0.5, None]}
    cells = sweep(values, split="test", held_out=0.0)
    rows = summarise(cells, None)
    assert [(row["block"], row["test"]["mean"], row["test"]["seeds"]) for row in rows] == [
        (0, 0.5, 2),
        (2, 0.5, 1),
    ]
    assert rows[1]["test"]["std"] is None


def test_a_later_choice_does_not_hide_an_earlier_one(sweep: Callable, tmp_path: Path) -> None:
    cells = sweep({(0, 0, 1e-3): [0.5]})
    assert write_selection(tmp_path, choose_all(cells, (0,))) == []
    first = (tmp_path / "selection.json").stat()
    assert write_selection(tmp_path, choose_all(cells, (0,))) == []
    assert (tmp_path / "selection.json").stat().st_ino == first.st_ino, "written again"
    more = cells + sweep({(2, 0, 1e-3): [0.75]})
    (phrase,) = write_selection(tmp_path, choose_all(more, (0,)))
    assert "block 0, timestep 0, peak_lr 0.001 before" in phrase
    found = json.loads((tmp_path / "selection.json").read_text())
    assert [choice["block"] for choice in found["chosen"]] == [2]
    assert [choice["block"] for choice in found["earlier"]] == [0]


def test_seeds_of_different_weights_are_not_averaged(sweep: Callable) -> None:
    one = sweep({(0, 0, 1e-3): [0.5]}, split="test")
    two = sweep({(0, 0, 1e-3): [None, 0.5]}, split="test", **{"backbone.weights_hash": "def"})
    with pytest.raises(ValueError, match=r"cannot be averaged over seeds: backbone.weights_hash"):
        summarise(one + two, None)


def test_a_table_marks_what_has_too_few_seeds(sweep: Callable) -> None:
    console = Console(width=120, file=io.StringIO())
    cells = sweep({(0, 0, 1e-3): [0.5, 0.25]})
    choices = choose_all(cells, (0, 1))
    console.print(results_table(summarise(cells, choices), held_out=True))
    text = console.file.getvalue()
    assert "0.375 +- 0.18" in text
    assert "2 !" in text
    assert "top1 \u2191" in text


def test_a_table_counts_the_seeds_of_the_test_score(sweep: Callable) -> None:
    """Not those of the held-out score, of which there are more where a test is still to come."""
    cells = sweep({(0, 0, 1e-3): [0.5, 0.25, 0.75]})
    (row,) = summarise(cells, choose_all(cells, (0, 1, 2)))
    row["test"] = dataclasses.asdict(Score.of([0.5, 0.25]))
    console = Console(width=120, file=io.StringIO())
    console.print(results_table([row], held_out=True))
    assert "2 !" in console.file.getvalue()
