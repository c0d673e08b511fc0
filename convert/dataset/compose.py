"""Composes people into backgrounds: the data set's folders of bg, fg_bg, mask and depth.

Run ``python -m convert compose DATASET`` for the built-in streets and people, or add
``--bg DIR --fg DIR`` for photos and cut-outs of your own.

The rule: each person is scaled to height 105 (at size 224), and for each background put at
``placements / 2`` random places, then flipped left-right and put at as many more. Where the
scaled person's alpha is not 0 its pixels replace the background's.
"""

import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from convert.dataset import photos, scenes
from convert.dataset.canvas import Canvas, Cutout
from convert.dataset.plan import Plan, describe, make_plan
from convert.errors import DataError
from convert.workers import run_all, worker_pool

PERSON_SHARE = 105 / 224  # a person's height over the image's
FG_BG_QUALITY = MASK_QUALITY = 65
DEPTH_QUALITY = 75
BG_QUALITY = 95  # the composite is pasted on the decoded bg file, so its loss is in both alike
WORK = ".work"  # depth in metres and scaled people, gone when the folder is done
FGS_PER_TASK = 10  # 400 samples, about half a second: Ctrl-C is answered within that


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
) -> dict:
    """Write the data set folder ``dataset`` and return what its ``dataset.json`` holds.

    Without ``bg`` and ``fg``: built-in streets with their true depth, and built-in people.
    ``bg``: folder of photos (any size; centre square cropped, then resized). ``fg``: folder of
    RGBA cut-outs. ``backgrounds`` and ``foregrounds``: how many, the first by name; by default
    all files, and 100 of what is drawn. ``bg_depth``: folder with a depth image for each photo,
    of the same name up to the suffix, dark near and bright far; without it photos get a flat
    ground as a prior.
    ``size``: pixels; ``workers``: processes, by default one per core; 0: none.

    A person stands at the smallest depth among what it covers, and never in the farther half of
    the scene. Each depth map is stretched to
    its own minimum (0) and maximum (255). The folder appears only when it is complete.

    Raises DataError for anything wrong with the arguments or the user's files.
    """
    plan = make_plan(bg, fg, bg_depth, backgrounds, foregrounds, placements, size, seed)
    info = describe(plan, bg, fg, bg_depth)
    with _unfinished(Path(dataset)) as folder, worker_pool(workers) as executor:
        _make_folders(plan, folder)
        for _ in run_all(executor, _draw, _drawings(plan, folder)):
            pass
        hidden = None if progress else True  # None: shown on a terminal only
        with tqdm(total=info["samples"], unit=" samples", disable=hidden) as bar:
            for written in run_all(executor, _compose_some, _pairings(plan, folder)):
                bar.update(written)
        shutil.rmtree(folder / WORK)
        text = json.dumps(info, indent=2) + "\n"
        (folder / "dataset.json").write_text(text, encoding="utf-8")
    return info


def place(
    seed: int, bg: int, fg: int, count: int, room: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Draw top-left corners for person ``fg`` on background ``bg``, unflipped and flipped.

    ``room``: (x, y) exclusive upper bounds. Returns two int64 arrays (count, 2) of x, y. The
    first n of a larger count are those of count n.
    """
    streams = np.random.SeedSequence([seed, 3, bg, fg]).spawn(2)
    unflipped, flipped = (np.random.default_rng(s).integers(0, room, (count, 2)) for s in streams)
    return unflipped, flipped


@contextmanager
def _unfinished(dataset: Path) -> Iterator[Path]:
    """A hidden sibling of ``dataset``, renamed to it at the end, or removed on any failure."""
    if dataset.exists() and (not dataset.is_dir() or any(dataset.iterdir())):
        raise DataError(
            f"{dataset} exists and is not an empty folder: name a new folder, or remove it first."
        )
    target = dataset.absolute()
    folder = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
        yield folder
        folder.replace(target)
    except OSError as error:
        raise DataError(
            f"{error.filename or dataset}: {error.strerror or error}; mend that or choose another "
            "folder"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _make_folders(plan: Plan, folder: Path) -> None:
    """All folders at once, so that workers only write files."""
    for name in ("bg", "fg", WORK):
        (folder / name).mkdir()
    for name in ("fg_bg", "fg_bg_mask", "fg_bg_depth"):
        for bg in range(plan.backgrounds):
            (folder / name / plan.bg_name(bg)).mkdir(parents=True)


def _drawings(plan: Plan, folder: Path) -> list[tuple[Plan, Path, str, int]]:
    """First round of work: every background, then every person."""
    return [(plan, folder, "bg", i) for i in range(plan.backgrounds)] + [
        (plan, folder, "fg", i) for i in range(plan.foregrounds)
    ]


def _draw(plan: Plan, folder: Path, kind: str, index: int) -> None:
    (_write_background if kind == "bg" else _write_person)(plan, folder, index)


def _pairings(plan: Plan, folder: Path) -> list[tuple[Plan, Path, int, range]]:
    """Second round of work: each background with a few people at a time."""
    fgs = range(plan.foregrounds)
    groups = [fgs[start : start + FGS_PER_TASK] for start in fgs[::FGS_PER_TASK]]
    return [(plan, folder, bg, group) for bg in range(plan.backgrounds) for group in groups]


def _compose_some(plan: Plan, folder: Path, bg: int, fgs: range) -> int:
    """Compose one background with some people; returns how many samples that gave."""
    canvas = _open_canvas(plan, folder, bg)
    for fg in fgs:
        _write_pair(plan, folder, canvas, bg, fg)
    return len(fgs) * plan.placements


def _write_background(plan: Plan, folder: Path, bg: int) -> None:
    """Write bg/bg_NNN.jpg, and its depth beside for the workers that compose."""
    path = folder / "bg" / f"{plan.bg_name(bg)}.jpg"
    if plan.bg_files is None:
        scene = scenes.draw_background(plan.seed, bg, plan.size)
        _save(Image.fromarray(scene.image), str(path), BG_QUALITY)
        depth = scene.depth
    else:
        path.write_bytes(photos.background_jpeg(plan.bg_files[bg], plan.size, BG_QUALITY))
        if plan.depth_files is None:
            depth = scenes.ground_depth(plan.size, horizon=plan.size / 2)
        else:
            depth = photos.open_depth(plan.depth_files[bg], plan.bg_files[bg], plan.size)
    np.save(folder / WORK / f"{plan.bg_name(bg)}.npy", depth)


def _write_person(plan: Plan, folder: Path, fg: int) -> None:
    """Write fg/fg_NNN.png in its own size, and scaled for the workers that compose."""
    if plan.fg_files is None:
        person, source = scenes.draw_person(plan.seed, fg), Path(plan.fg_name(fg))
    else:
        person, source = photos.open_cutout(plan.fg_files[fg]), plan.fg_files[fg]
    scaled = photos.scale_cutout(person, _person_height(plan.size), plan.size, source)
    Image.fromarray(person).save(folder / "fg" / f"{plan.fg_name(fg)}.png")
    np.save(folder / WORK / f"{plan.fg_name(fg)}.npy", scaled)


def _open_canvas(plan: Plan, folder: Path, bg: int) -> Canvas:
    """The background as its file decodes, so that composites equal it outside the person."""
    with Image.open(folder / "bg" / f"{plan.bg_name(bg)}.jpg") as image:
        pixels = np.asarray(image.convert("RGB"))
    return Canvas(pixels, np.load(folder / WORK / f"{plan.bg_name(bg)}.npy"))


def _write_pair(plan: Plan, folder: Path, canvas: Canvas, bg: int, fg: int) -> None:
    """Write all composites of one background and one person."""
    scaled = np.load(folder / WORK / f"{plan.fg_name(fg)}.npy")
    height, width = scaled.shape[:2]
    room = (plan.size - width, plan.size - height)
    corners = place(plan.seed, bg, fg, plan.placements // 2, room)
    sample = fg * plan.placements
    for person, places in zip((Cutout(scaled), Cutout(scaled[:, ::-1])), corners, strict=True):
        for x, y in places.tolist():
            fg_bg, mask, depth = canvas.paste(person, x, y)
            name = f"{plan.bg_name(bg)}/{plan.sample_name(sample)}.jpg"
            _save(fg_bg, f"{folder}/fg_bg/{name}", FG_BG_QUALITY, optimize=True)
            _save(mask, f"{folder}/fg_bg_mask/{name}", MASK_QUALITY)
            _save(depth, f"{folder}/fg_bg_depth/{name}", DEPTH_QUALITY)
            sample += 1


def _person_height(size: int) -> int:
    """Height of a pasted person: 105 in an image of 224."""
    return round(size * PERSON_SHARE)


def _save(image: Image.Image, path: str, quality: int, optimize: bool = False) -> None:
    """Write a JPEG; as in the original data set, only fg_bg has optimised Huffman tables."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=optimize)
    with open(path, "wb") as file:
        file.write(buffer.getbuffer())
