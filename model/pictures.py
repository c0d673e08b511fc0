"""Pictures for people: predictions beside their targets, and the curves of a run.

matplotlib is imported where it is used: it takes a second that a command line's help has not.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from model.files import replace_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_INCHES = 1.9
DEPTH_COLOURS = "magma"
INK, MUTED, GRID = "#22262b", "#6b7280", "#e5e7eb"
TRAIN_COLOUR, VALIDATION_COLOUR = "#0f766e", "#c2410c"


class Example(NamedTuple):
    """One sample and its prediction.

    bg, fg_bg: uint8 (H, W, 3). mask: float (S, S), probability. depth: float (S, S) in 0..1,
    not clamped. target_mask, target_depth: float (S, S), or None where there is no truth.
    """

    bg: np.ndarray
    fg_bg: np.ndarray
    mask: np.ndarray
    depth: np.ndarray
    target_mask: np.ndarray | None = None
    target_depth: np.ndarray | None = None


def _figure(width: float, height: float, **options: Any) -> Figure:
    """An empty figure of this size in inches that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white", **options)
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=130)
    replace_bytes(path, content.getvalue())


def _columns(example: Example) -> list[tuple[str, np.ndarray, dict[str, Any]]]:
    """(title, image, options of imshow) of each panel of a row."""
    gray = {"cmap": "gray", "vmin": 0, "vmax": 1}
    colours = {"cmap": DEPTH_COLOURS, "vmin": 0, "vmax": 1}
    panels = [
        ("bg", example.bg, {}),
        ("fg_bg", example.fg_bg, {}),
        ("target mask", example.target_mask, gray),
        ("predicted mask", example.mask, gray),
        ("target depth", example.target_depth, colours),
        ("predicted depth", example.depth, colours),
    ]
    return [(title, image, options) for title, image, options in panels if image is not None]


def prediction_grid(path: Path, examples: Sequence[Example], title: str = "") -> None:
    """A PNG with one row an example: images, target and predicted mask and depth."""
    grid = [_columns(example) for example in examples]
    rows, columns = len(grid), len(grid[0])
    head = 0.62 if title else 0.34
    height = rows * PANEL_INCHES + head
    figure = _figure(columns * PANEL_INCHES, height)
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(
        left=0.006, right=0.994, bottom=0.006, top=1 - head / height, wspace=0.03, hspace=0.03
    )
    for line, row in zip(axes, grid, strict=True):
        for axis, (_, image, options) in zip(line, row, strict=True):
            axis.imshow(image, interpolation="nearest", **options)
            axis.set_axis_off()
    for axis, (name, _, _) in zip(axes[0], grid[0], strict=True):
        axis.set_title(name, fontsize=10, color=INK, pad=5)
    if title:
        top = 1 - 0.16 / height
        figure.text(0.5, top, title, ha="center", va="center", fontsize=10, color=MUTED)
    _save(figure, path)


def curves(path: Path, history: Sequence[Mapping[str, Any]], title: str = "") -> None:
    """A PNG of the run: training loss, mask IoU and depth RMSE over epochs."""
    panels = (
        ("training loss", "train_loss", TRAIN_COLOUR, True),
        ("validation mask IoU", "mask_iou", VALIDATION_COLOUR, False),
        ("validation depth RMSE", "depth_rmse", VALIDATION_COLOUR, True),
    )
    figure = _figure(11, 3.1, layout="constrained")
    for axis, (name, key, colour, from_zero) in zip(figure.subplots(1, 3), panels, strict=True):
        _curve(axis, history, key, colour)
        axis.set_title(name, fontsize=10, color=INK, loc="left")
        if from_zero:
            axis.set_ylim(bottom=0)
    if title:
        figure.suptitle(title, fontsize=10, color=MUTED)
    _save(figure, path)


def _curve(axis: Axes, history: Sequence[Mapping[str, Any]], key: str, colour: str) -> None:
    """One figure over the run's epochs, with a line where a new stage begins."""
    from matplotlib.ticker import MaxNLocator

    points = [(n, row[key]) for n, row in enumerate(history, start=1) if row.get(key) is not None]
    for previous, (number, row) in zip(history, enumerate(history[1:], start=2), strict=False):
        if row.get("stage") != previous.get("stage"):
            axis.axvline(number - 0.5, color=GRID, linewidth=1, zorder=0)
    if points:
        axis.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=4, linewidth=1.8)
        number, value = points[-1]
        axis.annotate(
            f"{value:.4f}", (number, value), textcoords="offset points", xytext=(0, 8),
            ha="right", fontsize=9, color=colour,
        )  # fmt: skip
    axis.margins(y=0.2)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("epoch", fontsize=9, color=MUTED)
    axis.grid(axis="y", color=GRID, linewidth=0.8)
    axis.tick_params(labelsize=8, colors=MUTED, length=0)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.spines["bottom"].set_color(GRID)
