"""Ctrl-C and missing packages: each is one line, whichever command line meets them."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import click
import pytest
from click.testing import CliRunner

import benchmarks.__main__ as benchmarks
from convert.errors import Commands

ROOT = Path(__file__).parent.parent
INTERRUPTED = 130
STUB = """
import os, signal, time
os.kill(os.getpid(), signal.SIGINT)
time.sleep(10)
"""


@pytest.mark.parametrize("arguments", [["train.py"], ["-m", "convert"], ["-m", "benchmarks"]])
def test_ctrl_c_during_imports_is_one_line(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text(STUB)
    done = subprocess.run(
        [sys.executable, *arguments, "--help"], cwd=ROOT, capture_output=True, text=True,
        env={"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (INTERRUPTED, "", "Aborted!\n")


def test_ctrl_c_in_a_command_is_one_line() -> None:
    @click.group(cls=Commands)
    def main() -> None:
        pass

    @main.command()
    def work() -> None:
        raise KeyboardInterrupt

    done = CliRunner().invoke(main, ["work"])
    assert (done.exit_code, done.output) == (INTERRUPTED, "Aborted!\n")


@pytest.fixture
def without_jinja2(monkeypatch: pytest.MonkeyPatch) -> None:
    """As without the extra `bench`."""

    def imported(name: str) -> ModuleType:
        if name == "benchmarks.report.page":
            raise ModuleNotFoundError("No module named 'jinja2'", name="jinja2")
        if name == "benchmarks.codecs":
            raise ModuleNotFoundError("No module named 'convert.x'", name="convert.x")
        return import_module(name)

    monkeypatch.setattr(benchmarks, "import_module", imported)


@pytest.mark.usefixtures("without_jinja2")
def test_benchmarks_without_their_extra_say_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needs = "needs jinja2, which is not installed: pip install 'maskdepth[bench]'"
    done = CliRunner().invoke(benchmarks.main, ["report", "results", "--title", "x"])
    assert (done.exit_code, done.output) == (2, f"Error: benchmarks report {needs}\n")
    monkeypatch.setattr(benchmarks, "COMMANDS", ("estimate", "report"))
    done = CliRunner().invoke(benchmarks.main, ["--help"])
    assert done.exit_code == 0
    assert f"({needs})" in " ".join(done.output.split())
    monkeypatch.setattr(benchmarks, "COMMANDS", ("codecs",))
    with pytest.raises(ModuleNotFoundError, match=r"convert\.x"):  # a mistake of ours
        CliRunner().invoke(benchmarks.main, ["codecs"], catch_exceptions=False)
