"""The files around the code agree with each other: versions, CI, packages, documents."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from maskdepth.benchmarks.__main__ import COMMANDS

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("tool", "repository"),
    [("ruff", "astral-sh/ruff-pre-commit"), ("mypy", "pre-commit/mirrors-mypy")],
)
def test_pre_commit_has_the_versions_of_the_constraints(tool: str, repository: str) -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    revision = re.search(rf"github\.com/{repository}\n\s+rev: v(\S+)", hooks)
    pinned = re.search(rf"^{tool}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert revision
    assert pinned
    assert revision[1] == pinned[1]


def test_ci_runs_the_same_script_on_every_supported_python() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert re.search(r"^\s+- run: \.ci/run$", workflow, re.MULTILINE)
    assert 'python: ["3.11", "3.12", "3.13"]' in workflow
    assert "PYTHON: python${{ matrix.python }}" in workflow


def test_the_package_is_marked_as_typed() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert "py.typed" in setup["options.package_data"]["maskdepth"].split()
    assert (ROOT / "maskdepth" / "py.typed").is_file()


def test_every_extra_is_in_the_guide() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    table = (ROOT / "docs" / "guide.md").read_text().partition("**Extras.**")[2].split("\n\n")[1]
    listed = [name for row in table.splitlines()[2:] for name in row.split("|")[1].split(", ")]
    assert sorted(name.strip(" `") for name in listed) == sorted(setup["options.extras_require"])


def test_figures_at_the_top_of_the_readme_are_in_its_tables() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    cells = {cell.strip() for line in lines if line.startswith("|") for cell in line.split("|")}
    cells |= {cell.removesuffix(" slower") for cell in cells}  # "5.47 x slower": ours is 5.47 x it
    figures = re.findall(r"\*\*(\d[^*]*)\*\*", "\n".join(lines))
    assert len(figures) >= 5
    assert [figure for figure in figures if figure not in cells] == []


def test_links_of_the_documents_lead_to_files() -> None:
    broken = []
    for document in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")):
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
            if "://" not in target and not (document.parent / target).is_file():
                broken.append(f"{document.name}: {target}")
    assert broken == []


def test_contributing_names_files_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = re.findall(r"`((?:[\w.]+/)+[\w.]*|\w+\.(?:py|cfg|txt))`", text)
    assert len(paths) > 20
    missing = {path for path in paths if not (ROOT / path).exists()}
    assert missing - {".venv/ffcv-missing"} == set()


def test_every_benchmark_command_is_documented() -> None:
    documented = re.findall(
        r"^\| `python -m benchmarks ([\w-]+)",
        (ROOT / "docs" / "benchmarks.md").read_text(),
        re.MULTILINE,
    )
    assert sorted(documented) == sorted(COMMANDS)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The Makefile with a `.venv` whose programs do nothing."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    needed = ("setup.cfg", "pyproject.toml", "constraints.txt", ".ci/install", "model/driver.py")
    for name in (*needed, ".venv/bin/python", ".venv/.installed"):  # the last one is the newest
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def make(checkout: Path, *arguments: str) -> str:
    """Exit code and output of make."""
    done = subprocess.run(["make", *arguments], cwd=checkout, capture_output=True, text=True)
    return f"{done.returncode}: {done.stdout}{done.stderr}"


@pytest.mark.parametrize("target", ["demo", "clean"])
def test_make_removes_only_what_it_has_made(checkout: Path, target: str) -> None:
    for name in ("demo", "bench"):
        (checkout / name).mkdir()
        (checkout / name / "photo.jpg").touch()
    said = make(checkout, target)
    assert "demo" in said
    assert said.startswith("0: " if target == "clean" else "2: ")
    assert (checkout / "demo" / "photo.jpg").exists()
    assert (checkout / "bench" / "photo.jpg").exists()
    for name in ("demo", "bench"):
        shutil.rmtree(checkout / name)
    assert make(checkout, "demo").startswith("0: ")
    (checkout / "demo" / "run").touch()
    assert make(checkout, target).startswith("0: ")
    assert not (checkout / "demo" / "run").exists()
    assert make(checkout, "demo", "DEMO_DIR=named").startswith("0: ")
    assert "found named, which is not to be replaced" in make(checkout, "demo", "DEMO_DIR=named")
