"""Scores as text and as a file: the table of scores next to the baselines, metrics.csv."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from model.files import replace_bytes
from model.metrics import DIFFERENCE_LEVELS, VALID_DEPTH, GroupSpread, Scores

FIGURES = {
    "mask_bce": "mask BCE",
    "mask_iou": "mask IoU",
    "depth_l1": "depth L1",
    "depth_rmse": "depth RMSE",
    "depth_rmse_x10": "RMSE x10",
    "delta1": "delta1",
    "silog": "SILog",
}
"""Figures of `Scores` and their titles, in the order of the columns."""
DEPTH_FIGURES = ("depth_l1", "depth_rmse", "depth_rmse_x10", "delta1", "silog")

ROWS = {
    "network": ("network", tuple(FIGURES)),
    "aligned_network": ("network, images aligned", tuple(FIGURES)),
    "difference": (f"|fg_bg - bg| > {DIFFERENCE_LEVELS}", ("mask_iou",)),
    "aligned_difference": (f"|fg_bg - bg| > {DIFFERENCE_LEVELS}, images aligned", ("mask_iou",)),
    "prior": ("constant share of mask pixels", ("mask_bce",)),
    "background_depth": ("mean depth map of the background", DEPTH_FIGURES),
    "overall_depth": ("mean depth map of all", DEPTH_FIGURES),
}
"""The network and the baselines: name -> title, and the figures that are defined for it."""
GROUPS = {"bg": "backgrounds", "fg": "foregrounds"}
PRIOR = "prior"
"""The `depth_source` of a loader whose depth maps are a ground-plane prior."""
PRIOR_NOTE = "* depth here is a ground-plane prior, not measured: how well that is repeated"
NOTE = f"delta1, SILog: pixels with a target depth of at least {VALID_DEPTH:g}; SILog x 100"

EpochRow = dict[str, float | None]
"""One row of metrics.csv."""


def defined_figures(rows: Mapping[str, Scores]) -> dict[str, dict[str, float | None]]:
    """Figures by row, without those that are not defined for it (the BCE of a rule, say)."""
    return {
        row: {name: getattr(scores, name) for name in ROWS[row][1]} for row, scores in rows.items()
    }


def figure_titles(depth_source: str) -> dict[str, str]:
    """Titles of `FIGURES`; those of depth have an asterisk, see `PRIOR_NOTE`, if it is a prior."""
    marked = DEPTH_FIGURES if depth_source == PRIOR else ()
    return {name: title + "*" * (name in marked) for name, title in FIGURES.items()}


def score_table(
    sections: Sequence[tuple[str, Mapping[str, Scores]]],
    title: str,
    spread: Mapping[str, GroupSpread],
    depth_source: str = "",
) -> str:
    """The scores of the network and of the baselines as aligned text.

    depth_source: of the loader; figures of a prior are marked.
    sections: for each camera a line about it, empty for none, and its rows.
    spread: how the network's scores vary between groups, see `evaluation.Report`; one line each.
    """
    width = max(len(ROWS[row][0]) for _, rows in sections for row in rows)
    titles = figure_titles(depth_source)
    head = " ".join(f"{title:>10}" for title in titles.values())
    lines = [title, f"{'':{width}} {head}"]
    for about, rows in sections:
        lines += [about] if about else []
        for row, figures in defined_figures(rows).items():
            values = [figures.get(name) for name in FIGURES]
            cells = " ".join(
                f"{'-' if value is None else format(value, '.4f'):>{max(10, len(title))}}"
                for value, title in zip(values, titles.values(), strict=True)
            )
            lines.append(f"{ROWS[row][0]:{width}} {cells}")
    lines += [NOTE, *([PRIOR_NOTE] if depth_source == PRIOR else [])]
    if len(sections) > 1 and spread:
        lines.append(f"Spread of the first rows ({sections[0][0].strip('- ')}):")
    for kind, group in spread.items():
        for name in (name for name in FIGURES if name in group.figures):
            figure = group.figures[name]
            line = f"{titles[name]} over {group.groups} {GROUPS[kind]} {_known(group)}: "
            line += f"worst {figure.worst:.4f}, best {figure.best:.4f}"
            if figure.interval is not None:
                low, high = figure.interval
                line += f"; all, with other such {GROUPS[kind]}: {low:.4f} to {high:.4f} (95 %)"
            lines.append(line)
    return "\n".join(lines)


def _known(group: GroupSpread) -> str:
    """Whether training has seen these groups, in words."""
    if group.seen is None:
        return "(whether training has seen them is not known)"
    if group.seen == 0:
        return "held out in training"
    return "known from training" if group.seen == group.groups else "partly known from training"


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
        f"{name} {value:.4f}" + " (prior)" * (name in marked) for name, value in figures.items()
    )
    return (
        f"stage {row['stage']} epoch {row['epoch']}: {shown} "
        f"({row['epoch_s']:.0f} s, {row['samples_per_s']:.1f} samples/s, "
        f"{row['data_wait']:.0%} waiting for data)"
    )
