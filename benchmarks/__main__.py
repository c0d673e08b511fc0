"""Command line of the benchmarks: `python -m benchmarks loader|peers|convert|...`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from benchmarks.harness.loading import Loading
from benchmarks.harness.results import write_result
from convert import errors
from convert.workers import available_cores
from model.files import require_writable
from model.precision import AMP, choose_device


class Commands(errors.Commands):
    """Also reports a contender that cannot be measured in one line."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        from benchmarks.harness.contender import Unavailable

        try:
            return super().invoke(ctx)
        except Unavailable as error:
            raise errors.DataError(str(error)) from None


def _writable(context: click.Context, option: click.Parameter, path: Path | None) -> Path | None:
    """Found out before anything is measured."""
    if path is not None:
        require_writable(path)
    return path


def _there(context: click.Context, option: click.Parameter, device: str) -> str:
    return str(choose_device(device))


_PATH = click.Path(path_type=Path)
_option = partial(click.option, show_default=True)
_JSON = click.option("--json", "json_path", type=_PATH, callback=_writable, help="Write JSON.")
_DEVICE = _option("--device", default="cpu", callback=_there, help="auto, cpu, cuda or cuda:N.")
_REPEATS = _option("--repeats", type=click.IntRange(1), default=5)
_WORKERS = _option("--workers", type=click.IntRange(1), default=available_cores())


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure, beside what you would use otherwise, in one run."""


def _say(text: str) -> None:
    click.echo(text, err=True)


def _loading(command: Callable[..., None]) -> Callable[..., None]:
    """Options of the commands that load batches."""
    for decorate in (
        _JSON,
        _DEVICE,
        _option("--threads", type=click.IntRange(1), default=available_cores()),
        _option("--batch-size", type=click.IntRange(1), default=64),
        _REPEATS,
    ):
        command = decorate(command)
    return command


@main.command()
@click.argument("shards", type=_PATH)
@_loading
def loader(shards: Path, json_path: Path | None, **loading: Any) -> None:
    """Both engines on SHARDS beside the floor: libjpeg-turbo alone on the same bytes."""
    from benchmarks.loader import run

    write_result(run(shards, Loading(**loading), _say), json_path)


@main.command()
@click.argument("dataset", type=_PATH)
@click.argument("shards", type=_PATH)
@_option("--slow-share", type=click.IntRange(1), default=8, help="Pillow reads 1 in so many.")
@_option("--only", multiple=True, help="Part of the name of who takes part; may be repeated.")
@_loading
def peers(
    dataset: Path,
    shards: Path,
    json_path: Path | None,
    slow_share: int,
    only: tuple[str, ...],
    **loading: Any,
) -> None:
    """Both engines on SHARDS beside what others would make of DATASET."""
    from benchmarks.peers.run import run

    who: Any = {"slow_share": slow_share, "only": only}
    write_result(run(dataset, shards, Loading(**loading), say=_say, **who), json_path)


_ENGINE = _option("--loader", "engine", default="ffcv", help="ffcv or dali.")
_WIDTH = _option("--width", type=click.IntRange(1), default=64, help="64 is the full network.")
_KINDS = click.Choice(["depth", "mask", "joint"])
_AMP = _option("--amp", type=click.Choice(AMP), default="auto", help="As `train.py fit` has it.")


@main.command()
@click.argument("shards", type=_PATH)
@_REPEATS
@_option("--steps", type=click.IntRange(1), default=2, help="In each repeat.")
@_WIDTH
@_option("--size", type=click.IntRange(8), default=112)
@_option("--batch-size", type=click.IntRange(1), default=4)
@_ENGINE
@_DEVICE
@_option("--amp", type=click.Choice(AMP), default="off", help="For both ways; off: float32.")
@_JSON
def step(shards: Path, json_path: Path | None, **options: Any) -> None:
    """A training step of the depth and the mask stage, ours and the original's way."""
    from benchmarks.step import run

    write_result(run(shards, say=_say, **options), json_path)


@main.command()
@click.argument("shards", type=_PATH)
@_option("--stage", "kinds", type=_KINDS, multiple=True, default=("depth", "mask"))
@_option("--size", "sizes", type=click.IntRange(8), multiple=True, default=(112,))
@_option("--samples", type=click.IntRange(2), default=2**40, show_default="all")
@_option("--compile", is_flag=True, show_default=False, help="The network by torch.compile.")
@_WIDTH
@_ENGINE
@_AMP
@_loading
def epoch(
    shards: Path,
    json_path: Path | None,
    kinds: tuple[str, ...],
    sizes: tuple[int, ...],
    **options: Any,
) -> None:
    """Real epochs of stages: loader, model and both; every phase of a step."""
    from benchmarks.epoch import Config, run

    write_result(run(Config(shards=shards, **options), kinds, sizes, _say), json_path)


@main.command()
@click.argument("shards", type=_PATH)
@_option("--samples", type=click.IntRange(40), default=2000, help="Composed at each image size.")
@_option(
    "--records", type=click.IntRange(100), multiple=True, default=(1_000, 10_000, 100_000, 400_000)
)
@_loading
def scaling(
    shards: Path, json_path: Path | None, samples: int, records: tuple[int, ...], **loading: Any
) -> None:
    """Rates against threads, batch size, image size and number of records."""
    from benchmarks.scaling import run

    sizes: Any = {"samples": samples, "records": records}
    write_result(run(shards, Loading(**loading), say=_say, **sizes), json_path)


@main.command()
@click.argument("shards", type=_PATH)
@_JSON
def simulate(shards: Path, json_path: Path | None) -> None:
    """Order, index and shards at 4 million and 4 billion samples, on 8 and 1,024 GPUs."""
    from benchmarks.simulation import run

    write_result(run(shards, _say), json_path)


@main.command()
@click.argument("shards", type=_PATH)
@_loading
def parity(shards: Path, json_path: Path | None, **loading: Any) -> None:
    """Pixels on a device against those that the CPU decodes one by one; exit 2 if they differ."""
    from benchmarks.parity import run

    write_result(run(shards, Loading(**loading), _say), json_path)


@main.command()
@click.argument("dataset", type=_PATH)
@click.argument("shards", type=_PATH)
@_loading
def hardware(dataset: Path, shards: Path, json_path: Path | None, **loading: Any) -> None:
    """DALI's hw_decoder_load from 0 to 1, on a GPU."""
    from benchmarks.hardware import run

    write_result(run(dataset, shards, Loading(**loading), _say), json_path)


@main.command()
@click.argument("dataset", type=_PATH)
@_REPEATS
@_WORKERS
@_JSON
def convert(dataset: Path, repeats: int, workers: int, json_path: Path | None) -> None:
    """Packing DATASET against stock FFCV's writer and against reading and decoding alone."""
    from benchmarks.convert import run

    write_result(run(dataset, repeats=repeats, workers=workers, say=_say), json_path)


@main.command()
@click.argument("dataset", type=_PATH)
@_option("--samples", type=click.IntRange(1), default=1000)
@_REPEATS
@_JSON
def encode(dataset: Path, samples: int, repeats: int, json_path: Path | None) -> None:
    """Where the time of a conversion goes: each step of the first samples of DATASET."""
    from benchmarks.encode import run

    write_result(run(dataset, samples=samples, repeats=repeats), json_path)


@main.command()
@click.argument("dataset", type=_PATH)
@_option("--samples", type=click.IntRange(1), default=1000)
@_REPEATS
@_JSON
def luma(dataset: Path, samples: int, repeats: int, json_path: Path | None) -> None:
    """Two ways to cut the depth maps of DATASET to their luma plane."""
    from benchmarks.luma import run

    write_result(run(dataset, samples=samples, repeats=repeats), json_path)


@main.command()
@click.argument("shards", type=_PATH)
@_option("--samples", type=click.IntRange(1), default=1000)
@_REPEATS
@_JSON
def codecs(shards: Path, samples: int, repeats: int, json_path: Path | None) -> None:
    """Lossless ways to store the masks of SHARDS: bytes and decoding time."""
    from benchmarks.codecs import run

    write_result(run(shards, samples=samples, repeats=repeats), json_path)


@main.command()
@click.argument("shards", type=_PATH)
@_option("--recipe", "names", multiple=True, default=("original", "joint", "fast"))
@_option("--minutes", type=click.FloatRange(0, min_open=True), default=4, help="CPU time of each.")
@_option("--width", type=click.IntRange(1), default=12)
@_option("--batch-size", type=click.IntRange(1), default=4)
@_option("--points", type=click.IntRange(1), default=8, help="Times to score each.")
@_option("--samples", type=click.IntRange(1), default=100, help="Of validation.")
@_option("--threads", type=click.IntRange(1), default=1)
@_ENGINE
@_JSON
def recipes(shards: Path, json_path: Path | None, **options: Any) -> None:
    """Recipes trained on SHARDS for the same CPU time: mask IoU and depth RMSE over minutes."""
    from benchmarks.recipes import run

    write_result(run(shards, say=_say, **options), json_path)


@main.command()
@click.argument("runs", type=_PATH, nargs=-1, required=True, metavar="RUN_DIR...")
@_DEVICE
@_JSON
def quality(runs: tuple[Path, ...], device: str, json_path: Path | None) -> None:
    """What finished runs of `train.py fit` reach, beside the rules that need no network."""
    from benchmarks.quality import run

    write_result(run(runs, device=device, say=_say), json_path)


@main.command()
@_option("--width", type=click.IntRange(1), default=64)
@_JSON
def estimate(width: int, json_path: Path | None) -> None:
    """What FLOPs and bytes allow on a T4, an A100 and an H100: limits, never measured."""
    from benchmarks.estimate import run

    write_result(run(width, _say), json_path)


@main.command()
@click.argument("results", type=_PATH)
@click.option("--pictures", type=_PATH, help="Folder of the PNG files; default: in RESULTS.")
@click.option(
    "--insert",
    "documents",
    type=_PATH,
    multiple=True,
    help="Fill the marks of a Markdown document; may be repeated.",
)
def report(results: Path, pictures: Path | None, documents: tuple[Path, ...]) -> None:
    """One page, report.html, and PNG files from all results in RESULTS."""
    from benchmarks.report.insert import insert
    from benchmarks.report.page import PAGE, all_figures, write_page, write_pictures

    figures = all_figures(results)
    write_page(results / PAGE, figures)
    written = write_pictures(pictures or results / "pictures", figures)
    click.echo(f"{results / PAGE}: {len(figures)} figures; {len(written)} PNG files")
    for path in documents:
        click.echo(f"{path}: filled {', '.join(insert(path, figures)) or 'nothing'}")


@main.command()
@click.argument("before", type=_PATH)
@click.argument("after", type=_PATH)
@_option("--threshold", type=click.FloatRange(0), default=0.1, help="Share that is too much.")
@_option(
    "--measure", type=click.Choice(["samples_per_s", "cpu_us_per_sample"]), default="samples_per_s"
)
def compare(before: Path, after: Path, threshold: float, measure: str) -> None:
    """What got slower from BEFORE to AFTER, files or folders; exit 1 past the threshold."""
    from benchmarks.compare import compare as changes_between

    changes = changes_between(before, after, measure)
    for change in changes:
        click.echo(str(change))
    too_much = [change for change in changes if change.worse > threshold]
    if too_much:
        click.echo(f"{len(too_much)} of {len(changes)} became worse by over {threshold:.0%}")
        raise SystemExit(1)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
