"""Tables in the documents are those that `report` makes of docs/results."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from maskdepth.benchmarks.harness.results import read_results
from maskdepth.benchmarks.report.figures import Figure
from maskdepth.benchmarks.report.page import all_figures, insert

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
DOCUMENTS = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


@pytest.fixture(scope="module")
def figures() -> list[Figure]:
    return all_figures(RESULTS)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_tables_are_up_to_date(document: str, figures: list[Figure], tmp_path: Path) -> None:
    copy = tmp_path / "copy.md"
    shutil.copy(ROOT / document, copy)
    filled = insert(copy, figures)
    assert copy.read_text() == (ROOT / document).read_text()
    marks = re.findall(r"<!-- ([\w.-]+):begin -->", copy.read_text())
    assert filled == marks, "a mark does not name a result"


def test_titles_of_figures_tell_them_apart(figures: list[Figure]) -> None:
    titles = [figure.title for figure in figures]
    assert len(set(titles)) == len(titles)
    assert sum(title.endswith(" (robust)") for title in titles) == 1


def test_results_name_the_commit_that_was_measured() -> None:
    for name, result in read_results(RESULTS).items():
        assert re.fullmatch(r"[0-9a-f]{7,40}", result.commit), f"{name}: {result.commit}"
