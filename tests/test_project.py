"""The files around the code agree with each other: versions, CI, types of the packages."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest

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
