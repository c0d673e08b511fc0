"""What the commands share: options, and how a result is printed and kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import asdict, dataclass, fields
from functools import partial, wraps
from pathlib import Path
from typing import Any

import click

from maskdepth.benchmarks.harness.load import watch_load
from maskdepth.benchmarks.harness.nvml import before_use
from maskdepth.benchmarks.harness.results import Result, read_benchmark
from maskdepth.benchmarks.report import about
from maskdepth.convert.errors import Command, DataError
from maskdepth.convert.limits import LARGEST_BATCH, MOST_WORKERS
from maskdepth.convert.outputs import require_free, require_outside
from maskdepth.convert.workers import available_cores
from maskdepth.model.files import make_folder, replace_bytes
from maskdepth.model.precision import choose_device
from maskdepth.model.recipe import WIDEST
from maskdepth.model.training.options import FiniteRange

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


@dataclass(frozen=True, kw_only=True)
class Loading:
    """Options of the loading benchmarks, the same for all contenders.

    repeats: rounds that are timed. minutes: after so many, no other round begins. threads: of a
        loader, or its worker processes.
    device: of torch, where the batches are needed; those that are delivered on the CPU are copied,
        as a user would.
    """

    repeats: int
    batch_size: int
    threads: int
    device: str
    minutes: float = math.inf

    def arguments(self, **more: object) -> dict[str, object]:
        """For the result: what was run, and with what."""
        found = {**more, **asdict(self)}
        if not math.isfinite(self.minutes):
            del found["minutes"]
        return found


def _check_json(context: click.Context, option: click.Parameter, path: Path | None) -> Path | None:
    """Fail before anything is measured if the file is not free, or a result of this benchmark."""
    if path is None:
        return None
    require_free(path)
    name = str(context.command.name)
    if (
        path.exists()
        and path.stat().st_size
        and read_benchmark(path) != _BENCHMARKS.get(name, name)
    ):
        raise DataError(
            f"{path}: exists and is no result of {name}; name another file, or move it away"
        )
    return path


_BENCHMARKS = {"simulate": "simulation"}
"""What the results of a command are called, where that is not its name."""


def _check_device(context: click.Context, option: click.Parameter, device: str) -> str:
    """The device, and what others use of it, before the benchmark uses it."""
    chosen = str(choose_device(device))
    before_use(chosen)
    return chosen


PATH = click.Path(path_type=Path)
option = partial(click.option, show_default=True)
SHARDS = click.argument("shards", type=PATH)
DATASET = click.argument("dataset", type=PATH)
DEVICE = option(
    "--device", default="cpu", callback=_check_device, help="auto, cpu, cuda or cuda:N."
)
at_least_1 = partial(option, type=click.IntRange(1))
above_0 = partial(option, type=FiniteRange(0, min_open=True))
REPEATS = at_least_1("--repeats", default=5, help="How often each case is timed.")
MINUTES = option(
    "--minutes", type=FiniteRange(0, min_open=True), show_default="no limit",
    callback=lambda context, option, value: math.inf if value is None else value,
    help="After so many, no other round begins. Each case is timed at least once.",
)  # fmt: skip
SAMPLES = option(
    "--samples", type=click.IntRange(1), default=2**40, show_default="all",
    help="Of an epoch, spread evenly over all.",
)  # fmt: skip
ENGINE = option("--loader", "engine", default="ffcv", help="ffcv, dali or resident.")
up_to_most_workers = partial(
    option, type=click.IntRange(1, MOST_WORKERS), default=available_cores()
)
width_option = partial(
    option, "--width", type=click.IntRange(1, WIDEST), help="64 is the full network."
)
batch_size_option = partial(option, "--batch-size", type=click.IntRange(1, LARGEST_BATCH))


def loading_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of `Loading`, which the function gets as ``loading``."""

    @wraps(function)
    def with_loading(**values: Any) -> Any:
        loading = Loading(**{field.name: values.pop(field.name) for field in fields(Loading)})
        return function(loading=loading, **values)

    threads = up_to_most_workers("--threads", help="Of each contender.")
    return DEVICE(threads(batch_size_option(default=64)(REPEATS(MINUTES(with_loading)))))


_SAVE: ContextVar[Callable[[Result], object]] = ContextVar("save")


def keep(result: Result, why: str = "stopped before its end") -> None:
    """Write what has been measured so far to the file of --json, in case the rest is not.

    why: what the result says of itself until the command writes the complete one.
    """
    save = _SAVE.get(None)
    if save is not None:
        save(result.model_copy(update={"unfinished": why}))


class FailedCheck(DataError):
    """A failure that has a result: it is printed and written before the error is reported."""

    def __init__(self, message: str, result: Result) -> None:
        super().__init__(message)
        self.result = result


def command(*options: Decorator) -> Callable[[Callable[..., Result]], click.Command]:
    """Make a command of a function that returns a result.

    The command prints the tables and figures of the result, and writes it as JSON where --json
    names a file: what the function gives to `keep` as soon as it does. Both have the load of the
    machine from the start of the command on.
    """
    json_option: Decorator = click.option(
        "--json", "json_path", type=PATH, callback=_check_json, help="Write JSON."
    )

    def make(run: Callable[..., Result]) -> click.Command:
        @wraps(run)
        def run_and_write(json_path: Path | None, **values: Any) -> None:
            for name in ("shards", "dataset", "folder"):
                if json_path is not None and isinstance(read := values.get(name), Path):
                    require_outside(json_path, read)
            failure: FailedCheck | None = None
            load = watch_load()

            def save(result: Result) -> Result:
                result = result.model_copy(update={"load": load()})
                if json_path is not None:
                    make_folder(json_path.parent)
                    replace_bytes(json_path, result.model_dump_json(indent=1).encode() + b"\n")
                return result

            token = _SAVE.set(save)
            try:
                result = run(**values)
            except FailedCheck as error:
                result, failure = error.result, error
            finally:
                _SAVE.reset(token)
            click.echo(about.text(save(result)))
            if failure is not None:
                raise failure

        function: Callable[..., Any] = run_and_write
        for decorate in [json_option, *reversed(options)]:
            function = decorate(function)
        return click.command(cls=Command)(function)

    return make
