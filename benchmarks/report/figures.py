"""Pictures of results with the tables that they show: SVG for the page, PNG for documents."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, NamedTuple

from matplotlib import pyplot
from matplotlib.figure import Figure as Canvas

from maskdepth.benchmarks.harness.results import Benchmark, Result
from maskdepth.benchmarks.report import about, plots, scores, summary, tables
from maskdepth.benchmarks.report.tables import Table
from maskdepth.convert.outputs import PNG_KEY, mark_of

COMMAND = "report"
_FORMS: dict[str, dict[str, Any]] = {
    "svg": {"metadata": {"Date": None}},
    "png": {"dpi": 200, "metadata": {PNG_KEY: mark_of(COMMAND)}},
}
"""Format of a picture -> options of matplotlib."""


class _Kind(NamedTuple):
    """How a benchmark is shown; suffix: ends the name of the figure."""

    benchmark: Benchmark
    title: str
    tables: tuple[Callable[[Result], Table], ...]
    plot: Callable[[Result], Canvas] | None = None
    alt: str = ""
    suffix: str = ""


# Validation has no new backgrounds and foregrounds, or new ones of at least one kind.
_RANDOM = partial(scores.quality, splits=("random",))
_HELD_OUT = partial(scores.quality, splits=("bg", "fg", "both"))
_KINDS = (
    _Kind("gpu-check", "Checks of the GPU: which ran, and which failed", (tables.checks,)),
    _Kind("compose", "Composition: from cut-outs to a data set", (tables.timed, tables.checked),
          plots.bars, "Bars: samples per second of composing, of a Pillow loop and of writing"),
    _Kind("convert", "Conversion: from files to shards", (tables.timed,), plots.bars,
          "Bars: samples per second of packing, of stock FFCV's writer and of reading alone"),
    _Kind("encode", "Where the time of packing goes", (tables.figures,), plots.steps,
          "Bars: CPU microseconds per sample of every step of packing"),
    _Kind("batch", "Where the time of loading goes", (tables.figures,), plots.steps,
          "Bars: CPU microseconds per sample of every step of making a batch"),
    _Kind("codecs", "Lossless ways to store a mask", (tables.codecs,)),
    _Kind("decode", "Bytes and decoding time of images by codec", (tables.figures,)),
    _Kind("luma", "Two ways to cut a depth map to its luma", (tables.figures,)),
    _Kind("loader", "Loader: from shards to batches", (tables.timed,), plots.bars,
          "Bars: samples per second of our engines, uint8 and floats, beside the floor"),
    _Kind("peers", "The same job with other libraries", (tables.timed, tables.checked), plots.bars,
          "Bars: samples per second of this project's engines and of other libraries"),
    _Kind("step", "One training step", (tables.step,), plots.bars,
          "Bars: samples per second of one training step, ours and the original's way"),
    _Kind("epoch", "An epoch: loader, model and both", (tables.rates,), plots.rate_bars,
          "Bars: rate of the loader, of the model, of both", "-rates"),
    _Kind("epoch", "An epoch: where the time of a step goes", (tables.phases,), plots.stacked,
          "Stacked bars: milliseconds per sample of every phase, training and validation",
          "-phases"),
    _Kind("scaling", "How cost grows", (tables.scaling,), plots.scaling,
          "Lines: rate and CPU time against threads, batch size, image size and records"),
    _Kind("recipes", "Recipes at equal CPU time",
          (scores.recipes_at_the_end, scores.recipes_over_time), plots.recipes,
          "Lines: mask IoU and depth RMSE over CPU minutes, one for each recipe"),
    _Kind("speedrun", "Training until it reaches the original work's scores",
          (scores.speedrun,), plots.speedrun,
          "Lines: mask IoU and depth RMSE over PFLOP of training, one for each run"),
    _Kind("quality",
          "What training reaches, beside baselines: difference above 40, mean map of the bg",
          (_RANDOM, _HELD_OUT, scores.cameras), plots.quality,
          "Bars: mask IoU and depth RMSE of runs, beside the baselines without a network"),
    _Kind("storage", "Reading a folder that is not in memory", (tables.storage,)),
    _Kind("simulation", "Millions and billions of samples (arithmetic and simulation)",
          (tables.figures,)),
    _Kind("estimate", "Limits on GPUs that were never measured (estimate)", (tables.figures,)),
    _Kind("parity", "Pixels of the device against those of the CPU", (tables.figures,)),
    _Kind("hardware", "Share of the GPU's JPEG decoder", (tables.timed,), plots.bars,
          "Bars: samples per second of stock DALI by the share of the GPU's own JPEG decoder"),
)  # fmt: skip


class Figure:
    """A picture with its tables; it is drawn when ``images`` is first read.

    name: of files and of marks in documents. file: of the result, without suffix. alt: what the
    picture shows, in words. line: of the summary.
    """

    def __init__(self, name: str, kind: _Kind, result: Result) -> None:
        self.name, self.alt = name + kind.suffix, kind.alt
        # A folder can hold several results of one benchmark.
        self.title = kind.title if name == result.benchmark else f"{kind.title} ({name})"
        made = (make(result) for make in kind.tables)
        self.tables: list[Table] = [table for table in made if table.rows]
        self.result, self.file = result, name
        self.line = summary.line(self.title, self.name, result)
        self.where = about.where(result)
        self.notes = about.notes(result)
        self.notes += [f"Not measured: {case}: {why}" for case, why in result.skipped.items()]
        self._draw = kind.plot and partial(kind.plot, result)

    @cached_property
    def images(self) -> dict[str, bytes]:
        """The picture as "svg" and "png"; empty where the tables are enough."""
        found: dict[str, bytes] = {}
        if self._draw is not None:
            with pyplot.rc_context(plots.STYLE):
                canvas = self._draw()
                for form, options in _FORMS.items():
                    out = io.BytesIO()
                    canvas.savefig(out, format=form, **options)
                    found[form] = out.getvalue()
                pyplot.close(canvas)
        return found


def figures_of(name: str, result: Result) -> list[Figure]:
    """All figures of a result; ``name`` is that of its file."""
    return [Figure(name, kind, result) for kind in _KINDS if kind.benchmark == result.benchmark]
