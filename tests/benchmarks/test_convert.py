"""The benchmark of the converter runs, compares like with like and keeps its raw figures."""

from __future__ import annotations

import json
import time
from pathlib import Path

from click.testing import CliRunner

from benchmarks.__main__ import main
from benchmarks.timing import Case, median, ratios, run_interleaved, time_once


def test_time_of_a_sleep_is_a_sleep() -> None:
    def sleep() -> int:
        time.sleep(0.1)
        return 10

    found = time_once(sleep)
    assert 0.1 <= found.wall_s < 0.2
    assert found.cpu_s < 0.05
    assert 50 < found.samples_per_s <= 100
    assert found.peak_rss_gib > 0.01


def test_cpu_time_of_work_is_counted() -> None:
    def work() -> int:
        end = time.process_time() + 0.1
        while time.process_time() < end:
            pass
        return 1

    assert 0.1 <= time_once(work).cpu_s < 0.3


def test_cases_run_in_turn_after_a_warm_up() -> None:
    ran: list[str] = []

    def case(name: str) -> Case:
        def run() -> int:
            ran.append(name)
            return 1

        return Case(name=name, run=run)

    found = run_interleaved([case("a"), case("b")], repeats=2)
    assert ran == ["a", "b"] * 3
    assert {name: len(repeats) for name, repeats in found.items()} == {"a": 2, "b": 2}
    assert len(ratios(found["a"], found["b"])) == 2
    assert median(found["a"], "samples") == 1


def test_convert_and_codecs(dataset: Path, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "convert.json"
    command = ["convert", str(dataset), "--repeats", "1", "--workers", "1", "--json", str(out)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    assert found["machine"]["device"] == "cpu"
    assert {"ours, FFCV file", "floor: read and decode"} <= set(found["cases"])
    for case in found["cases"].values():
        assert [repeat["samples"] for repeat in case["repeats"]] == [90]
    assert found["sizes"]["dali_bytes"] > 0
    result = CliRunner().invoke(main, ["codecs", str(shards), "--samples", "5", "--repeats", "1"])
    assert result.exit_code == 0, result.output
    assert "| run lengths |" in result.output
