"""The options of `compose` that change the style of composites."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

_ORIGINAL = "original"
_STRENGTH = click.FloatRange(0, 1)
_SHARE = click.FloatRange(0, 1, min_open=True, max_open=True)


class Placements(click.ParamType):
    """A number from 2 on, or "original"."""

    name = "integer or original"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        if value == _ORIGINAL:
            return _ORIGINAL
        try:
            return int(click.IntRange(2).convert(value, param, ctx))
        except click.BadParameter:
            self.fail(f"{value!r} is neither an even number from 2 on nor {_ORIGINAL}", param, ctx)


_OPTIONS = (
    click.option(
        "--placements", type=Placements(), default=40,
        help="Composites of a pair, half of them flipped; an even number. original: 40, at the "
        "places of the original work.",
    ),
    click.option("--soft-edges", is_flag=True, help="Blend edges by alpha; mask: from 128 on."),
    click.option(
        "--heights", type=_SHARE, nargs=2, metavar="LEAST MOST",
        help="Of foregrounds, as shares of the image's; default: 105/224, all the same.",
    ),
    click.option(
        "--size-by-depth", is_flag=True, help="With --heights: larger where feet are lower."
    ),
    click.option(
        "--match-colours", type=_STRENGTH, default=0.0,
        help="Move colours of foregrounds to those of the background: 0 not, 1 all the way.",
    ),
    click.option(
        "--shadow", type=_STRENGTH, default=0.0, help="Darken the ground at the feet: 1 to black."
    ),
    click.option(
        "--occlusion", is_flag=True,
        help="Hide what of foregrounds is behind nearer parts of a background of known depth.",
    ),
    click.option(
        "--people", type=click.IntRange(1, 8), nargs=2, metavar="LEAST MOST", default=(1, 1),
        help="How many foregrounds a sample shows, up to 8; default: 1 1.",
    ),
    click.option(
        "--quality", type=click.IntRange(1, 100), default=65, help="Of the JPEGs of fg_bg and mask."
    ),
)  # fmt: skip


def style_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function gets ``placements``, and the other options as ``style``."""

    @wraps(function)
    def with_style(
        placements: int | str, heights: tuple[float, float] | None, soft_edges: bool,
        size_by_depth: bool, match_colours: float, shadow: float, occlusion: bool,
        people: tuple[int, int], quality: int, **values: Any,
    ) -> Any:  # fmt: skip
        from maskdepth.convert.style import FG_SHARE, ORIGINAL_PLACEMENTS, make_style

        original = placements == _ORIGINAL
        style = make_style(
            places="original" if original else "drawn",
            heights=heights or (FG_SHARE, FG_SHARE), soft_edges=soft_edges, shadow=shadow,
            size_by_depth=size_by_depth, match_colours=match_colours, quality=quality,
            occlusion=occlusion, people=people,
        )  # fmt: skip
        count = ORIGINAL_PLACEMENTS if original else placements
        return function(placements=count, style=style, **values)

    decorated: Callable[..., Any] = with_style
    for decorate in reversed(_OPTIONS):
        decorated = decorate(decorated)
    return decorated
