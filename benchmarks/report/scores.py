"""Tables of trainings: scores of networks, beside those of baselines, and what they took."""

from __future__ import annotations

import math

from maskdepth.benchmarks.harness.results import CaseResult, Result, Spread
from maskdepth.benchmarks.report.tables import Table, number

SCORES = {"mask_iou": "mask IoU, 0–1", "depth_rmse": "depth RMSE, 0–1"}
"""Figure of `quality` and `recipes` -> its title."""


def prior_mark(result: Result, case: CaseResult | None = None) -> str:
    """What stands beside depth that is scored against a ground-plane prior; else empty."""
    sources = (result.arguments.get("depth"), case.parameters.get("depth") if case else None)
    return " (prior)" if "prior" in sources else ""


def titles(result: Result) -> dict[str, str]:
    """Figures of `SCORES` and their titles, for a result of one data set."""
    return {what: title + prior_mark(result) * ("depth" in what) for what, title in SCORES.items()}


def recipes_at_the_end(result: Result) -> Table:
    """Scores of every recipe at the end of its time, and of the baselines without a network."""
    last = {str(case.parameters.get("recipe", name)): case for name, case in result.cases.items()}
    return Table.of(
        {"": name}
        | {title: _score(case.figures.get(what)) for what, title in titles(result).items()}
        for name, case in last.items()
    )


def recipes_over_time(result: Result) -> Table:
    """Scores at each time at which recipes were scored: a column for each score and recipe."""
    by_minute: dict[str, dict[str, CaseResult]] = {}
    for case in result.cases.values():
        if case.parameters:
            minutes = f"{float(case.parameters['cpu_min']):.1f}"
            by_minute.setdefault(minutes, {})[str(case.parameters["recipe"])] = case
    recipes = dict.fromkeys(recipe for cases in by_minute.values() for recipe in cases)
    return Table.of(
        {"CPU min": minutes}
        | {
            f"{title}, {recipe}": _score(cases.get(recipe, CaseResult()).figures.get(what))
            for what, title in titles(result).items()
            for recipe in recipes
        }
        for minutes, cases in by_minute.items()
    )


def runs_of(result: Result) -> dict[tuple[str, float], list[CaseResult]]:
    """Points of every run of `speedrun`, in order, by recipe and seed."""
    found: dict[tuple[str, float], list[CaseResult]] = {}
    for case in result.cases.values():
        if case.parameters:
            key = (str(case.parameters["recipe"]), float(case.parameters["seed"]))
            found.setdefault(key, []).append(case)
    return found


def speedrun(result: Result) -> Table:
    """What each recipe needed to reach the target: median and range of its runs.

    A run that ended before the target needs more than it has spent. "> x" is a median, or the end
    of a range, of which nothing else is known.
    """
    ends: dict[str, list[CaseResult]] = {}
    for (recipe, _), points in runs_of(result).items():
        ends.setdefault(recipe, []).append(points[-1])
    rows = []
    for recipe, cases in ends.items():
        reached = [case.parameters["reached"] == 1 for case in cases]
        row = {"": recipe, "runs that reached it": f"{sum(reached)} of {len(cases)}"}
        spent = {"samples": "training samples", "pflop": "work, PFLOP", "seconds": "time, s"}
        for what, title in spent.items():
            row[title] = _needed([float(case.parameters[what]) for case in cases], reached)
        for what, title in titles(result).items():
            row[title] = _score(Spread.of([case.figures[what] for case in cases]).median)
        rows.append(row)
    return Table.of(rows)


def _needed(spent: list[float], reached: list[bool]) -> str:
    """Median and range of what runs needed, of which some did not reach the target."""
    known = Spread.of(spent)
    needed = Spread.of([x if done else math.inf for x, done in zip(spent, reached, strict=True)])
    median, low, high = (
        number(value) if math.isfinite(getattr(needed, what)) else f"> {number(value)}"
        for what, value in known
    )
    return f"{median} ({low}–{high})" if any(reached) else median


def quality(result: Result, splits: tuple[str, ...]) -> Table:
    """Scores of runs with these splits beside those of the baselines, and what training took."""
    rows = []
    for name, case in result.cases.items():
        about, found = case.parameters, case.figures
        if about.get("split") not in splits:
            continue
        row = [name, str(about["recipe"]), str(about["split"])]
        row += [number(float(about[key])) for key in ("width", "size")]
        row += [number(found.get(f"training_{key}")) for key in ("samples", "pflop", "cpu_min")]
        row += [number(float(about["validation_samples"]))]
        prior = prior_mark(result, case)
        for what in SCORES:
            mark = prior * ("depth" in what)
            row += [_score(found[what]) + mark, _score(found[f"rule_{what}"]) + mark]
        rows.append((*row, f"{found['depth_rmse_of_rule']:.2f}{prior}"))
    head = (
        "run", "recipe", "split", "width, channels", "size, pixels", "training samples",
        "work, PFLOP", "CPU min", "scored samples", "mask IoU, 0–1", "rule's mask IoU, 0–1",
        "depth RMSE, 0–1", "rule's depth RMSE, 0–1", "depth RMSE over rule's",
    )  # fmt: skip
    return Table(head, tuple(rows)).filled()


def cameras(result: Result) -> Table:
    """Scores of runs with fg_bg disturbed, for the network and for the rule."""
    heads = {
        "mask_iou": "mask IoU, 0–1", "aligned_mask_iou": "mask IoU, images aligned, 0–1",
        "rule_mask_iou": "rule's mask IoU, 0–1",
        "aligned_rule_mask_iou": "rule's mask IoU, images aligned, 0–1",
        "depth_rmse": "depth RMSE, 0–1",
        "aligned_depth_rmse": "depth RMSE, images aligned, 0–1",
    }  # fmt: skip
    table = Table.of(
        {
            "run": str(case.parameters["run"]),
            "camera, name or pixels": str(case.parameters["camera"]),
        }
        | {
            title: _score(case.figures.get(what))
            + prior_mark(result, case) * ("depth" in what and what in case.figures)
            for what, title in heads.items()
        }
        for case in result.cases.values()
        if "camera" in case.parameters
    )
    return table.filled()


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
