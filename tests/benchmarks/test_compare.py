"""`compare` finds a difference only where there is one, between things of one kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from maskdepth.benchmarks.__main__ import main
from maskdepth.benchmarks.harness.results import CaseResult, Load, Result, make_result
from maskdepth.benchmarks.harness.timing import Repeat

RATES = (900.0, 1000.0, 1100.0)
IDLE = Load(before=0.1, after=2.0, others=0.0, machine_cores=2)


def result(*rates: float, name: str = "ours", **changes: Any) -> Result:
    repeats = [
        Repeat(samples=1000, wall_s=1000 / rate, cpu_s=1, peak_gib=1) for rate in rates or RATES
    ]
    case = CaseResult(repeats=repeats, parameters={"stage": "mask"})
    made = make_result("loader", {"width": 16, "repeats": len(repeats)}, {name: case})
    return made.model_copy(update={"load": IDLE, **changes})


def compare(tmp_path: Path, before: Result, after: Result, *options: str) -> Any:
    paths = []
    for side, one in (("before", before), ("after", after)):
        path = tmp_path / side / "loader.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(one.model_dump_json())
        paths.append(str(path.parent))
    return CliRunner().invoke(main, ["compare", *paths, *options])


@pytest.mark.parametrize(
    ("after", "line", "code"),
    [
        ((890, 990, 1090), "1,000 (900–1,100) -> 990 (890–1,090): no difference found", 0),
        # Medians differ by 40 %, but one repeat of each side says the opposite.
        ((500, 600, 901), "(500–901): no difference found, ranges overlap", 0),
        ((500, 600, 700), "1,000 (900–1,100) -> 600 (500–700): 40.0% worse", 1),
        ((1200, 1300, 1400), "30.0% better", 0),
        ((500, 600), "45.0% worse (fewer than 3 repeats)", 1),
    ],
)
def test_ranges_decide(after: tuple[float, ...], line: str, code: int, tmp_path: Path) -> None:
    done = compare(tmp_path, result(), result(*after))
    assert line in done.output
    assert done.exit_code == code, done.output


def test_the_threshold_and_the_measure_are_options(tmp_path: Path) -> None:
    slow = result(500, 600, 700)
    assert compare(tmp_path, result(), slow, "--threshold", "0.5").exit_code == 0
    done = compare(tmp_path, result(), slow, "--measure", "cpu_us_per_sample")
    assert "cpu_us_per_sample: median (range) before -> after" in done.output
    assert "no difference found" in done.output
    costly = result()
    case = costly.cases["ours"]
    repeats = [repeat.model_copy(update={"cpu_s": 1.5}) for repeat in case.repeats]
    costly = costly.model_copy(
        update={"cases": {"ours": CaseResult(repeats=repeats, parameters=case.parameters)}}
    )
    for before, after, line in (
        (result(), costly, "50.0% worse"), (costly, result(), "33.3% better"),
    ):  # fmt: skip
        done = compare(tmp_path, before, after, "--measure", "cpu_us_per_sample")
        assert line in done.output
        assert done.exit_code == (line == "50.0% worse")


def test_other_arguments_are_not_compared(tmp_path: Path) -> None:
    wide = result(500, 600, 700, arguments={"width": "64", "repeats": "3"})
    done = compare(tmp_path, result(), wide)
    assert done.exit_code == 2
    assert "loader: not compared, other arguments: width 16 against 64" in done.output
    assert "worse" not in done.output
    # The number of repeats is no difference of what was measured.
    assert compare(tmp_path, result(), result(500, 600, 700, 650)).exit_code == 1


def test_other_parameters_of_a_case_are_not_compared(tmp_path: Path) -> None:
    other = result(500, 600, 700)
    case = other.cases["ours"].model_copy(update={"parameters": {"stage": "depth"}})
    done = compare(tmp_path, result(), other.model_copy(update={"cases": {"ours": case}}))
    assert done.exit_code == 2
    assert "loader: ours: not compared, other parameters: stage mask against depth" in done.output


def test_two_machines_are_compared_when_asked_for_and_named(tmp_path: Path) -> None:
    machine = result().machine.model_copy(update={"cpu": "another", "cores": 64})
    after = result(500, 600, 700, machine=machine)
    done = compare(tmp_path, result(), after)
    assert done.exit_code == 2
    assert "and on another (64 cores); expected one machine; --machines" in done.output
    done = compare(tmp_path, result(), after, "--machines")
    assert done.exit_code == 1
    assert "after: commit" in done.output
    assert "another (64 cores)" in done.output
    assert f"{result().machine.cpu} (" in done.output


def test_what_is_on_one_side_only_is_listed(tmp_path: Path) -> None:
    after = result()
    extra = result(name="new").cases
    done = compare(tmp_path, result(), after.model_copy(update={"cases": after.cases | extra}))
    assert "loader: new: only after" in done.output
    assert done.exit_code == 0
    path = tmp_path / "before" / "step.json"
    path.write_text(result().model_copy(update={"benchmark": "step"}).model_dump_json())
    done = compare(tmp_path, result(), after)
    assert "step: only before" in done.output
    done = compare(tmp_path, result(), result(name="renamed"))
    assert done.exit_code == 2
    assert "loader: ours: only before" in done.output
    assert "no timed case in common" in done.output


def test_a_busy_machine_is_named(tmp_path: Path) -> None:
    busy = result(load=IDLE.model_copy(update={"others": 0.6}))
    done = compare(tmp_path, busy, result(500, 600, 700))
    assert "40.0% worse (measured on a busy machine)" in done.output
