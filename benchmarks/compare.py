"""What got slower from one folder of results to another."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import click

from benchmarks.harness.options import PATH, option
from benchmarks.harness.results import Result, read_result, read_results
from convert.errors import DataError
from model.training.options import FiniteRange

MEASURES = ("samples_per_s", "cpu_us_per_sample")


class Change(NamedTuple):
    """Medians of one case, and by what share it became worse (below 0: better)."""

    worse: float
    case: str
    before: float
    after: float


@click.command()
@click.argument("before", type=PATH)
@click.argument("after", type=PATH)
@option("--threshold", type=FiniteRange(0), default=0.1, help="Share that is too much.")
@option("--measure", type=click.Choice(MEASURES), default=MEASURES[0])
def compare(before: Path, after: Path, threshold: float, measure: str) -> None:
    """What got slower from BEFORE to AFTER, files or folders; exit 1 past the threshold."""
    changes = find_changes(before, after, measure)
    for change in changes:
        word = "worse" if change.worse > 0 else "better"
        click.echo(
            f"{change.case}: {measure} {change.before:,.4g} -> {change.after:,.4g}, "
            f"{abs(change.worse):.1%} {word}"
        )
    too_much = sum(change.worse > threshold for change in changes)
    if too_much:
        click.echo(f"{too_much} of {len(changes)} became worse by over {threshold:.0%}")
        raise SystemExit(1)


def find_changes(before: Path, after: Path, measure: str) -> list[Change]:
    """Changes of all cases that both have, the worst first; files, or folders of files.

    Raises DataError where they have nothing in common or come from different devices.
    """
    old, new = _load(before), _load(after)
    changes = []
    for name in old.keys() & new.keys():
        devices = [
            f"{one.machine.gpu or one.machine.cpu} ({one.machine.cores} cores)"
            for one in (old[name], new[name])
        ]
        if devices[0] != devices[1]:
            raise DataError(f"{name}: measured on {' and on '.join(devices)}; expected one machine")
        for case in old[name].cases.keys() & new[name].cases.keys():
            spreads = [getattr(one[name].cases[case], measure) for one in (old, new)]
            if None not in spreads:
                first, second = (spread.median for spread in spreads)
                worse = 1 - second / first if measure == "samples_per_s" else second / first - 1
                changes.append(Change(worse, f"{name}: {case}", first, second))
    if not changes:
        raise DataError(f"{before} and {after} have no timed case in common")
    return sorted(changes, key=lambda change: (-change.worse, change.case))


def _load(path: Path) -> dict[str, Result]:
    return read_results(path) if path.is_dir() else {(one := read_result(path)).benchmark: one}
