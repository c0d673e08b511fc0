"""`gpu-check` without a GPU: whatever a check does, the others run and the report is written."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import psutil
import pytest
from click.testing import CliRunner, Result

import maskdepth.convert.__main__ as convert
from maskdepth import train
from maskdepth.benchmarks.__main__ import main
from maskdepth.benchmarks.gpu_check import join_epochs, select
from maskdepth.benchmarks.harness import checks as harness
from maskdepth.benchmarks.harness import plan as plans
from maskdepth.benchmarks.harness.checks import Check, last_line
from maskdepth.benchmarks.harness.plan import Drawn, Plan
from maskdepth.benchmarks.harness.results import CaseResult, make_result, read_result
from maskdepth.benchmarks.report.page import PAGE
from maskdepth.convert.errors import DataError


def plan(samples: int = 40_000) -> Plan:
    return Plan(
        device="cpu", samples=samples, width=2, data=Path("data"), results=Path("results")
    )  # fmt: skip


def shell(name: str, script: str, **options: Any) -> Check:
    """The file of the result is $1 of the script."""
    return Check(name=name, command=("sh", "-c", script), **options)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run `gpu-check` with these checks only."""

    def run(checks: list[Check], *options: object) -> Result:
        monkeypatch.setattr(Plan, "preparation", lambda self: [])
        monkeypatch.setattr(Plan, "checks", lambda self: checks)
        command = ("gpu-check", tmp_path / "results", "--device", "cpu", *options)
        before = signal.getsignal(signal.SIGTERM)
        done = CliRunner().invoke(main, [str(argument) for argument in command])
        assert signal.getsignal(signal.SIGTERM) is before
        return done

    return run


def test_a_failing_and_a_hanging_check_are_reported(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "_GRACE_S", 0.3)
    good, odd = tmp_path / "good.json", tmp_path / "odd.json"
    case = CaseResult(figures={"largest_difference_levels": 3.0})
    good.write_text(make_result("parity", {}, {"ours": case}).model_dump_json())
    unnamed = CaseResult(parameters={"split": "random"})
    odd.write_text(make_result("quality", {}, {"ours": unnamed}).model_dump_json())
    stays = "trap '' ABRT; sleep 1000 & echo $! > {0}/child; while :; do wait; done"
    done = run(
        [
            shell("fails", "echo 1 >&2; echo 'ValueError: injected' >&2; exit 3"),
            shell("hangs", stays.format(tmp_path)),
            shell("says nothing", "exit 0"),
            shell("cannot be shown", f'cp {odd} "$1"'),
            shell("crashes at its end", f'cp {good} "$1"; kill -SEGV $$'),
            shell("parity", f'cp {good} "$1"'),
            shell("not here", "exit 4", missing="ffcv is not installed"),
            shell("made before", "exit 5", makes=good),
        ],
        "--check-minutes", 0.05,
    )  # fmt: skip
    assert done.exit_code == 1, done.output
    results = tmp_path / "results"
    found = read_result(results / "gpu-check.json")
    ended = {name: case.parameters["ended"] for name, case in found.cases.items()}
    assert ended == {
        "fails": "failed", "hangs": "failed", "says nothing": "failed",
        "cannot be shown": "failed", "crashes at its end": "failed", "parity": "done",
        "not here": "skipped", "made before": "reused",
    }  # fmt: skip
    reasons = {
        "fails": "exit code 3; ValueError: injected",
        "hangs": "no end within 3 s",
        "says nothing": "result.json: No such file",
        "cannot be shown": "its result cannot be shown: KeyError",
        "crashes at its end": "ended by SIGSEGV",
        "not here": "skipped: ffcv is not installed",
    }
    page = (results / PAGE).read_text()
    for name, reason in reasons.items():
        assert reason in found.skipped[name]
        assert f"Not measured: {name}: " in page
        assert reason.replace("'", "&#39;") in page
    assert "made before" in page
    assert (results / "crashes at its end.json").exists()  # its result is complete
    assert "[6/8] parity: done after" in done.output
    assert "parity" not in found.skipped
    child = int((tmp_path / "child").read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie"


def test_when_the_time_is_over_the_rest_is_listed(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    checks = [shell("long", "sleep 100", measures=False), shell("next", "exit 0", measures=False)]
    done = run(checks, "--minutes", 0.01)
    assert done.exit_code == 1
    skipped = read_result(tmp_path / "results" / "gpu-check.json").skipped
    assert skipped["long"].endswith(": ended, because 0.01 minutes were over")
    assert skipped["next"] == "skipped: not started within 0.01 minutes"
    assert (tmp_path / "results" / PAGE).exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143)])
def test_an_interrupt_still_writes_the_report(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:  # fmt: skip
    def interrupted(*_: object) -> int:
        raise error

    monkeypatch.setattr(harness, "_run", interrupted)
    done = run([shell("first", "exit 0"), shell("second", "exit 0")])
    assert done.exit_code == 1
    page = (tmp_path / "results" / PAGE).read_text()
    assert "Not measured: first: failed after 0.0 s: interrupted" in page
    assert "Not measured: second: skipped: not started: interrupted" in page


def test_the_log_of_a_crash_gives_its_place(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    lines = (
        "Fatal Python error: Aborted", "", "Thread 0x2 (most recent call first):",
        '  File "a", line 1', "Current thread 0x1 (most recent call first):",
        '  File "b", line 2 in wait', '  File "c", line 3', "", "Extension modules: numpy",
    )  # fmt: skip
    log.write_text("\n".join(lines))
    assert last_line(log) == 'it was at File "b", line 2 in wait'


@pytest.mark.parametrize("device", [(), ("--device", "auto"), ("--device", "cuda:1")])
def test_without_a_gpu_it_says_so(device: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    done = CliRunner().invoke(main, ["gpu-check", *device])
    assert done.exit_code == 2
    assert done.output.startswith("Error: ")
    assert len(done.output.splitlines()) == 1


def test_options_of_all_checks_exist() -> None:
    groups: dict[str, Any] = {"bench": main, "convert": convert.main, "train": train.main}
    for samples in (40_000, 200):
        some = plan(samples)
        for check in (*some.preparation(), *some.checks()):
            _, *words = check.command
            if words[:2] == ["-m", "pytest"]:
                continue
            assert words[:2] == ["-m", "maskdepth"]
            group = groups[words[2]]
            command = group.get_command(click.Context(group), words[3])
            options = [*words[4:], *(["--json", "result.json"] * check.measures)]
            command.make_context(words[3], options)


def test_missing_engines_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "is_installed", lambda module: False)
    missing = {check.name: check.missing for check in plan().checks()}
    assert missing["epoch-112-ffcv"] == "ffcv is not installed"
    assert missing["epoch-224-dali-compiled"] == "nvidia.dali is not installed"
    assert missing["epoch-112-resident"] == missing["step-112"] == ""
    assert missing["tests"] == "pytest is not installed"
    assert plan().engine == "resident"


def test_parity_and_epochs_come_first() -> None:
    names = [check.name for check in plan().checks()]
    assert names[0] == "parity"
    assert all(name.startswith("epoch-112") for name in names[1:7])
    assert len(set(names)) == len(names)
    assert [check.name for check in select(plan().checks(), ("epoch-112",), ("compiled",))] == [
        "epoch-112-ffcv", "epoch-112-dali", "epoch-112-resident",
    ]  # fmt: skip
    with pytest.raises(DataError, match="--skip other: expected a part of one of parity"):
        select(plan().checks(), (), ("other",))


@pytest.mark.parametrize("samples", [1, 90, 8000, 40_000, 100_001])
def test_at_least_so_many_samples_are_drawn(samples: int) -> None:
    command = Drawn(Path("data"), samples).checks()[0].command
    at = command.index("--backgrounds")
    counts = dict(
        zip(command[at : at + 6 : 2], map(int, command[at + 1 : at + 6 : 2]), strict=True)
    )
    drawn = counts["--backgrounds"] * counts["--foregrounds"] * counts["--placements"]
    assert samples <= drawn < samples + 4040


def test_epochs_are_joined_in_one_result(tmp_path: Path) -> None:
    """In the order of the plan, with the arguments that they share."""
    for engine, rate in (("resident", 1.0), ("ffcv", 2.0)):
        folder = tmp_path / "checks" / f"epoch-112-{engine}"
        folder.mkdir(parents=True)
        cases = {"depth 112: loader": CaseResult(figures={"rate": rate})}
        skipped = {"depth 112: loader, figures of a GPU": "no driver"}
        arguments = {"width": 4, "engine": engine}
        result = make_result("epoch", arguments, cases, skipped=skipped)
        (folder / "result.json").write_text(result.model_dump_json())
    join_epochs(plan(), tmp_path)
    found = read_result(tmp_path / "epochs.json")
    assert found.arguments == {"width": "4"}
    assert {name: case.figures["rate"] for name, case in found.cases.items()} == {
        "112-ffcv, depth 112: loader": 2.0, "112-resident, depth 112: loader": 1.0,
    }  # fmt: skip
    assert found.skipped.keys() == {
        f"112-{engine}, depth 112: loader, figures of a GPU" for engine in ("ffcv", "resident")
    }


@pytest.mark.slow
def test_from_end_to_end_on_a_cpu(dataset: Path, shards: Path, tmp_path: Path) -> None:
    """With data that exist; one epoch, because each check takes seconds to start."""
    data = tmp_path / "data" / "90-samples"
    data.mkdir(parents=True)
    (data / "data").symlink_to(dataset)
    (data / "shards").symlink_to(shards)
    options = ("--device", "cpu", "--samples", 90, "--width", 2, "--data", tmp_path / "data")
    chosen = ("--only", "epoch-112-resident", "--only", "tests", "--skip", "compiled")
    done = CliRunner().invoke(
        main, [str(one) for one in ("gpu-check", tmp_path / "results", *options, *chosen)]
    )
    assert done.exit_code == 0, done.output
    found = read_result(tmp_path / "results" / "gpu-check.json")
    assert {name: case.parameters["ended"] for name, case in found.cases.items()} == {
        "data-90": "reused", "shards-90": "reused", "epoch-112-resident": "done",
        "tests": "skipped",
    }  # fmt: skip
    page = (tmp_path / "results" / PAGE).read_text()
    assert "An epoch: loader, model and both (epochs)" in page
    assert "112-resident, depth 112" in page
