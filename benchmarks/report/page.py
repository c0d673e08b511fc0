"""A folder of results as one page without other files, as PNG files, and in documents.

Tables are put into documents between marks, so that no figure is typed by hand. Marks enclose
what is replaced: `<!-- peers:begin -->` and `<!-- peers:end -->`, by the name of a figure.
`<!-- peers.0:begin -->` takes its first table alone.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import click
from jinja2 import Environment, PackageLoader, StrictUndefined

from benchmarks.harness.options import PATH
from benchmarks.harness.results import Benchmark, read_results
from benchmarks.report.figures import Figure, figures_of
from convert.errors import DataError

PAGE = "report.html"
_MARK = re.compile(r"<!-- (?P<name>[\w-]+)(?:\.(?P<table>\d+))?:begin -->")


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
    environment = Environment(
        loader=PackageLoader("benchmarks.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode("ascii")
    template = environment.get_template("page.html.j2")
    (results / PAGE).write_text(template.render(title="maskdepth: measured", figures=figures))
    folder = pictures or results / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [figure for figure in figures if figure.images]
    for figure in drawn:
        (folder / f"{figure.name}.png").write_bytes(figure.images["png"])
    click.echo(f"{results / PAGE}: {len(figures)} figures; {len(drawn)} PNG files")
    for path in documents:
        click.echo(f"{path}: filled {', '.join(insert(path, figures)) or 'nothing'}")


def all_figures(folder: Path) -> list[Figure]:
    """Figures of every result of a folder, in the order of the page. Raises DataError."""
    results, order = read_results(folder), get_args(Benchmark)
    names = sorted(results, key=lambda name: (order.index(results[name].benchmark), name))
    return [figure for name in names for figure in figures_of(name, results[name])]


def insert(path: Path, figures: Sequence[Figure]) -> list[str]:
    """Fill the marks of a document that name a figure; returns their names.

    Raises DataError where a mark has no end, or names a table that its figure does not have.
    """
    known = {figure.name: figure for figure in figures}
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}; expected a Markdown document") from None
    filled, at = [], 0
    while match := _MARK.search(text, at):
        at = match.end()
        mark, figure = match[0][5:-10], known.get(match["name"])
        if figure is None:
            continue
        end = text.find(f"<!-- {mark}:end -->", at)
        if end < 0:
            raise DataError(f"{path}: found {match[0]}, expected <!-- {mark}:end --> after it")
        chosen = figure.tables
        if match["table"] is not None:
            chosen = chosen[int(match["table"]) :][:1]
            if not chosen:
                count = len(figure.tables)
                raise DataError(f"{path}: found {match[0]}, but {figure.name} has {count} tables")
        parts = [*(table.markdown() for table in chosen), figure.where, *figure.notes]
        text = text[:at] + "\n" + "\n\n".join(parts) + "\n" + text[end:]
        filled.append(mark)
    path.write_text(text, encoding="utf-8")
    return filled
