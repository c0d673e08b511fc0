"""Tables and text of results in Markdown, where no character of a name has a meaning.

Names of cases, reasons and arguments come from files that anyone may have written. The page is
escaped by its template; whatever goes into a document passes `escape`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from maskdepth.benchmarks.harness.results import one_line
from maskdepth.benchmarks.report.tables import Table

# "_" between letters is plain text; "://", "www." and "@" make links on GitHub, "$" formulas.
_ACTIVE = re.compile(
    r"[\\`*\[\]<|~&$@]|(?<=-)>|(?<![^\W_])_|_(?![^\W_])|(?<=:)/(?=/)|(?<=\bwww)\.", re.IGNORECASE
)


def escape(text: str) -> str:
    """One line that Markdown and HTML show as it is.

    Each active character becomes a numeric reference, which CommonMark (section 2.5) never takes
    for structure: no tag, no comment and so no mark, no cell, link, emphasis or code. At the start
    of a line other characters have a meaning too; put a word before the text there.
    """
    return _ACTIVE.sub(lambda match: f"&#{ord(match[0])};", one_line(text))


def table(table: Table) -> str:
    """A table of GitHub's Markdown: names to the left, numbers to the right."""
    rules = ("---", *["---:"] * (len(table.head) - 1))
    head, *rows = ([escape(cell) for cell in row] for row in (table.head, *table.rows))
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rules, *rows))


def paragraphs(tables: Sequence[Table], lines: Sequence[str]) -> str:
    """Tables and the lines below them, separated by empty lines; each line begins with a word."""
    return "\n\n".join([*map(table, tables), *map(escape, lines)])
