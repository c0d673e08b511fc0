"""What got slower from one folder of results to another.

python -m benchmarks compare BEFORE AFTER --threshold 0.1
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.results import CaseResult, Result, read_result, read_results
from convert.errors import DataError

MEASURES = ("samples_per_s", "cpu_us_per_sample")


@dataclass(frozen=True, kw_only=True)
class Change:
    """One figure of one case: medians, and by what share it became worse (below 0: better)."""

    case: str
    measure: str
    before: float
    after: float
    worse: float

    def __str__(self) -> str:
        word = "worse" if self.worse > 0 else "better"
        return (
            f"{self.case}: {self.measure} {self.before:,.4g} -> {self.after:,.4g}, "
            f"{abs(self.worse):.1%} {word}"
        )


def compare(before: Path, after: Path, measure: str = "samples_per_s") -> list[Change]:
    """Changes of all cases that both have, the worst first; files, or folders of files.

    Raises DataError where they have nothing in common or come from different devices.
    """
    old, new = _load(before), _load(after)
    changes = []
    for name in sorted(old.keys() & new.keys()):
        _same_device(name, old[name], new[name])
        for case in old[name].cases.keys() & new[name].cases.keys():
            change = _change(f"{name}: {case}", measure, old[name].cases[case],
                             new[name].cases[case])  # fmt: skip
            if change is not None:
                changes.append(change)
    if not changes:
        raise DataError(f"{before} and {after} have no timed case in common")
    return sorted(changes, key=lambda change: (-change.worse, change.case))


def _load(path: Path) -> dict[str, Result]:
    return read_results(path) if path.is_dir() else {(one := read_result(path)).benchmark: one}


def _same_device(name: str, old: Result, new: Result) -> None:
    devices = [(one.machine.gpu or one.machine.cpu, one.machine.cores) for one in (old, new)]
    if devices[0] != devices[1]:
        raise DataError(
            f"{name}: measured on {devices[0][0]} ({devices[0][1]} cores) and on "
            f"{devices[1][0]} ({devices[1][1]} cores); expected one machine"
        )


def _change(case: str, measure: str, old: CaseResult, new: CaseResult) -> Change | None:
    first, second = getattr(old, measure), getattr(new, measure)
    if first is None or second is None:
        return None
    ratio = second.median / first.median
    worse = 1 - ratio if measure == "samples_per_s" else ratio - 1
    return Change(case=case, measure=measure, before=first.median, after=second.median, worse=worse)
