"""The wheel owns one name, works without the checkout, and a checkout still knows the old names."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

import maskdepth

ROOT = Path(__file__).parents[1]
BUILT = (
    "setup.cfg", "pyproject.toml", "README.md", "LICENSE", "maskdepth", "convert", "loaders",
    "model", "benchmarks", "train.py",
)  # fmt: skip
BUILD = """
import sys
from setuptools import build_meta
print(getattr(build_meta, f"build_{sys.argv[1]}")(sys.argv[2]))
"""


def build(kind: str, source: Path, out: Path) -> Path:
    """Build a "wheel" or an "sdist" of a folder with the installed setuptools."""
    command = [sys.executable, "-P", "-c", BUILD, kind, str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel of the sdist, and with the packages of this one otherwise."""
    folder = tmp_path_factory.mktemp("package")
    source = folder / "source"
    source.mkdir()
    ignored = shutil.ignore_patterns("__pycache__")
    for name in BUILT:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source / name)
    sdist = build("sdist", source, folder)
    shutil.unpack_archive(sdist, folder / "unpacked")
    (unpacked,) = (folder / "unpacked").iterdir()
    wheel = build("wheel", unpacked, folder)
    environment = folder / "venv"
    venv.create(environment, with_pip=False)
    command = [
        sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python"), "install",
        "--quiet", "--no-index", "--no-deps", "--no-compile", str(wheel),
    ]  # fmt: skip
    subprocess.run(command, check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment


def test_the_wheel_owns_one_name(installed: Path) -> None:
    (site,) = installed.glob("lib/python*/site-packages")
    names = {path.name for path in site.iterdir()} - {"others.pth"}
    assert names == {"maskdepth", f"maskdepth-{maskdepth.__version__}.dist-info"}
    assert not any(path.is_symlink() for path in site.rglob("*"))
    assert (site / "maskdepth" / "py.typed").is_file()


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A working folder with packages of the names that were ours."""
    for name in ("convert", "loaders", "model", "benchmarks", "train"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('not ours')\n")
    return tmp_path


def run(folder: Path, *command: object) -> str:
    """Both outputs of a command that must succeed, without a way to import the checkout."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=kept, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_programs_work_where_others_have_our_old_names(installed: Path, elsewhere: Path) -> None:
    program = installed / "bin" / "maskdepth"
    assert run(elsewhere, program, "--version") == f"maskdepth, version {maskdepth.__version__}\n"
    help_text = run(elsewhere, program, "--help")
    assert all(f"\n  {name} " in help_text for name in ("convert", "train", "bench"))
    size = ("--backgrounds", 2, "--foregrounds", 2, "--placements", 2, "--size", 32)
    said = run(elsewhere, program, "convert", "compose", "data", *size, "--workers", 0)
    assert "8 composites" in said
    assert "Usage: maskdepth train fit " in run(elsewhere, program, "train", "fit", "--help")
    assert "Usage: maskdepth bench step " in run(elsewhere, program, "bench", "step", "--help")


def test_messages_name_the_installed_programs(installed: Path, elsewhere: Path) -> None:
    code = "from maskdepth.convert import program as p; print(p.CONVERT, p.TRAIN, p.BENCH, sep=',')"
    said = run(elsewhere, installed / "bin" / "python", "-c", code)
    assert said == "maskdepth convert,maskdepth train,maskdepth bench\n"


OF_A_CHECKOUT = re.compile(r"python -m (convert|benchmarks)|\btrain\.py |pip install '?\.\[")
CODE = [
    path
    for name in ("convert", "loaders", "model", "benchmarks")
    for path in sorted((ROOT / name).rglob("*.py"))
] + [ROOT / "train.py"]


def texts_for_people(source: str) -> Iterator[str]:
    """Strings that are no documentation of the code, and the help of commands."""
    tree = ast.parse(source)
    documentation = {
        id(node.value) for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }  # fmt: skip
    named = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.keyword)
             and node.arg == "prog_name"}  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.decorator_list:
            yield ast.get_docstring(node) or ""
        elif isinstance(node, ast.Constant) and id(node) not in documentation | named:
            yield str(node.value)


def test_no_message_names_what_only_a_checkout_has() -> None:
    found = {
        str(path.relative_to(ROOT)): text
        for path in CODE
        if path != ROOT / "convert" / "program.py"  # chooses the names
        for text in texts_for_people(path.read_text())
        if OF_A_CHECKOUT.search(text)
    }
    assert not found
    assert len(CODE) > 200


def test_texts_for_people_are_messages_and_help() -> None:
    source = (
        '"""module"""\n@command\ndef f():\n    """help"""\n    say(f"message {f}", prog_name="p")\n'
        'def g():\n    """of the code"""\n'
    )
    assert [text for text in texts_for_people(source) if text] == ["help", "message "]


OLD_NAMES = """
import convert, loaders, model, train, benchmarks.__main__
from convert.errors import DataError
import convert.dataset.canvas as canvas
import maskdepth.convert.dataset.canvas
import maskdepth.convert.errors
import maskdepth.train
assert DataError is maskdepth.convert.errors.DataError
assert canvas is maskdepth.convert.dataset.canvas
assert canvas.__spec__.name == "maskdepth.convert.dataset.canvas"
assert train is maskdepth.train
assert loaders.build_loader is maskdepth.loaders.build_loader
try:
    import convert.nothing
except ModuleNotFoundError as error:
    assert error.name == "maskdepth.convert.nothing", error
else:
    raise AssertionError
"""


def test_old_names_are_the_same_modules_and_warn_once() -> None:
    said = run(ROOT, sys.executable, "-c", OLD_NAMES)
    assert said.count("Warning") == 1
    assert "<string>:2: FutureWarning: import maskdepth.convert instead of convert" in said


@pytest.mark.parametrize(
    "command", [("-m", "convert"), ("-m", "benchmarks"), ("train.py",), ("-m", "maskdepth")]
)
def test_programs_of_a_checkout_do_not_warn(command: tuple[str, ...]) -> None:
    assert run(ROOT, sys.executable, "-W", "error::FutureWarning", *command, "--help")
