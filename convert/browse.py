"""One page, without other files, in which samples of a shard folder can be browsed.

python -m convert show SHARDS --html page.html --scores scores.json
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from string import Template
from typing import Annotated, NamedTuple

import numpy as np
from PIL import Image
from pydantic import Field

from maskdepth.convert.errors import DataError
from maskdepth.convert.files import read_regular, replace_file
from maskdepth.convert.layout import FIELDS
from maskdepth.convert.outputs import mark_of
from maskdepth.convert.program import TRAIN
from maskdepth.convert.schema import Count, Items, Schema, parse_table
from maskdepth.convert.shards import Shards

_HEIGHT = 112
"""Pixels of a picture in the page, at most."""
_GAP = 2
Score = Annotated[float, Field(ge=0, le=1e9)] | None


class Scores(Schema):
    """Scores of samples, as `train.py evaluate --scores` writes them.

    index: samples. mask_iou: 0..1. depth_rmse: in units of depth, 0..1; None where unknown.
    """

    index: Items[Count]
    mask_iou: Items[Score]
    depth_rmse: Items[Score]


class Row(NamedTuple):
    """A sample and its scores."""

    number: int
    mask_iou: float | None = None
    depth_rmse: float | None = None


class _Shown(NamedTuple):
    number: int
    mask_iou: float | None
    depth_rmse: float | None
    background: int
    foreground: int | None


def read_scores(path: Path, samples: int) -> Scores:
    """The scores in a JSON file, of a folder of so many samples. Raises DataError."""
    try:
        value = parse_table(read_regular(path))
        if not isinstance(value.get("samples"), dict):
            raise ValueError("found no scores of samples")
        scores = Scores.from_json(value["samples"])
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise DataError(
            f"{path}: {error}; expected what `{TRAIN} evaluate --scores` has written"
        ) from None
    counts = {len(scores.index), len(scores.mask_iou), len(scores.depth_rmse)}
    if len(counts) > 1 or not scores.index or len(set(scores.index)) < len(scores.index):
        raise DataError(
            f"{path}: samples: expected as many of index, mask_iou and depth_rmse, each index once"
        )
    if max(scores.index) >= samples:
        raise DataError(
            f"{path}: found sample {max(scores.index)} in a folder of {samples}; these are scores "
            "of other data"
        )
    return scores


def write_page(shards: Path, path: Path, count: int, scores: Path | None = None) -> int:
    """Write the page; returns how many samples it shows.

    count: samples, at most: spread evenly over the folder, or those with the worst scores, by mask
    and by depth in turn. scores: file for `read_scores`. Raises DataError.
    """
    opened = Shards(shards)
    layout = opened.manifest.layout
    found = read_scores(scores, len(opened)) if scores else None
    if found is None:
        middles = (np.arange(count) + 0.5) * len(opened) / count
        rows = [Row(index) for index in np.unique(middles.astype(np.int64)).tolist()]
    else:
        rows = _worst(list(map(Row, found.index, found.mask_iou, found.depth_rmse)), count)
    indices = np.array([row.number for row in rows], dtype=np.int64)
    backgrounds = layout.background_of(indices).tolist()
    foregrounds = (
        layout.foreground_of(indices).tolist() if layout.has_foregrounds else [None] * len(rows)
    )
    shown = [
        _Shown(*row, background, foreground)
        for row, background, foreground in zip(rows, backgrounds, foregrounds, strict=True)
    ]
    page = _page(opened, shown)
    opened.require_complete(indices)
    opened.require_complete_backgrounds()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as file:
            file.write(page.encode())
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from None
    return len(shown)


def _worst(rows: Sequence[Row], count: int) -> list[Row]:
    """The worst by mask and by depth in turn, each once, in the order of samples."""
    by_mask = [(o.mask_iou, o.number, o) for o in rows if o.mask_iou is not None]
    by_depth = [(-o.depth_rmse, o.number, o) for o in rows if o.depth_rmse is not None]
    ranked = [[one for _, _, one in sorted(scored)] for scored in (by_mask, by_depth)]
    chosen: dict[int, Row] = {}
    for pair in zip_longest(*ranked):
        for one in filter(None, pair):
            if len(chosen) < count:
                chosen.setdefault(one.number, one)
    if not chosen:
        raise DataError("scores: found none of a sample")
    return [chosen[number] for number in sorted(chosen)]


def _page(opened: Shards, shown: Sequence[_Shown]) -> str:
    names = opened.manifest.backgrounds
    prior = opened.manifest.depth_source == "prior"
    note = "Depth is a prior, not measured. " if prior else ""
    scored = any(s.mask_iou is not None or s.depth_rmse is not None for s in shown)
    backgrounds = {s.background: names[s.background] for s in sorted(shown, key=_background)}
    foregrounds = sorted({s.foreground for s in shown if s.foreground is not None})
    selects = [_select("bg", "Background", backgrounds)]
    if foregrounds:
        numbered = {number: f"foreground {number}" for number in foregrounds}
        selects.append(_select("fg", "Foreground", numbered))
    if scored:
        orders = {"iou": "lowest mask IoU", "rmse": "highest depth RMSE"}
        chosen = "iou" if any(s.mask_iou is not None for s in shown) else "rmse"
        selects.append(_select("order", "Order", orders, first="by sample", chosen=chosen))
    return _TEMPLATE.substitute(
        made_by=html.escape(mark_of("show")),
        title=html.escape(f"Samples of {opened.folder.resolve().name}"),
        about=html.escape(
            f"{len(shown):,} of {len(opened):,} samples. From left to right: background, "
            f"composite, mask and depth (black is near, white is far). {note}"
        ),
        selects="".join(selects),
        samples="\n".join(_figure(opened, sample) for sample in shown),
    )


def _background(sample: _Shown) -> int:
    return sample.background


def _select(
    name: str, title: str, options: Mapping, first: str = "all", chosen: str = ""
) -> str:  # fmt: skip
    lines = "".join(
        f'<option value="{html.escape(str(value))}"{" selected" if value == chosen else ""}>'
        f"{html.escape(str(text))}</option>"
        for value, text in options.items()
    )
    return (
        f'<label>{title} <select id="{name}"><option value="">{first}</option>{lines}</select>'
        "</label>\n"
    )


def _figure(opened: Shards, sample: _Shown) -> str:
    name = opened.manifest.backgrounds[sample.background]
    words = [f"sample {sample.number}", name]
    data = {"index": str(sample.number), "bg": str(sample.background)}
    if sample.foreground is not None:
        words.append(f"foreground {sample.foreground}")
        data["fg"] = str(sample.foreground)
    scores = []
    for key, title, value in (
        ("iou", "mask IoU", sample.mask_iou), ("rmse", "depth RMSE", sample.depth_rmse),
    ):  # fmt: skip
        if value is not None:
            scores.append(f"{title} {value:.4f}")
            data[key] = repr(value)
    about = html.escape(", ".join(words + scores))
    caption = "<br>".join(html.escape(", ".join(line)) for line in (words, scores) if line)
    attributes = "".join(f' data-{key}="{html.escape(value)}"' for key, value in data.items())
    picture = base64.b64encode(_strip(opened, sample)).decode()
    return (
        f'<figure{attributes}><img alt="{about}" loading="lazy" '
        f'src="data:image/jpeg;base64,{picture}"><figcaption>{caption}</figcaption></figure>'
    )


def _strip(opened: Shards, sample: _Shown) -> bytes:
    """bg, fg_bg, mask and depth of a sample beside each other, as JPEG."""
    images = [opened.backgrounds[sample.background]]
    images += [opened.decode(sample.number, name) for name in FIELDS]
    high, wide = images[0].shape[:2]
    height = min(high, _HEIGHT)
    width = max(1, round(wide * height / high))
    strip = Image.new("RGB", (len(images) * (width + _GAP) - _GAP, height), "white")
    for column, (name, pixels) in enumerate(zip(("bg", *FIELDS), images, strict=True)):
        scale = 255 if name == "mask" else 1
        picture = Image.fromarray(np.ascontiguousarray(pixels) * np.uint8(scale)).convert("RGB")
        resized = picture.resize((width, height), Image.Resampling.BOX)
        strip.paste(resized, (column * (width + _GAP), 0))
    content = io.BytesIO()
    strip.save(content, "JPEG", quality=85)
    return content.getvalue()


_TEMPLATE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="$made_by">
<title>$title</title>
<style>
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2127; background: #fff; margin: 0 auto;
  max-width: 90rem; padding: 1rem; }
h1 { font-size: 1.4rem; margin: 0; overflow-wrap: anywhere; }
form { position: sticky; top: 0; background: #fff; padding: .5rem 0; display: flex; flex-wrap: wrap;
  gap: .3rem 1.2rem; align-items: center; border-bottom: 1px solid #d5d9de; }
select { font: inherit; max-width: 14rem; }
main { display: flex; flex-wrap: wrap; gap: 1rem; padding-top: 1rem; }
figure { margin: 0; max-width: 100%; } figure[hidden] { display: none; }
img { display: block; max-width: 100%; height: auto; }
figcaption { font-size: .75rem; color: #4b5560; overflow-wrap: anywhere; max-width: 454px; }
</style>
</head>
<body>
<h1>$title</h1>
<p>$about</p>
<form>
$selects<output id="count"></output>
</form>
<main>
$samples
</main>
<script>
const main = document.querySelector("main"), figures = [...main.children];
const value = (id) => document.getElementById(id)?.value ?? "";
// The worst first: a low IoU, a high RMSE; samples without a score last.
const key = (figure, by) => by === "" ? +figure.dataset.index
  : !(by in figure.dataset) ? Infinity
  : by === "iou" ? +figure.dataset.iou : -figure.dataset.rmse;
function show() {
  const [bg, fg, by] = ["bg", "fg", "order"].map(value);
  let shown = 0;
  for (const figure of figures) {
    figure.hidden = (bg && figure.dataset.bg !== bg) || (fg && figure.dataset.fg !== fg);
    shown += !figure.hidden;
  }
  const ranked = figures.map((figure) => [key(figure, by), +figure.dataset.index, figure]);
  ranked.sort((a, b) => a[0] === b[0] ? a[1] - b[1] : a[0] - b[0]);
  main.append(...ranked.map((entry) => entry[2]));
  document.getElementById("count").value = shown + " shown";
}
document.querySelector("form").addEventListener("change", show);
show();
</script>
</body>
</html>
""")
