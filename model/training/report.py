"""Figures for people: the table of scores beside the baselines, and the CSV of a run."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model.files import replace_text
from model.metrics import DIFFERENCE_LEVELS, VALID_DEPTH, Scores

COLUMNS = {
    "mask_bce": "mask BCE",
    "mask_iou": "mask IoU",
    "depth_l1": "depth L1",
    "depth_rmse": "depth RMSE",
    "depth_rmse_x10": "RMSE x10",
    "delta1": "delta1",
    "silog": "SILog",
}
DEPTH_FIGURES = ("depth_l1", "depth_rmse", "depth_rmse_x10", "delta1", "silog")

ROWS = {
    "network": ("network", tuple(COLUMNS)),
    "difference": (f"|fg_bg - bg| > {DIFFERENCE_LEVELS}", ("mask_iou",)),
    "prior": ("constant share of mask pixels", ("mask_bce",)),
    "background_depth": ("mean depth map of the background", DEPTH_FIGURES),
    "overall_depth": ("mean depth map of all", DEPTH_FIGURES),
}
"""Row -> what it is, and the figures that mean something for it."""
GROUPS = {"bg": "backgrounds", "fg": "people"}
NOTE = f"delta1, SILog: pixels with a target depth of at least {VALID_DEPTH:g}; SILog x 100"


def meaningful(rows: Mapping[str, Scores]) -> dict[str, dict[str, float | None]]:
    """Figures by row, without those that mean nothing there (a rule's BCE, say)."""
    return {
        row: {name: getattr(scores, name) for name in ROWS[row][1]} for row, scores in rows.items()
    }


def score_table(rows: Mapping[str, Scores], title: str, spread: Mapping[str, Any]) -> str:
    """The network's scores above those of the trivial baselines, as aligned text.

    Below them how they vary between groups; ``spread`` is that of `evaluation.Report`.
    """
    width = max(len(ROWS[row][0]) for row in rows)
    head = " ".join(f"{name:>10}" for name in COLUMNS.values())
    lines = [title, f"{'':{width}} {head}"]
    for row, scores in rows.items():
        label, names = ROWS[row]
        values = [getattr(scores, name) if name in names else None for name in COLUMNS]
        cells = " ".join(f"{'-' if v is None else format(v, '.4f'):>10}" for v in values)
        lines.append(f"{label:{width}} {cells}")
    lines.append(NOTE)
    for kind, figures in spread.items():
        lines += [_spread_line(kind, figures, name) for name in COLUMNS if name in figures]
    return "\n".join(lines)


def _spread_line(kind: str, spread: Mapping[str, Any], figure: str) -> str:
    """One figure over the groups of a kind."""
    values = spread[figure]
    line = f"{COLUMNS[figure]} over {spread['groups']} {GROUPS[kind]}: worst {values['worst']:.4f}"
    line += f", best {values['best']:.4f}"
    if values["interval"] is None:
        return line
    low, high = values["interval"]
    return f"{line}; all, with other such {GROUPS[kind]}: {low:.4f} to {high:.4f} (95 %)"


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
