"""A folder of results as one page that needs nothing else, and as PNG files.

python -m benchmarks report RESULTS_DIR
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from benchmarks.harness.results import read_results
from benchmarks.report.figures import Figure, draw

PAGE = "report.html"
_ORDER = (
    "peers",
    "loader",
    "step",
    "epoch",
    "quality",
    "recipes",
    "scaling",
    "convert",
    "encode",
    "codecs",
    "luma",
    "simulation",
    "estimate",
    "parity",
    "hardware",
)


def all_figures(folder: Path) -> list[Figure]:
    """Pictures of every result of a folder, the most telling first. Raises DataError."""
    results = read_results(folder)
    names = sorted(results, key=lambda name: (_ORDER.index(results[name].benchmark), name))
    return [figure for name in names for figure in draw(name, results[name])]


def write_page(path: Path, figures: Sequence[Figure]) -> None:
    """One HTML file with everything in it."""
    environment = Environment(
        loader=PackageLoader("benchmarks.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode("ascii")
    template = environment.get_template("page.html.j2")
    page = template.render(title="maskdepth: measured", figures=figures)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page)


def write_pictures(folder: Path, figures: Sequence[Figure]) -> list[Path]:
    """A PNG for each figure that has a picture."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for figure in figures:
        if figure.png is not None:
            written.append(folder / f"{figure.name}.png")
            written[-1].write_bytes(figure.png)
    return written
