"""Pictures as PNG: predictions beside their targets, and the curves of a run.

matplotlib is imported in the functions, because its import takes a second.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from maskdepth.convert.outputs import PNG_KEY, mark_of
from maskdepth.model.files import replace_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_INCHES = 1.9
"""Side of a square panel; others have the same area, in the shape of their images."""
GAP_INCHES, LEGEND_INCHES, DEPTH_COLOURS = 0.05, 0.19, "magma"
INK, MUTED, GRID = "#22262b", "#6b7280", "#e5e7eb"
TRAIN_COLOUR, VALIDATION_COLOUR = "#0f766e", "#c2410c"


class Example(NamedTuple):
    """One sample and its prediction.

    bg, fg_bg: uint8 (H, W, 3). mask: float (S, S), probability, or bool of a binary mask.
    depth: float (S, S) in 0..1, not clamped. target_mask, target_depth: float (S, S), or None if
    there is no target. All are drawn in the shape of bg.
    note: a few words that are written on bg.
    """

    bg: np.ndarray
    fg_bg: np.ndarray
    mask: np.ndarray
    depth: np.ndarray
    target_mask: np.ndarray | None = None
    target_depth: np.ndarray | None = None
    note: str = ""

    def panels(self) -> list[tuple[str, np.ndarray, str | None]]:
        """(title, image, colour map) of each picture in a row."""
        every = [
            ("bg", self.bg, None),
            ("fg_bg", self.fg_bg, None),
            ("target mask", self.target_mask, "gray"),
            ("predicted mask", self.mask, "gray"),
            ("target depth", self.target_depth, DEPTH_COLOURS),
            ("predicted depth", self.depth, DEPTH_COLOURS),
        ]
        return [(title, image, colours) for title, image, colours in every if image is not None]


def draw_predictions(
    path: Path, examples: Sequence[Example], command: str, title: str = ""
) -> None:
    """Write the PNG of `predictions_png` to a file."""
    replace_bytes(path, predictions_png(examples, command, title))


def predictions_png(examples: Sequence[Example], command: str, title: str = "") -> bytes:
    """A PNG with one row per example: images, target and predicted mask and depth.

    command: that the picture is an output of (`convert.outputs`).
    """
    from matplotlib.figure import Figure

    grid = [example.panels() for example in examples]
    rows, columns = len(grid), len(grid[0])
    shape = examples[0].bg.shape
    wide = PANEL_INCHES * math.sqrt(shape[1] / shape[0])
    high = PANEL_INCHES**2 / wide
    head = 0.62 if title else 0.34
    width = columns * (wide + GAP_INCHES) + GAP_INCHES
    height = rows * (high + GAP_INCHES) + head
    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(
        left=GAP_INCHES / width, right=1 - GAP_INCHES / width, bottom=GAP_INCHES / height,
        top=1 - head / height, wspace=GAP_INCHES / wide, hspace=GAP_INCHES / high,
    )  # fmt: skip
    for line, row, example in zip(axes, grid, examples, strict=True):
        box = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 2}
        line[0].text(
            0.03, 0.97, example.note, transform=line[0].transAxes, va="top", fontsize=8, color=INK,
            bbox=box if example.note else None,
        )  # fmt: skip
        for axis, (_, image, colours) in zip(line, row, strict=True):
            axis.imshow(image, interpolation="nearest", cmap=colours, vmin=0, vmax=1, aspect="auto")
            axis.set_axis_off()
    for axis, (name, _, colours) in zip(axes[0], grid[0], strict=True):
        axis.set_title(name, fontsize=10, color=INK, pad=5)
        if colours == DEPTH_COLOURS:
            _draw_depth_legend(axis, LEGEND_INCHES / high)
    if title:
        top = 1 - 0.16 / height
        figure.text(
            0.5, top, title, ha="center", va="center", fontsize=10, color=MUTED, parse_math=False
        )
    return _png(figure, command)


def _draw_depth_legend(axis: Axes, height: float) -> None:
    """A bar from near to far at the lower edge of a depth map, so high as a share of it."""
    legend = axis.inset_axes((0.02, 0.02, 0.96, height))
    legend.imshow(np.linspace(0, 1, 64)[None], cmap=DEPTH_COLOURS, vmin=0, vmax=1, aspect="auto")
    legend.set(xticks=[], yticks=[])
    for at, side, colour in ((0.02, "left", "white"), (0.98, "right", INK)):
        text = "near" if side == "left" else "far"
        legend.text(
            at, 0.45, text, transform=legend.transAxes, ha=side, va="center", fontsize=8,
            color=colour,
        )  # fmt: skip


def draw_curves(path: Path, history: Sequence[Mapping[str, float | None]], title: str) -> None:
    """Write a PNG of the run: training loss, mask IoU and depth RMSE over epochs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.1), facecolor="white", layout="constrained")
    loss, iou, rmse = figure.subplots(1, 3, gridspec_kw={"wspace": 0.06})
    _curve(loss, history, "train_loss", "training loss", TRAIN_COLOUR)
    _curve(iou, history, "mask_iou", "validation mask IoU", VALIDATION_COLOUR)
    _curve(rmse, history, "depth_rmse", "validation depth RMSE", VALIDATION_COLOUR)
    for axis in (loss, rmse):
        axis.set_ylim(bottom=0)
    # The name of a recipe may have a "$", which begins no formula.
    figure.suptitle(title, fontsize=10, color=MUTED, parse_math=False)
    replace_bytes(path, _png(figure, "fit"))


def _curve(
    axis: Axes, history: Sequence[Mapping[str, float | None]], key: str, title: str, colour: str
) -> None:
    """Draw one column of the history over epochs, with a vertical line before each new stage."""
    from matplotlib.ticker import MaxNLocator

    points = [(n, row[key]) for n, row in enumerate(history, start=1) if row.get(key) is not None]
    for previous, (number, row) in zip(history, enumerate(history[1:], start=2), strict=False):
        if row.get("stage") != previous.get("stage"):
            axis.axvline(number - 0.5, color=GRID, linewidth=1, zorder=0)
    if points:
        axis.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=4, linewidth=1.8)
        # Beside the title: next to its point it would cross the line.
        axis.set_title(f"last {points[-1][1]:z.4f}", fontsize=9, color=colour, loc="right")
    else:
        axis.set_yticks([])
        axis.text(
            0.5, 0.5, "not trained so far", transform=axis.transAxes, ha="center", fontsize=9,
            color=MUTED,
        )  # fmt: skip
    axis.set_title(title, fontsize=10, color=INK, loc="left")
    axis.set_xlim(0.5, len(history) + 0.5)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.set_xlabel("epoch", fontsize=9, color=MUTED)
    axis.grid(axis="y", color=GRID, linewidth=0.8)
    axis.tick_params(labelsize=8, colors=MUTED, length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.spines["bottom"].set_color(GRID)


def _png(figure: Figure, command: str) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=130, metadata={PNG_KEY: mark_of(command)})
    return content.getvalue()
