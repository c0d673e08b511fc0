"""What a benchmark has measured is in its file after every round, with the load of the machine."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from maskdepth.benchmarks.harness import load as watching
from maskdepth.benchmarks.harness.load import watch_load
from maskdepth.benchmarks.harness.options import DATASET, REPEATS, SHARDS, Decorator, command, keep
from maskdepth.benchmarks.harness.results import CaseResult, Load, Result, make_result, read_result
from maskdepth.benchmarks.harness.timing import Repeat
from maskdepth.benchmarks.report import about


def rounds(count: int) -> Result:
    repeats = [Repeat(samples=10, wall_s=1, cpu_s=1, peak_gib=1)] * count
    return make_result("loader", {}, {"ours": CaseResult(repeats=repeats)})


def test_a_command_that_is_stopped_leaves_its_rounds(tmp_path: Path) -> None:
    @command(REPEATS)
    def loader(repeats: int) -> Result:
        """Stopped in its third round unless it has less."""
        for number in range(repeats):
            if number == 2:
                raise KeyboardInterrupt
            keep(rounds(number + 1))
        return rounds(repeats)

    out = tmp_path / "folder" / "loader.json"
    done = CliRunner().invoke(loader, ["--json", str(out)], prog_name="loader")
    assert done.exit_code != 0
    found = read_result(out)
    assert len(found.cases["ours"].repeats) == 2
    assert "Incomplete: stopped before its end." in about.where(found)
    done = CliRunner().invoke(loader, ["--repeats", "2", "--json", str(out)], prog_name="loader")
    assert done.exit_code == 0, done.output
    found = read_result(out)
    assert found.unfinished == ""
    assert found.load is not None
    assert found.load.machine_cores >= 1
    keep(rounds(1))  # outside a command there is no file


@pytest.mark.parametrize("read", [SHARDS, DATASET])
def test_a_result_is_not_written_into_what_is_read(tmp_path: Path, read: Decorator) -> None:
    @command(read)
    def loader(**folders: Path) -> Result:
        """Never begins."""
        raise AssertionError(folders)

    out = str(tmp_path / "loader.json")
    done = CliRunner().invoke(loader, [str(tmp_path), "--json", out], prog_name="loader")
    assert (done.exit_code, "loader.json: is inside" in done.output) == (2, True), done.output
    assert list(tmp_path.iterdir()) == []


def test_few_repeats_and_a_busy_machine_are_marked() -> None:
    idle = Load(before=0.2, after=2.0, others=0.1, machine_cores=2)
    assert about.doubts(rounds(3).model_copy(update={"load": idle})) == []
    assert about.doubts(rounds(3)) == []  # of an earlier version: not known
    assert "Fewer than 3 repeats" in about.where(rounds(2))
    after_another = idle.model_copy(update={"before": 1.5})  # the load of an earlier benchmark
    assert about.doubts(rounds(3).model_copy(update={"load": after_another})) == []
    busy = idle.model_copy(update={"others": 0.9})
    (doubt,) = about.doubts(rounds(3).model_copy(update={"load": busy}))
    assert doubt == "Measured on a busy machine: others used 0.9 of 2 cores meanwhile."


def test_the_work_of_the_benchmark_is_not_that_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds, own, clock = iter((100.0, 160.0)), iter((10.0, 50.0)), iter((0.0, 10.0))
    monkeypatch.setattr(watching, "_busy_s", lambda: next(seconds))
    monkeypatch.setattr(watching, "cpu_s", lambda: next(own))
    monkeypatch.setattr(watching, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert watch_load()().others == pytest.approx(2.0)  # (60 - 40) s of CPU in 10 s
