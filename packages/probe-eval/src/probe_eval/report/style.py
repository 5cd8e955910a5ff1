"""How figures look, and how they are written."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from probe_eval.runs import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"i-walt": "#0072B2", "v-walt": "#D55E00", "tokenizer": "#009E73"}
"""Backbone -> its colour in every figure."""
OTHERS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D1F", "#4D4D4D")
"""Colours of other backbones; with those above, colour-blind safe (Okabe and Ito)."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
PNG_DPI = 200


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """A colour for each backbone, the same whatever else is drawn where it is one of the study."""
    others = [name for name in dict.fromkeys(names) if name not in COLOURS]
    given = {name: OTHERS[place % len(OTHERS)] for place, name in enumerate(others)}
    return {name: COLOURS.get(name) or given[name] for name in names}


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Sizes and lines of everything that is drawn inside."""
    import matplotlib as mpl

    settings = {
        "font.size": 9,
        "axes.titlesize": 9.5,
        "axes.labelsize": 9,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "legend.fontsize": 8,
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.alpha": 0.3,
        "grid.linewidth": 0.6,
        "lines.linewidth": 1.4,
        "lines.markersize": 4.5,
        # Text stays text in the PDF.
        "pdf.fonttype": 42,
    }
    with mpl.rc_context(settings):
        yield


def write_figure(figure: "Figure", path: Path) -> list[Path]:
    """Writes a figure as PNG and as PDF, each there whole or not at all.

    Args:
        figure: what is drawn.
        path: both files without their extension.
    """
    png, pdf = (path.with_name(f"{path.name}{ending}") for ending in (".png", ".pdf"))
    with replacing(png) as partial:
        figure.savefig(partial, format="png", dpi=PNG_DPI)
    with replacing(pdf) as partial:
        # Without the date, equal figures are equal files.
        figure.savefig(partial, format="pdf", metadata={"CreationDate": None})
    return [png, pdf]
