"""Charts show the numbers that they were given, with names, units and directions."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.image
import pytest

from probe_eval.report import charts
from probe_eval.report.charts import Bars, Model, Score
from probe_eval.report.style import COLOURS, OTHERS, colours_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = {"i-walt": "I-WALT", "v-walt": "V-WALT"}
TASKS = [
    Bars(
        title="SSv2",
        metric="top-1 accuracy \N{UPWARDS ARROW}",
        chance=0.25,
        scores={"i-walt": Score(0.5, 0.125, (0.375, 0.625)), "v-walt": Score(0.75, None, (0.75,))},
        controls={"v-walt": Score(0.3, 0.1, (0.2, 0.4))},
    ),
    Bars("Depth", "AbsRel \N{DOWNWARDS ARROW}", None, {"i-walt": Score(0.2, 0.01)}, {}),
]
GRID = {(block, t): Score(block / 10 + t / 1000, 0.01) for block in (0, 4, 8) for t in (0, 200)}
CHANGES = {"SSv2": (42.0, 3.0), "Depth": (-7.0, None), "K400": (8.0, 1.0)}
MODELS = {
    "v-walt": Model({"SSv2": 142.0, "Depth": 107.0}, 284_000_000),
    "other": Model({"SSv2": 90.0}, 1_900_000_000),
}
LINES = {"SSv2": [(100, 80.0), (200, 100.0)], "Depth": [(100, 100.0), (200, 95.0)]}
Draw = Callable[[Path], list[Path]]
DRAWINGS: dict[str, Draw] = {
    "bars": lambda path: charts.draw_bars(TASKS, path, names=NAMES, title="$a_1$ & <b>"),
    "heat maps": lambda path: charts.draw_heat_maps(
        {"I-WALT": GRID, "V-WALT": {(8, 0): Score(0.1, None)}}, path, title="t", metric="m", up=True
    ),
    "noise levels": lambda path: charts.draw_noise_levels(
        {"I-WALT": GRID}, path, title="t", metric="m", chance=0.1
    ),
    "relative": lambda path: charts.draw_relative(CHANGES, path, name="V", baseline="I"),
    "models": lambda path: charts.draw_models(
        MODELS, path, names={**NAMES, "other": "Other"}, baseline="I-WALT"
    ),
    "checkpoints": lambda path: charts.draw_checkpoints(LINES, path, name="V-WALT"),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_chart_is_a_picture_and_a_pdf(name: str, tmp_path: Path) -> None:
    png, pdf = DRAWINGS[name](tmp_path / "new" / "chart-0.5")
    assert (png.name, pdf.name) == ("chart-0.5.png", "chart-0.5.pdf")
    assert pdf.read_bytes().startswith(b"%PDF-")
    pixels = matplotlib.image.imread(png)
    assert min(pixels.shape[:2]) > 300
    assert pixels[..., :3].std() > 0.02
    assert sorted(png.parent.iterdir()) == sorted([png, pdf])


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> "list[Figure]":
    """The figures that would have been written."""
    found: list[Figure] = []

    def keep(figure: "Figure", path: Path) -> list[Path]:
        found.append(figure)
        return [path, path]

    monkeypatch.setattr(charts, "write_figure", keep)
    return found


def test_bars_are_as_high_as_the_means(kept: "list[Figure]", tmp_path: Path) -> None:
    DRAWINGS["bars"](tmp_path)
    first, second = kept[0].axes
    assert sorted(bar.get_height() for bar in first.patches) == [0.3, 0.5, 0.75]
    assert [bar.get_height() for bar in second.patches] == [0.2]
    assert (first.get_title(), second.get_title()) == ("SSv2", "Depth")
    assert first.get_ylabel() == "top-1 accuracy \N{UPWARDS ARROW}"
    dotted = [line for line in first.lines if line.get_linestyle() == ":"]
    assert [set(line.get_ydata()) for line in dotted] == [{0.25}]
    assert not [line for line in second.lines if line.get_linestyle() == ":"]
    (legend,) = kept[0].legends
    said = [text.get_text() for text in legend.get_texts()]
    assert said == ["I-WALT", "V-WALT", "pale: trained on shuffled labels", "chance", "one seed"]


def test_bars_carry_their_spread_and_seeds(kept: "list[Figure]", tmp_path: Path) -> None:
    DRAWINGS["bars"](tmp_path)
    axis = kept[0].axes[0]
    spans = sorted(
        tuple(round(float(y), 6) for y in segment[:, 1])
        for container in axis.collections
        for segment in container.get_segments()
    )
    assert spans == [(0.2, 0.4), (0.375, 0.625)]
    dots = [float(y) for line in axis.lines if line.get_marker() == "o" for y in line.get_ydata()]
    assert sorted(dots) == [0.2, 0.375, 0.4, 0.625, 0.75]


@pytest.mark.parametrize("up", [True, False])
def test_a_heat_map_frames_the_best(kept: "list[Figure]", tmp_path: Path, up: bool) -> None:
    charts.draw_heat_maps({"I-WALT": GRID}, tmp_path, title="t", metric="m", up=up)
    axis = kept[0].axes[0]
    table = axis.images[0].get_array()
    for (block, timestep), score in GRID.items():
        assert table[(0, 4, 8).index(block), (0, 200).index(timestep)] == score.mean
    frame = axis.patches[0]
    assert (frame.get_x() + 0.5, frame.get_y() + 0.5) == ((1, 2) if up else (0, 0))
    bold = [text.get_text() for text in axis.texts if text.get_fontweight() == "bold"]
    assert bold == ["1.000" if up else "0.000"]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["0", "4", "8"]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("timestep (noise level)", "block")
    assert axis.images[0].get_cmap().name == ("viridis" if up else "viridis_r")


def points(axis: "Axes") -> list[tuple[list[float], list[float]]]:
    """The lines of an axis that have markers."""
    lines = [container.lines[0] for container in axis.containers]
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in lines]


def test_noise_levels_has_a_line_for_each_block(kept: "list[Figure]", tmp_path: Path) -> None:
    DRAWINGS["noise levels"](tmp_path)
    left, right = kept[0].axes
    assert points(left) == [
        ([0, 200], [GRID[block, 0].mean, GRID[block, 200].mean]) for block in (0, 4, 8)
    ]
    assert points(right) == [
        ([0, 4, 8], [GRID[block, t].mean for block in (0, 4, 8)]) for t in (0, 200)
    ]
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["0", "4", "8"]


def test_one_timestep_needs_one_panel(kept: "list[Figure]", tmp_path: Path) -> None:
    grid = {place: score for place, score in GRID.items() if place[1] == 0}
    charts.draw_noise_levels({"I-WALT": grid}, tmp_path, title="t", metric="m", chance=None)
    (axis,) = kept[0].axes
    assert axis.get_xlabel() == "block"


def test_relative_bars_go_from_the_smallest_up(kept: "list[Figure]", tmp_path: Path) -> None:
    DRAWINGS["relative"](tmp_path)
    (axis,) = kept[0].axes
    assert [bar.get_height() for bar in axis.patches] == [-7.0, 8.0, 42.0]
    assert [text.get_text() for text in axis.texts] == ["-7.0 %", "+8.0 %", "+42.0 %"]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["Depth", "K400", "SSv2"]
    assert axis.get_ylabel().startswith("V over I, %")


def test_models_are_markers_around_the_baseline(kept: "list[Figure]", tmp_path: Path) -> None:
    DRAWINGS["models"](tmp_path)
    (axis,) = kept[0].axes
    first, second = axis.collections
    assert [float(y) for _, y in first.get_offsets()] == [142.0, 107.0]
    assert [float(y) for _, y in second.get_offsets()] == [90.0]
    assert second.get_sizes()[0] > first.get_sizes()[0]
    said = [text.get_text() for text in axis.get_legend().get_texts()]
    assert said == ["V-WALT (284 M)", "Other (1.9 B)", "I-WALT (100 %)"]


def test_checkpoints_are_lines_over_steps(kept: "list[Figure]", tmp_path: Path) -> None:
    DRAWINGS["checkpoints"](tmp_path)
    (axis,) = kept[0].axes
    for line, (task, expected) in zip(axis.lines, LINES.items(), strict=False):
        assert line.get_label() == task
        assert list(zip(line.get_xdata(), line.get_ydata(), strict=True)) == expected
    assert axis.get_xlabel() == "pretraining steps"


def test_the_twins_keep_their_colours() -> None:
    assert colours_of(["dino", "v-walt", "mine"]) == {
        "dino": OTHERS[0],
        "v-walt": COLOURS["v-walt"],
        "mine": OTHERS[1],
    }


def test_a_score_that_is_everywhere_the_same_is_drawn(tmp_path: Path) -> None:
    grid = {place: Score(0.5, 0.0) for place in GRID}
    png, _ = charts.draw_heat_maps({"a": grid}, tmp_path / "c", title="t", metric="m", up=False)
    assert math.isfinite(matplotlib.image.imread(png).sum())
