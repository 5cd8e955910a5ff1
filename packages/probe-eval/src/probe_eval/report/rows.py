"""Records become rows: one probe averaged over its seeds, in groups of rows that may be ranked."""

import dataclasses
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from probe_eval.records import (
    SELECTION_FILE,
    Found,
    Setting,
    comparable_key,
    differences,
    find_records,
    problem_of,
    rank,
    replicate_key,
    setting_of,
)
from probe_eval.report.names import BACKBONES, DATASETS, TASKS, axis_label, metric_label
from probe_eval.runs import read_json

SPLITS = ("test", "held-out")

Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One probe with all its seeds."""

    records: tuple[dict[str, Any], ...]
    """Replicates, in the order of their seeds."""
    best: bool = False
    """Whether no row of the group has a better mean."""

    @property
    def first(self) -> dict[str, Any]:
        """A record, for what all of them share."""
        return self.records[0]

    @property
    def values(self) -> list[float]:
        """The metric of each seed."""
        return [float(record["metric"]["value"]) for record in self.records]

    @property
    def count(self) -> int:
        """Seeds."""
        return len(self.records)

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return math.fsum(self.values) / self.count

    @property
    def std(self) -> float | None:
        """Standard deviation over the seeds, with n - 1; none of a single one."""
        return statistics.stdev(self.values) if self.count > 1 else None

    @property
    def backbone(self) -> str:
        """Name of the backbone."""
        return str(self.first["backbone"]["name"])

    @property
    def model(self) -> tuple[str, str]:
        """Name of the backbone and hash of its weights: one checkpoint."""
        return self.backbone, str(self.first["backbone"]["weights_hash"])

    @property
    def setting(self) -> Setting:
        """Block, timestep and learning rate."""
        return setting_of(self.first)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Rows that may be ranked: of one comparable key."""

    label: str
    """Name of the task, as it stands in tables."""
    key: str
    """The comparable key."""
    rows: tuple[Row, ...]
    """By backbone, block, timestep and learning rate."""

    @property
    def first(self) -> dict[str, Any]:
        """A record, for what all of them share."""
        return self.rows[0].first

    @property
    def split(self) -> str:
        """`test` or `held-out`."""
        return str(self.first["split"])

    @property
    def shuffled(self) -> bool:
        """Whether these are controls, trained on shuffled labels."""
        return bool(self.first["shuffled_labels"])

    @property
    def up(self) -> bool:
        """Whether higher is better."""
        return self.first["metric"]["direction"] == "up"

    @property
    def metric(self) -> str:
        """The metric with its variant and direction, for people."""
        metric = self.first["metric"]
        return metric_label(metric["name"], metric["variant"], metric["direction"])

    @property
    def axis(self) -> str:
        """The metric as it stands at an axis."""
        metric = self.first["metric"]
        return axis_label(metric["name"], metric["direction"])

    @property
    def chance(self) -> float | None:
        """What guessing reaches, where that means something."""
        return self.first["metric"]["chance"]


def usable(found: Sequence[Found]) -> list[dict[str, Any]]:
    """The records.

    Raises:
        ValueError: if one of the files is damaged, or there is none.
    """
    problems = [item.problem for item in found if item.problem]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ValueError(
            f"{problems[0]}{more}; `probe-eval ls` lists every record that cannot be used"
        )
    return [item.record for item in found]


def read_groups(folders: Sequence[str | Path], *, separate: bool = False) -> list[Group]:
    """Groups of all records in and below folders.

    Args:
        folders: results folders.
        separate: whether records of one task that cannot be compared make groups of their own.

    Raises:
        FileNotFoundError: if a folder does not exist.
        ValueError: if there is no record, one is damaged, or two of one task cannot be compared.
    """
    records = usable(find_records(folders))
    if not records:
        names = ", ".join(map(str, folders))
        raise ValueError(f"there is no record of a probe below {names}; run a probe first")
    return group_records(records, separate=separate)


def group_records(records: Sequence[dict[str, Any]], *, separate: bool = False) -> list[Group]:
    """Rows of records, in groups that may be ranked: test before held-out, controls last.

    Args:
        records: in any order; the same result twice counts once.
        separate: as for `read_groups`.

    Raises:
        ValueError: if records of one task cannot be compared, naming the fields that differ; or if
            one cell has two results.
    """
    problems: dict[tuple[Any, ...], dict[str, list[dict[str, Any]]]] = {}
    for record in records:
        kinds = problems.setdefault(problem_of(record), {})
        kinds.setdefault(comparable_key(record), []).append(record)
    labels = label_problems(problems)
    groups = []
    for problem, kinds in problems.items():
        if len(kinds) > 1 and not separate:
            one, other = (members[0] for members in list(kinds.values())[:2])
            raise ValueError(
                f"records of {labels[problem]} cannot be compared: "
                f"{'; '.join(differences(one, other))}; report them in separate folders, or give "
                "--separate for one table for each kind"
            )
        for key, members in kinds.items():
            label = f"{labels[problem]} [{key[:6]}]" if len(kinds) > 1 else labels[problem]
            groups.append(Group(label=label, key=key, rows=tuple(rows_of(members))))
    known = {name: place for place, name in enumerate(TASKS.values())}
    return sorted(
        groups,
        key=lambda group: (
            SPLITS.index(group.split),
            group.shuffled,
            known.get(group.label.split(" [")[0], len(known)),
            group.label,
        ),
    )


def label_problems(
    problems: Mapping[tuple[Any, ...], Mapping[str, Sequence[Record]]],
) -> dict[tuple[Any, ...], str]:
    """A name of each task: its recipe's, the study's, or its own, with the data set if need be."""
    datasets = defaultdict(set)
    for task, *names, _, _ in problems:
        datasets[task].add(tuple(names))
    recipes = defaultdict(set)
    for problem, kinds in problems.items():
        recipes[problem[:3]] |= {r["recipe"] for members in kinds.values() for r in members}
    labels = {}
    for problem in problems:
        task, name, *_ = problem
        found = recipes[problem[:3]] - {""}
        if len(found) == 1:
            recipe = next(iter(found))
            labels[problem] = TASKS.get(recipe, recipe)
        elif (task, name) in DATASETS:
            labels[problem] = DATASETS[task, name]
        elif len(datasets[task]) > 1:
            labels[problem] = in_full(task, problem)
        else:
            labels[problem] = task
    # A recipe may have been given another data set.
    alike = Counter((label, *problem[3:]) for problem, label in labels.items())
    return {
        problem: label if alike[label, *problem[3:]] == 1 else in_full(label, problem)
        for problem, label in labels.items()
    }


def in_full(label: str, problem: tuple[Any, ...]) -> str:
    """A label with the data sets of training and test."""
    return f"{label} ({', '.join(dict.fromkeys(problem[1:3]))})"


def rows_of(records: Iterable[dict[str, Any]]) -> list[Row]:
    """Replicates put together, the best row marked.

    Raises:
        ValueError: if one cell has two results.
    """
    cells: dict[str, dict[tuple[int, int], dict[str, Any]]] = {}
    for record in records:
        seeds = cells.setdefault(replicate_key(record), {})
        other = seeds.setdefault((record["seed"], record["order_seed"]), record)
        if other["metric"]["value"] != record["metric"]["value"]:
            places = " and ".join(each["config"].get("output", "?") for each in (other, record))
            raise ValueError(
                f"{record['task']} on {record['backbone']['name']} with seed {record['seed']} has "
                f"two results, {other['metric']['value']:.6g} and "
                f"{record['metric']['value']:.6g} (of {places}); report one of the two folders"
            )
    rows = [Row(records=tuple(seeds[seed] for seed in sorted(seeds))) for seeds in cells.values()]
    means = [{**row.first, "metric": {**row.first["metric"], "value": row.mean}} for row in rows]
    best = rank(means)[0]["metric"]["value"]
    rows = [dataclasses.replace(row, best=row.mean == best) for row in rows]
    order = {name: place for place, name in enumerate(BACKBONES)}
    return sorted(
        rows, key=lambda row: (order.get(row.backbone, len(order)), row.model, row.setting)
    )


# --- One row for each backbone -------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The row that stands for one backbone."""

    row: Row
    """The row."""
    optimistic: bool
    """Whether it was chosen by the very numbers that it shows."""


def read_selections(folders: Iterable[str | Path]) -> list[dict[str, Any]]:
    """What sweeps chose on held-out clips: the `chosen` of every selection.json below folders."""
    paths = sorted(
        path
        for folder in map(Path, folders)
        if folder.is_dir()
        for path in folder.rglob(SELECTION_FILE)
    )
    return [choice for path in paths for choice in read_json(path).get("chosen", [])]


def choose_rows(
    group: Group, groups: Sequence[Group], selections: Sequence[Mapping[str, Any]]
) -> dict[tuple[str, str], Choice]:
    """One row for each checkpoint: the only one, what a sweep chose, or what held-out clips choose.

    Args:
        group: of any split.
        groups: all, among them those of held-out clips.
        selections: what sweeps chose.
    """
    choices = {}
    for model in dict.fromkeys(row.model for row in group.rows):
        rows = [row for row in group.rows if row.model == model]
        guides = [
            other
            for other in groups
            if other.split == "held-out" != group.split
            and (other.label, other.shuffled) == (group.label, group.shuffled)
        ]
        kept = [row for guide in guides for row in guide.rows if row.model == model]
        settings = {best_of(kept, up=group.up).setting} if kept else set()
        named = [row for row in rows if any(is_chosen(row, choice) for choice in selections)]
        guided = [row for row in rows if row.setting in settings]
        for candidates in (rows, named, guided):
            if len(candidates) == 1:
                choices[model] = Choice(row=candidates[0], optimistic=False)
                break
        else:
            choices[model] = Choice(row=best_of(rows, up=group.up), optimistic=True)
        if group.split == "held-out" and len(rows) > 1:
            choices[model] = dataclasses.replace(choices[model], optimistic=True)
    return choices


def best_of(rows: Sequence[Row], *, up: bool) -> Row:
    """Of the rows with the most seeds the one with the best mean; of equal ones the first.

    The mean of few seeds is the best of many by luck.
    """
    return max(rows, key=lambda row: (row.count, row.mean if up else -row.mean))


def is_chosen(row: Row, choice: Mapping[str, Any]) -> bool:
    """Whether a sweep's choice is of this row."""
    features = row.first["config"]["features"]
    name, _, folder = choice["backbone"].partition("@")
    return (
        row.setting == (choice["block"], choice["timestep"], choice["peak_lr"])
        and row.first["recipe"] in ("", choice["recipe"])
        and name in (row.backbone, features.get("backbone"))
        and folder in ("", features.get("pretrained"))
    )


def relative(value: float, baseline: float, *, up: bool) -> float | None:
    """Relative performance in percent, 100 (p_V - p_I) / p_I; up is better for every metric.

    Reference: From Image to Video, Sec. 4.2 and Fig. 1.

    Returns:
        None where the baseline is 0.
    """
    if baseline == 0:
        return None
    change = 100 * (value - baseline) / baseline
    return change if up else -change
