"""How composites are made: by the rule of the original work, and what may be changed of it.

`dataset.json` records it, so that every sample can be made again.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from maskdepth.convert.errors import OptionError
from maskdepth.convert.placements import MOST_PEOPLE
from maskdepth.convert.schema import Pair, Schema

FG_SHARE = 105 / 224
"""Height of a pasted foreground as a share of the image's."""
QUALITY = 65
MASK_ALPHA = 128
"""Least alpha of a pixel of the mask with soft edges; without them it is 1."""
ORIGINAL_PLACEMENTS = 40

_Share = Annotated[float, Field(gt=0, lt=1)]
_Strength = Annotated[float, Field(ge=0, le=1)]

_LATER = ("occlusion", "people")
"""Options of which `dataset.json` says nothing while they are off, as before there were any."""


class Style(Schema):
    """How composites are made. The defaults are the rule of `convert.dataset.compose`.

    places: "drawn" with the seed, or the "original" work's (`convert.dataset.places`). heights:
    smallest and largest of a foreground, as shares of the image's. size_by_depth: by the row of
    its feet, instead of at random. soft_edges: blend by alpha; the mask is where alpha is at least
    `MASK_ALPHA`. match_colours: how far the foreground's colours are moved to those of the
    background, 0..1. shadow: how dark the shadow at its feet is, 0..1. occlusion: nearer parts of
    the background hide a foreground (`convert.dataset.pasting.stand`). people: least and most
    foregrounds of a sample. quality: of the JPEGs of fg_bg and mask.
    """

    places: Literal["drawn", "original"] = "drawn"
    heights: Pair[_Share] = (FG_SHARE, FG_SHARE)
    size_by_depth: bool = False
    soft_edges: bool = False
    match_colours: _Strength = 0.0
    shadow: _Strength = 0.0
    occlusion: bool = False
    people: Pair[Annotated[int, Field(ge=1, le=MOST_PEOPLE)]] = (1, 1)
    quality: Annotated[int, Field(ge=1, le=100)] = QUALITY

    @property
    def has_one_height(self) -> bool:
        """Whether all foregrounds have the same height."""
        return self.heights[0] == self.heights[1]

    @property
    def needs_levels(self) -> bool:
        """Whether fg_bg and mask depend on the depth of the background."""
        return self.occlusion or self.has_several

    @property
    def has_several(self) -> bool:
        """Whether samples may show several foregrounds."""
        return self.people[1] > 1

    def to_json(self) -> dict[str, object]:
        """Plain values, without options that earlier versions do not have and that are off."""
        values = self.model_dump(mode="json")
        off = Style().model_dump(mode="json")
        return {k: v for k, v in values.items() if k not in _LATER or v != off[k]}

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.heights[0] > self.heights[1]:
            raise ValueError("heights: found the larger one first, expected the smaller one first")
        if self.size_by_depth and self.has_one_height:
            raise ValueError(
                "size_by_depth: found one height, expected two; add --heights LEAST MOST, such as "
                "--heights 0.2 0.6"
            )
        if self.people[0] > self.people[1]:
            raise ValueError(
                "people: found the larger number first, expected the smaller one first"
            )
        if self.places == "original" and self.has_several:
            raise ValueError("placements: found original with --people; leave one out")
        if self.places == "original" and self.heights != (FG_SHARE, FG_SHARE):
            raise ValueError("placements: found original with --heights; leave one out")
        return self


def make_style(**values: object) -> Style:
    """A style with these values; OptionError names the first that is wrong."""
    try:
        return Style.from_json(values)
    except ValueError as error:
        name = re.match(r"\w*", text := str(error))[0]  # type: ignore[index]
        raise OptionError(name, text.removeprefix(name)) from None
