"""The files around the code agree with each other: versions, CI, packages, documents."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest

from benchmarks.__main__ import COMMANDS

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


@pytest.mark.parametrize("package", ["convert", "loaders", "model", "benchmarks"])
def test_packages_are_marked_as_typed(package: str) -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert "py.typed" in setup["options.package_data"][package].split()
    assert (ROOT / package / "py.typed").is_file()


def test_figures_at_the_top_of_the_readme_are_in_its_tables() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    cells = {cell.strip() for line in lines if line.startswith("|") for cell in line.split("|")}
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
