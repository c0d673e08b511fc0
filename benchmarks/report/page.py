"""A folder of results as one page without other files, as PNG files, and in documents.

Tables are put into documents between marks, so that no figure is typed by hand. Marks enclose
what is replaced: `<!-- peers:begin -->` and `<!-- peers:end -->`, by the name of a figure.
`<!-- peers.0:begin -->` takes its first table alone.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import click
from jinja2 import Environment, PackageLoader, StrictUndefined

from maskdepth.benchmarks.harness.options import PATH
from maskdepth.benchmarks.harness.results import (
    Benchmark,
    Result,
    one_line,
    read_result,
    read_results,
)
from maskdepth.benchmarks.report import markdown, summary
from maskdepth.benchmarks.report.figures import COMMAND, Figure, figures_of
from maskdepth.convert.errors import Command, DataError
from maskdepth.convert.files import read_regular, replace_file
from maskdepth.convert.outputs import mark_of, require_free, require_output, require_writable_folder

PAGE = "report.html"
_MARK = re.compile(r"<!-- (?P<name>[\w-]+)(?:\.(?P<table>\d+))?:begin -->")


@click.command(cls=Command)
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
    figures, pictures = all_figures(results), pictures or results / "pictures"
    require_output(results / PAGE, COMMAND)
    require_writable_folder(pictures)
    for path in documents:
        require_free(path)
        _read_document(path)
    drawn = write_page(results, figures, pictures)
    click.echo(f"{results / PAGE}: {len(figures)} figures; {drawn} PNG files in {pictures}")
    for path in documents:
        click.echo(f"{path}: filled {', '.join(insert(path, figures)) or 'nothing'}")


def write_page(folder: Path, figures: Sequence[Figure], pictures: Path) -> int:
    """Write the page into a folder, and PNG files into ``pictures``; returns how many.

    Raises DataError, and writes nothing, if that would replace other files than earlier pages and
    pictures.
    """
    first: dict[str, Figure] = {}
    for figure in figures:
        first.setdefault(figure.file, figure)
        with _showing(figure.name):
            _ = figure.images  # draws it
    environment = Environment(
        loader=PackageLoader("maskdepth.benchmarks.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode("ascii")
    template = environment.get_template("page.html.j2")
    drawn = {pictures / f"{one.name}.png": one.images["png"] for one in figures if one.images}
    for path in (folder / PAGE, *drawn):
        require_output(path, COMMAND)
    page = template.render(
        title="maskdepth: measured", figures=figures, made_by=mark_of(COMMAND),
        summary=[one.line for one in first.values()],
        warnings=summary.warnings({name: one.result for name, one in first.items()}),
    )  # fmt: skip
    (folder / PAGE).write_text(page)
    pictures.mkdir(parents=True, exist_ok=True)
    for path, picture in drawn.items():
        path.write_bytes(picture)
    return len(drawn)


def all_figures(folder: Path) -> list[Figure]:
    """Figures of every result of a folder, in the order of the page. Raises DataError."""
    results, found = read_results(folder), list[Figure]()
    for name in _ordered(results):
        with _showing(f"{folder / name}.json"):
            found += figures_of(name, results[name])
    return found


def reason(error: Exception) -> str:
    """An exception as a short line: it may have a value of the result in it."""
    return f"{type(error).__name__}: {one_line(str(error))[:200]}"


@contextmanager
def _showing(what: str) -> Iterator[None]:
    """Turn whatever goes wrong with valid but unusual figures into a DataError."""
    try:
        yield
    except Exception as error:
        raise DataError(
            f"{what}: cannot be shown: {reason(error)}; measure again, or remove it"
        ) from None


def drawn_figures(folder: Path, without: str) -> tuple[list[Figure], dict[str, str]]:
    """Figures of the results of a folder that can be shown, and by name why others cannot.

    without: name of a result that is left out.
    """
    results, figures, wrong = {}, {}, {}
    for path in folder.glob("[!.]*.json"):
        name = path.stem
        if name == without:
            continue
        try:
            results[name] = read_result(path)
            figures[name] = figures_of(name, results[name])
            _ = [figure.images for figure in figures[name]]  # draws them
        except Exception as error:  # a result without its figures must not cost the others
            results.pop(name, None)
            wrong[name] = f"its result cannot be shown: {reason(error)}"
    return [figure for name in _ordered(results) for figure in figures[name]], wrong


def _ordered(results: Mapping[str, Result]) -> list[str]:
    order = get_args(Benchmark)
    return sorted(results, key=lambda name: (order.index(results[name].benchmark), name))


def insert(path: Path, figures: Sequence[Figure]) -> list[str]:
    """Fill the marks of a document that name a figure; returns their names.

    Raises DataError where a mark has no end, or names a table that its figure does not have.
    """
    known = {figure.name: figure for figure in figures}
    text = _read_document(path)
    filled, parts, at = [], list[str](), 0
    for match in _MARK.finditer(text):
        figure = known.get(match["name"])
        if figure is None:
            continue
        mark = match[0][5:-10]
        end = text.find(f"<!-- {mark}:end -->", match.end())
        if end < 0 or text.find(match[0], match.end(), end) >= 0:
            raise DataError(f"{path}: found {match[0]}, expected <!-- {mark}:end --> after it")
        if match.start() < at:
            raise DataError(f"{path}: found {match[0]} between the marks of another table")
        chosen = figure.tables
        if match["table"] is not None:
            chosen = chosen[int(match["table"]) :][:1]
            if not chosen:
                count = len(figure.tables)
                raise DataError(f"{path}: found {match[0]}, but {figure.name} has {count} tables")
        content = markdown.paragraphs(chosen, [figure.where, *figure.notes])
        parts += [text[at : match.end()], "\n", content, "\n"]
        filled.append(mark)
        at = end
    if filled:
        try:
            with replace_file(path.resolve()) as file:
                file.write("".join([*parts, text[at:]]).encode())
        except OSError as error:
            raise DataError(f"{path}: cannot be written: {error.strerror or error}") from None
    return filled


def _read_document(path: Path) -> str:
    try:
        return read_regular(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}; expected a Markdown document") from None
