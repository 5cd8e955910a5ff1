"""Tables as plain data, and as Markdown, LaTeX and CSV."""

import csv
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from probe_eval.records import MIN_SEEDS
from probe_eval.report.rows import Choice, Group, Row, relative
from probe_eval.runs import write_text

FEW = "\N{DAGGER}"
OWN = "\N{DOUBLE DAGGER}"
NOTES = {
    FEW: f"fewer than {MIN_SEEDS} seeds, which say little of the spread",
    OWN: "block, timestep and learning rate were chosen by these very numbers, which flatters them",
}
"""Mark -> what it means."""
LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\N{PLUS-MINUS SIGN}": r"$\pm$",
    "\N{UPWARDS ARROW}": r"$\uparrow$",
    "\N{DOWNWARDS ARROW}": r"$\downarrow$",
    "\N{EN DASH}": "--",
    FEW: r"$^\dagger$",
    OWN: r"$^\ddagger$",
}
"""Characters that LaTeX wants written otherwise."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Text in rows and columns, and the numbers behind it."""

    kind: ClassVar[str] = "table"
    name: str
    """Of its files, without extension."""
    caption: str
    """What it shows."""
    head: tuple[str, ...]
    """Names of the columns."""
    body: tuple[tuple[str, ...], ...]
    """Cells, row by row."""
    text_columns: int = 1
    """Leading columns that hold words; the others hold numbers."""
    bold: frozenset[tuple[int, int]] = frozenset()
    """Cells that stand out, by row and column."""
    muted: frozenset[int] = frozenset()
    """Rows that stand back: controls and references."""
    data: tuple[Mapping[str, Any], ...] = ()
    """What the CSV holds: full precision, one name per column."""

    @property
    def notes(self) -> list[str]:
        """What the marks in it mean."""
        text = "".join(cell for row in self.body for cell in row)
        return [f"{mark} {meaning}" for mark, meaning in NOTES.items() if mark in text]


def write_table(table: Table, folder: Path) -> list[Path]:
    """Writes `<name>.md`, `<name>.tex` and `<name>.csv`."""
    texts = {".md": to_markdown(table), ".tex": to_latex(table), ".csv": to_csv(table)}
    paths = [folder / f"{table.name}{ending}" for ending in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        write_text(path, text)
    return paths


def to_markdown(table: Table) -> str:
    """A table of GitHub's Markdown, with its caption above and its notes below."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    rule = [":--" if place < table.text_columns else "--:" for place in range(len(table.head))]
    body = [
        line([f"**{cell}**" if (row, place) in table.bold else cell for place, cell in cells])
        for row, cells in enumerate(map(list, map(enumerate, table.body)))
    ]
    parts = [table.caption, "", line(table.head), line(rule), *body]
    return "\n".join([*parts, *(text for note in table.notes for text in ("", note))]) + "\n"


def to_latex(table: Table) -> str:
    """A table for the package booktabs."""

    def line(cells: Sequence[str]) -> str:
        return "    " + " & ".join(cells) + r" \\"

    body = [
        line(
            [
                rf"\textbf{{{latex(cell)}}}" if (row, place) in table.bold else latex(cell)
                for place, cell in enumerate(cells)
            ]
        )
        for row, cells in enumerate(table.body)
    ]
    first_muted = min(table.muted, default=len(body))
    if 0 < first_muted < len(body):
        body.insert(first_muted, r"    \midrule")
    columns = "l" * table.text_columns + "r" * (len(table.head) - table.text_columns)
    caption = latex(". ".join([table.caption.rstrip("."), *table.notes]))
    return "\n".join(
        [
            "% \\usepackage{booktabs}",
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{caption}.}}",
            rf"  \label{{tab:{table.name}}}",
            rf"  \begin{{tabular}}{{{columns}}}",
            r"    \toprule",
            line([latex(cell) for cell in table.head]),
            r"    \midrule",
            *body,
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def latex(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(LATEX.get(sign, sign) for sign in text)


def to_csv(table: Table) -> str:
    """The numbers behind the table in full precision, a column per name."""
    names = list(dict.fromkeys(name for row in table.data for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(table.data)
    return text.getvalue()


# --- What there is to say ------------------------------------------------------------------------


def score_text(row: Row, *, optimistic: bool = False) -> str:
    """Mean, standard deviation and seeds, with their marks."""
    form = f".{decimals(row)}f"
    spread = f" \N{PLUS-MINUS SIGN} {row.std:{form}}" if row.std is not None else ""
    marks = (FEW if row.count < MIN_SEEDS else "") + (OWN if optimistic else "")
    return f"{row.mean:{form}}{spread} ({row.count}){marks}"


def decimals(row: Row) -> int:
    """3, or as many more as leave a small mean, as errors in metres are, two digits; at most 6."""
    if row.mean == 0:
        return 3
    return min(6, max(3, 1 - math.floor(math.log10(abs(row.mean)))))


def number_text(value: float | None, form: str = ".3f") -> str:
    """A number, or a dash where there is none."""
    return "\N{EN DASH}" if value is None else format(value, form)


def plain_row(group: Group, row: Row) -> dict[str, Any]:
    """A row for programs."""
    metric, features = row.first["metric"], row.first["features"]
    return {
        "task": group.label,
        "split": group.split,
        "labels": "shuffled" if group.shuffled else "true",
        "backbone": row.backbone,
        "weights_hash": row.model[1],
        "parameters": row.first["backbone"]["num_parameters"],
        "block": features["block"],
        "timestep": features["timestep"],
        "peak_lr": row.first["optim"]["peak_lr"],
        "metric": metric["name"],
        "variant": metric["variant"],
        "direction": metric["direction"],
        "mean": row.mean,
        "std": "" if row.std is None else row.std,
        "seeds": row.count,
        "chance": "" if group.chance is None else group.chance,
        "best": row.best,
        "key": group.key,
    }


def cells_table(group: Group, names: Mapping[tuple[str, str], str]) -> Table:
    """Every row of a group: all blocks, timesteps and learning rates.

    Args:
        group: the group.
        names: what checkpoints are called.
    """
    body, data = [], []
    for row in group.rows:
        block, timestep, rate = row.setting
        body.append(
            (
                names[row.model],
                *(str(block), str(timestep), f"{rate:g}"),
                *(score_text(row), number_text(group.chance)),
            )
        )
        data.append(plain_row(group, row))
    control = ", trained on shuffled labels" if group.shuffled else ""
    return Table(
        name=f"{slug(group.label)}{'-shuffled' if group.shuffled else ''}",
        caption=f"{group.label} on {split_text(group.split)}{control}: {group.metric}, mean "
        "\N{PLUS-MINUS SIGN} standard deviation over seeds (number of seeds)",
        head=("backbone", "block", "timestep", "learning rate", group.metric, "chance"),
        body=tuple(body),
        bold=frozenset((place, 4) for place, row in enumerate(group.rows) if row.best),
        data=tuple(data),
    )


def summary_table(
    split: str,
    groups: Sequence[Group],
    choices: Mapping[str, Mapping[tuple[str, str], Choice]],
    controls: Mapping[str, Mapping[tuple[str, str], Choice]],
    names: Mapping[tuple[str, str], str],
    pair: tuple[tuple[str, str], tuple[str, str]] | None,
) -> Table:
    """One row per backbone, one column per task, then chance, controls and relative performance.

    Args:
        split: what was measured.
        groups: with true labels, one per column.
        choices: by key of the group, the row of each backbone.
        controls: likewise of shuffled labels, by label of the group.
        names: what checkpoints are called, in their order.
        pair: checkpoint and baseline of the relative performance, if both are there.
    """
    there = {model for found in choices.values() for model in found}
    names = {model: name for model, name in names.items() if model in there}
    best = {
        group.key: [
            model
            for model, choice in choices[group.key].items()
            if choice.row.mean
            == (max if group.up else min)(c.row.mean for c in choices[group.key].values())
        ]
        for group in groups
    }
    body, bold, data = [], set(), []
    for place, (model, name) in enumerate(names.items()):
        cells = [name]
        for column, group in enumerate(groups, start=1):
            choice = choices[group.key].get(model)
            cells.append(
                score_text(choice.row, optimistic=choice.optimistic)
                if choice
                else number_text(None)
            )
            if choice is None:
                continue
            if model in best[group.key]:
                bold.add((place, column))
            base = choices[group.key].get(pair[1]) if pair else None
            change = relative(choice.row.mean, base.row.mean, up=group.up) if base else None
            data.append(
                plain_row(group, choice.row)
                | {
                    "best": model in best[group.key],
                    "optimistic": choice.optimistic,
                    "relative_percent": "" if change is None else change,
                }
            )
        body.append(tuple(cells))
    strong = len(body)
    for model, name in names.items():
        found = [controls.get(group.label, {}).get(model) for group in groups]
        if any(found):
            body.append(
                (
                    f"{name}, shuffled labels",
                    *(score_text(c.row) if c else number_text(None) for c in found),
                )
            )
    if any(group.chance is not None for group in groups):
        body.append(("chance", *(number_text(group.chance) for group in groups)))
    if pair:
        cells = []
        for group in groups:
            one, base = (choices[group.key].get(model) for model in pair)
            change = relative(one.row.mean, base.row.mean, up=group.up) if one and base else None
            cells.append(number_text(change, "+.1f"))
        over = " over ".join(names.get(model, model[0]) for model in pair)
        body.append((f"{over}, %", *cells))
    return Table(
        name=f"summary-{split}",
        caption=f"Scores on {split_text(split)}: mean \N{PLUS-MINUS SIGN} standard deviation over "
        "seeds (number of seeds)",
        head=("backbone", *(f"{group.label}: {group.metric}" for group in groups)),
        body=tuple(body),
        bold=frozenset(bold),
        muted=frozenset(range(strong, len(body))),
        data=tuple(data),
    )


def split_text(split: str) -> str:
    """What was measured, for people."""
    return "the test split" if split == "test" else "held-out clips of the training split"


def slug(label: str) -> str:
    """A label as part of a file name."""
    kept = "".join(sign if sign.isalnum() else "-" for sign in label.lower())
    return "-".join(part for part in kept.split("-") if part)
