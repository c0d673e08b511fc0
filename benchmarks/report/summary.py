"""The beginning of a page: what each result has found, when, where and at which commit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from maskdepth.benchmarks.harness.results import Benchmark, Result
from maskdepth.benchmarks.report import about, scores, tables
from maskdepth.benchmarks.report.tables import number


class Line(NamedTuple):
    """A result in the summary. anchor: of its first figure on the page."""

    title: str
    anchor: str
    found: str
    day: str
    machine: str
    commit: str
    doubts: str


def line(title: str, anchor: str, result: Result) -> Line:
    """What is said of one result."""
    finding = _FINDINGS.get(result.benchmark, _finding_of_many)
    return Line(
        title=title,
        anchor=anchor,
        found=finding(result),
        day=result.created[:10],
        machine=_machine(result),
        commit=result.commit,
        doubts=" ".join(about.doubts(result)),
    )


def warnings(results: Mapping[str, Result]) -> list[str]:
    """Why figures of the page may not be comparable with each other: a sentence each."""
    found = []
    for what, of in (
        ("commits", {name: result.commit for name, result in results.items()}),
        ("machines", {name: _machine(result) for name, result in results.items()}),
    ):
        groups: dict[str, list[str]] = {}
        for name, value in of.items():
            groups.setdefault(value, []).append(name)
        if len(groups) > 1:
            listed = "; ".join(f"{value}: {', '.join(names)}" for value, names in groups.items())
            found.append(
                f"Measured {'at' if what == 'commits' else 'on'} {len(groups)} {what}, so figures "
                f"of different results cannot be compared with each other. {listed}."
            )
    changed = [name for name, result in results.items() if result.commit.endswith("-dirty")]
    if changed:
        found.append(f"Measured with changes that are in no commit: {', '.join(changed)}.")
    return found


def _machine(result: Result) -> str:
    machine = result.machine
    return machine.gpu or f"{machine.cores} cores of {machine.cpu}"


def _finding_of_rates(result: Result) -> str:
    """Our fastest case, beside the fastest that is not ours."""
    rates = {
        name: case.samples_per_s.median
        for name, case in result.cases.items()
        if case.samples_per_s is not None
    }
    ours = [name for name in result.ours if name in rates]
    if not ours:
        return _finding_of_many(result)
    best = max(ours, key=lambda name: rates[name])
    others = [
        name
        for name in rates
        if not name.startswith(("ours", "floor")) and name not in ours and result.best(name) == best
    ]
    text = f"{best}: {number(rates[best])} samples/s"
    if others:
        other = max(others, key=lambda name: rates[name])
        ratio = result.against_ours(other)
        assert ratio is not None
        text += f"; in the same rounds {1 / ratio.median:.2f} times the rate of {other}"
    return text


def _finding_of_epochs(result: Result) -> str:
    return "; ".join(
        f"{title}: {number(tables.point(parts['training'], 'samples_per_s'))} samples/s in "
        f"training, {parts['training'].figures['efficiency']:.0%} of what the slower of loader "
        "and model allows"
        for title, parts in tables.stages(result).items()
    )


def _finding_of_scores(result: Result) -> str:
    cases = [case for case in result.cases.values() if "camera" not in case.parameters]
    if not cases:
        return _finding_of_many(result)
    runs = f"{len(cases)} run{'s' * (len(cases) > 1)}"
    ious = _range(case.figures["mask_iou"] for case in cases)
    rule = _range(case.figures["rule_mask_iou"] for case in cases)
    return f"{runs}: mask IoU {ious}, of the rule without a network {rule}"


def _range(values: Iterable[float]) -> str:
    """The lowest and the highest; one number where they are printed alike."""
    ordered = sorted(values)
    ends = dict.fromkeys((f"{ordered[0]:.3f}", f"{ordered[-1]:.3f}"))
    return "–".join(ends)


def _finding_of_speedruns(result: Result) -> str:
    table = scores.speedrun(result)
    at = [table.head.index(title) for title in ("runs that reached it", "work, PFLOP")]
    return "; ".join(
        f"{row[0]}: {row[at[0]]} runs reached the target, median (range) {row[at[1]]} PFLOP"
        for row in table.rows
    )


def _finding_of_checks(result: Result) -> str:
    ends = [str(case.parameters["ended"]) for case in result.cases.values()]
    return "; ".join(f"{ends.count(end)} checks: {end}" for end in dict.fromkeys(ends))


def _finding_of_recipes(result: Result) -> str:
    """The best mask at the end of the time."""
    last = {
        str(case.parameters["recipe"]): case.figures.get("mask_iou", 0.0)
        for case in result.cases.values()
        if case.parameters
    }
    best = max(last, key=lambda recipe: last[recipe])
    return f"best of {len(last)} recipes at the end: {best}, mask IoU {last[best]:.3f}"


def _finding_of_many(result: Result) -> str:
    return f"{len(result.cases)} case{'s' * (len(result.cases) != 1)}"


_FINDINGS: dict[Benchmark, Callable[[Result], str]] = {
    "gpu-check": _finding_of_checks,
    "peers": _finding_of_rates,
    "loader": _finding_of_rates,
    "step": _finding_of_rates,
    "compose": _finding_of_rates,
    "convert": _finding_of_rates,
    "epoch": _finding_of_epochs,
    "quality": _finding_of_scores,
    "recipes": _finding_of_recipes,
    "speedrun": _finding_of_speedruns,
}
