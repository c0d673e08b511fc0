"""Results are read back unchanged, tables follow from them, and the page shows every picture."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib import pyplot
from matplotlib.figure import Figure as Canvas
from PIL import Image

from maskdepth.benchmarks.__main__ import main
from maskdepth.benchmarks.harness.results import (
    Accelerator,
    CaseResult,
    Result,
    make_result,
    read_result,
)
from maskdepth.benchmarks.harness.timing import Repeat
from maskdepth.benchmarks.report import about, plots, scores, tables
from maskdepth.benchmarks.report.figures import Figure, figures_of
from maskdepth.benchmarks.report.page import PAGE, all_figures
from maskdepth.convert.errors import DataError


def repeats(rate: float, cpu_us: float = 300.0) -> list[Repeat]:
    return [
        Repeat(samples=1000, wall_s=1000 / (rate * factor), cpu_s=cpu_us / 1000, peak_gib=0.5)
        for factor in (0.9, 1.0, 1.2)
    ]


def save(result: Result, folder: Path) -> Path:
    path = folder / f"{result.benchmark}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(result.model_dump_json(indent=1))
    return path


def peers(slower: float = 1.0) -> Result:
    cases = {
        "ours, FFCV": CaseResult(repeats=repeats(6000 / slower)),
        "ours, DALI": CaseResult(repeats=repeats(5000)),
        "stock": CaseResult(repeats=repeats(2000), figures={"convert_s": 3.0, "bytes": 2.0**21}),
    }
    ours = ("ours, FFCV", "ours, DALI")
    skipped = {"absent": "No module named 'absent'"}
    return make_result("peers", {"samples": 1000}, cases, ours=ours, skipped=skipped)


def epoch() -> Result:
    cases = {}
    for size in (112, 224):
        for part, rate in (("loader", 5e3), ("model", 60), ("training", 55), ("validation", 150)):
            figures = {"data_wait_s": 0.5, "forward_s": 5.0, "loss_and_backward_s": 9.0}
            if part == "training":
                figures |= {"stall": 0.1, "efficiency": 0.9, "cpu_compute_share": 0.95}
            cases[f"depth {size}: {part}"] = CaseResult(repeats=repeats(rate), figures=figures)
    return make_result("epoch", {"width": 16}, cases)


def scaling() -> Result:
    cases = {}
    for axis, values in (("threads", (1, 2)), ("records", (1000, 400_000))):
        for value in values:
            figures = {"first_batch_s": 0.3, "samples_per_s": 5e3, "cpu_us_per_sample": 300.0}
            for engine in ("ours, FFCV", "ours, DALI"):
                parameters: dict[str, Any] = {"axis": axis, "value": value, "engine": engine}
                name = f"{engine}, {axis} {value}"
                timed = repeats(4000 * value) if axis == "threads" else []
                cases[name] = CaseResult(
                    parameters=parameters, repeats=timed, figures={} if timed else figures
                )
    return make_result("scaling", {}, cases)


def step() -> Result:
    cases = {
        f"{kind} stage, {way}": CaseResult(
            parameters={"stage": kind}, repeats=repeats(rate), figures={"gflop_per_sample": 35.0}
        )
        for kind in ("depth", "mask")
        for way, rate in (("ours", 6.0), ("original's way", 5.0))
    }
    ours = ("depth stage, ours", "mask stage, ours")
    return make_result("step", {"width": 64}, cases, ours=ours)


def recipes() -> Result:
    baselines = CaseResult(figures={"mask_iou": 0.9, "depth_rmse": 0.08})
    cases = {"no network": baselines}
    for minute in (1, 2):
        scores = {"depth_rmse": 0.2 / minute} | ({"mask_iou": 0.5} if minute == 2 else {})
        cases[f"original, {minute} min"] = CaseResult(
            parameters={"recipe": "original", "cpu_min": minute}, figures=scores
        )
    return make_result("recipes", {"minutes": 2}, cases)


def speedrun() -> Result:
    cases = {"no network": CaseResult(figures={"mask_iou": 0.8, "depth_rmse": 0.1})}
    for seed in (0, 1):
        for pflop, iou in ((0.01, 0.9), (0.02, 0.9368 + 0.001 * seed)):
            cases[f"fast, seed {seed}, {pflop}"] = CaseResult(
                parameters={
                    "recipe": "fast", "seed": seed, "samples": 1000 * pflop, "pflop": pflop,
                    "seconds": 100 * pflop, "reached": float(iou >= 0.9368),
                },
                figures={"mask_iou": iou, "depth_rmse": 0.08},
            )  # fmt: skip
    arguments = {"width": 16, "target_iou": 0.9368, "target_rmse": 0.0862}
    return make_result("speedrun", arguments, cases)


def quality() -> Result:
    about: dict[str, Any] = {
        "recipe": "small", "split": "random", "width": 12, "size": 112, "epochs": 12,
        "validation_samples": 300,
    }  # fmt: skip
    scores = {
        "mask_bce": 0.01, "mask_iou": 0.95, "depth_l1": 0.02, "depth_rmse": 0.04,
        "rule_mask_iou": 0.9, "rule_depth_rmse": 0.08, "depth_rmse_of_rule": 0.5,
        "training_cpu_min": 7.5,
    }  # fmt: skip
    cases = {name: CaseResult(parameters=about, figures=scores) for name in ("photos", "drawn")}
    return make_result("quality", {}, cases)


def encode() -> Result:
    steps = ("decode", "all")
    figures = {"median_cpu_us": 200.0, "lowest_cpu_us": 190.0, "highest_cpu_us": 220.0}
    return make_result("encode", {}, {step: CaseResult(figures=figures) for step in steps})


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One result of each benchmark with a picture, and what `report` makes of them."""
    folder = tmp_path_factory.mktemp("results")
    for result in (peers(), epoch(), scaling(), step(), recipes(), speedrun(), quality(), encode()):
        save(result, folder)
    done = invoke("report", folder)
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture(scope="module")
def figures(results: Path) -> list[Figure]:
    return all_figures(results)


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_a_result_is_read_back_unchanged(tmp_path: Path) -> None:
    result = peers()
    assert read_result(save(result, tmp_path)) == result
    assert result.machine.device == "cpu"
    assert result.machine.gpu is None
    assert {"python", "torch"} <= set(result.versions)
    ratio = result.against_ours("stock")
    assert ratio is not None
    assert ratio.median == pytest.approx(1 / 3)
    assert result.best("stock") == "ours, FFCV"


def test_a_result_of_a_gpu_says_what_is_known_of_it() -> None:
    result = epoch()
    known = Accelerator(
        cuda="13.0", nvjpeg="13.4.1", sm_clock_mhz=1980, sm_clock_max_mhz=1980, power_limit_w=700,
        mig=False, processes_before=0, memory_used_before_gib=0.5, jpeg_engines=7, jpeg_engine=True,
    )  # fmt: skip
    changes = {"device": "cuda", "gpu": "NVIDIA H100", "driver": "580.95", "accelerator": known}
    machine = result.machine.model_copy(update=changes)
    result = result.model_copy(update={"machine": machine})
    assert (
        "CUDA 13.0, nvJPEG 13.4.1, SM clock 1980 of 1980 MHz, power limit 700 W, "
        "MIG off, other processes: 0, 0.50 GiB in use before, JPEG engines: 7; commit"
    ) in about.where(result)
    gpu = {"stream_share": 0.9, "kernel_share": 0.6, "device_used_gib": 5.5}
    for name in ("depth 112: training", "depth 224: training"):
        figures = result.cases[name].figures
        del figures["cpu_compute_share"]
        figures.update(gpu)
        loader = result.cases[name.replace("training", "loader")]
        loader.figures["under_load_samples_per_s"] = 3000.0
    table = tables.rates(result)
    row = dict(zip(table.head, table.rows[0], strict=True))
    assert row["R_loader under load, samples/s"] == "3,000"
    assert (row["stream share"], row["kernel share"]) == ("90.0%", "60.0%")
    assert row["GPU memory, GiB"] == "5.5"


def test_a_gpu_of_which_nothing_is_known_is_named() -> None:
    result = epoch()
    machine = result.machine.model_copy(
        update={"device": "cuda", "gpu": "NVIDIA T4", "driver": "unknown"}
    )
    for accelerator in (None, Accelerator()):
        machine = machine.model_copy(update={"accelerator": accelerator})
        where = about.where(result.model_copy(update={"machine": machine}))
        assert where.startswith("On NVIDIA T4 (driver unknown) and ")
        assert "None" not in where
        assert ", ;" not in where


@pytest.mark.parametrize(
    ("reached", "expected"),
    [
        ((1, 1, 1), "0.2 (0.1–0.5)"),
        ((1, 1, 0), "0.2 (0.1–> 0.5)"),
        ((1, 0, 0), "> 0.2 (0.1–> 0.5)"),
        ((0, 0, 0), "> 0.2"),
    ],
)
def test_speedrun_marks_what_runs_needed_at_least(reached: tuple[int, ...], expected: str) -> None:
    cases = {
        f"fast, seed {seed}": CaseResult(
            parameters={
                "recipe": "fast", "seed": seed, "samples": 1000 * pflop, "pflop": pflop,
                "seconds": 100 * pflop, "reached": float(reached[seed]),
            },
            figures={"mask_iou": 0.9, "depth_rmse": 0.08},
        )
        for seed, pflop in enumerate((0.1, 0.2, 0.5))
    }  # fmt: skip
    table = scores.speedrun(make_result("speedrun", {}, cases))
    (row,) = (dict(zip(table.head, row, strict=True)) for row in table.rows)
    assert row["work, PFLOP"] == expected
    assert row["runs that reached it"] == f"{sum(reached)} of 3"


def test_floats_are_compared_with_floats() -> None:
    rates = {"ours, FFCV": 6000, "ours, FFCV, float": 4000, "stock": 2000, "stock, float": 1000}
    cases = {name: CaseResult(repeats=repeats(rate)) for name, rate in rates.items()}
    result = make_result("peers", {}, cases, ours=("ours, FFCV", "ours, FFCV, float"))
    found = {name: result.against_ours(name) for name in ("stock", "stock, float")}
    assert {name: spread and spread.median for name, spread in found.items()} == {
        "stock": pytest.approx(1 / 3),
        "stock, float": pytest.approx(1 / 4),
    }


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda value: value.pop("commit"), "commit"),
        (lambda value: value.update(schema_version=1), "schema_version"),
        (lambda value: value.update(typed_by_hand=1), "typed_by_hand"),
        (
            lambda value: value["cases"]["stock"]["samples_per_s"].update(median=99_999),
            "samples_per_s is not that of the repeats",
        ),
        (lambda value: value.update(ours=["absent"]), "absent"),
    ],
)
def test_an_invalid_result_is_refused(tmp_path: Path, change: Any, reason: str) -> None:
    path = save(peers(), tmp_path)
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    with pytest.raises(DataError, match=reason):
        read_result(path)
    done = invoke("report", tmp_path)
    assert done.exit_code == 2
    assert str(path) in done.output


def test_report_of_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    done = invoke("report", tmp_path)
    assert done.exit_code == 2
    assert "no results" in done.output


def test_report_replaces_only_its_own_files(tmp_path: Path) -> None:
    path = save(peers(), tmp_path)
    for _ in range(2):
        assert invoke("report", tmp_path).exit_code == 0
    picture = tmp_path / "pictures" / f"{path.stem}.png"
    drawn = picture.read_bytes()
    for spoilt in (tmp_path / PAGE, picture):
        spoilt.write_text("mine")
        done = invoke("report", tmp_path)
        assert done.exit_code == 2
        assert f"{spoilt}: exists and was not made by report" in done.output
        assert spoilt.read_text() == "mine"
        spoilt.unlink()
    assert drawn.startswith(b"\x89PNG")


@pytest.mark.parametrize("draw", [plots.rate_bars, plots.scaling, plots.speedrun])
def test_axes_have_plain_numbers(draw: Callable[[Result], Canvas]) -> None:
    """Formulas are off in pictures, and matplotlib writes powers of ten as formulas."""
    made = {"rate_bars": epoch, "scaling": scaling, "speedrun": speedrun}
    with pyplot.rc_context(plots.STYLE):
        canvas = draw(made[draw.__name__]())
        canvas.canvas.draw()
    found = [text.get_text() for axes in canvas.axes for text in axes.get_xticklabels()]
    pyplot.close(canvas)
    numbers = [text.replace(",", "") for text in found if text]
    assert numbers
    assert all(float(text) >= 0 for text in numbers)


def test_report_writes_one_page_and_pictures(results: Path, figures: list[Figure]) -> None:
    page = (results / PAGE).read_text()
    assert "no GPU" in page
    assert "Not measured: absent: No module named" in page
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page), "other files are needed"
    for figure in figures:
        assert base64.b64encode(figure.images["svg"]).decode() in page
        for table in figure.tables:
            assert all(len(row) == len(table.head) for row in table.rows)
        with Image.open(results / "pictures" / f"{figure.name}.png") as picture:
            assert picture.width >= 600
            assert len(picture.convert("L").histogram()) == 256


def test_equal_results_give_equal_bytes(results: Path) -> None:
    result = read_result(results / "step.json")
    (first,), (second,) = figures_of("step", result), figures_of("step", result)
    assert first.images == second.images


def test_tables_are_inserted_between_marks(tmp_path: Path) -> None:
    results = save(peers(), tmp_path / "results").parent
    document = tmp_path / "document.md"
    document.write_text(
        "# Title\n\n<!-- peers.0:begin -->\nold figures\n<!-- peers.0:end -->\nkept\n"
        "<!-- unknown:begin -->\nalso kept\n<!-- unknown:end -->\n"
    )
    done = invoke("report", results, "--insert", document)
    assert done.exit_code == 0, done.output
    assert f"1 PNG files in {results / 'pictures'}\n" in done.output
    first = document.read_text()
    assert "| stock | 2,000 | 3.00 x slower |" in first
    assert "old figures" not in first
    assert "\nkept\n" in first
    assert "also kept" in first
    invoke("report", results, "--insert", document)
    assert document.read_text() == first
    document.write_text("<!-- peers:begin -->\n")
    done = invoke("report", results, "--insert", document)
    assert done.exit_code == 2
    assert "<!-- peers:end -->" in done.output
    (results / PAGE).unlink()
    done = invoke("report", results, "--insert", tmp_path / "no.md")
    assert done.exit_code == 2
    assert "no.md" in done.output
    assert not (results / PAGE).exists()


def chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no Chromium here (Debian: apt-get install chromium)")


PROBE = """
<style>html { width: WIDTHpx }</style>
<script>
addEventListener("load", () => {
  const shown = [...document.images].map((image) => {
    const box = image.getBoundingClientRect();
    const loaded = image.complete && image.naturalWidth > 0 && image.alt;
    return loaded && box.width > 100 && box.right <= WIDTH ? image.id : null;
  });
  const wide = document.body.getBoundingClientRect().right > WIDTH;
  document.title = JSON.stringify({ shown, wide, tables: document.querySelectorAll("td").length });
});
</script>
"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_every_figure(
    results: Path, figures: list[Figure], tmp_path: Path, width: int
) -> None:
    """Headless Chromium's narrowest window has 500 pixels; the page gets a phone's 390."""
    browser = chromium()
    probe, window = PROBE.replace("WIDTH", str(width)), max(width, 500)
    probed = tmp_path / "probed.html"
    probed.write_text((results / PAGE).read_text().replace("</body>", probe + "</body>"))
    picture = tmp_path / "screenshot.png"
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={window},2500",
        "--virtual-time-budget=5000",
    ]  # fmt: skip
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run([*command, "--dump-dom", probed.as_uri()], check=True, **options)
    match = re.search(r"<title>(\{.*?\})</title>", done.stdout)
    assert match, done.stdout[:500]
    found = json.loads(match[1].replace("&quot;", '"'))
    assert found["shown"] == [f"picture-{figure.name}" for figure in figures]
    assert not found["wide"], "the page is wider than the window"
    assert found["tables"] > 50
    subprocess.run([*command, f"--screenshot={picture}", probed.as_uri()], check=True, **options)
    with Image.open(picture) as image:
        assert image.width == window
        assert len(np.unique(np.asarray(image.convert("L")))) > 20
