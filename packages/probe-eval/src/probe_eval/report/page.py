"""One self-contained HTML page from a results folder: records, figures, how to make them again."""

import base64
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from probe_eval.records import read_record
from probe_eval.report.figures import LABELS, draw_losses, draw_scores
from probe_eval.runs import read_json, write_text

MODELS = ("tokenizer", "i-walt", "v-walt")


def read_records(folder: Path) -> list[dict[str, Any]]:
    """All records below a folder, in the order of their paths.

    Raises:
        ValueError: if a record is damaged or of another version.
    """
    return [read_record(path) for path in sorted(folder.rglob("record.json"))]


def summarise(folder: Path) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds, one row per task, backbone and control.

    Only records that agree in everything but the seed are put together.

    Raises:
        ValueError: if records of one row differ in more than the seed, or there are none.
    """
    groups: dict[tuple[str, str, bool], list[dict[str, Any]]] = defaultdict(list)
    for record in read_records(folder):
        groups[record["task"], record["backbone"]["name"], record["shuffled_labels"]].append(record)
    if not groups:
        raise ValueError(f"there is no record below {folder}; run a probe first")
    rows = []
    for (task, backbone, shuffled), records in sorted(groups.items()):
        keys = {comparability_key(record) for record in records}
        if len(keys) > 1:
            raise ValueError(
                f"records of {task} on {backbone} below {folder} differ in more than the seed; "
                "keep runs that cannot be compared in separate folders"
            )
        values = [record["metric"]["value"] for record in records]
        rows.append(
            {
                "task": task,
                "backbone": backbone,
                "shuffled": shuffled,
                "count": len(values),
                "mean": statistics.fmean(values),
                "std": statistics.stdev(values) if len(values) > 1 else 0.0,
                "chance": records[0]["metric"]["chance"],
                "metric": records[0]["metric"]["name"],
            }
        )
    return rows


def comparability_key(record: dict[str, Any]) -> str:
    """What must agree for two scores to be averaged."""
    kept = {key: record[key] for key in ("dataset", "backbone", "features", "readout", "metric")}
    kept["metric"] = {k: v for k, v in record["metric"].items() if k != "value"}
    kept["settings"] = {name: record["config"][name] for name in ("optim", "readout")}
    return repr(kept)


def write_page(folder: Path, page: Path) -> None:
    """Draws the figures of a demo's results folder and writes the page, which needs no network.

    Raises:
        ValueError: if a record is damaged.
    """
    from jinja2 import Environment, PackageLoader

    rows = summarise(folder)
    paths = [folder / "pretrained" / name / "model.json" for name in MODELS]
    models = {path.parent.name: read_json(path) for path in paths if path.is_file()}
    # A tokenizer that was given has not been trained here.
    models = {name: model for name, model in models.items() if model["losses"]}
    figures = folder / "figures"
    draw_losses({name: model["losses"] for name, model in models.items()}, figures / "losses.png")
    draw_scores(rows, figures / "scores.png")
    environment = Environment(
        loader=PackageLoader("probe_eval", "report/templates"), autoescape=True
    )
    records = read_records(folder)
    html = environment.get_template("page.html.j2").render(
        rows=rows,
        labels=LABELS,
        models=models,
        records=records,
        machine=records[0]["environment"],
        scores=embed(figures / "scores.png"),
        losses=embed(figures / "losses.png"),
        shows={path.stem: embed(path) for path in sorted((folder / "show").glob("*.png"))},
    )
    write_text(page, html)


def embed(path: Path) -> str:
    """A picture as a data URI."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
