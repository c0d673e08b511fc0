"""A folder of results as one page without other files, and as PNG files."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import click
from jinja2 import Environment, PackageLoader, StrictUndefined

from benchmarks.harness.options import PATH
from benchmarks.harness.results import Benchmark, read_results
from benchmarks.report.figures import Figure, draw
from benchmarks.report.insert import insert

PAGE = "report.html"


@click.command()
@click.argument("results", type=PATH)
@click.option("--pictures", type=PATH, help="Folder of the PNG files; default: in RESULTS.")
@click.option(
    "--insert",
    "documents",
    type=PATH,
    multiple=True,
    help="Fill the marks of a Markdown document; may be repeated.",
)
def report(results: Path, pictures: Path | None, documents: tuple[Path, ...]) -> None:
    """One page, report.html, and PNG files from all results in RESULTS."""
    figures = all_figures(results)
    write_page(results / PAGE, figures)
    folder = pictures or results / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    images = {figure.name: figure.png for figure in figures if figure.png is not None}
    for name, png in images.items():
        (folder / f"{name}.png").write_bytes(png)
    click.echo(f"{results / PAGE}: {len(figures)} figures; {len(images)} PNG files")
    for path in documents:
        click.echo(f"{path}: filled {', '.join(insert(path, figures)) or 'nothing'}")


def all_figures(folder: Path) -> list[Figure]:
    """Pictures of every result of a folder, in the order of the page. Raises DataError."""
    results, order = read_results(folder), get_args(Benchmark)
    names = sorted(results, key=lambda name: (order.index(results[name].benchmark), name))
    return [figure for name in names for figure in draw(name, results[name])]


def write_page(path: Path, figures: Sequence[Figure]) -> None:
    """One HTML file that contains its pictures."""
    environment = Environment(
        loader=PackageLoader("benchmarks.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode("ascii")
    template = environment.get_template("page.html.j2")
    page = template.render(title="maskdepth: measured", figures=figures)
    path.write_text(page)
