"""Command line of the converter: `python -m convert compose|depth|check|pack|...`."""

from __future__ import annotations

from maskdepth.convert import program

if __name__ == "__main__":
    program.begin()

import io
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from maskdepth.convert.dataset.options import style_options
from maskdepth.convert.errors import Commands, DataError
from maskdepth.convert.limits import LARGEST_SIDE, MOST_ROWS, MOST_WORKERS
from maskdepth.convert.outputs import PNG, OutputFile, require_output, require_outside
from maskdepth.convert.storage import DEPTH_CODECS, MASK_CODECS

if TYPE_CHECKING:
    from maskdepth.convert.manifest import Manifest

# Commands import their work when they run, so that `--help` and usage errors answer at once.

_SETTINGS = {"help_option_names": ["-h", "--help"], "show_default": True}
_FOLDER = click.Path(path_type=Path)
_WORKERS = click.option(
    "--workers", type=click.IntRange(0, MOST_WORKERS),
    help="Worker processes; default: one per core; 0: none.",
)  # fmt: skip
_SCHEDULER = click.option(
    "--scheduler", metavar="ADDRESS", help="Use the workers of a Dask cluster."
)
_FORMAT = click.option(
    "--format",
    "formats",
    multiple=True,
    type=click.Choice(["ffcv", "webdataset", "dali"]),
    help="Of the shards. May be repeated; default: both. dali is an alias of webdataset.",
)
_RESUME = click.option("--resume", is_flag=True, help="Continue a killed or interrupted run.")


@click.group(cls=Commands, context_settings=_SETTINGS)
def main() -> None:
    """Convert a data set of composites to shards once, and check the result."""


@main.command()
@click.argument("dataset", type=_FOLDER, required=False)
@click.option("--bg", type=_FOLDER, help="Folder of background photos; default: drawn scenes.")
@click.option("--fg", type=_FOLDER, help="Folder of RGBA cut-outs; default: drawn people.")
@click.option("--bg-depth", type=_FOLDER, help="Folder of depth maps named like the photos.")
@click.option("--backgrounds", type=click.IntRange(1), help="Default: 100 drawn, or all of --bg.")
@click.option("--foregrounds", type=click.IntRange(1), help="Default: 100 drawn, or all of --fg.")
@style_options
@click.option("--size", type=click.IntRange(32, LARGEST_SIDE), default=224)
@click.option("--seed", type=click.IntRange(0), default=0)
@click.option(
    "--pack",
    "shards",
    type=_FOLDER,
    help="Write SHARDS, with the bytes of `pack`, instead of DATASET and its many files.",
)
@click.option("--keep-images", is_flag=True, help="With --pack: write DATASET too.")
@_FORMAT
@_RESUME
@click.option("--force", is_flag=True, help="Replace the output, or what an unfinished run left.")
@_SCHEDULER
@_WORKERS
def compose(
    dataset: Path | None,
    shards: Path | None,
    keep_images: bool,
    formats: tuple[str, ...],
    **options: object,
) -> None:
    """Paste foregrounds on backgrounds: writes images, masks and depth to DATASET."""
    if shards is None:
        if keep_images or formats:
            raise click.UsageError("--keep-images and --format are for --pack SHARDS.")
        if dataset is None:
            raise click.UsageError("Missing argument 'DATASET'.")
    elif keep_images != (dataset is not None):
        raise click.UsageError(
            "--pack writes DATASET with --keep-images only: give both, or neither."
        )
    from maskdepth.convert.dataset.compose import compose as run
    from maskdepth.convert.dataset.compose_shards import compose_both, compose_shards
    from maskdepth.convert.manifest import FORMATS
    from maskdepth.convert.pack import PackConfig

    if shards is None:
        metadata = run(dataset, **options)  # type: ignore[arg-type]
        click.echo(f"{dataset}: {metadata['samples']} composites, depth: {metadata['depth']}")
        return
    config = PackConfig(formats=formats or FORMATS)
    if dataset is None:
        _print_shards(shards, compose_shards(shards, config=config, **options))  # type: ignore[arg-type]
    else:
        manifest = compose_both(dataset, shards, config=config, **options)  # type: ignore[arg-type]
        about = f"{manifest.layout.samples} composites, depth: {manifest.depth_source}"
        click.echo(f"{dataset}: {about}")
        _print_shards(shards, manifest)


@main.command()
@click.argument("dataset", type=_FOLDER)
@click.option(
    "--model", "name", required=True,
    help="A depth model of transformers (name or folder), or a .pt2 or .onnx file.",
)  # fmt: skip
@click.option(
    "--of", "what", type=click.Choice(["composites", "backgrounds"]), default="composites",
    help="backgrounds: of DATASET, or of a folder of photos; written to --out.",
)  # fmt: skip
@click.option("--out", type=_FOLDER, help="With --of backgrounds: a folder for compose --bg-depth.")
@click.option(
    "--predicts",
    type=click.Choice(["inverse", "depth", "metric"]),
    help="What the model's values are: inverse (larger is nearer), depth (larger is farther) or "
    "metric (metres); default: by its configuration or name.",
)  # fmt: skip
@click.option(
    "--stretch", type=click.Choice(["image", "dataset"]), default="image",
    help="From black, nearest, to white, farthest: each image, or all with one scale.",
)  # fmt: skip
@click.option(
    "--range", "value_range", type=float, nargs=2, metavar="NEAR FAR",
    help="With --stretch dataset: the model's values that become black and white; default: those "
    "of all images, which are predicted twice then.",
)  # fmt: skip
@click.option("--batch-size", type=click.IntRange(1), help="Default: 16 on a GPU, 2 on a CPU.")
@click.option("--device", help="cpu, cuda, cuda:1, ...; default: the first GPU, or the CPU.")
@click.option(
    "--amp", type=click.Choice(["auto", "off", "fp16", "bf16"]), default="auto",
    help="Precision on a GPU; auto: fp16.",
)  # fmt: skip
@click.option("--input-size", type=click.IntRange(8, 4096), help="Of a file that takes any size.")
@click.option(
    "--normalise",
    type=click.Choice(["imagenet", "half", "none"]),
    help="How a .pt2 or .onnx file takes RGB of 0..1; default: imagenet. half: as -1..1.",
)
@_RESUME
@click.option(
    "--force",
    is_flag=True,
    help="Replace maps that are neither a prior nor estimated, or what an unfinished run left.",
)
def depth(
    dataset: Path,
    name: str,
    what: str,
    out: Path | None,
    predicts: str | None,
    device: str | None,
    amp: str,
    input_size: int | None,
    normalise: str | None,
    **options: object,
) -> None:
    """Write depth maps of DATASET's composites, or of backgrounds, with a depth model.

    Models of transformers need the extra `depth`. torchrun shares the work among GPUs.
    """
    if (what == "backgrounds") != (out is not None):
        raise click.UsageError("--of backgrounds and --out belong together: give both, or neither.")
    from maskdepth.convert.dataset.depth import estimate, estimate_backgrounds
    from maskdepth.convert.dataset.networks.model import MEANING, ModelOptions

    model = ModelOptions(
        predicts=predicts,  # type: ignore[arg-type]
        device=device,
        amp=amp,  # type: ignore[arg-type]
        input_size=input_size,
        normalise=normalise,  # type: ignore[arg-type]
    )
    if out is None:
        made = estimate(dataset, name, model=model, **options)
    else:
        made = estimate_backgrounds(dataset, out, name, model=model, **options)
    if int(os.environ.get("RANK", "0")):
        return
    about = made["depth_model"]
    click.echo(
        f"{out or dataset}: {about['images']} depth maps by {name}, which predicts "
        f"{MEANING[about['predicts']]}"
    )
    if scale := made.get("depth_scale"):
        unit = " metres" if scale["unit"] == "metres" else ""
        click.echo(f"  black is {scale['near']:.6g}{unit}, white is {scale['far']:.6g}{unit}")


@main.command()
@click.argument("dataset", type=_FOLDER)
@click.option(
    "--samples-per-fg", type=click.IntRange(1), help="Neighbouring samples of one foreground."
)
@click.option("--json", "as_json", is_flag=True, help="Print all problems as JSON.")
@_WORKERS
def check(dataset: Path, samples_per_fg: int | None, as_json: bool, workers: int | None) -> None:
    """List every problem for which `pack` would refuse DATASET; exit 1 if there is any.

    DATASET has JPEG files of one size: a background is bg/B.jpg, and its composites, masks and
    depth maps have the same names in fg_bg/B, fg_bg_mask/B and fg_bg_depth/B.
    """
    from maskdepth.convert.check import check as run
    from maskdepth.convert.check import summarise

    problems = run(dataset, samples_per_fg=samples_per_fg, workers=workers)
    if as_json:
        found = [{"file": problem.file, "problem": problem.line} for problem in problems]
        click.echo(json.dumps({"dataset": str(dataset), "problems": found}, indent=1))
    else:
        for line in summarise(problems, dataset):
            click.echo(line)
        _conclude(dataset, len(problems))
    sys.exit(1 if problems else 0)


@main.command()
@click.argument("dataset", type=_FOLDER)
@click.argument("shards", type=_FOLDER)
@_FORMAT
@click.option(
    "--codec",
    type=click.Choice(["difference", "jpeg"]),
    default="difference",
    help="Images of the FFCV file: as what differs from their background, which is smaller and "
    "decoded faster, or as JPEGs, which stock FFCV reads too. The pixels are the same.",
)
@click.option("--mask-codec", type=click.Choice(list(MASK_CODECS)), default="runs")
@click.option(
    "--depth-codec",
    type=click.Choice(list(DEPTH_CODECS)),
    default="luma",
    help="JPEGs of depth: cut to their luma, or as they are; with --codec difference, in the tar "
    "shards alone.",
)
@click.option("--samples-per-shard", type=click.IntRange(1), default=10_000)
@click.option(
    "--samples-per-fg", type=click.IntRange(1), help="Neighbouring samples of one foreground."
)
@click.option("--seed", type=click.IntRange(0), default=0, help="Order of the tar shards.")
@_RESUME
@click.option("--force", is_flag=True, help="Replace SHARDS, or what an unfinished run left.")
@_SCHEDULER
@_WORKERS
def pack(
    dataset: Path,
    shards: Path,
    formats: tuple[str, ...],
    resume: bool,
    force: bool,
    workers: int | None,
    scheduler: str | None,
    **options: object,
) -> None:
    """Convert DATASET to SHARDS.

    DATASET has JPEG files of one size: a background is bg/B.jpg, and its composites, masks and
    depth maps have the same names in fg_bg/B, fg_bg_mask/B and fg_bg_depth/B.
    """
    from maskdepth.convert.manifest import FORMATS
    from maskdepth.convert.pack import PackConfig
    from maskdepth.convert.pack import pack as run

    config = PackConfig(formats=formats or FORMATS, **options)  # type: ignore[arg-type]
    manifest = run(
        dataset,
        shards,
        config=config,
        workers=workers,
        scheduler=scheduler,
        resume=resume,
        force=force,
    )
    _print_shards(shards, manifest)


def _print_shards(shards: Path, manifest: Manifest) -> None:
    """What was written, in a few lines."""
    from maskdepth.convert.inspect import count_lines

    click.echo(f"{shards}: {manifest.layout.samples} samples")
    for name, file in manifest.files.items():
        click.echo(f"  {name:28} {file.bytes:>15,} bytes")
    for line in count_lines(manifest):
        click.echo(f"  {line}")


@main.command()
@click.argument("shards", type=_FOLDER)
@click.option("--source", type=_FOLDER, help="Compare pixels with this data set folder.")
@_WORKERS
def verify(shards: Path, source: Path | None, workers: int | None) -> None:
    """Check every byte of SHARDS; exit 1 and one line for each problem."""
    from maskdepth.convert.verify import verify as run

    problems = run(shards, source=source, workers=workers)
    for problem in problems:
        click.echo(problem)
    _conclude(shards, len(problems))
    sys.exit(1 if problems else 0)


def _conclude(folder: Path, problems: int) -> None:
    if not problems:
        click.echo(f"{folder}: no problems")
    else:
        count = "1 problem" if problems == 1 else f"{problems} problems"
        click.echo(f"{folder}: {count}", err=True)


@main.command()
@click.argument("shards", type=_FOLDER)
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def inspect(shards: Path, as_json: bool) -> None:
    """Describe what SHARDS holds."""
    from maskdepth.convert.inspect import table
    from maskdepth.convert.manifest import read_manifest

    manifest = read_manifest(shards)
    click.echo(json.dumps(manifest.to_json(), indent=1) if as_json else table(manifest))


@main.command()
@click.argument("shards", type=_FOLDER)
@click.argument("out", type=PNG, required=False)
@click.option("--rows", type=click.IntRange(1, MOST_ROWS), help="Of the sheet OUT; default: 8.")
@click.option(
    "--html",
    "page",
    type=OutputFile(".html"),
    help="Write one page, without other files, to browse samples by background and foreground.",
)
@click.option(
    "--samples", type=click.IntRange(1, MOST_ROWS), help="Of the page, at most; default: 200."
)
@click.option(
    "--scores",
    type=click.Path(path_type=Path),
    help=f"What `{program.TRAIN} evaluate --scores` wrote: the page shows the worst samples.",
)
def show(
    shards: Path, out: Path | None, rows: int | None, page: Path | None, samples: int | None,
    scores: Path | None,
) -> None:  # fmt: skip
    """Draw a contact sheet of SHARDS into the PNG file OUT, or write a page of samples."""
    from maskdepth.convert.browse import write_page
    from maskdepth.convert.show import contact_sheet, write_sheet

    if out is None and page is None:
        raise DataError("show: found no file to write, expected OUT.png, --html FILE or both")
    if scores and not page:
        raise DataError(f"--scores {scores}: is for the page; add --html FILE")
    if samples and not page:
        raise DataError(f"--samples {samples}: is for the page; add --html FILE")
    if rows and not out:
        raise DataError(f"--rows {rows}: is for the sheet; add OUT.png")
    for output in filter(None, (out, page)):
        require_outside(output, shards)
        require_output(output, "show", [scores] if scores else [])
    if out:
        sheet = contact_sheet(shards, rows or 8)
        write_sheet(sheet, out)
        click.echo(f"{out}: {sheet.width}x{sheet.height} pixels")
    if page:
        click.echo(f"{page}: {write_page(shards, page, samples or 200, scores)} samples")


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):  # prints file names that are not UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    main(prog_name="python -m convert")
