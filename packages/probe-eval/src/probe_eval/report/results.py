"""Everything that records show: tables and figures are written, and put into sections of a page."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from probe_eval.report import charts, tables
from probe_eval.report.checkpoints import Training, training_of
from probe_eval.report.names import BACKBONES, in_order
from probe_eval.report.page import Details, Part, Picture, Section, Text
from probe_eval.report.pretraining import pretraining_parts
from probe_eval.report.rows import (
    SPLITS,
    Choice,
    Group,
    Row,
    best_of,
    choose_rows,
    relative,
)

Model = tuple[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """What a report is made from."""

    groups: Sequence[Group]
    """All of them."""
    selections: Sequence[Mapping[str, Any]] = ()
    """What sweeps chose."""
    pair: tuple[str, str] = ("v-walt", "i-walt")
    """Backbone and baseline."""
    sheet: Mapping[str, Training] = dataclasses.field(default_factory=dict)
    """What is known of checkpoints."""
    folder: Path
    """Where `tables/` and `figures/` go."""

    @functools.cached_property
    def steps(self) -> dict[Model, int | None]:
        """Pretraining steps of each checkpoint, by backbone and step, where they are known."""
        rows = [row for group in self.groups for row in group.rows]
        steps = {row.model: training_of(row, self.sheet).step for row in rows}
        order = in_order([name for name, _ in steps], dict(zip(BACKBONES, BACKBONES, strict=True)))
        models = sorted(steps, key=lambda model: (order.index(model[0]), steps[model] or 0))
        return {model: steps[model] for model in models}

    @functools.cached_property
    def names(self) -> dict[Model, str]:
        """What checkpoints are called: the backbone, where it has several with steps or hash."""
        names = {}
        for name, weights in self.steps:
            steps = [step for (other, _), step in self.steps.items() if other == name]
            known = None not in steps and len(set(steps)) == len(steps)
            mark = f"step {self.steps[name, weights]:,}" if known else weights[:6]
            label = BACKBONES.get(name, name)
            names[name, weights] = f"{label}, {mark}" if len(steps) > 1 else label
        return names

    @functools.cached_property
    def last(self) -> dict[Model, str]:
        """What is compared: of a backbone's known checkpoints the last, by what has a colour."""
        kept = [
            (name, weights)
            for (name, weights), step in self.steps.items()
            if step is None or step == max(s or 0 for m, s in self.steps.items() if m[0] == name)
        ]
        names = [name for name, _ in kept]
        return {m: m[0] if names.count(m[0]) == 1 else self.names[m] for m in kept}

    @property
    def baselines(self) -> tuple[Model, Model] | None:
        """The checkpoints of the pair, if both are there."""
        found = {name: model for model, name in self.last.items()}
        one, other = (found.get(name) for name in self.pair)
        return (one, other) if one and other else None

    def of(self, split: str, *, shuffled: bool) -> list[Group]:
        """Groups of one split, with true or shuffled labels."""
        return [g for g in self.groups if g.split == split and g.shuffled == shuffled]


def write_results(results: Results) -> list[Section]:
    """Writes all tables and figures, and returns what a page says of them."""
    sections = [
        part
        for split in SPLITS
        if results.of(split, shuffled=False) or results.of(split, shuffled=True)
        for part in _split_sections(results, split)
    ]
    if not any(group.split == "test" for group in results.groups):
        note = Text(
            text="There is no number of the test split here. What follows was measured on clips of "
            "the training split that were kept from training, for choosing among settings; the "
            "best of many such numbers flatters itself."
        )
        first = dataclasses.replace(sections[0], parts=(note, *sections[0].parts))
        sections = [first, *sections[1:]]
    return sections


def _split_sections(results: Results, split: str) -> list[Section]:
    """All that one split shows."""
    groups = results.of(split, shuffled=False)
    choices = {g.key: choose_rows(g, results.groups, results.selections) for g in groups}
    controls = _controls(results.of(split, shuffled=True), groups, choices)
    scores: list[Part] = []
    if groups:
        scores += _bars(results, split, groups, choices, controls)
        summary = tables.summary_table(
            split, groups, choices, controls, results.names, results.baselines
        )
        tables.write_table(summary, results.folder / "tables")
        scores.append(summary)
    cells = [
        tables.cells_table(group, results.names) for group in results.groups if group.split == split
    ]
    for table in cells:
        tables.write_table(table, results.folder / "tables" / split)
    scores.append(Details(title="Every block, noise level and rate", tables=tuple(cells)))
    heading = "the test split" if split == "test" else "held-out clips"
    return [
        Section(title=f"Scores on {heading}", parts=tuple(scores)),
        Section(
            title=f"Relative performance on {heading}",
            parts=tuple(_relative(results, split, groups, choices)),
        ),
        Section(
            title=f"Blocks and noise levels on {heading}",
            parts=tuple(part for group in groups for part in _noise_levels(results, group)),
        ),
        Section(
            title=f"Checkpoints on {heading}",
            parts=tuple(pretraining_parts(results, split, groups, choices)),
        ),
    ]


def _controls(
    controls: Sequence[Group],
    groups: Sequence[Group],
    choices: Mapping[str, Mapping[Model, Choice]],
) -> dict[str, dict[Model, Choice]]:
    """By label, the control of each row that was chosen: of the same block, level and rate."""
    settings = {
        (group.label, model): choice.row.setting
        for group in groups
        for model, choice in choices[group.key].items()
    }
    return {
        group.label: {
            row.model: Choice(row=row, optimistic=False)
            for row in group.rows
            if settings.get((group.label, row.model)) == row.setting
        }
        for group in controls
    }


# --- Scores --------------------------------------------------------------------------------------


def score_of(row: Row) -> charts.Score:
    """A row as charts want it."""
    return charts.Score(row.mean, row.std, tuple(row.values))


def _bars(
    results: Results,
    split: str,
    groups: Sequence[Group],
    choices: Mapping[str, Mapping[Model, Choice]],
    controls: Mapping[str, Mapping[Model, Choice]],
) -> list[Part]:
    """The bar chart of all tasks."""
    there = {model for found in choices.values() for model in found}
    models = {model: name for model, name in results.last.items() if model in there}

    def pick(found: Mapping[Model, Choice]) -> dict[str, charts.Score]:
        return {models[m]: score_of(choice.row) for m, choice in found.items() if m in models}

    tasks = [
        charts.Bars(
            title=group.label,
            metric=group.axis,
            chance=group.chance,
            scores=pick(choices[group.key]),
            controls=pick(controls.get(group.label, {})),
        )
        for group in groups
    ]
    names = {name: results.names[model] for model, name in models.items()}
    png, _ = charts.draw_bars(tasks, results.folder / "figures" / f"scores-{split}", names=names)
    return [
        Picture(
            path=png,
            alt="Bar chart of the scores in the table below",
            caption="Mean and standard deviation over readout seeds; the arrow says which way is "
            "better.",
        )
    ]


def _relative(
    results: Results,
    split: str,
    groups: Sequence[Group],
    choices: Mapping[str, Mapping[Model, Choice]],
) -> list[Part]:
    """Figures 1 and 7: the pair, and all backbones, relative to the baseline."""
    models, shown = results.last, {name: results.names[m] for m, name in results.last.items()}
    ratios: dict[str, dict[str, tuple[float, float | None]]] = {}
    parameters: dict[str, int] = {}
    for group in groups:
        found = {models[m]: c.row for m, c in choices[group.key].items() if m in models}
        base = found.get(results.pair[1])
        for name, row in found.items():
            change = relative(row.mean, base.mean, up=group.up) if base else None
            if base is None or row is base or change is None:
                continue
            parameters[name] = row.first["backbone"]["num_parameters"]
            ratios.setdefault(name, {})[group.label] = change, _spread(row, base)
    baseline, figures = shown.get(results.pair[1], ""), results.folder / "figures"
    parts: list[Part] = []
    formula = "100 (p - p of the baseline) / p of the baseline; for metrics where lower is better "
    if results.pair[0] in ratios:
        png, _ = charts.draw_relative(
            ratios[results.pair[0]],
            figures / f"relative-{split}",
            name=shown[results.pair[0]],
            baseline=baseline,
        )
        caption = f"{formula}the sign is turned. Lines: standard deviation, to first order."
        parts.append(Picture(path=png, alt="Relative performance of each task", caption=caption))
    if len(ratios) > 1:
        compared = {
            name: charts.Model(
                performance={task: 100 + change for task, (change, _) in found.items()},
                parameters=parameters[name],
            )
            for name, found in ratios.items()
        }
        png, _ = charts.draw_models(
            compared, figures / f"models-{split}", names=shown, baseline=baseline
        )
        caption = "100 % is the baseline. The size of a marker is that of the backbone."
        parts.append(Picture(path=png, alt="Relative performance of backbones", caption=caption))
    return parts


def _spread(row: Row, base: Row) -> float | None:
    """Standard deviation of the relative performance in percent, to first order."""
    if row.std is None or base.std is None or base.mean == 0:
        return None
    return 100 * math.hypot(row.std / base.mean, row.mean * base.std / base.mean**2)


# --- Blocks and noise levels ---------------------------------------------------------------------


def _noise_levels(results: Results, group: Group) -> list[Part]:
    """Figure 5: heat maps and lines of one task."""
    there = {row.model for row in group.rows}
    names = {model: name for model, name in results.names.items() if model in there}
    grids: dict[str, dict[tuple[int, int], charts.Score]] = {}
    for model, name in names.items():
        cells: dict[tuple[int, int], list[Row]] = {}
        for row in group.rows:
            if row.model == model:
                cells.setdefault(row.setting[:2], []).append(row)
        grids[name] = {place: score_of(best_of(rows, up=group.up)) for place, rows in cells.items()}
    # A checkpoint that was probed at one place says nothing of places.
    grids = {name: grid for name, grid in grids.items() if len(grid) > 1}
    if not grids:
        return []
    blocks, timesteps = (
        {place[axis] for grid in grids.values() for place in grid} for axis in (0, 1)
    )
    stem = f"{tables.slug(group.label)}-{group.split}"
    title = f"{group.label}, {tables.split_text(group.split)}"
    rates = {row.setting[2] for row in group.rows}
    best = "; of several learning rates the best" if len(rates) > 1 else ""
    figures = results.folder / "figures"
    parts: list[Part] = []
    if len(blocks) > 1 and len(timesteps) > 1:
        png, _ = charts.draw_heat_maps(
            grids, figures / f"blocks-{stem}", title=title, metric=group.axis, up=group.up
        )
        caption = f"{group.label}: {group.metric} at each block and noise level{best}."
        parts.append(Picture(path=png, alt=f"Heat maps of {group.label}", caption=caption))
    png, _ = charts.draw_noise_levels(
        grids,
        figures / f"noise-{stem}",
        title=title,
        metric=group.axis,
        chance=group.chance,
    )
    caption = f"{group.label}: lines are standard deviations over seeds{best}."
    return [*parts, Picture(path=png, alt=f"Scores of {group.label}", caption=caption)]
