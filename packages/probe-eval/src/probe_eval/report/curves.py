"""What was measured during a training, as a table and as a picture."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from probe_eval.report.figures import new_figure, save
from probe_eval.runs import write_text

Rows = Sequence[Mapping[str, int | float]]


def write_csv(rows: Rows, path: Path) -> None:
    """Writes rows as CSV, one column per name, empty where a row lacks it; `step` comes first."""
    names = list(dict.fromkeys(["step", *(name for row in rows for name in row)]))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def merge_rows(losses: Rows, evaluations: Rows) -> list[dict[str, int | float]]:
    """One row for each step, with what either table has."""
    merged: dict[int | float, dict[str, int | float]] = {}
    for row in (*losses, *evaluations):
        merged.setdefault(row["step"], {}).update(row)
    return [merged[step] for step in sorted(merged)]


def draw_curves(
    losses: Rows,
    evaluations: Rows,
    path: Path,
    *,
    measured: tuple[str, ...] = ("psnr",),
    title: str = "PSNR, dB",
) -> None:
    """Losses on the left, on a logarithmic scale; what was measured of held-out clips on the right.

    Args:
        losses: rows with `step` and any number of losses; those that are never positive are left
            out.
        evaluations: rows with `step` and any number of values.
        path: the PNG.
        measured: endings of the names of the values on the right.
        title: what they are, with their unit.
    """
    figure = new_figure(9.0, 3.4)
    left, right = figure.subplots(1, 2)
    for axes, rows, heading in ((left, losses, "training loss"), (right, evaluations, title)):
        for name in dict.fromkeys(name for row in rows for name in row if name != "step"):
            if axes is right and not name.endswith(measured):
                continue
            points = [(row["step"], row[name]) for row in rows if name in row]
            if axes is left:
                points = [point for point in points if point[1] > 0]
            if points:
                axes.plot(*zip(*points, strict=True), label=name, linewidth=1.2)
        axes.set_title(heading, fontsize=10)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7)
    left.set_yscale("log")
    save(figure, path)
