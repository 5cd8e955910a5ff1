"""Figures as functions of plain data; each writes one PNG.

Axes: T H W pixels, t h w feature grid.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from probe_eval.report.names import BACKBONES
from probe_eval.report.style import COLOURS
from probe_eval.runs import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save(figure: "Figure", path: Path) -> None:
    """Writes a figure so that the file is there whole or not at all."""
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=110)


def new_figure(width: float, height: float) -> "Figure":
    """A figure that belongs to no window."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def draw_twins(
    frames: UInt8[Tensor, "T 3 H W"],
    maps: Mapping[str, Float[Tensor, "t h w"]],
    path: Path,
    *,
    title: str,
) -> None:
    """Rows: frames, the first principal component of each twin, and their difference.

    One column per latent time step; the frame shown is the last one that the latent holds.

    Reference: From Image to Video, Fig. 3.

    Args:
        frames: the clip, bytes.
        maps: components in [0, 1] of two backbones on the same grid.
        path: the PNG.
        title: what the picture shows.
    """
    (first, first_map), (second, second_map) = maps.items()
    steps = first_map.shape[0]
    period = (frames.shape[0] - 1) // max(steps - 1, 1)
    figure = new_figure(1.75 * steps + 1.2, 7.6)
    axes = figure.subplots(4, steps, squeeze=False)
    for step in range(steps):
        frame = step * period
        axes[0, step].imshow(rearrange(frames[frame], "c h w -> h w c").numpy())
        axes[0, step].set_title(f"frame {frame}", fontsize=9)
        axes[1, step].imshow(first_map[step].numpy(), cmap="viridis", vmin=0, vmax=1)
        axes[2, step].imshow(second_map[step].numpy(), cmap="viridis", vmin=0, vmax=1)
        difference = second_map[step] - first_map[step]
        axes[3, step].imshow(difference.numpy(), cmap="RdBu_r", vmin=-1, vmax=1)
    names = [BACKBONES.get(name, name) for name in (first, second)]
    rows = ("frames", *(f"{name}\nfirst component" for name in names), f"{names[1]}\n- {names[0]}")
    for axis, row in zip(axes[:, 0], rows, strict=True):
        axis.set_ylabel(row, fontsize=9)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.colorbar(axes[2, 0].images[0], ax=axes[1:3, :], shrink=0.6)
    figure.colorbar(axes[3, 0].images[0], ax=axes[3, :], shrink=0.9)
    figure.suptitle(title, fontsize=10)
    save(figure, path)


def draw_losses(losses: Mapping[str, Sequence[Sequence[int | float]]], path: Path) -> None:
    """Training loss over steps, pairs of (step, loss), one panel per model."""
    figure = new_figure(3.4 * len(losses), 2.8)
    for axis, (name, curve) in zip(
        figure.subplots(1, len(losses), squeeze=False)[0], losses.items(), strict=True
    ):
        steps, values = zip(*curve, strict=True)
        axis.plot(steps, values, color=COLOURS.get(name), linewidth=1)
        axis.set(title=BACKBONES.get(name, name), xlabel="step", ylabel="loss", yscale="log")
        axis.grid(alpha=0.3)
    save(figure, path)
