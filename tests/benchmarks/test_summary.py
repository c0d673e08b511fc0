"""What the page and its tables say so that no figure can be misread."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib import pyplot
from matplotlib.text import Text

from maskdepth.benchmarks.harness.results import CaseResult, Result, make_result, read_results
from maskdepth.benchmarks.harness.timing import Repeat
from maskdepth.benchmarks.report import about, plots, summary, tables
from maskdepth.benchmarks.report.figures import figures_of

RESULTS = Path(__file__).parents[2] / "docs" / "results"
FLOOR = "floor: libjpeg-turbo alone"


def timed(*rates: float) -> CaseResult:
    return CaseResult(
        repeats=[Repeat(samples=100, wall_s=100 / rate, cpu_s=1, peak_gib=1) for rate in rates]
    )


def loader(cases: dict[str, CaseResult]) -> Result:
    return make_result("loader", {}, cases, ours=("ours, FFCV",))


def against_ours(result: Result) -> dict[str, str]:
    table = tables.timed(result)
    at = table.head.index("against ours")
    return {row[0]: row[at] for row in table.rows}


def test_ratios_say_which_is_faster() -> None:
    cases = {
        "ours, FFCV": timed(100, 200, 300), "slow": timed(40, 80, 120),
        "fast": timed(250, 500, 750), "same": timed(100, 201, 300), "once": timed(100),
    }  # fmt: skip
    result = loader(cases)
    assert against_ours(result) == {
        "ours, FFCV": "ours", "slow": "2.50 x slower", "fast": "2.50 x faster", "same": "equal",
        "once": "2.00 x slower",
    }  # fmt: skip
    assert about.notes(result)[0].startswith('Against ours: "2 x slower" is half of the samples/s')
    alone = make_result("hardware", {}, {"a": timed(1.0)})
    assert "against ours" not in tables.timed(alone).head
    assert about.notes(alone) == []


@pytest.mark.parametrize(
    ("name", "rates", "why"),
    [
        ("ours, DALI", (50, 60, 70), ""),
        ("ours, DALI", (90, 110, 120), '"ours, DALI" is above it within the ranges'),
        ("ours, DALI", (130, 140, 150), '"ours, DALI" is above it by more than their ranges'),
        ("ours, FFCV, stored as JPEGs", (90, 110, 120), "within the ranges of the repeats."),
        ("ours, FFCV, float", (500, 500, 500), ""),
        ("ours, resident", (500, 500, 500), ""),
    ],
)
def test_the_floor_is_explained_where_it_stands(
    name: str, rates: tuple[float, ...], why: str
) -> None:
    result = loader({"ours, FFCV": timed(300, 300, 300), FLOOR: timed(90, 100, 110),
                     name: timed(*rates)})  # fmt: skip
    note = about.notes(result)[-1]
    assert note.startswith(f'The row "{FLOOR}" decodes the JPEGs of the same')
    assert (why in note) if why else ("above it" not in note)
    (figure,) = figures_of("loader", result)
    assert note in figure.notes
    assert note in about.text(result)


def test_pictures_have_one_size_of_text_one_width_and_units() -> None:
    """Of every kind of picture, by the published results."""
    drawn = set()
    for name, result in read_results(RESULTS).items():
        for figure in figures_of(name, result):
            if figure._draw is None or figure.alt in drawn:
                continue
            drawn.add(figure.alt)
            with pyplot.rc_context(plots.STYLE):
                canvas = figure._draw()
                canvas.canvas.draw()
            texts = [text for text in canvas.findobj(Text) if text.get_text()]
            assert {text.get_fontsize() for text in texts} == {plots.FONT_SIZE}, figure.name
            # Labels of ticks outside the limits of an axis exist, but are not drawn.
            names = [*(one for legend in canvas.legends for one in legend.get_texts())]
            for axes in canvas.axes:
                names += [*axes.texts, axes.xaxis.label, axes.yaxis.label, axes.title]
            for text in filter(Text.get_text, names):
                box = text.get_window_extent()
                assert box.x0 >= -1, text.get_text()
                assert box.x1 <= canvas.bbox.width + 1, text.get_text()
            for axes in canvas.axes:
                assert axes.get_xlabel(), f"{figure.name}: an axis has no name"
            assert canvas.get_figwidth() == 4.4
            pyplot.close(canvas)
    assert len(drawn) >= 8


@pytest.mark.parametrize(
    ("figure", "title"),
    [
        ("order_us_per_batch", "order, us/batch"),
        ("median_decode_cpu_us", "median decode, CPU us/sample"),
        ("dali_launches_us_per_sample", "dali launches, us/sample"),
        ("index_mib_per_gpu", "index, MiB/GPU"),
        ("limit_samples_per_s", "limit, samples/s"),
        ("data_gib", "data, GiB"),
        ("bytes", "stored, bytes/image"),
        ("files", "files"),
    ],
)
def test_headings_have_units(figure: str, title: str) -> None:
    assert tables.titled(figure) == title


def test_the_summary_names_commits_and_machines_that_differ() -> None:
    first = loader({"ours, FFCV": timed(300, 310), "stock FFCV": timed(100, 100)})
    first = first.model_copy(update={"commit": "abc1234", "created": "2026-01-02T03:04:05+00:00"})
    line = summary.line("Loader", "loader", first)
    assert line.found == (
        "ours, FFCV: 305 samples/s; in the same rounds 3.05 times the rate of stock FFCV"
    )
    assert (line.day, line.commit) == ("2026-01-02", "abc1234")
    assert "cores of" in line.machine
    assert "Fewer than 3 repeats" in line.doubts
    assert summary.warnings({"a": first, "b": first}) == []
    other = first.model_copy(update={"commit": "def5678-dirty"})
    commits, changed = summary.warnings({"a": first, "b": other, "c": first})
    assert commits.startswith("Measured at 2 commits, so figures of different results cannot")
    assert commits.endswith("abc1234: a, c; def5678-dirty: b.")
    assert changed.endswith("no commit: b.")
    machine = first.machine.model_copy(update={"gpu": "NVIDIA T4"})
    (machines,) = summary.warnings({"a": first, "b": first.model_copy(update={"machine": machine})})
    assert machines.startswith("Measured on 2 machines")
    assert "NVIDIA T4: b" in machines


def test_every_published_result_has_a_finding() -> None:
    for name, result in read_results(RESULTS).items():
        assert summary.line(name, name, result).found
