"""The pictures of results: one function for each kind, from a result to a canvas.

All have the same width and one size of text, so that their text is readable on a phone, where the
page shows them 360 pixels wide.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from maskdepth.benchmarks.harness.results import NO_NETWORK, Result
from maskdepth.benchmarks.report import scores, tables

_WIDTH = 4.4
_OURS, _OTHERS, _FLOOR = "#1b6ca8", "#b9bec6", "#e0a030"
_PHASE_COLOURS = ("#c0392b", "#e0a030", "#1b6ca8", "#12486f", "#6c9a3b", "#8e6bb0")
FONT_SIZE = 8.5
STYLE: Any = {
    "font.size": FONT_SIZE,
    **dict.fromkeys(
        (
            "axes.titlesize", "axes.labelsize", "xtick.labelsize", "ytick.labelsize",
            "legend.fontsize", "figure.titlesize",
        ),
        FONT_SIZE,
    ),
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "maskdepth",
    "text.parse_math": False,  # "$" in a name begins no formula
}  # fmt: skip
_PLAIN = FuncFormatter(lambda value, _: tables.number(value))


def _use_log_scale(axes: Any, values: Iterable[float]) -> None:
    """A logarithmic x axis with a plain number at each of the values that do not crowd."""
    axes.set_xscale("log")
    shown: list[float] = []
    for value in sorted(set(values)):
        if not shown or value >= 8 * shown[-1]:
            shown.append(value)
    axes.set_xticks(shown)
    axes.xaxis.set_major_formatter(_PLAIN)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()


def _legend(canvas: Canvas, handles: Any, columns: int) -> None:
    """The labels of one of the axes, or handles, above all of them."""
    if hasattr(handles, "get_legend_handles_labels"):
        handles, _ = handles.get_legend_handles_labels()
    canvas.legend(handles=handles, ncol=columns, loc="outside upper center", frameon=False)


def bars(result: Result) -> Canvas:
    """One horizontal bar per case, longest on top, with its number."""
    rows = [
        (name, case.samples_per_s.median, case.samples_per_s)
        for name, case in result.cases.items()
        if case.samples_per_s is not None
    ]
    rows.sort(key=lambda row: row[1])
    canvas, axes = pyplot.subplots(figsize=(_WIDTH, 0.9 + 0.42 * len(rows)))
    floor = "writing" if result.benchmark == "compose" else "decoding"
    kinds = {_OURS: "ours", _OTHERS: "others", _FLOOR: f"floor: {floor} alone"}
    used = set()
    for at, (name, rate, spread) in enumerate(rows):
        ours = name.startswith("ours") or ", ours" in name
        colour = _OURS if ours else _FLOOR if name.startswith("floor") else _OTHERS
        used.add(colour)
        error = [[rate - spread.lowest], [spread.highest - rate]]
        axes.barh(at, rate, 0.42, color=colour, xerr=error, error_kw={"lw": 0.8, "alpha": 0.6})
        axes.text(0, at + 0.26, f"{name}  {tables.number(rate)}", va="bottom")
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(_PLAIN)
    axes.set_ylim(-0.5, len(rows))
    axes.set_xlabel("samples/s, more is better; line: range of the repeats")
    _legend(canvas, [Patch(color=c, label=kinds[c]) for c in kinds if c in used], 3)
    return canvas


def rate_bars(result: Result) -> Canvas:
    """Loader, model and both of every stage, with their numbers."""
    found = tables.stages(result)
    parts = {"loader": _OTHERS, "model": _FLOOR, "training": _OURS}
    labels = {"loader": "loader alone", "model": "model alone", "training": "both: training"}
    canvas, axes = pyplot.subplots(figsize=(_WIDTH, 0.8 + 0.7 * len(found)))
    for row, title in enumerate(reversed(found)):
        for at, (part, colour) in enumerate(parts.items()):
            spread = found[title][part].samples_per_s
            assert spread is not None
            rate, height = spread.median, row + (1 - at) * 0.27
            axes.barh(height, rate, 0.25, color=colour, label=labels[part] if row == 0 else None)
            axes.text(rate, height, f" {tables.number(rate)}", va="center")
    axes.set_yticks(range(len(found)), list(reversed(found)))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(_PLAIN)
    axes.margins(x=0.15)
    axes.set_xlabel("samples/s, more is better")
    _legend(canvas, axes, 3)
    return canvas


def stacked(result: Result) -> Canvas:
    """One bar per stage and part, made of the milliseconds of its phases."""
    rows = [
        (f"{title}\n{part}", tables.per_sample_ms(parts[part]))
        for title, parts in tables.stages(result).items()
        for part in ("training", "validation")
    ]
    canvas, axes = pyplot.subplots(figsize=(_WIDTH, 1.0 + 0.45 * len(rows)))
    ends = [0.0] * len(rows)
    for phase, colour in zip(tables.PHASES, _PHASE_COLOURS, strict=True):
        lengths = [times.get(phase, 0.0) for _, times in reversed(rows)]
        label = phase.replace("_", " ")
        axes.barh(range(len(rows)), lengths, 0.6, left=ends, color=colour, label=label)
        ends = [end + length for end, length in zip(ends, lengths, strict=True)]
    for at, end in enumerate(ends):
        axes.text(end, at, f" {tables.number(end)}", va="center")
    axes.set_yticks(range(len(rows)), [title for title, _ in reversed(rows)])
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.margins(x=0.12)
    axes.set_xlabel("ms/sample, less is better")
    _legend(canvas, axes, 3)
    return canvas


def scaling(result: Result) -> Canvas:
    """One row of two plots per axis: samples/s, and CPU time per sample."""
    axes_of: dict[str, None] = dict.fromkeys(
        str(case.parameters["axis"]) for case in result.cases.values()
    )
    canvas, rows = pyplot.subplots(
        len(axes_of), 2, figsize=(_WIDTH, 0.4 + 1.65 * len(axes_of)), squeeze=False
    )
    for row, axis in zip(rows, axes_of, strict=True):
        second = "first_batch_s" if axis == "records" else "cpu_us_per_sample"
        for axes, what in zip(row, ("samples_per_s", second), strict=True):
            _lines(axes, result, axis, what)
    _legend(canvas, rows[0][0], 2)
    return canvas


def _lines(axes: Any, result: Result, axis: str, what: str) -> None:
    labels = {
        "samples_per_s": "samples/s",
        "cpu_us_per_sample": "CPU us/sample",
        "first_batch_s": "first batch, s",
    }
    engines = dict.fromkeys(str(case.parameters["engine"]) for case in result.cases.values())
    cases = [case for case in result.cases.values() if case.parameters["axis"] == axis]
    for engine, marker, colour in zip(engines, "os^v", (_OURS, _FLOOR, _OTHERS, "k"), strict=False):
        points = sorted(
            (float(case.parameters["value"]), value)
            for case in cases
            if case.parameters["engine"] == engine
            and (value := tables.point(case, what)) is not None
        )
        if points:
            axes.plot(*zip(*points, strict=True), marker=marker, ms=3, color=colour, label=engine)
    values = sorted({float(case.parameters["value"]) for case in cases})
    _use_log_scale(axes, values if axis == "records" else [])
    if axis != "records":
        axes.set_xticks(values)
    axes.set_ylim(bottom=0, top=1.1 * axes.get_ylim()[1])
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(_PLAIN)
    axes.set_xlabel(tables.AXES.get(axis, axis))
    axes.set_ylabel(labels[what])


def speedrun(result: Result) -> Canvas:
    """Both scores over PFLOP: a line for each run, a colour for each recipe, dashes: the target."""
    canvas, panels = pyplot.subplots(1, 2, figsize=(_WIDTH, 2.6))
    runs = scores.runs_of(result)
    colours = {name: f"C{at}" for at, name in enumerate(dict.fromkeys(name for name, _ in runs))}
    arguments = {"mask_iou": "target_iou", "depth_rmse": "target_rmse"}
    goals = {what: float(str(result.arguments[name])) for what, name in arguments.items()}
    target = "target: " + " and ".join(f"{goal:.4f}" for goal in goals.values())
    spent = [float(case.parameters["pflop"]) for cases in runs.values() for case in cases]
    for axes, (figure, title) in zip(panels, scores.titles(result).items(), strict=True):
        labelled: set[str] = set()
        for (recipe, _), cases in runs.items():
            points = [(float(c.parameters["pflop"]), c.figures[figure]) for c in cases]
            label = None if recipe in labelled else recipe
            labelled.add(recipe)
            style = {"lw": 1, "marker": ".", "ms": 3, "color": colours[recipe], "label": label}
            axes.plot(*zip(*points, strict=True), **style)
        axes.axhline(goals[figure], color="gray", linestyle="--", lw=1, label=target)
        axes.set_title(title)
        axes.set_xlabel("PFLOP, logarithmic")
        _use_log_scale(axes, spent)
    panels[0].set_ylim(0, 1)
    panels[1].set_ylim(0, 0.4)
    _legend(canvas, panels[0], 3)
    return canvas


def recipes(result: Result) -> Canvas:
    """Both scores over CPU minutes: a line for each recipe, dashes for the baselines."""
    canvas, panels = pyplot.subplots(1, 2, figsize=(_WIDTH, 2.8))
    names = dict.fromkeys(
        str(case.parameters["recipe"]) for case in result.cases.values() if case.parameters
    )
    for axes, (figure, title) in zip(panels, scores.titles(result).items(), strict=True):
        for recipe in names:
            points = [
                (float(case.parameters["cpu_min"]), case.figures[figure])
                for case in result.cases.values()
                if case.parameters.get("recipe") == recipe and figure in case.figures
            ]
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", ms=3, label=recipe)
        baseline = result.cases[NO_NETWORK].figures[figure]
        axes.axhline(baseline, color="gray", linestyle="--", lw=1, label=NO_NETWORK)
        axes.set_title(title)
        axes.set_xlabel("training, CPU minutes")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(5))
    panels[0].set_ylim(0, 1)
    _legend(canvas, panels[0], 3)
    return canvas


def quality(result: Result) -> Canvas:
    """Both scores of every run, the network's bar above that of the baseline."""
    names = [name for name, case in result.cases.items() if "camera" not in case.parameters][::-1]
    canvas, panels = pyplot.subplots(1, 2, figsize=(_WIDTH, 1.1 + 0.42 * len(names)), sharey=True)
    bars_of = {"": ("network", _OURS, 0.2), "rule_": ("rule, no network", _OTHERS, -0.2)}
    for axes, (figure, title) in zip(panels, scores.titles(result).items(), strict=True):
        for before, (label, colour, shift) in bars_of.items():
            for at, name in enumerate(names):
                case = result.cases[name]
                value = case.figures[before + figure]
                prior = scores.prior_mark(result, case) * ("depth" in figure)
                axes.barh(at + shift, value, 0.38, color=colour, label="" if at else label)
                axes.text(value, at + shift, f" {value:.3f}{prior}", va="center")
        axes.set_yticks(range(len(names)), names)
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.set_xlabel(title)
        axes.margins(x=0.35)
    _legend(canvas, panels[0], 2)
    return canvas


def steps(result: Result) -> Canvas:
    """One horizontal bar per step, in the order of the work; the last is all of them."""
    names = list(reversed(result.cases))
    cpu_us = [result.cases[name].figures["median_cpu_us"] for name in names]
    canvas, axes = pyplot.subplots(figsize=(_WIDTH, 0.6 + 0.24 * len(names)))
    axes.barh(names, cpu_us, 0.7, color=[_FLOOR, *[_OURS] * (len(names) - 1)])
    for at, value in enumerate(cpu_us):
        axes.text(value, at, f" {tables.number(value)}", va="center")
    axes.margins(x=0.15)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(_PLAIN)
    axes.set_xlabel("CPU us/sample, less is better")
    return canvas
