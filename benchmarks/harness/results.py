"""A result: what was run, on what, with which versions, and every raw repeat.

The models below are the schema of its JSON; `docs/benchmarks.md` describes it in words.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from benchmarks.harness.machine import Machine, commit, versions
from benchmarks.harness.timing import Repeat
from convert.errors import DataError

SCHEMA = 3

Benchmark = Literal[
    "peers", "loader", "step", "epoch", "quality", "recipes", "scaling", "convert", "encode",
    "codecs", "luma", "simulation", "estimate", "parity", "hardware",
]  # fmt: skip
"""Names of the benchmarks, in the order in which a report shows them."""

FLOAT = ", float"
"""End of the name of a case that delivers normalised floats; the others deliver uint8."""

NO_NETWORK = "no network"
"""Name of the case that holds the scores of the baselines of `model.metrics`."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Spread(_Strict):
    """Median and range of the repeats."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarize at least one value."""
        return cls(median=statistics.median(values), lowest=min(values), highest=max(values))


class CaseResult(_Strict):
    """One thing measured.

    parameters: those that vary between the cases of a result. repeats: the raw runs; empty where
    nothing was timed. samples_per_s and cpu_us_per_sample follow from the repeats.
    figures: other numbers of the case, each with its unit in its name.
    """

    parameters: dict[str, str | float] = {}
    repeats: list[Repeat] = []
    samples_per_s: Spread | None = Field(
        default_factory=lambda case: _spread(case["repeats"], "samples_per_s")
    )
    cpu_us_per_sample: Spread | None = Field(
        default_factory=lambda case: _spread(case["repeats"], "cpu_us_per_sample")
    )
    figures: dict[str, float] = {}

    @model_validator(mode="after")
    def _agrees(self) -> CaseResult:
        for name in ("samples_per_s", "cpu_us_per_sample"):
            if getattr(self, name) != _spread(self.repeats, name):
                raise ValueError(f"{name} is not that of the repeats")
        return self


def _spread(repeats: list[Repeat], what: str) -> Spread | None:
    return Spread.of([getattr(repeat, what) for repeat in repeats]) if repeats else None


def summarize(values: Sequence[float], name: str) -> dict[str, float]:
    """Median and range of the values, as figures of a case."""
    return {f"{what}_{name}": value for what, value in Spread.of(values)}


class Result(_Strict):
    """One run of one benchmark.

    ours: the cases of this project; all cases are compared with the fastest of them.
    skipped: what was not measured, and why. sizes: bytes and shares, by name.
    """

    schema_version: Literal[3] = 3
    benchmark: Benchmark
    created: str
    commit: str
    arguments: dict[str, str]
    machine: Machine
    versions: dict[str, str]
    cases: dict[str, CaseResult]
    ours: tuple[str, ...] = ()
    skipped: dict[str, str] = {}
    sizes: dict[str, float] = {}

    @model_validator(mode="after")
    def _known(self) -> Result:
        unknown = set(self.ours) - set(self.cases)
        if unknown:
            raise ValueError(f"ours names {sorted(unknown)}, which are not cases")
        return self

    def best(self, beside: str) -> str | None:
        """Name of our fastest case with the parameters and pixel type of case ``beside``, or None.

        The end of a name, `FLOAT`, states the type.
        """
        rates = {
            name: rate.median
            for name in self.ours
            if self.cases[name].parameters == self.cases[beside].parameters
            and name.endswith(FLOAT) == beside.endswith(FLOAT)
            and (rate := self.cases[name].samples_per_s) is not None
        }
        return max(rates, key=lambda name: rates[name]) if rates else None

    def faster_by(self, name: str) -> Spread | None:
        """Rate of our fastest case over that of a case, round by round; None without either.

        It is the ratio of the medians where the two were not timed in the same rounds.
        """
        base = self.best(name)
        if base is None:
            return None
        ours, theirs = self.cases[base], self.cases[name]
        if ours.samples_per_s is None or theirs.samples_per_s is None:
            return None
        if len(ours.repeats) != len(theirs.repeats):
            return Spread.of([ours.samples_per_s.median / theirs.samples_per_s.median])
        rounds = zip(ours.repeats, theirs.repeats, strict=True)
        return Spread.of([ours.samples_per_s / theirs.samples_per_s for ours, theirs in rounds])


def make_result(
    benchmark: Benchmark,
    arguments: Mapping[str, object],
    cases: dict[str, CaseResult],
    *,
    device: str = "cpu",
    ours: tuple[str, ...] = (),
    skipped: Mapping[str, str] = {},
    sizes: Mapping[str, float] = {},
) -> Result:
    """A result of this run, on this machine, at this commit."""
    return Result(
        benchmark=benchmark,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=commit(),
        arguments={name: str(value) for name, value in arguments.items()},
        machine=Machine.of(device),
        versions=versions(),
        cases=cases,
        ours=ours,
        skipped=dict(skipped),
        sizes=dict(sizes),
    )


def read_result(path: Path) -> Result:
    """Read a result from its file. Raises DataError where it is not valid."""
    try:
        return Result.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; expected a result of `benchmarks`") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DataError(
            f"{path}: not a result of schema {SCHEMA}: {where}: {first['msg']}; measure again"
        ) from None


def read_results(folder: Path) -> dict[str, Result]:
    """Read all results of a folder, by file name without suffix; DataError if there are none."""
    paths = sorted(folder.glob("*.json")) if folder.is_dir() else []
    if not paths:
        raise DataError(f"{folder}: no results (*.json) here; run `python -m benchmarks` first")
    return {path.stem: read_result(path) for path in paths}
