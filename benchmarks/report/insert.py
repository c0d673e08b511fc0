"""Puts measured tables into documents, between marks, so that no figure is typed by hand.

`<!-- peers:begin -->` and `<!-- peers:end -->` enclose what is replaced; the name is a figure's.
`<!-- peers.0:begin -->` takes its first table alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report.figures import Figure
from convert.errors import DataError

_MARK = re.compile(r"<!-- (?P<name>[\w-]+)(?:\.(?P<table>\d+))?:begin -->")


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
        block = f"\n{_markdown(path, figure, match['table'])}\n"
        text = text[:at] + block + text[end:]
        filled.append(mark)
    path.write_text(text, encoding="utf-8")
    return filled


def _markdown(path: Path, figure: Figure, table: str | None) -> str:
    chosen = figure.tables
    if table is not None:
        if int(table) >= len(chosen):
            raise DataError(
                f"{path}: found a mark for table {table} of {figure.name}, which has {len(chosen)}"
            )
        chosen = (chosen[int(table)],)
    notes = (figure.where, *figure.notes)
    return "\n\n".join([*(one.markdown() for one in chosen), *notes])
