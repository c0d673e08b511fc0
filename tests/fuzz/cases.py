"""Runs one case: mutates and reads one file, and says what came of it."""

from __future__ import annotations

import random
import time
import warnings
from typing import NamedTuple

from maskdepth.convert.errors import DataError
from maskdepth.model.errors import ModelError
from tests.fuzz.checks import Failure
from tests.fuzz.files import Files
from tests.fuzz.mutations import Unchanged
from tests.fuzz.targets import TARGETS


class Outcome(NamedTuple):
    """Of one case. problem: why it failed; None if it did not."""

    case: int
    target: str
    refused: bool
    problem: str | None
    seconds: float


def run_case(
    files: Files, seed: int, case: int, target: str | None = None, *, mutate: bool = True
) -> Outcome:
    """Mutate and read one file; mutate: or read it as it is."""
    rng = (random.Random if mutate else Unchanged)(f"{seed} {case}")
    weights = [weight for _, weight in TARGETS.values()]
    name = target or rng.choices(list(TARGETS), weights)[0]
    refused, problem, start = False, None, time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries, about what they then refuse
            TARGETS[name][0](files, rng)
    except (DataError, ModelError) as error:
        refused = True
        if "\n" in error.message or len(error.message) > 1500:
            problem = f"not one line: {error.message[:300]!r}"
    except Failure as error:
        problem = str(error)
    except Exception as error:
        problem = f"{type(error).__name__}: {str(error)[:300]}"
    seconds = time.perf_counter() - start
    return Outcome(case, name, refused, problem, seconds)
