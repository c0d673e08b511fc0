"""Mutates files that the program reads as data, and reads them.

    python -m tests.fuzz --cases 5000 --seed 0

A case fails if it ends with an exception other than the program's errors, if it takes longer than
`LIMIT_S`, or if a changed file is read as something else than it says. Case N of a seed is always
the same: `--first N --cases 1` repeats it. Each file is also read as it is, because a reader that
refuses everything would pass.
"""

from __future__ import annotations

import faulthandler
from collections import Counter

import click
import torch

from maskdepth.convert.errors import DataError
from tests.fuzz.cases import run_case
from tests.fuzz.files import files
from tests.fuzz.targets import TARGETS

LIMIT_S = 20
"""Of one case, many times what each takes."""


@click.command()
@click.option("--cases", type=click.IntRange(min=1), default=5000, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--first", type=int, default=0, show_default=True, help="Number of the first case.")
@click.option("--target", type=click.Choice(list(TARGETS)), help="Mutate this alone.")
def main(cases: int, seed: int, first: int, target: str | None) -> None:
    """Mutate files and read them; exit code 1 if a case fails."""
    torch.set_num_threads(1)
    read, refused, failed = Counter[str](), Counter[str](), 0
    with files() as made:
        for name in TARGETS:
            outcome = run_case(made, seed, first, name, mutate=False)
            if outcome.refused or outcome.problem:
                raise DataError(f"{name}: a file that is not mutated is refused; {outcome}")
        for case in range(first, first + cases):
            faulthandler.dump_traceback_later(3 * LIMIT_S, exit=True)  # a hang
            outcome = run_case(made, seed, case, target)
            (refused if outcome.refused else read)[outcome.target] += 1
            slow = outcome.seconds > LIMIT_S
            if outcome.problem or slow:
                failed += 1
                problem = outcome.problem or f"took {outcome.seconds:.1f} s"
                click.echo(f"case {case} of seed {seed}, {outcome.target}: {problem}")
    faulthandler.cancel_dump_traceback_later()
    for name in TARGETS:
        click.echo(f"{name:24} {refused[name]:6} refused {read[name]:6} read")
    click.echo(f"{cases} cases, {failed} failed")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
