"""Draws a contact sheet of a shard folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from maskdepth.convert.errors import DataError
from maskdepth.convert.files import replace_file
from maskdepth.convert.layout import FIELDS
from maskdepth.convert.outputs import png_mark, require_output
from maskdepth.convert.placements import others_of
from maskdepth.convert.shards import Shards

_GAP = 6
_TITLE = 18
_LEGEND = 14
_TITLES = ("bg", *FIELDS)


def contact_sheet(shards: str | Path, rows: int = 8) -> Image.Image:
    """bg, fg_bg, mask and depth of ``rows`` evenly spread samples, one per row."""
    opened = Shards(shards)
    layout = opened.manifest.layout
    # The middles of equal stretches; their ends would always show the same foregrounds.
    middles = (np.arange(rows) + 0.5) * len(opened) / rows
    indices = np.unique(middles.astype(np.int64))
    wide, high = layout.width + _GAP, layout.height + _GAP + _TITLE
    size = (len(_TITLES) * wide + _GAP, len(indices) * high + _LEGEND + 2 * _GAP)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for row, index in enumerate(indices.tolist()):
        group = int(layout.background_of(np.asarray(index)))
        images = [opened.backgrounds[group], *(opened.decode(index, name) for name in FIELDS)]
        labels = [opened.manifest.backgrounds[group], *(f"sample {index}" for _ in FIELDS)]
        (others,) = others_of(layout.other_placements, [index])
        labels[1] += f", {1 + len(others)} people" if len(others) else ""
        if opened.manifest.depth_source == "prior":
            labels[-1] += " (a prior, not measured)"
        top = _GAP + row * high
        for column, (title, pixels) in enumerate(zip(_TITLES, images, strict=True)):
            left = _GAP + column * wide
            draw.text((left, top), f"{title}  {labels[column]}", fill="black")
            scale = 255 if title == "mask" else 1
            picture = Image.fromarray(np.ascontiguousarray(pixels) * np.uint8(scale))
            sheet.paste(picture, (left, top + _TITLE))
    sheet.paste(_depth_legend(layout.width), (left, len(indices) * high + _GAP))
    opened.require_complete(indices)
    opened.require_complete_backgrounds()
    return sheet


def _depth_legend(width: int) -> Image.Image:
    """A bar from black, near, to white, far, which stands below the depth maps."""
    ramp = np.linspace(0, 255, width).astype(np.uint8)
    legend = Image.fromarray(np.broadcast_to(ramp, (_LEGEND, width)).copy())
    draw, middle = ImageDraw.Draw(legend), _LEGEND // 2
    draw.text((3, middle), "near", fill=255, anchor="lm")
    draw.text((width - 3, middle), "far", fill=0, anchor="rm")
    return legend


def write_sheet(sheet: Image.Image, path: Path) -> None:
    """Write a contact sheet as PNG. Raises DataError if that would replace another file."""
    require_output(path, "show")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as file:
            sheet.save(file, "PNG", pnginfo=png_mark("show"))
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from None
