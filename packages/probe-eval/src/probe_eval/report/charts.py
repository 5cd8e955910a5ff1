"""The figures of a report, as functions of plain data; each writes a PNG and a PDF."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from probe_eval.report.figures import new_figure
from probe_eval.report.style import COLOURS, MARKERS, OTHERS, colours_of, styled, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS_PER_ROW = 5
LETTERS_PER_INCH = 12
"""Of a figure's title."""


class Score(NamedTuple):
    """One number over seeds."""

    mean: float
    """Over the seeds."""
    std: float | None
    """Of the seeds; none of a single one."""
    values: tuple[float, ...] = ()
    """Each seed."""


class Bars(NamedTuple):
    """One task of a bar chart."""

    title: str
    """Name of the task."""
    metric: str
    """With its unit and direction."""
    chance: float | None
    """What guessing reaches."""
    scores: Mapping[str, Score]
    """By backbone."""
    controls: Mapping[str, Score]
    """Likewise, of training on shuffled labels."""


def _head(figure: "Figure", title: str) -> None:
    """A title in as many lines as the figure is too narrow for."""
    letters = int(LETTERS_PER_INCH * figure.get_figwidth())
    figure.suptitle(textwrap.fill(title, letters), fontsize=10)


def draw_bars(
    tasks: Sequence[Bars], path: Path, *, names: Mapping[str, str], title: str = ""
) -> list[Path]:
    """Score of every backbone on every task: bars for means, lines for spread, dots for seeds.

    Args:
        tasks: one panel each.
        path: the files without extension.
        names: backbone -> what it is called, in the order of the bars.
        title: of the whole.
    """
    rows = math.ceil(len(tasks) / PANELS_PER_ROW)
    columns = math.ceil(len(tasks) / rows)
    colours = colours_of(list(names))
    controls = any(task.controls for task in tasks)
    with styled():
        width = max(0.34 * len(names) * (2 if controls else 1) + 1.0, 1.9)
        width = max(width * columns, 3.6)
        figure = new_figure(width, 2.5 * rows + 0.5)
        axes = figure.subplots(rows, columns, squeeze=False)
        for axis, task in zip(axes.flat, tasks, strict=False):
            _bars(axis, task, names, colours)
        for axis in list(axes.flat)[len(tasks) :]:
            axis.set_axis_off()
        handles = _bar_legend(names, colours, tasks)
        figure.legend(handles=handles, loc="outside lower center", ncols=int(width / 1.7))
        if title:
            _head(figure, title)
        return write_figure(figure, path)


def _bars(axis: "Axes", task: Bars, names: Mapping[str, str], colours: Mapping[str, str]) -> None:
    """One panel."""
    for place, name in enumerate(names):
        both = task.controls.get(name) is not None
        for scores, shift, alpha in ((task.scores, 0.0, 1.0), (task.controls, 0.4, 0.35)):
            score = scores.get(name)
            if score is None:
                continue
            x, width = place + shift, 0.38 if both else 0.7
            axis.bar(x, score.mean, width, color=colours[name], alpha=alpha)
            if score.std is not None:
                axis.errorbar(x, score.mean, score.std, color="black", capsize=2.5, linewidth=1)
            spots = [x + (0.5 * width) * (seed % 3 - 1) / 2.5 for seed in range(len(score.values))]
            axis.plot(spots, score.values, "o", color="white", mec="black", mew=0.6, ms=2.8)
    if task.chance is not None:
        axis.axhline(task.chance, color="black", linewidth=0.9, linestyle=":")
    axis.set_title(task.title)
    axis.set_ylabel(task.metric)
    axis.set_xticks([])
    axis.grid(axis="x", visible=False)
    axis.set_xlim(-0.6, len(names) - 0.4 + (0.4 if task.controls else 0.0))
    lowest = min((0.0, *(v for s in task.scores.values() for v in s.values)))
    axis.set_ylim(bottom=lowest)


def _bar_legend(
    names: Mapping[str, str], colours: Mapping[str, str], tasks: Sequence[Bars]
) -> list[Any]:
    """Backbones, controls, chance, seeds."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [Patch(color=colours[name], label=label) for name, label in names.items()]
    if any(task.controls for task in tasks):
        handles.append(Patch(color="grey", alpha=0.35, label="pale: trained on shuffled labels"))
    if any(task.chance is not None for task in tasks):
        handles.append(Line2D([], [], color="black", linestyle=":", linewidth=0.9, label="chance"))
    handles.append(
        Line2D([], [], marker="o", color="none", mfc="white", mec="black", ms=3.5, label="one seed")
    )
    return handles


# --- Blocks and noise levels ---------------------------------------------------------------------

Grid = Mapping[tuple[int, int], Score]
"""(block, timestep) -> score."""


def draw_heat_maps(
    grids: Mapping[str, Grid], path: Path, *, title: str, metric: str, up: bool
) -> list[Path]:
    """Block against timestep, one panel per backbone on one colour scale, the best one framed.

    Reference: From Image to Video, Fig. 5.

    Args:
        grids: by what the backbone is called.
        path: the files without extension.
        title: what was measured, on what.
        metric: with its unit and direction.
        up: whether higher is better; bright is better either way.
    """
    from matplotlib.patches import Rectangle

    blocks, timesteps = _axes_of(grids.values())
    means = [score.mean for grid in grids.values() for score in grid.values()]
    low, high = min(means), max(means)
    with styled():
        width = max(0.55 * len(timesteps) + 0.7, 1.7)
        figure = new_figure(width * len(grids) + 1.0, 0.36 * len(blocks) + 1.3)
        axes = figure.subplots(1, len(grids), squeeze=False, sharey=True)[0]
        for axis, (name, grid) in zip(axes, grids.items(), strict=True):
            table = [
                [grid[block, t].mean if (block, t) in grid else math.nan for t in timesteps]
                for block in blocks
            ]
            image = axis.imshow(
                table,
                cmap="viridis" if up else "viridis_r",
                vmin=low,
                vmax=high if high > low else low + 1e-9,
                origin="lower",
                aspect="auto",
            )
            axis.set_facecolor("#dddddd")
            axis.grid(visible=False)
            best = (max if up else min)(grid, key=lambda place: grid[place].mean)
            for (block, timestep), score in grid.items():
                x, y = timesteps.index(timestep), blocks.index(block)
                share = (score.mean - low) / (high - low) if high > low else 0.0
                bright = (share if up else 1 - share) > 0.55
                axis.text(
                    *(x, y, f"{score.mean:.3f}"),
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="black" if bright else "white",
                    fontweight="bold" if (block, timestep) == best else "normal",
                )
            corner = timesteps.index(best[1]) - 0.5, blocks.index(best[0]) - 0.5
            axis.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="black", linewidth=2))
            axis.set_xticks(range(len(timesteps)), labels=[str(t) for t in timesteps])
            axis.set_yticks(range(len(blocks)), labels=[str(block) for block in blocks])
            axis.set_title(name)
            axis.set_xlabel("timestep (noise level)")
        axes[0].set_ylabel("block")
        figure.colorbar(image, ax=list(axes), label=metric.replace("\n", " "), shrink=0.95)
        _head(figure, title)
        return write_figure(figure, path)


def draw_noise_levels(
    grids: Mapping[str, Grid],
    path: Path,
    *,
    title: str,
    metric: str,
    chance: float | None,
) -> list[Path]:
    """Metric against timestep for each block, and against block for each timestep.

    Reference: From Image to Video, Fig. 5.

    Args:
        grids: by what the backbone is called, one row each.
        path: the files without extension.
        title: what was measured, on what.
        metric: with its unit and direction.
        chance: what guessing reaches.
    """
    blocks, timesteps = _axes_of(grids.values())
    by_block = {block: {t: (block, t) for t in timesteps} for block in blocks}
    by_timestep = {t: {block: (block, t) for block in blocks} for t in timesteps}
    panels = [("timestep (noise level)", "block", by_block)] if len(timesteps) > 1 else []
    panels += [("block", "timestep", by_timestep)] if len(blocks) > 1 else []
    with styled():
        figure = new_figure(4.1 * len(panels), 2.5 * len(grids) + 0.3)
        axes = figure.subplots(len(grids), len(panels), squeeze=False, sharey=True, sharex="col")
        for place, (name, grid) in enumerate(grids.items()):
            row = axes[place]
            for axis, (along, kind, lines) in zip(row, panels, strict=True):
                _lines(axis, grid, lines, kind)
                axis.set_title(name)
                if kind == "timestep":
                    axis.set_xticks(blocks)
                if place == len(grids) - 1:
                    axis.set_xlabel(along)
                if chance is not None:
                    axis.axhline(chance, color="black", linewidth=0.9, linestyle=":")
            row[0].set_ylabel(metric)
        _head(figure, title + (", dotted: chance" if chance is not None else ""))
        return write_figure(figure, path)


def _lines(
    axis: "Axes", grid: Grid, lines: Mapping[int, Mapping[int, tuple[int, int]]], kind: str
) -> None:
    """One line with error bars for each block or timestep."""
    import matplotlib as mpl

    shades = mpl.colormaps["viridis"]
    for place, (value, points) in enumerate(lines.items()):
        found = [(x, grid[cell]) for x, cell in points.items() if cell in grid]
        if not found:
            continue
        axis.errorbar(
            [x for x, _ in found],
            [score.mean for _, score in found],
            [score.std or 0.0 for _, score in found],
            color=shades(0.9 * place / max(len(lines) - 1, 1)),
            marker=MARKERS[place % len(MARKERS)],
            capsize=2,
            label=str(value),
        )
    axis.legend(title=kind, loc="center left", bbox_to_anchor=(1.0, 0.5), title_fontsize=8)


def _axes_of(grids: Any) -> tuple[list[int], list[int]]:
    """All blocks and all timesteps, in order."""
    places = [place for grid in grids for place in grid]
    return sorted({block for block, _ in places}), sorted({timestep for _, timestep in places})


# --- Relative performance ------------------------------------------------------------------------


def draw_relative(
    changes: Mapping[str, tuple[float, float | None]], path: Path, *, name: str, baseline: str
) -> list[Path]:
    """Relative performance of one backbone over another in percent, from the smallest gain up.

    Reference: From Image to Video, Fig. 1.

    Args:
        changes: task -> change in percent, up is better, and its standard deviation.
        path: the files without extension.
        name: what the backbone is called.
        baseline: what the other is called.
    """
    ordered = sorted(changes.items(), key=lambda item: item[1][0])
    with styled():
        figure = new_figure(max(0.72 * len(ordered) + 1.3, 3.2), 3.1)
        axis = figure.subplots()
        for place, (_, (change, spread)) in enumerate(ordered):
            colour = "#D55E00" if change >= 0 else "#0072B2"
            axis.bar(place, change, 0.66, color=colour)
            if spread is not None:
                axis.errorbar(place, change, spread, color="black", capsize=2.5, linewidth=1)
            edge = change + math.copysign(spread or 0.0, change)
            axis.annotate(
                f"{change:+.1f} %",
                (place, edge),
                xytext=(0, 3 if change >= 0 else -3),
                textcoords="offset points",
                ha="center",
                va="bottom" if change >= 0 else "top",
                fontsize=8,
            )
        axis.axhline(0, color="black", linewidth=0.9)
        axis.margins(y=0.14)
        axis.grid(axis="x", visible=False)
        axis.set_xticks(range(len(ordered)), labels=[task for task, _ in ordered])
        if len(ordered) > 4:
            axis.tick_params(axis="x", labelrotation=30)
            for label in axis.get_xticklabels():
                label.set_horizontalalignment("right")
        axis.set_ylabel(f"{name} over {baseline}, %\n(up is better for every task)")
        return write_figure(figure, path)


class Model(NamedTuple):
    """One backbone of a comparison."""

    performance: Mapping[str, float]
    """Task -> percent of the baseline's performance."""
    parameters: int
    """Which the marker's size shows."""


def draw_models(
    models: Mapping[str, Model], path: Path, *, names: Mapping[str, str], baseline: str
) -> list[Path]:
    """Performance of many backbones relative to one, which is the line at 100 %.

    Reference: From Image to Video, Fig. 7.

    Args:
        models: by backbone, without the baseline.
        path: the files without extension.
        names: backbone -> what it is called.
        baseline: what the baseline is called.
    """
    tasks = list(dict.fromkeys(task for model in models.values() for task in model.performance))
    colours = colours_of(list(models))
    largest = max(model.parameters for model in models.values()) or 1
    with styled():
        figure = new_figure(max(0.85 * len(tasks) + 2.6, 4.4), 3.2)
        axis = figure.subplots()
        for place, (name, model) in enumerate(models.items()):
            shift = 0.5 * ((place + 0.5) / len(models) - 0.5)
            axis.scatter(
                [tasks.index(task) + shift for task in model.performance],
                list(model.performance.values()),
                s=18 + 70 * math.sqrt(model.parameters / largest),
                color=colours[name],
                marker=MARKERS[place % len(MARKERS)],
                label=f"{names[name]} ({_count(model.parameters)})",
                alpha=0.9,
                zorder=3,
            )
        axis.axhline(100, color="black", linestyle="--", linewidth=1, label=f"{baseline} (100 %)")
        axis.set_xticks(range(len(tasks)), labels=tasks)
        axis.set_xlim(-0.6, len(tasks) - 0.4)
        if len(tasks) > 4:
            axis.tick_params(axis="x", labelrotation=30)
        axis.set_ylabel(f"performance relative to {baseline}, %\n(up is better for every task)")
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), title="(parameters)")
        return write_figure(figure, path)


def _count(number: int) -> str:
    """A number of parameters as people say it."""
    for size, letter in ((1_000_000_000, "B"), (1_000_000, "M"), (1_000, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return str(number)


def draw_checkpoints(
    lines: Mapping[str, Sequence[tuple[int, float]]], path: Path, *, name: str
) -> list[Path]:
    """Each task over pretraining, relative to its best checkpoint.

    Reference: From Image to Video, Fig. 6.

    Args:
        lines: task -> (pretraining step, percent of the best checkpoint's performance).
        path: the files without extension.
        name: what the backbone is called.
    """
    shades = (*COLOURS.values(), *OTHERS[1:])
    with styled():
        figure = new_figure(5.6, 3.2)
        axis = figure.subplots()
        for place, (task, points) in enumerate(lines.items()):
            steps, percents = zip(*points, strict=True)
            axis.plot(
                *(steps, percents),
                color=shades[place % len(shades)],
                linestyle=("-", "--", ":")[place // len(shades) % 3],
                marker=MARKERS[place % len(MARKERS)],
                label=task,
            )
        axis.axhline(100, color="black", linewidth=0.8, linestyle=":")
        axis.set_xlabel("pretraining steps")
        axis.set_ylabel("performance relative to the\ntask's best checkpoint, %")
        axis.set_title(name)
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return write_figure(figure, path)
