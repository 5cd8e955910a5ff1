"""What a budget of pretraining buys: performance over checkpoints, against loss, FID and FVD."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from probe_eval.report import charts, tables
from probe_eval.report.checkpoints import QUANTITIES, Training, training_of
from probe_eval.report.names import BACKBONES, in_order
from probe_eval.report.page import Part, Picture
from probe_eval.report.rows import Choice, Group, Row, relative

if TYPE_CHECKING:
    from probe_eval.report.results import Results

Model = tuple[str, str]
RESAMPLES = 2000
"""Of the bootstrap of correlations."""


def pretraining_parts(
    results: "Results",
    split: str,
    groups: Sequence[Group],
    choices: Mapping[str, Mapping[Model, Choice]],
) -> list[Part]:
    """Figure 6, and Tables 1 and 2, of every backbone with several checkpoints."""
    parts: list[Part] = []
    names = in_order((name for found in choices.values() for name, _ in found), BACKBONES)
    for name in names:
        lines, correlations = {}, []
        for group in groups:
            found = [
                (training_of(choice.row, results.sheet), choice.row)
                for model, choice in choices[group.key].items()
                if model[0] == name
            ]
            steps = [(t.step, row.mean) for t, row in found if t.step is not None]
            if len({step for step, _ in steps}) > 1:
                lines[group.label] = relative_to_best(steps, up=group.up)
            correlations += _correlations(group, found)
        label, stem = BACKBONES.get(name, name), f"{tables.slug(name)}-{split}"
        if any(lines.values()):
            png, _ = charts.draw_checkpoints(
                lines, results.folder / "figures" / f"checkpoints-{stem}", name=label
            )
            caption = f"{label}: each task relative to its best checkpoint; up is better."
            parts.append(Picture(path=png, alt="Performance over pretraining", caption=caption))
        if correlations:
            table = correlation_table(f"correlations-{stem}", label, correlations)
            tables.write_table(table, results.folder / "tables")
            parts.append(table)
    return parts


def relative_to_best(points: Sequence[tuple[int, float]], *, up: bool) -> list[tuple[int, float]]:
    """(step, percent of the best checkpoint's performance) by step; up is better.

    Reference: From Image to Video, Fig. 6.
    """
    best = (max if up else min)(value for _, value in points)
    changes = [(step, relative(value, best, up=up)) for step, value in sorted(points)]
    return [(step, 100 + change) for step, change in changes if change is not None]


def _correlations(group: Group, found: Sequence[tuple[Training, Row]]) -> list[dict[str, Any]]:
    """Performance against each known quantity, up for better, over the checkpoints of one task."""
    from probe_eval.metrics.correlation import correlate

    made = []
    for quantity, title in QUANTITIES.items():
        pairs = [
            (training.quantities[quantity], row.mean if group.up else -row.mean)
            for training, row in found
            if quantity in training.quantities
        ]
        enough = len(pairs) > 2 and all(len(set(side)) > 1 for side in zip(*pairs, strict=True))
        if not enough:
            continue
        correlation = correlate(
            *map(list, zip(*pairs, strict=True)), num_resamples=RESAMPLES, seed=0
        )
        made.append({"task": group.label, "against": title} | dataclasses.asdict(correlation))
    return made


def correlation_table(name: str, label: str, rows: Sequence[Mapping[str, Any]]) -> tables.Table:
    """Pearson's and Spearman's correlation of performance with loss, FID and FVD.

    Reference: From Image to Video, Tables 1 and 2.

    Args:
        name: of its files.
        label: what the backbone is called.
        rows: one per task and quantity: what `correlate` returned, with `task` and `against`.
    """

    def text(row: Mapping[str, Any], kind: str) -> str:
        low, high = row[f"{kind}_interval"]
        return f"{row[kind]:+.2f} [{low:+.2f}, {high:+.2f}]"

    data = []
    for row in rows:
        bounds = {
            f"{kind}_{end}": value
            for kind in ("pearson", "spearman")
            for end, value in zip(("low", "high"), row[f"{kind}_interval"], strict=True)
        }
        plain = {key: value for key, value in row.items() if not key.endswith("_interval")}
        data.append(plain | bounds)
    return tables.Table(
        name=name,
        caption=f"{label}: correlation of performance (up is better) with the quality of its "
        "checkpoints, with intervals of 95 % by the bootstrap over checkpoints",
        head=("task", "against", "Pearson", "Spearman", "checkpoints"),
        body=tuple(
            (
                *(row["task"], row["against"], text(row, "pearson"), text(row, "spearman")),
                str(row["samples"]),
            )
            for row in rows
        ),
        text_columns=2,
        data=tuple(data),
    )
