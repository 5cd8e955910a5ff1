"""Figures are PNG files that show something, and show what they were given."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.image
import pytest
import torch

from probe_eval.report import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOSSES = {"tokenizer": [(1, 0.5), (10, 0.1)], "i-walt": [(1, 1.0), (10, 0.2)]}


def twins(steps: int) -> dict:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(256, (1 + 4 * (steps - 1), 3, 16, 16), generator=generator)
    maps = {name: torch.rand(steps, 4, 4, generator=generator) for name in ("i-walt", "v-walt")}
    return {"frames": frames.to(torch.uint8), "maps": maps, "title": "clip <1> & $2^n$.mp4"}


Draw = Callable[[Path], None]
DRAWINGS: dict[str, Draw] = {
    "twins": lambda path: figures.draw_twins(path=path, **twins(3)),
    "twins of an image": lambda path: figures.draw_twins(path=path, **twins(1)),
    "losses": lambda path: figures.draw_losses(LOSSES, path),
    "losses of one step": lambda path: figures.draw_losses({"new": [(1, 0.5)]}, path),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_figure_is_a_picture(name: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "figure.png"
    DRAWINGS[name](path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = matplotlib.image.imread(path)  # read by Pillow
    assert pixels.shape[0] > 200
    assert pixels.shape[1] > 200
    assert pixels[..., :3].std() > 0.02
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    def fail(self: Figure, path: Path, **_: object) -> None:
        path.write_bytes(b"half a pict")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="No space"):
        figures.draw_losses(LOSSES, tmp_path / "figure.png")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> "list[Figure]":
    """The figures that would have been written."""
    found: list[Figure] = []
    monkeypatch.setattr(figures, "save", lambda figure, path: found.append(figure))
    return found


def test_each_column_shows_the_last_frame_of_its_latent(
    kept: "list[Figure]", tmp_path: Path
) -> None:
    given = twins(3)
    figures.draw_twins(path=tmp_path / "figure.png", **given)
    pictures = [axis.images[0].get_array() for axis in kept[0].axes[:12]]
    for column, frame in enumerate((0, 4, 8)):
        assert (pictures[column] == given["frames"][frame].permute(1, 2, 0).numpy()).all()
        first, second = (values[column].numpy() for values in given["maps"].values())
        assert (pictures[3 + column] == first).all()
        assert (pictures[6 + column] == second).all()
        assert (pictures[9 + column] == second - first).all()
