"""A small sample of `python -m tests.fuzz`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fuzz.cases import run_case
from tests.fuzz.files import Files, files
from tests.fuzz.targets import TARGETS


@pytest.fixture(scope="module")
def made() -> Iterator[Files]:
    with files() as found:
        yield found


@pytest.mark.parametrize("target", TARGETS)
def test_mutated_files(made: Files, target: str) -> None:
    outcomes = [run_case(made, 0, case, target) for case in range(8)]
    assert [outcome for outcome in outcomes if outcome.problem] == []


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_not_mutated_is_read(made: Files, target: str) -> None:
    outcomes = [run_case(made, 1, case, target, mutate=False) for case in range(2)]
    assert [(outcome.refused, outcome.problem) for outcome in outcomes] == [(False, None)] * 2
