"""What is chosen on the held-out part of the training split, and what the test split says of it."""

import dataclasses
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from probe_eval import runs
from probe_eval.records import (
    MIN_SEEDS,
    RECORD_FILE,
    SELECTION_FILE,
    TEST_FILE,
    Setting,
    check_comparable,
    differences,
    read_record,
    setting_of,
)
from probe_eval.report.names import ARROWS

if TYPE_CHECKING:
    from probe_eval.sweeps.sweep import Cell


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """One number over several seeds."""

    mean: float
    """Mean over the seeds."""
    std: float | None
    """Standard deviation over the seeds, n - 1 in its denominator; none of a single seed."""
    seeds: int
    """How many."""

    @classmethod
    def of(cls, values: Sequence[float]) -> "Score":
        """Of the values of each seed."""
        mean = math.fsum(values) / len(values)
        std = statistics.stdev(values) if len(values) > 1 else None
        return cls(mean=mean, std=std, seeds=len(values))

    def __str__(self) -> str:
        spread = "" if self.std is None else f" +- {self.std:.2g}"
        return f"{self.mean:.4g}{spread}"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The setting of one task and backbone whose held-out score is best."""

    recipe: str
    """Recipe of the task."""
    backbone: str
    """The backbone as the sweep was given it."""
    block: int
    """Block that is read."""
    timestep: int
    """Noise level."""
    peak_lr: float
    """Learning rate at the end of the warm-up."""
    metric: str
    """Name of the score."""
    direction: str
    """Whether `up` or `down` is better."""
    score: Score
    """The best mean over the seeds, on the held-out part of the training split."""
    candidates: int
    """Settings it was chosen from."""
    incomplete: int
    """Settings that lack a seed, and were not looked at."""


def choose(
    recipe: str,
    backbone: str,
    records: Iterable[Mapping[str, Any]],
    seeds: Iterable[int],
) -> Choice | None:
    """The best setting by the mean over all seeds; ties go to the smaller block, then timestep.

    Args:
        recipe: recipe of the task.
        backbone: the backbone as the sweep was given it.
        records: of finished cells of one task and one backbone.
        seeds: a setting that lacks one of these is not looked at.

    Returns:
        None where no setting has all seeds.

    Raises:
        ValueError: if the scores are of different things, or of the test split.
    """
    records, wanted = list(records), sorted(set(seeds))
    check_alike(records)
    values: dict[Setting, dict[int, float]] = defaultdict(dict)
    for record in records:
        if record["split"] != "held-out":
            raise ValueError(
                f"a record of {recipe} on {backbone} is of the {record['split']} split; choosing "
                "by it would tell the test split's number twice"
            )
        values[setting_of(record)][record["seed"]] = record["metric"]["value"]
    complete = {
        setting: Score.of([found[seed] for seed in wanted])
        for setting, found in values.items()
        if all(seed in found for seed in wanted)
    }
    if not complete:
        return None
    direction = records[0]["metric"]["direction"]
    sign = -1.0 if direction == "up" else 1.0
    best = min(complete, key=lambda setting: (sign * complete[setting].mean, setting))
    block, timestep, rate = best
    return Choice(
        recipe=recipe,
        backbone=backbone,
        block=block,
        timestep=timestep,
        peak_lr=rate,
        metric=records[0]["metric"]["name"],
        direction=direction,
        score=complete[best],
        candidates=len(complete),
        incomplete=len(values) - len(complete),
    )


def check_alike(records: Sequence[Mapping[str, Any]]) -> None:
    """Checks that scores can be ranked, and that they are of the same weights.

    Raises:
        ValueError: naming what differs.
    """
    check_comparable(records)
    for record in records[1:]:
        first = records[0]
        one, two = (r["backbone"]["weights_hash"] for r in (first, record))
        if one != two:
            raise ValueError(
                f"records of {first['task']} cannot be ranked: backbone "
                f"{first['backbone']['name']!r} has weights {one} in one and {two} in another"
            )


def setting_of_cell(cell: "Cell") -> Setting:
    """Block, timestep and learning rate of a cell."""
    features = cell.config.features
    return features.block, features.timestep, cell.config.optim.peak_lr


def choose_all(cells: Sequence["Cell"], seeds: Sequence[int]) -> list[Choice]:
    """The choice of every task and backbone that has one, from the records of its cells."""
    choices = []
    for (recipe, backbone), members in grouped(cells).items():
        choice = choose(recipe, backbone, read_records(members, RECORD_FILE), seeds)
        if choice is not None:
            choices.append(choice)
    return choices


def grouped(cells: Sequence["Cell"]) -> dict[tuple[str, str], list["Cell"]]:
    """Cells by what a setting is chosen for, in order."""
    groups: dict[tuple[str, str], list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[cell.group].append(cell)
    return groups


def read_records(cells: Sequence["Cell"], name: str) -> list[dict[str, Any]]:
    """Records of the cells that have one of this name."""
    paths = [cell.output / name for cell in cells]
    return [read_record(path) for path in paths if path.is_file()]


def chosen_cells(cells: Sequence["Cell"], choices: Sequence[Choice]) -> list["Cell"]:
    """The cells of the chosen settings, all seeds."""
    settings = {
        (choice.recipe, choice.backbone): (choice.block, choice.timestep, choice.peak_lr)
        for choice in choices
    }
    return [cell for cell in cells if settings.get(cell.group) == setting_of_cell(cell)]


def write_selection(output: Path, choices: Sequence[Choice]) -> list[str]:
    """Writes what is chosen; what an earlier sweep chose otherwise stays in the file.

    Returns:
        A phrase for each choice that is another than before: its test score is then not the first
        that was looked at.
    """
    path = output / SELECTION_FILE
    before = runs.read_json(path) if path.is_file() else {"chosen": [], "earlier": []}
    chosen = [dataclasses.asdict(choice) for choice in choices]
    earlier, changed = list(before["earlier"]), []
    for old in before["chosen"]:
        for new in chosen:
            if (old["recipe"], old["backbone"]) == (new["recipe"], new["backbone"]) and any(
                old[name] != new[name] for name in ("block", "timestep", "peak_lr")
            ):
                earlier.append(old)
                changed.append(
                    f"{new['recipe']} on {new['backbone']}: block {old['block']}, timestep "
                    f"{old['timestep']}, peak_lr {old['peak_lr']:g} before"
                )
    kept = {(choice.recipe, choice.backbone) for choice in choices}
    chosen += [old for old in before["chosen"] if (old["recipe"], old["backbone"]) not in kept]
    value = {"chosen": chosen, "earlier": earlier}
    if value != before:
        runs.write_json(path, value)
    return changed


# --- Results -------------------------------------------------------------------------------------


def summarise(cells: Sequence["Cell"], choices: Sequence[Choice] | None) -> list[dict[str, Any]]:
    """Scores over the seeds: of each choice, or of every setting where nothing is to be chosen.

    Args:
        cells: all cells of a sweep.
        choices: what `choose_all` chose; None where the cells were measured on the test split.

    Raises:
        ValueError: if scores that are to be averaged are of different things.
    """
    rows = []
    by_group = {(choice.recipe, choice.backbone): choice for choice in choices or ()}
    for group, members in grouped(cells).items():
        choice = by_group.get(group)
        settings: dict[Setting, list[Cell]] = defaultdict(list)
        for cell in members:
            settings[setting_of_cell(cell)].append(cell)
        for setting, alike in settings.items():
            if choices is not None and (
                choice is None or setting != (choice.block, choice.timestep, choice.peak_lr)
            ):
                continue
            row = row_of(group, setting, read_records(alike, RECORD_FILE))
            if choice is not None:
                row |= {"held_out": dataclasses.asdict(choice.score), "test": None}
                if tests := read_records(alike, TEST_FILE):
                    row["test"] = dataclasses.asdict(score_of(tests))
            if row:
                rows.append(row)
    return rows


def row_of(
    group: tuple[str, str], setting: Setting, records: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """One line of the results as plain data; nothing where there are no records."""
    measured = [record for record in records if record["split"] == "test"]
    if not records:
        return {}
    metric = records[0]["metric"]
    return {
        "task": group[0],
        "backbone": group[1],
        "block": setting[0],
        "timestep": setting[1],
        "peak_lr": setting[2],
        "metric": metric["name"],
        "direction": metric["direction"],
        "chance": metric["chance"],
        "held_out": None,
        "test": dataclasses.asdict(score_of(measured)) if measured else None,
    }


def score_of(records: Sequence[Mapping[str, Any]]) -> Score:
    """Mean and spread of records that differ in nothing but the seed.

    Raises:
        ValueError: naming what else differs.
    """
    for record in records[1:]:
        if found := differences(records[0], record, replicates=True):
            raise ValueError(
                f"records of {record['task']} cannot be averaged over seeds: {'; '.join(found)}"
            )
    return Score.of([record["metric"]["value"] for record in records])


def results_table(rows: Sequence[Mapping[str, Any]], *, held_out: bool) -> Table:
    """Results for people; `!` marks scores of fewer than three seeds."""
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("task", "backbone"):
        table.add_column(name)
    for name in ("block", "timestep", "peak lr"):
        table.add_column(name, justify="right")
    table.add_column("score")
    if held_out:
        table.add_column("held-out", justify="right")
    for name in ("test", "seeds", "chance"):
        table.add_column(name, justify="right")
    for row in rows:
        scores = [row["held_out"], row["test"]] if held_out else [row["test"]]
        seeds = min(score["seeds"] for score in scores if score)
        table.add_row(
            *(row["task"], row["backbone"], str(row["block"]), str(row["timestep"])),
            *(f"{row['peak_lr']:g}", f"{row['metric']} {ARROWS[row['direction']]}"),
            *("-" if score is None else str(Score(**score)) for score in scores),
            f"{seeds}{'' if seeds >= MIN_SEEDS else ' !'}",
            "-" if row["chance"] is None else f"{row['chance']:.4g}",
        )
    return table
