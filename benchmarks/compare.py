"""What differs between two folders of results, as far as their ranges can tell."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import click

from maskdepth.benchmarks.harness.options import PATH, option
from maskdepth.benchmarks.harness.results import (
    FEW_REPEATS,
    CaseResult,
    Result,
    Spread,
    read_result,
    read_results,
)
from maskdepth.benchmarks.report.tables import number
from maskdepth.convert.errors import Command, DataError
from maskdepth.model.training.options import FiniteRange

MEASURES = ("samples_per_s", "cpu_us_per_sample")
_EFFORT = ("repeats", "minutes")
"""Arguments that say how long was measured, not what."""


class Change(NamedTuple):
    """One case on both sides, and by what share its median became worse (below 0: better)."""

    worse: float
    case: str
    before: Spread
    after: Spread
    doubt: str = ""
    """Why the figures may not be trusted: few repeats, a busy machine."""

    @property
    def found(self) -> bool:
        """Whether every repeat of one side is faster than every repeat of the other."""
        return self.before.lowest > self.after.highest or self.after.lowest > self.before.highest

    def __str__(self) -> str:
        word = "worse" if self.worse > 0 else "better"
        verdict = (
            f"{abs(self.worse):.1%} {word}" if self.found else "no difference found, ranges overlap"
        )
        spreads = " -> ".join(_range(spread) for spread in (self.before, self.after))
        return f"{self.case}: {spreads}: {verdict}{self.doubt and f' ({self.doubt})'}"


class Comparison(NamedTuple):
    """Changes, the worst first, and lines about what could not be compared."""

    changes: list[Change]
    left_out: list[str]


@click.command(cls=Command)
@click.argument("before", type=PATH)
@click.argument("after", type=PATH)
@option("--threshold", type=FiniteRange(0), default=0.1, help="Share that is too much.")
@option("--measure", type=click.Choice(MEASURES), default=MEASURES[0])
@click.option(
    "--machines", is_flag=True, help="Compare results of different machines, which are named."
)
def compare(before: Path, after: Path, threshold: float, measure: str, machines: bool) -> None:
    """What got slower from BEFORE to AFTER, files or folders; exit 1 past the threshold.

    A difference is found only where the ranges of the repeats do not overlap. Results with other
    arguments, and what is on one side only, are listed and not compared.
    """
    old, new = _load(before), _load(after)
    changes, left_out = compare_results(old, new, measure, machines=machines)
    for line in left_out:
        click.echo(line)
    if not changes:
        raise DataError(f"{before} and {after} have no timed case in common that can be compared")
    for side, results in (("before", old), ("after", new)):
        for line in sorted({_origin(result) for result in results.values()}):
            click.echo(f"{side}: {line}")
    click.echo(f"{measure}: median (range) before -> after")
    for change in changes:
        click.echo(str(change))
    too_much = sum(change.found and change.worse > threshold for change in changes)
    if too_much:
        click.echo(f"{too_much} of {len(changes)} became worse by over {threshold:.0%}")
        raise SystemExit(1)


def compare_results(
    old: dict[str, Result], new: dict[str, Result], measure: str, *, machines: bool
) -> Comparison:
    """Compare all timed cases that both sides have, by name.

    Raises DataError where results are of different machines, unless ``machines``.
    """
    changes: list[Change] = []
    left_out = [
        f"{name}: only {side}"
        for side, names in (("before", old.keys() - new.keys()), ("after", new.keys() - old.keys()))
        for name in sorted(names)
    ]
    for name in sorted(old.keys() & new.keys()):
        first, second = old[name], new[name]
        devices = [_machine(result) for result in (first, second)]
        if devices[0] != devices[1] and not machines:
            raise DataError(
                f"{name}: measured on {' and on '.join(devices)}; expected one machine; "
                "--machines compares them all the same"
            )
        if other := _differences(first.arguments, second.arguments):
            left_out.append(f"{name}: not compared, other arguments: {other}")
            continue
        doubt = "measured on a busy machine" * (first.is_busy or second.is_busy)
        for case in [*first.cases, *(second.cases.keys() - first.cases.keys())]:
            title = f"{name}: {case}"
            pair = [result.cases.get(case) for result in (first, second)]
            made = _compare(title, pair[0], pair[1], measure, doubt)
            if isinstance(made, Change):
                changes.append(made)
            elif made:
                left_out.append(made)
    changes.sort(key=lambda change: (not change.found, -change.worse, change.case))
    return Comparison(changes, left_out)


def _compare(
    title: str, before: CaseResult | None, after: CaseResult | None, measure: str, doubt: str
) -> Change | str:
    """How a case changed, or why it is not compared; empty where nothing was timed."""
    if before is None or after is None:
        return f"{title}: only {'after' if before is None else 'before'}"
    first, second = getattr(before, measure), getattr(after, measure)
    if first is None or second is None:
        return ""
    if other := _differences(before.parameters, after.parameters):
        return f"{title}: not compared, other parameters: {other}"
    if not first.median:
        return f"{title}: not compared, {measure} was 0"
    fewest = min(len(before.repeats), len(after.repeats))
    few = f"fewer than {FEW_REPEATS} repeats" * (fewest < FEW_REPEATS)
    ratio = second.median / first.median
    worse = 1 - ratio if measure == "samples_per_s" else ratio - 1
    return Change(worse, title, first, second, ", ".join(filter(None, (few, doubt))))


def _differences(before: Mapping[str, object], after: Mapping[str, object]) -> str:
    """What both say, and say differently."""
    return ", ".join(
        f"{name} {before[name]} against {after[name]}"
        for name in before
        if name in after and name not in _EFFORT and before[name] != after[name]
    )


def _range(spread: Spread) -> str:
    return f"{number(spread.median)} ({number(spread.lowest)}–{number(spread.highest)})"


def _machine(result: Result) -> str:
    machine = result.machine
    return f"{machine.gpu or machine.cpu} ({machine.cores} cores)"


def _origin(result: Result) -> str:
    return f"commit {result.commit}, {result.created[:10]}, {_machine(result)}"


def _load(path: Path) -> dict[str, Result]:
    return read_results(path) if path.is_dir() else {(one := read_result(path)).benchmark: one}
