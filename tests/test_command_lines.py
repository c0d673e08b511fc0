"""Ctrl-C and missing packages: each is one line, whichever command line meets them."""

from __future__ import annotations

import pickle
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import click
import pytest
from click.testing import CliRunner

import maskdepth.benchmarks.__main__ as benchmarks
from maskdepth.convert.errors import Commands, OptionError

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
        if name == "maskdepth.benchmarks.report.page":
            raise ModuleNotFoundError("No module named 'jinja2'", name="jinja2")
        if name == "maskdepth.benchmarks.codecs":
            raise ModuleNotFoundError("No module named 'maskdepth.x'", name="maskdepth.x")
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
    with pytest.raises(ModuleNotFoundError, match=r"maskdepth\.x"):  # a mistake of ours
        CliRunner().invoke(benchmarks.main, ["codecs"], catch_exceptions=False)


@click.group(cls=Commands)
def example() -> None:
    pass


@example.command()
@click.argument("names", nargs=-1)
@click.option("--width", "--wide", type=int)
@click.option("--check/--no-check", default=None)
@click.option("--camera", "cameras", multiple=True)
def fit(names: tuple[str, ...], width: int, check: bool, cameras: tuple[str, ...]) -> None:
    if len(cameras) > 2:
        raise OptionError("cameras", f": found {len(cameras)}, expected 2 at most")
    if "seed" in names:
        raise OptionError("seed", ": found -1, expected 0 or more")
    click.echo(f"{names} {width} {check} {cameras}")


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        ("a --width 2 --camera 1 --camera 2", "('a',) 2 None ('1', '2')"),
        ("-- a --width --width", "('a', '--width', '--width') None None ()"),
        ("--width 2 a --wide=3", "Error: --width: found 2 and 3, expected one; give it once"),
        ("--width x --width 2 --width 3", "Error: --width: found x and 2 and 3, expected one"),
        ("--check --no-check", "Error: --check: found --check and --no-check, expected one"),
        ("--width 2 --width 2 --help", "Usage: "),
        ("--camera 1 --camera 2 --camera 3", "Error: --camera: found 3, expected 2 at most"),
        ("seed", "Error: seed: found -1, expected 0 or more"),  # no option of this command
    ],
)
def test_an_option_is_given_once_and_named_as_it_is_typed(arguments: str, output: str) -> None:
    done = CliRunner().invoke(example, ["fit", *arguments.split()])
    assert done.output.startswith(output)
    if output.startswith("Error"):
        assert (done.exit_code, done.output.count("\n")) == (2, 1)


def test_the_error_of_an_option_can_cross_processes() -> None:
    error = pickle.loads(pickle.dumps(OptionError("seed", ": found -1")))
    assert (type(error), error.name, error.message) == (OptionError, "seed", "seed: found -1")


@pytest.mark.parametrize("arguments", [["train.py"], ["-m", "convert"], ["-m", "benchmarks"]])
def test_python_without_our_packages_is_one_line(arguments: list[str]) -> None:
    """As where the environment is not activated: -S leaves out what is installed."""
    done = subprocess.run(
        [sys.executable, "-S", *arguments, "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"Error: the package click is not installed for {sys.executable}")
    assert ". .venv/bin/activate" in done.stderr


@pytest.mark.parametrize(
    ("name", "is_ours"),
    [("kornia", False), ("no_such_package.part", False), ("maskdepth.convert.x", True),
     ("maskdepth", True), ("click.no_such_part", True), (None, True)],
)  # fmt: skip
def test_a_module_that_is_missing_by_our_mistake_is_not_hidden(
    name: str | None, is_ours: bool
) -> None:
    @click.group(cls=Commands)
    def main() -> None:
        pass

    @main.command()
    def work() -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    done = CliRunner().invoke(main, ["work"])
    if is_ours:
        assert isinstance(done.exception, ModuleNotFoundError)
    else:
        package = str(name).partition(".")[0]
        assert (done.exit_code, done.output.count("\n")) == (2, 1)
        assert done.output.startswith(f"Error: the package {package} is not installed for ")
