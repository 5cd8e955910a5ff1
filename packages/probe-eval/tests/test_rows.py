"""Rows average over seeds alone, groups hold what may be ranked, and one row stands for a model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probe_eval.records import write_record
from probe_eval.report.rows import (
    choose_rows,
    group_records,
    read_groups,
    read_selections,
    relative,
)
from probe_eval.report.tables import FEW, score_text
from probe_eval.runs import write_json

Make = Callable[..., dict[str, Any]]
VALUES = [0.25, 0.5, 0.375]


def seeds(make: Make, values: list[float], **fields: Any) -> list[dict[str, Any]]:
    """One record per seed."""
    return [
        make({"metric.value": value, "seed": seed, **fields}) for seed, value in enumerate(values)
    ]


def test_a_row_holds_numpys_statistics(make_record: Make) -> None:
    (group,) = group_records(seeds(make_record, VALUES))
    (row,) = group.rows
    assert (row.values, row.count) == (VALUES, 3)
    assert row.mean == pytest.approx(np.mean(VALUES))
    assert row.std == pytest.approx(np.std(VALUES, ddof=1))
    assert (group.label, group.metric) == ("action", "top-1 accuracy \N{UPWARDS ARROW}")


def test_one_seed_has_no_spread(make_record: Make) -> None:
    (group,) = group_records([make_record()])
    assert group.rows[0].std is None


def test_only_seeds_are_averaged(make_record: Make) -> None:
    records = [
        *seeds(make_record, [0.1, 0.2]),
        *seeds(make_record, [0.7, 0.8], **{"features.block": 8}),
        *seeds(make_record, [0.3], **{"features.block": 8, "optim.peak_lr": 1.0}),
        *seeds(make_record, [0.4], **{"backbone.name": "i-walt"}),
    ]
    (group,) = group_records(records)
    assert [(row.backbone, row.setting[0], row.count) for row in group.rows] == [
        ("i-walt", 4, 1),
        ("v-walt", 4, 2),
        ("v-walt", 8, 2),
        ("v-walt", 8, 1),
    ]
    assert [row.best for row in group.rows] == [False, False, True, False]


def test_lower_is_better_where_it_is(make_record: Make) -> None:
    fields = {"metric.direction": "down"}
    records = seeds(make_record, [0.1], **fields)
    records += seeds(make_record, [0.2], **fields, **{"features.block": 8})
    (group,) = group_records(records)
    assert [row.best for row in group.rows] == [True, False]


def test_splits_controls_and_tasks_are_groups_of_their_own(make_record: Make) -> None:
    held_out = {"split": "held-out", "held_out": 0.1}
    records = [
        make_record(held_out),
        make_record(shuffled_labels=True),
        make_record(task="shape"),
        make_record(),
    ]
    groups = group_records(records)
    assert [(g.label, g.split, g.shuffled) for g in groups] == [
        ("action", "test", False),
        ("shape", "test", False),
        ("action", "test", True),
        ("action", "held-out", False),
    ]


def test_tasks_of_several_data_sets_are_told_apart(make_record: Make) -> None:
    one, other = {"dataset.name": "ucf", "dataset.test_name": "hmdb"}, {"dataset.name": "ssv2"}
    records = [make_record(one), make_record(other), make_record()]
    assert [group.label for group in group_records(records)] == [
        "SSv2",
        "action (moving_shapes)",
        "action (ucf, hmdb)",
    ]
    groups = group_records([make_record(one, recipe="kinetics400"), make_record(recipe="mine")])
    assert [group.label for group in groups] == ["K400", "mine"]


def test_what_cannot_be_compared_is_refused_with_the_reason(make_record: Make) -> None:
    records = [make_record(), make_record({"optim.steps": 9})]
    with pytest.raises(ValueError, match=r"action cannot be compared: optim\.steps is 4 in one, 9"):
        group_records(records)
    groups = group_records(records, separate=True)
    assert len({group.key for group in groups}) == 2
    assert sorted(g.label for g in groups) == sorted(f"action [{g.key[:6]}]" for g in groups)


def test_the_same_result_twice_counts_once(make_record: Make) -> None:
    (group,) = group_records([make_record(), make_record({"config.output": "copy"})])
    assert group.rows[0].count == 1


def test_two_results_of_one_cell_are_refused(make_record: Make) -> None:
    other = make_record({"metric.value": 0.75, "config.output": "again"})
    with pytest.raises(ValueError, match=r"seed 0 has two results, 0\.5 and 0\.75 .*and again"):
        group_records([make_record(), other])


def test_a_damaged_record_is_named(make_record: Make, tmp_path: Path) -> None:
    write_record(tmp_path / "a" / "record.json", make_record())
    for name in ("b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "record.json").write_text("{")
    with pytest.raises(ValueError, match=r"b/record\.json is not valid .*\(and 1 more\); `probe-"):
        read_groups([tmp_path])


def test_no_records_at_all_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"there is no record of a probe below {tmp_path}"):
        read_groups([tmp_path])


# --- One row for each backbone -------------------------------------------------------------------


@pytest.fixture
def swept(make_record: Make) -> list[dict[str, Any]]:
    """Held-out records of two blocks, of which 8 is better; test records, of which 4 is."""
    held_out = {"split": "held-out", "held_out": 0.1}
    return [
        make_record({**fields, "held_out": 0.1, "features.block": block, "metric.value": value})
        for fields, block, value in (
            (held_out, 4, 0.5),
            (held_out, 8, 0.75),
            ({}, 4, 0.9),
            ({}, 8, 0.7),
        )
    ]


def test_held_out_clips_choose_the_row(swept: list[dict[str, Any]]) -> None:
    test, held_out = groups = group_records(swept)
    (choice,) = choose_rows(test, groups, []).values()
    assert (choice.row.setting[0], choice.optimistic) == (8, False)
    (choice,) = choose_rows(held_out, groups, []).values()
    assert (choice.row.setting[0], choice.optimistic) == (8, True)


def test_what_a_sweep_chose_goes_before(swept: list[dict[str, Any]], tmp_path: Path) -> None:
    chosen = {"recipe": "x", "backbone": "v-walt", "block": 4, "timestep": 200, "peak_lr": 3e-4}
    write_json(tmp_path / "s" / "selection.json", {"chosen": [chosen], "earlier": []})
    groups = group_records(swept)
    (choice,) = choose_rows(groups[0], groups, read_selections([tmp_path])).values()
    assert (choice.row.setting[0], choice.optimistic) == (4, False)


def test_a_choice_by_the_numbers_themselves_is_marked(swept: list[dict[str, Any]]) -> None:
    groups = group_records(swept[2:])
    (choice,) = choose_rows(groups[0], groups, []).values()
    assert (choice.row.setting[0], choice.optimistic) == (4, True)


@pytest.mark.parametrize(
    ("value", "baseline", "up", "percent"),
    [(0.51, 0.36, True, 41.666667), (0.826, 2.095, False, 60.572792), (1.0, 0.0, True, None)],
)
def test_relative_performance(value: float, baseline: float, up: bool, percent: float) -> None:
    assert relative(value, baseline, up=up) == pytest.approx(percent)


def test_a_lucky_seed_chooses_nothing(make_record: Make) -> None:
    held = {"split": "held-out", "held_out": 0.1}
    kept = [
        *seeds(make_record, [0.5, 0.25, 0.75], **held),
        *seeds(make_record, [0.75], **{**held, "features.block": 8}),
    ]
    tested = [make_record({"held_out": 0.1, "features.block": block}) for block in (4, 8)]
    groups = group_records([*kept, *tested])
    (choice,) = choose_rows(groups[0], groups, []).values()
    assert (groups[0].split, choice.row.setting[0], choice.optimistic) == ("test", 4, False)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "0.500 (1)"), (12.3, "12.300 (1)"), (0.0, "0.000 (1)"), (-0.00042, "-0.00042 (1)")],
)
def test_a_small_score_is_not_written_as_none(make_record: Make, value: float, text: str) -> None:
    (group,) = group_records([make_record({"metric.value": value})])
    assert score_text(group.rows[0]).rstrip(FEW) == text


def test_a_recipe_on_another_data_set_has_a_label_of_its_own(make_record: Make) -> None:
    """Else its table would take the place of the other's."""
    records = [make_record({"recipe": "ssv2", "dataset.name": name}) for name in ("ssv2", "mine")]
    found = {group.label for group in group_records(records)}
    assert found == {"SSv2 (ssv2, moving_shapes)", "SSv2 (mine, moving_shapes)"}
