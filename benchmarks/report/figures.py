"""Pictures of results, each beside the table that it shows: SVG for the page, PNG for the rest."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.figure import Figure as Canvas

from benchmarks.report import tables
from benchmarks.report.tables import Table, point, stages
from benchmarks.results import Result

# Narrow, so that the text is readable on a phone, where the page shows it 360 pixels wide.
_WIDTH = 4.4
_OURS, _OTHERS, _FLOOR = "#1b6ca8", "#b9bec6", "#e0a030"
_PHASE_COLOURS = ("#c0392b", "#e0a030", "#1b6ca8", "#12486f", "#6c9a3b", "#8e6bb0")
_STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "maskdepth",
}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A picture (both forms; None where a table says it all) with its tables.

    name: of files and marks. alt: what the picture shows, in words.
    """

    name: str
    title: str
    alt: str
    tables: tuple[Table, ...]
    where: str
    notes: tuple[str, ...] = ()
    svg: bytes | None = None
    png: bytes | None = None


def draw(name: str, result: Result) -> list[Figure]:
    """All pictures of a result; ``name`` is that of its file."""
    with pyplot.rc_context(_STYLE):
        return _DRAW[result.benchmark](name, result)


def _figure(
    name: str, title: str, alt: str, result: Result, canvas: Canvas | None, *shown: Table
) -> Figure:
    images: dict[str, bytes] = {}
    if canvas is not None:
        for form, options in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 200})):
            out = io.BytesIO()
            canvas.savefig(out, format=form, bbox_inches="tight", **options)
            images[form] = out.getvalue()
        pyplot.close(canvas)
    notes = tuple(f"{who}: not measured: {why}" for who, why in result.skipped.items())
    return Figure(
        name=name, title=title, alt=alt, tables=shown, where=tables.where(result), notes=notes,
        svg=images.get("svg"), png=images.get("png"),
    )  # fmt: skip


def _bars(result: Result, label: str) -> Canvas:
    """One horizontal bar a case, longest on top, with its number."""
    rows = [
        (name, case.samples_per_s.median, case.samples_per_s)
        for name, case in result.cases.items()
        if case.samples_per_s is not None
    ]
    rows.sort(key=lambda row: row[1])
    canvas, axes = pyplot.subplots(figsize=(_WIDTH, 0.6 + 0.44 * len(rows)))
    for at, (name, rate, spread) in enumerate(rows):
        ours = name.startswith("ours") or name.endswith(", ours")
        colour = _OURS if ours else _FLOOR if name.startswith("floor") else _OTHERS
        error = [[rate - spread.lowest], [spread.highest - rate]]
        axes.barh(at, rate, 0.42, color=colour, xerr=error, error_kw={"lw": 0.8, "alpha": 0.6})
        axes.text(0, at + 0.27, f"{name}  {tables.number(rate)}", va="bottom", fontsize=8.5)
    axes.set_yticks([])
    axes.set_ylim(-0.5, len(rows))
    axes.set_xlabel(label)
    return canvas


def _loader(name: str, result: Result) -> list[Figure]:
    canvas = _bars(result, "samples/s, more is better; line: range of the repeats")
    alt = "Bars: samples per second of both engines, as uint8 and as floats, beside the floor"
    title = "Loader: from shards to batches"
    return [_figure(name, title, alt, result, canvas, tables.timed(result))]


def _peers(name: str, result: Result) -> list[Figure]:
    canvas = _bars(result, "samples/s, more is better; line: range of the repeats")
    alt = "Bars: samples per second of this project's engines and of other libraries"
    shown = (tables.timed(result), tables.checked(result))
    return [_figure(name, "The same job with other libraries", alt, result, canvas, *shown)]


def _convert(name: str, result: Result) -> list[Figure]:
    canvas = _bars(result, "samples/s, more is better; line: range of the repeats")
    alt = "Bars: samples per second of packing, of stock FFCV's writer and of reading alone"
    title = "Conversion: from files to shards"
    return [_figure(name, title, alt, result, canvas, tables.timed(result))]


def _step(name: str, result: Result) -> list[Figure]:
    canvas = _bars(result, "samples/s of training steps, more is better")
    alt = "Bars: samples per second of one training step, ours and the original's way"
    return [_figure(name, "One training step", alt, result, canvas, tables.step(result))]


def _epoch(name: str, result: Result) -> list[Figure]:
    rates = _figure(
        f"{name}-rates", "An epoch: loader, model and both",
        "Bars on a logarithmic scale: rate of the loader alone, of the model alone, of both",
        result, _rate_bars(result), tables.rates(result),
    )  # fmt: skip
    stacked = _figure(
        f"{name}-phases", "An epoch: where the time of a step goes",
        "Stacked bars: milliseconds a sample of every phase, training and validation",
        result, _stacked(result), tables.phases(result),
    )  # fmt: skip
    return [rates, stacked]


def _rate_bars(result: Result) -> Canvas:
    found = stages(result)
    parts = {"loader": _OTHERS, "model": _FLOOR, "training": _OURS}
    labels = {"loader": "loader alone", "model": "model alone", "training": "both: training"}
    canvas, axes = pyplot.subplots(figsize=(_WIDTH, 0.9 + 0.8 * len(found)))
    for row, title in enumerate(reversed(found)):
        for at, (part, colour) in enumerate(parts.items()):
            spread = found[title][part].samples_per_s
            assert spread is not None
            rate, height = spread.median, row + (1 - at) * 0.26
            axes.barh(height, rate, 0.24, color=colour, label=labels[part] if row == 0 else None)
            axes.text(rate, height, f" {tables.number(rate)}", va="center", fontsize=8)
    axes.set_yticks(range(len(found)), list(reversed(found)))
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.set_xlabel("samples/s, logarithmic, more is better")
    canvas.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=3, frameon=False, fontsize=8)
    return canvas


def _stacked(result: Result) -> Canvas:
    rows = [
        (f"{title}\n{part}", tables.per_sample_ms(parts[part]))
        for title, parts in stages(result).items()
        for part in ("training", "validation")
    ]
    canvas, axes = pyplot.subplots(figsize=(_WIDTH, 0.9 + 0.45 * len(rows)))
    for phase, colour in zip(tables.PHASES, _PHASE_COLOURS, strict=True):
        lengths = [times.get(phase, 0.0) for _, times in reversed(rows)]
        before = [_before(times, phase) for _, times in reversed(rows)]
        label = phase.replace("_", " ")
        axes.barh(range(len(rows)), lengths, 0.6, left=before, color=colour, label=label)
    axes.set_yticks(range(len(rows)), [title for title, _ in reversed(rows)], fontsize=8)
    axes.set_xlabel("ms a sample, less is better")
    canvas.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=3, frameon=False, fontsize=8)
    return canvas


def _before(times: dict[str, float], phase: str) -> float:
    earlier = tables.PHASES[: tables.PHASES.index(phase)]
    return sum(times.get(name, 0.0) for name in earlier)


def _scaling(name: str, result: Result) -> list[Figure]:
    shown = tables.scaling(result)
    axes_of: dict[str, None] = dict.fromkeys(
        str(case.parameters["axis"]) for case in result.cases.values()
    )
    canvas, rows = pyplot.subplots(
        len(axes_of), 2, figsize=(_WIDTH, 1.65 * len(axes_of)), layout="constrained", squeeze=False
    )
    for row, axis in zip(rows, axes_of, strict=True):
        second = "first_batch_s" if axis == "records" else "cpu_us_per_sample"
        for axes, what in zip(row, ("samples_per_s", second), strict=True):
            _lines(axes, result, axis, what)
    handles, labels = rows[0][0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside upper center", ncol=2, frameon=False, fontsize=8)
    alt = "Lines: rate and CPU time against threads, batch size, image size and number of records"
    return [_figure(name, "How cost grows", alt, result, canvas, shown)]


def _lines(axes: Any, result: Result, axis: str, what: str) -> None:
    labels = {
        "samples_per_s": "samples/s",
        "cpu_us_per_sample": "CPU us/sample",
        "first_batch_s": "s to the first batch",
    }
    engines = dict.fromkeys(str(case.parameters["engine"]) for case in result.cases.values())
    for engine, marker, colour in zip(engines, "os^v", (_OURS, _FLOOR, _OTHERS, "k"), strict=False):
        points = sorted(
            (float(case.parameters["value"]), value)
            for case in result.cases.values()
            if case.parameters["axis"] == axis and case.parameters["engine"] == engine
            if (value := point(case, what)) is not None
        )
        if points:
            axes.plot(*zip(*points, strict=True), marker=marker, ms=3, color=colour, label=engine)
    axes.set_xscale("log")
    if axis != "records":
        cases = (case for case in result.cases.values() if case.parameters["axis"] == axis)
        values = sorted({float(case.parameters["value"]) for case in cases})
        axes.set_xticks(values, [f"{value:.0f}" for value in values])
        axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel(axis, fontsize=8)
    axes.set_title(labels[what], fontsize=8)
    axes.tick_params(labelsize=7)


def _simulation(name: str, result: Result) -> list[Figure]:
    title = "Millions and billions of samples (arithmetic and simulation)"
    return [_figure(name, title, "", result, None, tables.figures(result))]


def _estimate(name: str, result: Result) -> list[Figure]:
    title = "Limits on GPUs that were never measured (estimate)"
    return [_figure(name, title, "", result, None, tables.figures(result))]


def _parity(name: str, result: Result) -> list[Figure]:
    title = "Pixels of the device against those of the CPU"
    return [_figure(name, title, "", result, None, tables.figures(result))]


def _hardware(name: str, result: Result) -> list[Figure]:
    canvas = _bars(result, "samples/s, more is better; line: range of the repeats")
    alt = "Bars: samples per second of stock DALI by the share of the GPU's own JPEG decoder"
    title = "Share of the GPU's JPEG decoder"
    return [_figure(name, title, alt, result, canvas, tables.timed(result))]


_DRAW: dict[str, Callable[[str, Result], list[Figure]]] = {
    "convert": _convert,
    "loader": _loader,
    "peers": _peers,
    "step": _step,
    "epoch": _epoch,
    "scaling": _scaling,
    "simulation": _simulation,
    "estimate": _estimate,
    "parity": _parity,
    "hardware": _hardware,
}
