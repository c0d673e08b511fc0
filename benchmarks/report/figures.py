"""Pictures of results, each beside the table that it shows: SVG for the page, PNG for the rest."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from matplotlib import pyplot
from matplotlib.figure import Figure as Canvas

from benchmarks.harness.results import Result
from benchmarks.report import plots, tables
from benchmarks.report.tables import Table


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


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """How a benchmark is shown: its tables, and a picture where one says more."""

    title: str
    tables: tuple[Callable[[Result], Table], ...]
    plot: Callable[[Result], Canvas] | None = None
    alt: str = ""
    suffix: str = ""


_BARS = partial(plots.bars, label="samples/s, more is better; line: range of the repeats")
_KINDS: dict[str, tuple[_Kind, ...]] = {
    "convert": (
        _Kind(
            title="Conversion: from files to shards",
            alt="Bars: samples per second of packing, of stock FFCV's writer and of reading alone",
            plot=_BARS,
            tables=(tables.timed,),
        ),
    ),
    "encode": (
        _Kind(
            title="Where the time of packing goes",
            alt="Bars: CPU microseconds a sample of every step of packing",
            plot=plots.encode,
            tables=(tables.figures,),
        ),
    ),
    "codecs": (_Kind(title="Lossless ways to store a mask", tables=(tables.codecs,)),),
    "luma": (_Kind(title="Two ways to cut a depth map to its luma", tables=(tables.figures,)),),
    "loader": (
        _Kind(
            title="Loader: from shards to batches",
            alt="Bars: samples per second of both engines, uint8 and floats, beside the floor",
            plot=_BARS,
            tables=(tables.timed,),
        ),
    ),
    "peers": (
        _Kind(
            title="The same job with other libraries",
            alt="Bars: samples per second of this project's engines and of other libraries",
            plot=_BARS,
            tables=(tables.timed, tables.checked),
        ),
    ),
    "step": (
        _Kind(
            title="One training step",
            alt="Bars: samples per second of one training step, ours and the original's way",
            plot=partial(plots.bars, label="samples/s of training steps, more is better"),
            tables=(tables.step,),
        ),
    ),
    "epoch": (
        _Kind(
            title="An epoch: loader, model and both",
            alt="Bars on a logarithmic scale: rate of the loader, of the model, of both",
            plot=plots.rate_bars,
            tables=(tables.rates,),
            suffix="-rates",
        ),
        _Kind(
            title="An epoch: where the time of a step goes",
            alt="Stacked bars: milliseconds a sample of every phase, training and validation",
            plot=plots.stacked,
            tables=(tables.phases,),
            suffix="-phases",
        ),
    ),
    "scaling": (
        _Kind(
            title="How cost grows",
            alt="Lines: rate and CPU time against threads, batch size, image size and records",
            plot=plots.scaling,
            tables=(tables.scaling,),
        ),
    ),
    "recipes": (
        _Kind(
            title="Recipes at equal CPU time",
            alt="Lines: mask IoU and depth RMSE over CPU minutes, one for each recipe",
            plot=plots.recipes,
            tables=(tables.recipes_at_the_end, tables.recipes_over_time),
        ),
    ),
    "quality": (
        _Kind(
            title="What training reaches, beside rules: difference above 40, mean map of the bg",
            alt="Bars: mask IoU and depth RMSE of runs, beside the rules without a network",
            plot=plots.quality,
            tables=(tables.quality_random, tables.quality_held_out),
        ),
    ),
    "simulation": (
        _Kind(
            title="Millions and billions of samples (arithmetic and simulation)",
            tables=(tables.figures,),
        ),
    ),
    "estimate": (
        _Kind(title="Limits on GPUs that were never measured (estimate)", tables=(tables.figures,)),
    ),
    "parity": (
        _Kind(title="Pixels of the device against those of the CPU", tables=(tables.figures,)),
    ),
    "hardware": (
        _Kind(
            title="Share of the GPU's JPEG decoder",
            alt="Bars: samples per second of stock DALI by the share of the GPU's own JPEG decoder",
            plot=_BARS,
            tables=(tables.timed,),
        ),
    ),
}


def draw(name: str, result: Result) -> list[Figure]:
    """All figures of a result; ``name`` is that of its file."""
    with pyplot.rc_context(plots.STYLE):
        return [_figure(name, kind, result) for kind in _KINDS[result.benchmark]]


def _figure(name: str, kind: _Kind, result: Result) -> Figure:
    images: dict[str, bytes] = {}
    if kind.plot is not None:
        canvas = kind.plot(result)
        for form, options in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 200})):
            out = io.BytesIO()
            canvas.savefig(out, format=form, bbox_inches="tight", **options)
            images[form] = out.getvalue()
        pyplot.close(canvas)
    return Figure(
        name=name + kind.suffix, title=kind.title, alt=kind.alt,
        tables=tuple(table for make in kind.tables if (table := make(result)).rows),
        where=tables.where(result),
        notes=tuple(f"{who}: not measured: {why}" for who, why in result.skipped.items()),
        **images,
    )  # fmt: skip
