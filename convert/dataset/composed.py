"""Composites that are made when they are needed, each from its row of the table of samples.

`prepare` writes what they are made from: backgrounds with their depth, scaled cut-outs and the
table. After that, samples can be made in any order and by any process, with the same bytes.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskdepth.convert.contents import PARTS
from maskdepth.convert.dataset import photos, scaling, scenes
from maskdepth.convert.dataset.canvas import Canvas, encode_jpeg, stretch
from maskdepth.convert.dataset.others import draw_others
from maskdepth.convert.dataset.pasting import Cutout, Foreground
from maskdepth.convert.dataset.places import Shape, draw_placements
from maskdepth.convert.dataset.plan import Plan, plan_metadata
from maskdepth.convert.layout import Layout
from maskdepth.convert.maps import load_array
from maskdepth.convert.names import FOLDERS, LEVELS
from maskdepth.convert.placements import (
    OTHER,
    OTHERS,
    PLACEMENT,
    PLACEMENTS,
    others_of,
    write_placements,
)
from maskdepth.convert.progress import followed
from maskdepth.convert.source import OthersFile, PlacementsFile, Sample
from maskdepth.convert.workers import SentOnce, run_all

_KEPT = 512  # cut-outs of all heights, flipped and unflipped: 20 MB at size 224
BG_QUALITY = 95  # composites are pasted on the decoded file, so its artefacts are in both


@dataclass(frozen=True, kw_only=True)
class Composed(SentOnce):
    """The samples of a plan whose backgrounds, cut-outs and table are in ``folder``; a `Samples`.

    ``metadata``: what `dataset.json` says. ``fg_heights``: of the foregrounds' files, in pixels.
    """

    plan: Plan
    fg_heights: tuple[int, ...]
    folder: Path
    layout: Layout
    metadata: dict[str, object]

    @property
    def bg(self) -> tuple[Path, ...]:
        """The background files in order."""
        names = map(self.plan.bg_name, range(self.plan.backgrounds))
        return tuple(self.folder / "bg" / f"{name}.jpg" for name in names)

    def rows(self, indices: Sequence[int]) -> np.ndarray:
        """Rows of the table, `PLACEMENT`."""
        table = load_array(self.folder / PLACEMENTS, PLACEMENT, (self.layout.samples,))
        return np.asarray(table[np.asarray(indices)])

    def others(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Rows of the further foregrounds of each sample, `OTHER`."""
        if self.layout.others is None:
            return [np.empty(0, OTHER)] * len(indices)
        return others_of(load_array(self.layout.others, OTHER, (None,)), indices)

    def stamps(self, indices: Sequence[int]) -> Iterator[bytes]:
        """What each of some samples of one background is made from, hashed."""
        rows = self.rows(indices)
        name = self.plan.bg_name(int(rows["bg"][0]))
        bg = _hash(self.folder / "bg" / f"{name}.jpg", self.folder / PARTS / f"{name}.npy")

        @functools.cache
        def of_fg(fg: int) -> bytes:
            return _hash(self.folder / PARTS / f"{self.plan.fg_name(fg)}.npy")

        for fg, row, others in zip(rows["fg"].tolist(), rows, self.others(indices), strict=True):
            shown = map(of_fg, (fg, *others["fg"].tolist()))
            yield bg + b"".join(shown) + row.tobytes() + others.tobytes()

    def paths(self, indices: Sequence[int]) -> Iterator[tuple[str, ...]]:
        """Where the files of samples of one background are, if they are written, as in `FIELDS`."""
        bg = indices[0] // self.plan.samples_per_bg
        folders = [f"{self.folder}/{name}/{self.plan.bg_name(bg)}" for name in FOLDERS.values()]
        for index in indices:
            name = self.plan.sample_name(index - bg * self.plan.samples_per_bg)
            yield tuple(f"{folder}/{name}.jpg" for folder in folders)

    def read(self, indices: Sequence[int]) -> Iterator[Sample]:
        """Compose and encode some samples of one background."""
        made = zip(self._compose(indices), self.paths(indices), self.stamps(indices), strict=True)
        yield from itertools.starmap(Sample, made)

    @functools.cached_property
    def _scaled(self) -> Callable[[int, float], np.ndarray]:
        """Pixels of a foreground at a scale, uint8 (h, w, 4), kept for the other backgrounds."""

        @functools.lru_cache(maxsize=_KEPT)
        def scaled(fg: int, scale: float) -> np.ndarray:
            path = self.folder / PARTS / f"{self.plan.fg_name(fg)}.npy"
            return scaling.reduce(np.load(path), round(self.fg_heights[fg] * scale), path)

        return scaled

    def _compose(self, indices: Sequence[int]) -> Iterator[tuple[bytes, ...]]:
        """The JPEGs of fg_bg, mask and depth of samples of one background."""
        rows = self.rows(indices)
        name = self.plan.bg_name(int(rows["bg"][0]))
        # Decoded from its file, so that composites equal it outside the foreground.
        canvas = Canvas(
            open_rgb(self.folder / "bg" / f"{name}.jpg"),
            np.load(self.folder / PARTS / f"{name}.npy"),
            self.plan.style,
        )

        @functools.lru_cache(maxsize=_KEPT)  # samples of a foreground are neighbours
        def cutout(fg: int, flipped: int, scale: float) -> Cutout:
            scaled = self._scaled(fg, scale)
            return canvas.cutout(scaled[:, ::-1] if flipped else scaled)

        for row, others in zip(rows.tolist(), self.others(indices), strict=True):
            yield canvas.encode(
                [
                    Foreground(cutout(fg, flipped, scale), x, y)
                    for _, fg, flipped, x, y, scale in (row, *others.tolist())
                ]
            )


def prepare(plan: Plan, folder: Path, executor: Executor, shown: bool) -> Composed:
    """Write backgrounds, cut-outs and the table of samples to ``folder``.

    Depth of the backgrounds and cut-outs of the largest height are in `PARTS`: they are no part of
    a data set. The levels of that depth are, where a composite depends on them.

    shown: whether to show the progress. Raises DataError for a file that cannot be used.
    """
    for name in ("bg", "fg", PARTS, *([LEVELS] if plan.style.needs_levels else [])):
        (folder / name).mkdir(exist_ok=True)
    tasks: list[tuple[Any, ...]] = [
        (_write_background, plan, folder, bg) for bg in range(plan.backgrounds)
    ]
    tasks += [(_write_foreground, plan, folder, fg) for fg in range(plan.foregrounds)]
    shapes: dict[int, Shape] = {}
    written = run_all(executor, operator.call, tasks)
    for shape in followed(written, "prepare", len(tasks), "images", shown=shown):
        shapes |= shape
    rows = draw_placements(plan, shapes)
    write_placements(folder / PLACEMENTS, rows)
    tables = {"placements_table": PlacementsFile.of(folder / PLACEMENTS).model_dump()}
    if plan.style.has_several:
        write_placements(folder / OTHERS, draw_others(plan, shapes, rows))
        tables["others_table"] = OthersFile.of(folder / OTHERS).model_dump()
    layout = Layout(
        height=plan.size,
        width=plan.size,
        group_starts=np.arange(plan.backgrounds + 1, dtype=np.int64) * plan.samples_per_bg,
        samples_per_fg=plan.placements,
        table=folder / PLACEMENTS,
        others=folder / OTHERS if plan.style.has_several else None,
    )
    metadata = plan_metadata(plan) | tables
    heights = tuple(shapes[fg].height for fg in range(plan.foregrounds))
    return Composed(plan=plan, folder=folder, layout=layout, metadata=metadata, fg_heights=heights)


def _hash(*paths: Path) -> bytes:
    """SHA-256 of the bytes of some files."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.digest()


def open_rgb(path: Path) -> np.ndarray:
    """Pixels of a background that `prepare` wrote, uint8 (H, W, 3)."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _write_background(plan: Plan, folder: Path, bg: int) -> dict[int, Shape]:
    """Write bg/bg_NNN.jpg, and its depth; returns the shapes of no foregrounds."""
    path = folder / "bg" / f"{plan.bg_name(bg)}.jpg"
    if plan.bg is None:
        scene = scenes.draw_background(plan.seed, bg, plan.size)
        path.write_bytes(encode_jpeg(Image.fromarray(scene.image), BG_QUALITY))
        depth = scene.depth
    else:
        photo = plan.bg.files[bg]
        path.write_bytes(photos.background_jpeg(photo, plan.size, BG_QUALITY))
        if plan.bg_depth is None:
            depth = scenes.ground_depth(plan.size, horizon=plan.size / 2)
        else:
            depth = photos.open_depth(plan.bg_depth.files[bg], photo, plan.size)
    np.save(folder / PARTS / f"{plan.bg_name(bg)}.npy", depth)
    if plan.style.needs_levels:
        Image.fromarray(stretch(depth)).save(folder / LEVELS / f"{plan.bg_name(bg)}.png")
    return {}


def _write_foreground(plan: Plan, folder: Path, fg: int) -> dict[int, Shape]:
    """Write fg/fg_NNN.png in its own size, and what composites are made of; returns its shape."""
    name = plan.fg_name(fg)
    if plan.fg is None:
        cutout, source = scenes.draw_person(plan.seed, fg), Path(name)
    else:
        cutout, source = photos.open_cutout(plan.fg.files[fg]), plan.fg.files[fg]
    scaled = scaling.scale(plan.style, cutout, plan.size, source)
    Image.fromarray(cutout).save(folder / "fg" / f"{name}.png")
    np.save(folder / PARTS / f"{name}.npy", scaled)
    return {fg: Shape(*cutout.shape[:2])}
