"""The report of an evaluation: scores next to those of the baselines, as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from maskdepth.convert.outputs import mark_of
from maskdepth.model.checkpoint import NetworkInfo
from maskdepth.model.contract import PRIOR, Loader, about_depth
from maskdepth.model.files import replace_bytes
from maskdepth.model.metrics import (
    DIFFERENCE_LEVELS,
    VALID_DEPTH,
    GroupSpread,
    Scores,
    group_spread,
    sample_scores,
)
from maskdepth.model.pictures import Example, draw_predictions
from maskdepth.model.training.disturbance import load_disturbance
from maskdepth.model.training.provenance import count_seen

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
PRIOR_NOTE = "* depth here is a ground-plane prior, not measured: how well that is repeated"
NOTE = (
    "RMSE x10: of values times 10, as the original work gives it; delta1, SILog: pixels with a "
    f"target depth of at least {VALID_DEPTH:g}; SILog x 100"
)

EXAMPLES = 6
"""Samples shown in the picture of an evaluation."""


class Evaluation(NamedTuple):
    """Scores by row of `ROWS`, the network's sums per sample, and examples.

    camera: the name of the disturbance of fg_bg; None if the images were not aligned either.
    """

    camera: str | None
    rows: dict[str, Scores]
    table: dict[str, np.ndarray]
    examples: list[Example]


class Report(NamedTuple):
    """Scores of a checkpoint on a validation split, and how to read them."""

    evaluations: tuple[Evaluation, ...]
    """One for each camera."""
    spread: dict[str, GroupSpread]
    """How the first camera's scores vary between groups, by bg and fg (`metrics.group_spread`)."""
    seen: dict[str, int] | None
    """How much of the split training has seen (`provenance.count_seen`); None if unknown."""
    title: str
    depth_source: str
    """Of the loader: where the depth maps of the data come from."""

    @classmethod
    def of(
        cls, evaluations: tuple[Evaluation, ...], data: Loader, split: str, info: NetworkInfo,
        trained: np.ndarray | None, validation: np.ndarray,
    ) -> Report:  # fmt: skip
        """The scores with their spread over backgrounds and, where known, over foregrounds.

        trained: samples that training has seen, None if unknown. validation: those of the split.
        """
        evaluation, layout = evaluations[0], data.layout
        groups = {"bg": layout.background_of}
        if layout.has_foregrounds:
            groups["fg"] = layout.foreground_of
        every = np.arange(layout.samples)
        spread = {
            kind: group_spread(
                evaluation.table, of(every), None if trained is None else of(trained)
            )
            for kind, of in groups.items()
        }
        seen = None if trained is None else count_seen(layout, trained, validation)
        title = (
            f"validation: {evaluation.rows['network'].samples} samples, split {split}, "
            f"{info.size}x{info.size}, width {info.width}"
        )
        return cls(evaluations, spread, seen, title, data.depth_source)

    def table(self) -> str:
        """The scores as text; see `score_table`."""
        sections = [(_about(e.camera), e.rows) for e in self.evaluations]
        return score_table(sections, self.title, self.spread, self.depth_source)

    def to_json(self) -> dict[str, object]:
        """The scores as plain values: of the first camera, and of all by name."""
        cameras = {e.camera or "none": defined_figures(e.rows) for e in self.evaluations}
        return {
            "title": self.title,
            "depth_source": self.depth_source,
            "scores": next(iter(cameras.values())),
            "cameras": cameras,
            "spread": {kind: group.as_dict() for kind, group in self.spread.items()},
            "seen_in_training": self.seen,
        }

    def write_scores(self, path: Path, command: str) -> None:
        """Write the network's scores of each sample, with the first camera, as JSON of a command.

        See `metrics.sample_scores`; null where a score is not defined.
        """
        samples = sample_scores(self.evaluations[0].table)
        content = {"made_by": mark_of(command), "title": self.title, "samples": samples}
        replace_bytes(path, (json.dumps(content) + "\n").encode())

    def draw(self, path: Path, command: str, rows: int = EXAMPLES) -> None:
        """Write ``rows`` examples as a PNG of a command: all of one camera, or some of each."""
        share = -(-rows // len(self.evaluations))
        examples = [example for e in self.evaluations for example in e.examples[:share]]
        title = "; ".join(filter(None, (self.title, about_depth(self.depth_source))))
        draw_predictions(path, examples, command, title)


def _about(camera: str | None) -> str:
    """The line of a table about a camera."""
    if camera is None:
        return ""
    return f"-- camera {camera}: {load_disturbance(camera)}"


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
    spread: how the network's scores vary between groups, see `Report`; one line each.
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
                f"{'-' if value is None else format(value, 'z.4f'):>{max(10, len(title))}}"
                for value, title in zip(values, titles.values(), strict=True)
            )
            lines.append(f"{ROWS[row][0]:{width}} {cells}")
    lines += [NOTE, *([PRIOR_NOTE] if depth_source == PRIOR else [])]
    if len(sections) > 1 and spread:
        lines.append(f"Spread of the first rows ({sections[0][0].strip('- ')}):")
    for kind, group in spread.items():
        if group.groups == 1:
            continue  # its worst and its best are the score above
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
