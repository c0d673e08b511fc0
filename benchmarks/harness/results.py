"""A result: what was run, on what, with which versions, and every raw repeat; checked JSON.

The models below are the schema; `docs/benchmarks.md` describes it in words.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from benchmarks.harness.machine import commit, describe_machine, versions
from benchmarks.harness.timing import Repeat, ratios
from convert.errors import DataError

SCHEMA = 3


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Machine(_Strict):
    """Where it ran. gpu and driver are None where device is "cpu"."""

    cpu: str
    cores: int
    device: str
    gpu: str | None
    driver: str | None
    system: str


class Spread(_Strict):
    """Median and range of the repeats."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(median=statistics.median(values), lowest=min(values), highest=max(values))


FLOAT = ", float"
"""End of the name of a case that delivers normalised floats; the others deliver uint8."""

NO_NETWORK = "no network"
"""Name of the case that holds the scores of the rules of `model.metrics`."""


class CaseResult(_Strict):
    """One thing measured.

    parameters: what it was measured with, where that varies between the cases of a result.
    repeats: the raw runs; empty for what is not timed. samples_per_s and cpu_us_per_sample
    follow from them, and a file in which they do not is refused.
    figures: other numbers of the case, each with its unit in its name.
    """

    parameters: dict[str, str | float] = {}
    repeats: tuple[Repeat, ...] = ()
    samples_per_s: Spread | None = None
    cpu_us_per_sample: Spread | None = None
    figures: dict[str, float] = {}

    @classmethod
    def of(
        cls,
        repeats: Sequence[Repeat] = (),
        parameters: Mapping[str, str | float] | None = None,
        figures: Mapping[str, float] | None = None,
    ) -> CaseResult:
        """A case with the medians of its repeats."""
        return cls(
            parameters=dict(parameters or {}),
            repeats=tuple(repeats),
            figures=dict(figures or {}),
            **_spreads(repeats),
        )

    @model_validator(mode="after")
    def _agrees(self) -> CaseResult:
        for name, spread in _spreads(self.repeats).items():
            if getattr(self, name) != spread:
                raise ValueError(f"{name} is not that of the repeats")
        return self


def _spreads(repeats: Sequence[Repeat]) -> dict[str, Spread | None]:
    names = ("samples_per_s", "cpu_us_per_sample")
    if not repeats:
        return dict.fromkeys(names)
    return {name: Spread.of([getattr(repeat, name) for repeat in repeats]) for name in names}


class Result(_Strict):
    """One run of one benchmark.

    ours: the cases that are this project's own; the others are compared with the fastest.
    skipped: what was not measured, and why. sizes: bytes and shares, by name.
    """

    schema_version: Literal[3] = 3
    benchmark: Literal[
        "convert",
        "encode",
        "codecs",
        "luma",
        "loader",
        "peers",
        "step",
        "epoch",
        "scaling",
        "recipes",
        "quality",
        "simulation",
        "estimate",
        "parity",
        "hardware",
    ]
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
            raise ValueError(f"ours names {sorted(unknown)}, which are no cases")
        return self

    def best(self, beside: str) -> str | None:
        """The fastest of our cases with the parameters and output of case ``beside``, or None.

        Who delivers floats, as its name says at the end, is compared with who does.
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
        """Rate of our fastest over that of a case, round by round; None where there is none.

        Of the medians where the two were not timed in the same rounds.
        """
        base = self.best(name)
        if base is None or not self.cases[name].repeats:
            return None
        ours, theirs = self.cases[base], self.cases[name]
        if len(ours.repeats) == len(theirs.repeats):
            return Spread.of(ratios(ours.repeats, theirs.repeats))
        assert ours.samples_per_s is not None
        assert theirs.samples_per_s is not None
        return Spread.of([ours.samples_per_s.median / theirs.samples_per_s.median])


def make_result(
    benchmark: str,
    arguments: Mapping[str, Any],
    cases: Mapping[str, CaseResult],
    *,
    device: str = "cpu",
    **more: Any,
) -> Result:
    """A result of this run, on this machine, at this commit."""
    return Result(
        benchmark=benchmark,  # type: ignore[arg-type]
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=commit(),
        arguments={name: str(value) for name, value in arguments.items()},
        machine=Machine.model_validate(describe_machine(device)),
        versions=versions(),
        cases=dict(cases),
        **more,
    )


def read_result(path: Path) -> Result:
    """A result from its file. Raises DataError where it is not one."""
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
    """All results of a folder, by file name without its end; DataError if there is none."""
    paths = sorted(folder.glob("*.json")) if folder.is_dir() else []
    if not paths:
        raise DataError(f"{folder}: no results (*.json) here; run `python -m benchmarks` first")
    return {path.stem: read_result(path) for path in paths}


def table(result: Result) -> str:
    """The timed cases of a result, a line each, for a terminal."""
    machine = result.machine
    where = machine.gpu or f"{machine.cores} cores of {machine.cpu}"
    lines = [f"{result.benchmark} on {where}, commit {result.commit}"]
    timed = {name: case for name, case in result.cases.items() if case.repeats}
    if timed:
        lines.append(f"{'':44}{'samples/s':>11}{'CPU us/sample':>15}{'best of ours is':>17}")
    for name, case in timed.items():
        assert case.samples_per_s is not None
        assert case.cpu_us_per_sample is not None
        faster = result.faster_by(name)
        ratio = "" if faster is None else f"{faster.median:15.2f} x"
        lines.append(
            f"{name:44}{case.samples_per_s.median:11,.1f}"
            f"{case.cpu_us_per_sample.median:15,.0f}{ratio}"
        )
    for name, case in result.cases.items():
        lines += [f"{name}: {what} {value:,.6g}" for what, value in case.figures.items()]
    lines += [f"{name}: skipped, {why}" for name, why in result.skipped.items()]
    return "\n".join(lines)


def write_result(result: Result, path: Path | None) -> None:
    """Print the table; with ``path`` write the JSON too."""
    print(table(result))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(result.model_dump_json(indent=1) + "\n")
