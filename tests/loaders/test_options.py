"""Options of loaders: numbers of Python and numpy are taken, everything else is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from maskdepth.convert.errors import OptionError
from maskdepth.loaders.options import LoaderOptions


@pytest.mark.parametrize(
    ("option", "found", "expected"),
    [
        ("batch_size", 2.5, "found 2.5, expected a whole number, 1 to 65536"),
        ("batch_size", True, "found True, expected a whole number"),
        ("batch_size", np.int64(0), "found 0, expected 1 to 65536"),
        ("seed", None, "found None, expected a whole number, 0 or more"),
        ("seed", float("nan"), "found nan, expected a whole number"),
        ("seed", -1, "found -1, expected 0 or more"),
        ("seed", 2**63, f"found a number of 64 bits, expected 0 to {2**63 - 1}"),
        ("num_workers", "2", "found '2', expected a whole number, 0 to 4096"),
        ("max_bad", 0.5, "found 0.5, expected a whole number"),
        ("shuffle", 2, "found 2, expected True or False"),
        ("drop_last", None, "found None, expected True or False"),
        ("check", "no", "found 'no', expected True or False"),
    ],
)
def test_an_option_of_another_kind_is_refused(option: str, found: Any, expected: str) -> None:
    with pytest.raises(OptionError, match=expected):
        LoaderOptions(**{option: found})


def test_numbers_of_numpy_count_as_those_of_python() -> None:
    numbers = {"batch_size": np.int64(8), "seed": np.uint32(3), "num_workers": np.int8(1)}
    given: Any = {**numbers, "shuffle": np.bool_(False)}
    options = LoaderOptions(**given)
    found = [options.batch_size, options.seed, options.num_workers, options.shuffle]
    assert found == [8, 3, 1, False]
    assert [type(value) for value in found] == [int, int, int, bool]
