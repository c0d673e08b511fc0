"""All checks and measurements of a GPU in one report, which is written whatever fails.

    python -m benchmarks gpu-check results-gpu --device cuda:1

Tests, pixels and speed are checked by other commands, each in a process of its own with a limit of
its time. The most valuable ones run first, so that little is lost if the time is short.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import click

from maskdepth.benchmarks.harness import options as cli
from maskdepth.benchmarks.harness.checks import FOLDER, RESULT, Check, Outcome, run_checks
from maskdepth.benchmarks.harness.plan import NAME, ROOT, Plan
from maskdepth.benchmarks.harness.results import CaseResult, Result, make_result, read_result
from maskdepth.benchmarks.report.figures import figures_of
from maskdepth.benchmarks.report.page import PAGE, drawn_figures, write_page
from maskdepth.convert.errors import Command, DataError
from maskdepth.convert.found import is_vacant
from maskdepth.convert.outputs import require_writable_folder
from maskdepth.convert.workers import run_all, worker_pool
from maskdepth.model.files import make_folder
from maskdepth.model.precision import choose_device

EPOCHS = "epochs"
"""Name of the result that joins those of all epochs."""


def select(checks: list[Check], only: tuple[str, ...], skip: tuple[str, ...]) -> list[Check]:
    """Those with a part of ``only`` in their names, if there is any, and with none of ``skip``.

    Raises DataError for a part that no name has.
    """
    names = [check.name for check in checks]
    for option, parts in (("--only", only), ("--skip", skip)):
        for part in parts:
            if not any(part in name for name in names):
                raise DataError(f"{option} {part}: expected a part of one of {', '.join(names)}")
    return [
        check
        for check in checks
        if (not only or any(part in check.name for part in only))
        and not any(part in check.name for part in skip)
    ]


def _choose_gpu(context: click.Context, option: click.Parameter, device: str) -> str:
    """A CPU must be asked for by its name."""
    return str(choose_device("cuda" if device == "auto" else device))


@click.command(cls=Command)
@click.argument("results", type=cli.PATH, default="results-gpu")
@cli.option(
    "--device",
    default="cuda",
    callback=_choose_gpu,
    help="cuda, cuda:N, or cpu to try it without a GPU.",
)
@cli.at_least_1("--samples", default=40_000, help="Of the data set that is drawn, at least.")
@cli.option("--data", type=cli.PATH, default="bench/gpu-check", help="Folder of drawn data.")
@cli.width_option(default=64)
@click.option("--only", multiple=True, help="Part of the name of a check; may be repeated.")
@click.option("--skip", multiple=True, help="Part of the name of a check; may be repeated.")
@cli.above_0("--check-minutes", default=10.0, help="After so many, a check is ended.")
@cli.above_0(
    "--minutes",
    default=60.0,
    help="After so many, the running check is ended, no other is started, and the report is made.",
)
def gpu_check(
    results: Path,
    device: str,
    samples: int,
    data: Path,
    width: int,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    check_minutes: float,
    minutes: float,
) -> None:
    """Check and measure a GPU; write RESULTS/report.html. Exit code 1 if any check failed.

    Draws and packs a data set where that was not done before. Each check runs in a process of its
    own; one that fails or hangs is listed in the report with the last line of its error.
    """
    plan = Plan(device=device, samples=samples, width=width, data=data, results=results)
    _require_own(plan)
    chosen = plan.preparation() + select(plan.checks(), only, skip)
    make_folder(plan.recipe.parent)
    plan.recipe.write_text(plan.recipe_text())
    arguments = {"samples": samples, "width": width, "device": device, "minutes": minutes}
    # In a process of its own: asking torch for the name of a GPU takes memory on it, and the checks
    # would list this process as another user of the GPU.
    with worker_pool(1) as pool:
        make = partial(make_result, device=device)
        (base,) = run_all(pool, make, [(NAME, arguments, {})])
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {"PYTHONPATH": paths, "GPU": device}
    outcomes: dict[str, Outcome] = {}
    began = time.monotonic()
    for name, outcome in run_checks(
        chosen, results, environment, check_s=60 * check_minutes, total_s=60 * minutes
    ):
        outcomes[name] = outcome
        # For `report`, if this process is killed.
        _save(base, outcomes, results)
        join_epochs(plan, results)
    _report(base, outcomes, results)
    failed = [name for name, outcome in outcomes.items() if outcome.ended == "failed"]
    spent = (time.monotonic() - began) / 60
    click.echo(f"{results / PAGE}: {len(outcomes)} checks in {spent:.1f} minutes")
    for name in failed:
        click.echo(f"{name}: {outcomes[name]}")
    if failed:
        click.get_current_context().exit(1)


def _require_own(plan: Plan) -> None:
    """Raise DataError where another command has written: the results of checks replace files."""
    for folder in (plan.results, plan.data):
        require_writable_folder(folder)
    if plan.results.is_dir() and not is_vacant(plan.results) and not plan.recipe.exists():
        raise DataError(
            f"{plan.results}: not empty, and not the folder of an earlier gpu-check; name another"
        )


def _save(base: Result, outcomes: dict[str, Outcome], results: Path) -> Result:
    """Write how the checks ended as a result."""
    cases = {
        name: CaseResult(parameters={"ended": one.ended}, figures={"wall_s": one.wall_s})
        for name, one in outcomes.items()
    }
    reasons = {
        name: str(one) for name, one in outcomes.items() if one.ended in ("failed", "skipped")
    }
    result = base.model_copy(update={"cases": cases, "skipped": reasons})
    (results / f"{NAME}.json").write_text(result.model_dump_json(indent=1) + "\n")
    return result


def join_epochs(plan: Plan, results: Path) -> None:
    """Write the results of all epochs that were measured as one; arguments are those in common."""
    found: dict[str, Result] = {}
    for check in plan.checks():
        if not check.publish:
            with suppress(DataError):  # it has not run, or failed, or is of an older version
                found[check.name] = read_result(results / FOLDER / check.name / RESULT)
    if not found:
        return
    first = next(iter(found.values()))
    cases = {
        f"{name.removeprefix('epoch-')}, {case}": value
        for name, result in found.items()
        for case, value in result.cases.items()
    }
    common = set.intersection(*(set(result.arguments.items()) for result in found.values()))
    arguments = {name: value for name, value in first.arguments.items() if (name, value) in common}
    skipped = {
        f"{name.removeprefix('epoch-')}, {case}": reason
        for name, result in found.items()
        for case, reason in result.skipped.items()
    }
    changes = {"cases": cases, "arguments": arguments, "skipped": skipped}
    joined = first.model_copy(update=changes)
    (results / f"{EPOCHS}.json").write_text(joined.model_dump_json(indent=1) + "\n")


def _report(base: Result, outcomes: dict[str, Outcome], results: Path) -> None:
    """Write the page; a result that cannot be shown makes its check a failed one."""
    shown, wrong = drawn_figures(results, without=NAME)
    for name, reason in wrong.items():
        wall_s = outcomes[name].wall_s if name in outcomes else 0.0
        outcomes[name] = Outcome(ended="failed", wall_s=wall_s, reason=reason)
    figures = [*figures_of(NAME, _save(base, outcomes, results)), *shown]
    write_page(results, figures, results / "pictures")
