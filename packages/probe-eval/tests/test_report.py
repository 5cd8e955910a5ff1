"""`probe-eval report`: what it writes says what the records say, in every format."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from probe_eval.cli import main
from probe_eval.records import write_record
from probe_eval.report import tables
from probe_eval.report.checkpoints import read_sheet, training_of
from probe_eval.report.rows import Row, group_records
from probe_eval.runs import write_json

Make = Callable[..., dict[str, Any]]
DEPTH = {
    "task": "depth",
    "recipe": "scannet-depth",
    "dataset.name": "scannet",
    "metric.name": "abs_rel",
    "metric.direction": "down",
    "metric.chance": None,
}
PLACES = [(4, 0), (4, 200), (8, 0), (8, 200)]


def plant(folder: Path, records: list[dict[str, Any]], name: str = "record.json") -> None:
    """Writes records, each into a folder of its own."""
    for record in records:
        count = sum(1 for _ in folder.glob("*")) if folder.exists() else 0
        write_record(folder / str(count) / name, record)


@pytest.fixture
def sweep(make_record: Make, tmp_path: Path) -> Path:
    """Two tasks, two backbones, two blocks, two timesteps, held out; the test split at the best."""
    folder = tmp_path / "results" / "cells"
    for fields, base in (({}, 0.5), (DEPTH, 0.25)):
        for name, factor in (("i-walt", 1.0), ("v-walt", 1.5)):
            for place, (block, timestep) in enumerate(PLACES):
                for seed in range(3):
                    value = base * factor * (0.8 + place / 20) + seed / 1000
                    cell = {
                        **fields,
                        "backbone.name": name,
                        "features.block": block,
                        "features.timestep": timestep,
                        "seed": seed,
                        "held_out": 0.1,
                        "metric.value": value,
                    }
                    path = folder / f"{fields.get('task')}-{name}-{place}-{seed}"
                    write_record(path / "record.json", make_record({**cell, "split": "held-out"}))
                    if place == (3 if not fields else 0):
                        cell["metric.value"] = value - 0.01
                        write_record(path / "test.json", make_record(cell))
    return tmp_path / "results"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_sweep_becomes_a_report(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    output = tmp_path / "report"
    assert main(["report", str(sweep), "--output", str(output), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    files = {str(p.relative_to(output)) for p in output.rglob("*") if p.is_file()}
    assert files == {*said["files"], "report.json"}
    assert len(said["records"]) == 2 * 2 * 3 * (4 + 1)
    figures = {name for name in files if name.startswith("figures/")}
    stems = {
        *("scores-test", "scores-held-out", "relative-test", "relative-held-out"),
        *("blocks-action-held-out", "noise-action-held-out"),
        *("blocks-depth-held-out", "noise-depth-held-out"),
    }
    assert figures == {f"figures/{stem}{end}" for stem in stems for end in (".png", ".pdf")}

    rows = rows_of(output / "tables" / "summary-test.csv")
    assert len(rows) == 4
    found = {(row["task"], row["backbone"]): row for row in rows}
    for (task, backbone), row in found.items():
        base = 0.5 * 0.95 if task == "action" else 0.25 * 0.8
        values = [base * (1.5 if backbone == "v-walt" else 1) + s / 1000 - 0.01 for s in range(3)]
        assert float(row["mean"]) == pytest.approx(np.mean(values))
        assert float(row["std"]) == pytest.approx(np.std(values, ddof=1))
        assert (row["seeds"], row["optimistic"]) == ("3", "False")
        assert row["best"] == str((backbone == "v-walt") == (task == "action"))
        ratio = float(row["mean"]) / float(found[task, "i-walt"]["mean"])
        sign = 1 if task == "action" else -1
        assert float(row["relative_percent"]) == pytest.approx(sign * 100 * (ratio - 1))

    markdown = (output / "tables" / "summary-test.md").read_text()
    mean = float(found["Depth", "i-walt"]["mean"])
    assert f"| **{mean:.3f} \N{PLUS-MINUS SIGN} 0.001 (3)** |" in markdown
    changes = [float(found[t, "v-walt"]["relative_percent"]) for t in ("Depth", "action")]
    cells = " | ".join(f"{change:+.1f}" for change in changes)
    assert markdown.splitlines()[-1] == f"| V-WALT over I-WALT, % | {cells} |"
    held_out = rows_of(output / "tables" / "held-out" / "action.csv")
    assert [row["best"] for row in held_out].count("True") == 1
    assert len(held_out) == 2 * 4

    html = (output / "index.html").read_text(encoding="utf-8")
    assert html.count('src="data:image/png;base64,') == len(stems)
    assert "There is no number of the test split" not in html

    # Again: what is not of this report goes.
    (output / "figures" / "old.png").write_bytes(b"")
    write_record(sweep / "cells" / "more" / "record.json", read_any(sweep) | {"seed": 9})
    assert main(["report", str(sweep), "--output", str(output), "--separate"]) == 0
    assert not (output / "figures" / "old.png").exists()


def read_any(folder: Path) -> dict[str, Any]:
    """A record of a folder, without its hash."""
    record = json.loads(next(iter(sorted(folder.rglob("record.json")))).read_text())
    return {name: value for name, value in record.items() if name != "sha256"}


def test_held_out_numbers_alone_are_said_to_be_so(
    make_record: Make, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    held_out = {"split": "held-out", "held_out": 0.1}
    plant(tmp_path / "r", [make_record(held_out)])
    assert main(["report", str(tmp_path / "r"), "--output", str(tmp_path / "report")]) == 0
    html = (tmp_path / "report" / "index.html").read_text()
    assert "There is no number of the test split here" in html
    assert "1 records, " in capsys.readouterr().out
    assert not (tmp_path / "report" / "tables" / "test").exists()


def test_what_cannot_be_compared_is_refused_or_apart(
    make_record: Make, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    plant(tmp_path / "r", [make_record(), make_record({"optim.steps": 9})])
    words = ["report", str(tmp_path / "r"), "--output", str(tmp_path / "report")]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert "optim.steps is 4 in one, 9 in the other; report them in separate" in err
    assert "--separate" in err
    assert not (tmp_path / "report").exists()
    assert main([*words, "--separate"]) == 0
    names = [p.name for p in sorted((tmp_path / "report" / "tables" / "test").glob("*.md"))]
    assert len(names) == 2
    assert all(re.fullmatch(r"action-[0-9a-f]{6}\.md", name) for name in names)


def test_an_edited_record_ends_the_report(
    make_record: Make, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    plant(tmp_path / "r", [make_record()])
    path = tmp_path / "r" / "0" / "record.json"
    path.write_text(path.read_text().replace('"value": 0.5', '"value": 0.9'))
    assert main(["report", str(tmp_path / "r"), "--output", str(tmp_path / "report")]) == 2
    assert f"{path} was edited after it was written" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_the_folder_of_something_else_is_left_alone(
    make_record: Make, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    plant(tmp_path / "r", [make_record()])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    for output in (tmp_path / "mine", tmp_path / "mine" / "thesis.tex"):
        assert main(["report", str(tmp_path / "r"), "--output", str(output)]) == 2
        assert "choose" in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years"
    assert main(["report", "--output", str(tmp_path / "new")]) == 2


# --- Checkpoints ---------------------------------------------------------------------------------

STEPS = [1000, 2000, 4000, 8000]


@pytest.mark.slow
def test_checkpoints_become_curves_and_correlations(make_record: Make, tmp_path: Path) -> None:
    scores = [0.25, 0.5, 0.375, 0.75]
    for step, score in zip(STEPS, scores, strict=True):
        fields = {"backbone.weights_hash": f"w{step}", "metric.value": score}
        plant(tmp_path / "r", [make_record(fields)])
    sheet = "weights_hash,step,loss,fvd\n" + "".join(
        f"w{step},{step},{1 / step},{'' if step == 1000 else step}\n" for step in STEPS
    )
    (tmp_path / "sheet.csv").write_text(sheet)
    words = ["--output", str(tmp_path / "out"), "--checkpoints", str(tmp_path / "sheet.csv")]
    assert main(["report", str(tmp_path / "r"), *words]) == 0
    assert (tmp_path / "out" / "figures" / "checkpoints-v-walt-test.pdf").is_file()
    rows = rows_of(tmp_path / "out" / "tables" / "correlations-v-walt-test.csv")
    assert [(row["against"], row["samples"]) for row in rows] == [
        ("training loss", "4"),
        ("FVD", "3"),
    ]
    losses = [1 / step for step in STEPS]
    assert float(rows[0]["pearson"]) == pytest.approx(scipy.stats.pearsonr(losses, scores)[0])
    assert float(rows[1]["spearman"]) == pytest.approx(
        scipy.stats.spearmanr(STEPS[1:], scores[1:])[0]
    )
    assert float(rows[0]["pearson_low"]) <= float(rows[0]["pearson"])
    summary = (tmp_path / "out" / "tables" / "summary-test.md").read_text()
    assert [line.split(" |")[0] for line in summary.splitlines() if "step" in line] == [
        f"| V-WALT, step {step:,}" for step in STEPS
    ]


def a_row(make_record: Make, **fields: Any) -> Row:
    return Row(records=(make_record(fields),))


def test_a_models_own_folder_says_its_step_and_loss(make_record: Make, tmp_path: Path) -> None:
    losses = [[10, 0.5], [20, 0.25]]
    write_json(tmp_path / "a" / "v-walt" / "model.json", {"losses": losses, "optim": {"steps": 20}})
    row = a_row(make_record, **{"config.features.pretrained": str(tmp_path / "a")})
    training = training_of(row, {})
    assert (training.step, dict(training.quantities)) == (20, {"loss": 0.25})

    run = tmp_path / "b"
    write_json(run / "kept" / "step-10" / "model.json", {"step": 10, "fvd": 300})
    curve = [{"step": 5, "loss": 2.0}, {"step": 10, "loss": 1.5}, {"step": 20, "loss": 1.0}]
    write_json(run / "record.json", {"kind": "pretrain-walt", "losses": curve})
    row = a_row(make_record, **{"config.features.pretrained": str(run / "kept" / "step-10")})
    training = training_of(row, {})
    assert (training.step, dict(training.quantities)) == (10, {"loss": 1.5, "fvd": 300.0})

    row = a_row(make_record, **{"config.features.pretrained": str(tmp_path / "nothing")})
    assert training_of(row, {}).step is None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("step,loss\n1,2\n", r"has the columns step, loss; expected weights_hash and any of"),
        ("weights_hash,lose\nw,2\n", r"has the columns weights_hash, lose; expected"),
        ("weights_hash,loss\nw,much\n", r"line 2: .*much.*; expected numbers"),
        ("weights_hash,loss\n,1\n", r"line 2: weights_hash is empty"),
        ("", r"has the columns none"),
    ],
)
def test_a_sheet_that_is_none_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "sheet.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"sheet\.csv.*{complaint}"):
        read_sheet(tmp_path / "sheet.csv")


# --- Formats -------------------------------------------------------------------------------------

NASTY = r"a_b & 50% #1 {x} ~^ \ $ | \N"
TABLE = tables.Table(
    name="t",
    caption=f"Of {NASTY}",
    head=("name", "score \N{UPWARDS ARROW}"),
    body=((NASTY, "0.5 \N{PLUS-MINUS SIGN} 0.1 (2)\N{DAGGER}"), ("chance", "\N{EN DASH}")),
    bold=frozenset([(0, 1)]),
    muted=frozenset([1]),
    data=({"name": NASTY, "score": 0.5}, {"name": "x,y", "more": 1}),
)


def test_markdown_has_as_many_cells_as_columns() -> None:
    lines = tables.to_markdown(TABLE).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert [len(re.split(r"(?<!\\)\|", row)) - 2 for row in rows] == [2, 2, 2, 2]
    assert "**0.5 \N{PLUS-MINUS SIGN} 0.1 (2)\N{DAGGER}**" in rows[2]
    assert lines[-1] == "\N{DAGGER} fewer than 3 seeds, which say little of the spread"


def test_latex_escapes_what_it_must() -> None:
    text = tables.to_latex(TABLE)
    assert r"a\_b \& 50\% \#1 \{x\} \textasciitilde{}\textasciicircum{} \textbackslash{}" in text
    assert r"\textbf{0.5 $\pm$ 0.1 (2)$^\dagger$}" in text
    assert text.isascii()
    assert text.count(r"\midrule") == 2
    assert text.count("{") == text.count("}")
    assert text.index(r"\midrule", text.index(r"\textbf")) < text.index("chance")


def test_csv_comes_back(tmp_path: Path) -> None:
    tables.write_table(TABLE, tmp_path)
    assert rows_of(tmp_path / "t.csv") == [
        {"name": NASTY, "score": "0.5", "more": ""},
        {"name": "x,y", "score": "", "more": "1"},
    ]
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".md", ".tex"]


def test_few_seeds_and_choices_by_themselves_are_marked(make_record: Make) -> None:
    (group,) = group_records([make_record()])
    assert tables.score_text(group.rows[0]) == "0.500 (1)\N{DAGGER}"
    assert tables.score_text(group.rows[0], optimistic=True).endswith("\N{DOUBLE DAGGER}")
