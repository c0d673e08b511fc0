"""Figures for people: the table of scores beside the baselines, and the CSV of a run."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model.baselines import DIFFERENCE_LEVELS
from model.files import replace_text
from model.metrics import Scores

ROWS = {
    "network": ("network", ("mask_bce", "mask_iou", "depth_l1", "depth_rmse")),
    "difference": (f"|fg_bg - bg| > {DIFFERENCE_LEVELS}", ("mask_iou",)),
    "prior": ("constant share of mask pixels", ("mask_bce",)),
    "background_depth": ("mean depth map of the background", ("depth_l1", "depth_rmse")),
    "overall_depth": ("mean depth map of all", ("depth_l1", "depth_rmse")),
}
"""Row -> what it is, and the figures that mean something for it."""

COLUMNS = {
    "mask_bce": "mask BCE",
    "mask_iou": "mask IoU",
    "depth_l1": "depth L1",
    "depth_rmse": "depth RMSE",
}


def meaningful(rows: Mapping[str, Scores]) -> dict[str, dict[str, float | None]]:
    """Figures by row, without those that mean nothing there (a rule's BCE, say)."""
    table: dict[str, dict[str, float | None]] = {}
    for row, scores in rows.items():
        names = scores.as_dict() if row == "network" else ROWS[row][1]
        table[row] = {name: getattr(scores, name) for name in names if name != "samples"}
    return table


def score_table(rows: Mapping[str, Scores], title: str) -> str:
    """The network's scores above those of the trivial baselines, as aligned text."""
    width = max(len(ROWS[row][0]) for row in rows)
    head = " ".join(f"{name:>11}" for name in [*COLUMNS.values(), "RMSE x10"])
    lines = [title, f"{'':{width}} {head}"]
    for row, scores in rows.items():
        label, names = ROWS[row]
        values = [getattr(scores, name) if name in names else None for name in COLUMNS]
        values.append(scores.depth_rmse_x10 if "depth_rmse" in names else None)
        cells = " ".join(f"{'-' if v is None else format(v, '.4f'):>11}" for v in values)
        lines.append(f"{label:{width}} {cells}")
    return "\n".join(lines)


def write_history(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """One CSV row an epoch, replaced as a whole so that a resumed run repeats no row."""
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in history for name in row))
    writer = csv.DictWriter(text, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    replace_text(path, text.getvalue())


def describe(row: Mapping[str, Any]) -> str:
    """One line about an epoch."""
    figures = {
        name: row[name]
        for name in ("train_loss", "mask_bce", "mask_iou", "depth_l1", "depth_rmse")
        if row.get(name) is not None
    }
    shown = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
    return (
        f"stage {row['stage']} epoch {row['epoch']}: {shown} "
        f"({row['epoch_s']:.0f} s, {row['samples_per_s']:.1f} samples/s, "
        f"{row['data_wait']:.0%} waiting for data)"
    )


def as_json(value: Mapping[str, Any]) -> str:
    """Text of figures for other programs."""
    return json.dumps(value, indent=1)
