"""Docstrings as Markdown for the pages of the Python interface. Run by `make docs`."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ARGUMENT = re.compile(r"([a-z_]\w*(?:, [a-z_]\w*)*): (.+)")


class Arguments(griffe.Extension):
    """Lines such as "shards: folder that ..." become a list."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Changes the docstring of ``obj``."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(docstring: str) -> str:
    """docstring: with each line "name: text", and its indented lines, as an item of a list."""
    lines: list[str] = []
    in_list = False
    for line in docstring.splitlines():
        match = _ARGUMENT.fullmatch(line)
        if match:
            if not in_list:
                lines.append("")
            names = ", ".join(f"`{name}`" for name in match[1].split(", "))
            line = f"- {names}: {match[2]}"
        elif in_list and not line.startswith(" "):
            lines.append("")
        in_list = bool(match) or (in_list and line.startswith(" "))
        lines.append(line)
    return "\n".join(lines)
