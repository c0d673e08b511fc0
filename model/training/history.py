"""The history of a run: one row per epoch, in metrics.csv and as a line on the screen."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from maskdepth.model.contract import PRIOR
from maskdepth.model.files import replace_bytes
from maskdepth.model.training.report import DEPTH_FIGURES

EpochRow = dict[str, float | None]
"""One row of metrics.csv."""


def write_history(path: Path, history: Sequence[EpochRow], depth_source: str = "") -> None:
    """One CSV row per epoch; the file is replaced as a whole, so a resumed run repeats no row.

    depth_source: of the loader; if depth is a prior, a column of that name says so.
    """
    about = {"depth_source": PRIOR} if depth_source == PRIOR else {}
    rows = [{**row, **about} for row in history]
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    replace_bytes(path, text.getvalue().encode())


def epoch_line(row: EpochRow, depth_source: str = "") -> str:
    """One line about an epoch; depth_source: of the loader."""
    marked = DEPTH_FIGURES if depth_source == PRIOR else ()
    names = ("train_loss", "mask_bce", "mask_iou", "depth_l1", "depth_rmse")
    figures = {name: row[name] for name in names if row.get(name) is not None}
    shown = ", ".join(
        f"{name} {value:z.4f}" + " (prior)" * (name in marked) for name, value in figures.items()
    )
    return (
        f"stage {row['stage']} epoch {row['epoch']}: {shown} "
        f"({row['epoch_s']:.0f} s, {row['samples_per_s']:.1f} samples/s, "
        f"{row['data_wait']:.0%} waiting for data)"
    )
