"""Composes data sets: writes the folders of bg, fg, fg_bg, mask and depth images.

Run ``python -m convert compose DATASET`` for the built-in streets and people, or add
``--bg DIR --fg DIR`` for your own photos and cut-outs.

The rule: each foreground is scaled to height 105 (at size 224). On each background it is pasted
at ``placements / 2`` random places, then flipped left-right and pasted at as many more. Its
pixels replace those of the background wherever its scaled alpha is not 0.
"""

import itertools
import shutil
from pathlib import Path

from tqdm import tqdm

from convert.dataset.composed import FG_SHARE, PREPARED, Composed, prepare
from convert.dataset.inputs import require_usable
from convert.dataset.plan import Plan, choose_depth, choose_images
from convert.errors import DataError
from convert.files import publish_folder, temporary_folder, write_json
from convert.outputs import require_outside
from convert.parts import split_parts
from convert.source import DATASET, FOLDERS
from convert.workers import run_all, worker_pool

SAMPLES_PER_TASK = 400  # about half a second: Ctrl-C is answered within that time


def compose(
    dataset: Path,
    *,
    bg: Path | None = None,
    fg: Path | None = None,
    bg_depth: Path | None = None,
    backgrounds: int | None = None,
    foregrounds: int | None = None,
    placements: int = 40,
    size: int = 224,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, object]:
    """Write the data set folder ``dataset`` and return what its ``dataset.json`` says.

    Without ``bg`` and ``fg``, built-in streets with their true depth and built-in people are
    drawn. ``bg``: folder of photos of any size (centre square cropped, then resized). ``fg``:
    folder of RGBA cut-outs. ``backgrounds``, ``foregrounds``: how many to use, the first by name;
    by default all files, or 100 drawn ones. ``bg_depth``: folder with a depth image for each
    photo, of the same name apart from the suffix, dark near and bright far; without it, the depth
    of flat ground is assumed for photos. ``size``: height and width in pixels. ``workers``:
    processes, by default one per core; 0 for none.

    The depth of a foreground is the smallest depth that it covers, and never in the farther half
    of the scene. Each depth map is stretched so that its minimum is 0 and its maximum 255. The
    folder appears only when it is complete.

    Raises DataError for anything wrong with the arguments or the user's files; it has a line for
    each problem of the images.
    """
    for folder_of_user in filter(None, (bg, fg, bg_depth)):
        require_outside(dataset, folder_of_user)
    _require_new(dataset)
    require_usable(
        bg, fg, bg_depth, backgrounds=backgrounds, foregrounds=foregrounds, size=size,
        height=round(size * FG_SHARE), workers=workers,
    )  # fmt: skip
    bg_images, bg_count = choose_images(bg, "backgrounds", backgrounds)
    fg_images, fg_count = choose_images(fg, "foregrounds", foregrounds)
    plan = Plan(
        bg=bg_images, fg=fg_images, bg_depth=choose_depth(bg_depth, bg_images),
        backgrounds=bg_count, foregrounds=fg_count, placements=placements, size=size, seed=seed,
    )  # fmt: skip
    hidden = None if progress else True  # None: hidden unless the output is a terminal
    with temporary_folder(dataset) as folder:
        # Made here at once, so that workers only write files.
        for name, number in itertools.product(FOLDERS.values(), range(bg_count)):
            (folder / name / plan.bg_name(number)).mkdir(parents=True)
        with worker_pool(workers) as executor:
            composed = prepare(plan, folder, executor, hidden)
            parts = split_parts(composed.layout, SAMPLES_PER_TASK)
            tasks = ((composed, range(part.start, part.stop)) for part in parts)
            with tqdm(total=composed.layout.samples, unit=" samples", disable=hidden) as bar:
                for written in run_all(executor, _write_samples, tasks):
                    bar.update(written)
        shutil.rmtree(folder / PREPARED)
        write_json(folder / DATASET, composed.metadata)
        _require_new(dataset)  # something may have appeared meanwhile
        publish_folder(folder, dataset)
    return composed.metadata


def _require_new(dataset: Path) -> None:
    """DataError unless a folder is missing or empty."""
    if dataset.exists() and (not dataset.is_dir() or any(dataset.iterdir())):
        raise DataError(
            f"{dataset} exists and is not an empty folder: name a new folder, or remove it first."
        )


def _write_samples(composed: Composed, indices: range) -> int:
    """Write the files of samples of one background; returns their number."""
    for index, images in zip(indices, composed.compose(indices), strict=True):
        for name, data in zip(FOLDERS.values(), images, strict=True):
            (composed.folder / name / composed.name(index)).write_bytes(data)
    return len(indices)
