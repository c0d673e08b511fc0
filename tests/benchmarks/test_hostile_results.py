"""Result files that anyone may have written: their text stays text, their numbers are checked."""

from __future__ import annotations

import html
import json
import re
import string
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from maskdepth.benchmarks.__main__ import main
from maskdepth.benchmarks.harness.results import CaseResult, make_result, read_result
from maskdepth.benchmarks.harness.timing import Repeat
from maskdepth.benchmarks.report.markdown import escape
from maskdepth.benchmarks.report.page import PAGE

MARKS = "<!-- codecs:begin -->\n<!-- codecs:end -->\n"
HOSTILE = (
    "<script>alert(1)</script>",
    "<!-- codecs:end -->",
    "<!-- codecs:begin -->",
    "-->",
    "a | b | c",
    "a\n\n# heading\n\n| x |\n| --- |",
    "![](https://example.org/x.png) [a](javascript:b)",
    "`code *bold* _slanted_ ~~gone~~ $\\frac{",
    "&lt;b&gt; &#60;b&#62;",
    "\x1b[31mred\x07\u202egnol\u2028",
    "\\",
    "ä" * 5000,
)


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def hostile_result(text: str, folder: Path) -> Path:
    """A result of `codecs` with this text in every place where a file can have any."""
    case = CaseResult(parameters={"on_a_gpu": text}, figures={"bytes": 3.0, text + "x": 1.0})
    result = make_result("codecs", {text: text}, {text + "y": case}, skipped={text + "z": text})
    content = result.model_dump(mode="json") | {"commit": text, "created": text}
    content["machine"] |= {"cpu": text, "system": text}
    path = folder / "codecs.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_a_result_has_no_meaning_in_documents(text: str, tmp_path: Path) -> None:
    hostile_result(text, tmp_path)
    document = tmp_path / "document.md"
    document.write_text(f"before\n\n{MARKS}\nafter\n")
    done = invoke("report", tmp_path, "--insert", document)
    assert done.exit_code == 0, done.output
    first = document.read_text()
    begin, end = MARKS.splitlines()
    inserted = first.removeprefix(f"before\n\n{begin}\n").removesuffix(f"\n{end}\n\nafter\n")
    assert len(inserted) == len(first) - len(f"before\n\n{MARKS}\nafter\n") - 1
    assert not set(inserted) & set("<`*[]\\~$")
    rows = [line for line in inserted.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {5}  # four cells
    assert all(re.match(r"\||On a|Not measured|$", line) for line in inserted.splitlines())
    shown = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    assert shown in html.unescape(inserted)
    assert invoke("report", tmp_path, "--insert", document).exit_code == 0
    assert document.read_text() == first
    page = (tmp_path / PAGE).read_text()
    assert not re.search(r"<script|<!--|javascript:b\"", page)


def test_escaping_changes_no_text_and_leaves_no_active_character() -> None:
    for text in (string.printable, *HOSTILE, "a_b _c_ www.x.org https://x.org a@b.org"):
        shown = escape(text)
        assert html.unescape(shown) == " ".join(
            "".join(c if c.isprintable() else " " for c in text).split()
        )
        assert not re.search(r"[<|`*\[\]\\~$@]|&(?!#\d+;)|-->|://|www\.|\b_|_\b", shown)
    assert escape("slow_share 8, 2026-11-26T02:32:08+00:00; 0.2 (0.1–> 0.5)") == (
        "slow_share 8, 2026-11-26T02:32:08+00:00; 0.2 (0.1–> 0.5)"
    )


@pytest.mark.parametrize(
    "text",
    [
        "<!-- codecs:begin -->\n<!-- codecs:begin -->\n<!-- codecs:end -->\n",
        "<!-- codecs:end -->\n<!-- codecs:begin -->\n",
        "<!-- codecs:begin -->\n<!-- codecs.0:begin -->\n<!-- codecs:end -->\n"
        "<!-- codecs.0:end -->\n",
    ],
)
def test_marks_that_are_not_balanced_change_nothing(text: str, tmp_path: Path) -> None:
    hostile_result("a", tmp_path)
    document = tmp_path / "document.md"
    document.write_text(text)
    done = invoke("report", tmp_path, "--insert", document)
    assert done.exit_code == 2
    assert "document.md: found <!-- codecs" in done.output.splitlines()[-1]
    assert document.read_text() == text


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("cases", "a", "repeats", 0, "samples"), 0),
        (("cases", "a", "repeats", 0, "samples"), 10**400),
        (("cases", "a", "repeats", 0, "wall_s"), 0),
        (("cases", "a", "repeats", 0, "wall_s"), -1),
        (("cases", "a", "repeats", 0, "cpu_s"), float("nan")),
        (("cases", "a", "repeats", 0, "peak_gib"), float("inf")),
        (("cases", "a", "samples_per_s"), None),
        (("cases", "a", "figures"), {"bytes": "many"}),
        (("cases",), []),
        (("machine", "cores"), "two"),
        (("created",), None),
    ],
)
def test_impossible_numbers_are_refused(place: tuple[Any, ...], value: Any, tmp_path: Path) -> None:
    repeat = Repeat(samples=10, wall_s=1, cpu_s=1, peak_gib=1)
    result = make_result("loader", {}, {"a": CaseResult(repeats=[repeat])})
    content = result.model_dump(mode="json")
    at = content
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    path = tmp_path / "loader.json"
    path.write_text(json.dumps(content))
    for command in (("report", tmp_path), ("compare", path, path)):
        done = invoke(*command)
        assert done.exit_code == 2, done.output
        assert f"{path}: not a result" in done.output
        assert done.output.count("\n") == 1


def test_what_a_figure_needs_is_named(tmp_path: Path) -> None:
    """A valid result without the figures of its benchmark."""
    for benchmark in ("epoch", "encode", "quality", "recipes", "speedrun", "scaling", "step"):
        result = make_result(benchmark, {}, {"a": CaseResult(parameters={"recipe": "a"})})
        path = tmp_path / benchmark / f"{benchmark}.json"
        path.parent.mkdir()
        path.write_text(result.model_dump_json())
        done = invoke("report", path.parent)
        assert done.exit_code == 2, benchmark
        assert f"{benchmark}: cannot be shown" in done.output.replace(".json", "")
        assert done.output.count("\n") == 1
        assert not (path.parent / PAGE).exists()


def test_no_summary_costs_the_page(tmp_path: Path) -> None:
    """A valid result without what its summary would name."""
    cameras = CaseResult(
        parameters={"run": "a", "camera": "none"},
        figures=dict.fromkeys(
            ("mask_iou", "aligned_mask_iou", "rule_mask_iou", "aligned_rule_mask_iou",
             "depth_rmse"), 0.5,
        ),
    )  # fmt: skip
    (tmp_path / "quality.json").write_text(
        make_result("quality", {}, {"a, camera none": cameras}).model_dump_json()
    )
    for benchmark in ("loader", "peers", "epoch", "gpu-check", "codecs"):
        path = tmp_path / f"{benchmark}.json"
        path.write_text(make_result(benchmark, {}, {}).model_dump_json())
    done = invoke("report", tmp_path)
    assert done.exit_code == 0, done.output
    assert "0 cases" in (tmp_path / PAGE).read_text()


def test_a_value_in_an_error_is_cut(tmp_path: Path) -> None:
    case = CaseResult(
        parameters={"recipe": "a", "seed": 0, "samples": 1, "pflop": "x" * 10_000, "seconds": 1,
                    "reached": 1},
        figures={"mask_iou": 0.5, "depth_rmse": 0.5},
    )  # fmt: skip
    path = tmp_path / "speedrun.json"
    path.write_text(make_result("speedrun", {}, {"a": case}).model_dump_json())
    done = invoke("report", tmp_path)
    assert done.exit_code == 2
    assert "cannot be shown: ValueError: could not convert" in done.output
    assert len(done.output) < 1000


def test_nesting_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "loader.json"
    path.write_text("[" * 100_000)
    done = invoke("report", tmp_path)
    assert done.exit_code == 2
    assert "not a result" in done.output


def test_a_score_that_is_no_number_is_kept(tmp_path: Path) -> None:
    """A training that diverged must not cost the results of the others."""
    case = CaseResult(figures={"mask_iou": float("nan"), "depth_rmse": float("inf")})
    path = tmp_path / "decode.json"
    path.write_text(make_result("decode", {}, {"a": case}).model_dump_json())
    assert str(read_result(path).cases["a"].figures) == "{'mask_iou': nan, 'depth_rmse': inf}"
    assert invoke("report", tmp_path).exit_code == 0
