"""Composes data sets: writes the folders of bg, fg, fg_bg, mask and depth images.

Run ``python -m convert compose DATASET`` for the built-in streets and people, or add
``--bg DIR --fg DIR`` for your own photos and cut-outs.

The rule: each foreground is scaled to height 105 (at size 224). On each background it is pasted
at ``placements / 2`` random places, then flipped left-right and pasted at as many more. Its
pixels replace those of the background wherever its scaled alpha is not 0.
"""

import io
import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from convert.dataset import photos, scenes
from convert.dataset.canvas import Canvas, Cutout
from convert.dataset.plan import Plan, choose_depth, choose_images, plan_metadata
from convert.errors import DataError
from convert.files import publish_folder, temporary_folder
from convert.workers import run_all, worker_pool

FG_SHARE = 105 / 224  # height of a pasted foreground as a share of the image's
FG_BG_QUALITY = MASK_QUALITY = 65
DEPTH_QUALITY = 75
BG_QUALITY = 95  # composites are pasted on the decoded bg file, so both have the same loss
WORK = ".work"  # depth in metres and scaled foregrounds; removed at the end
FGS_PER_TASK = 10  # 400 samples, about half a second: Ctrl-C is answered within that time
STREAM_PLACES = 3  # random stream of a seed; scenes.draw uses 1 and 2


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

    Raises DataError for anything wrong with the arguments or the user's files.
    """
    bg_images, bg_count = choose_images(bg, "backgrounds", backgrounds)
    fg_images, fg_count = choose_images(fg, "foregrounds", foregrounds)
    plan = Plan(
        bg=bg_images, fg=fg_images, bg_depth=choose_depth(bg_depth, bg_images),
        backgrounds=bg_count, foregrounds=fg_count, placements=placements, size=size, seed=seed,
    )  # fmt: skip
    if dataset.exists() and (not dataset.is_dir() or any(dataset.iterdir())):
        raise DataError(
            f"{dataset} exists and is not an empty folder: name a new folder, or remove it first."
        )
    metadata = plan_metadata(plan)
    with temporary_folder(dataset) as folder:
        _make_folders(plan, folder)
        with worker_pool(workers) as executor:
            for write, count in (_write_background, bg_count), (_write_foreground, fg_count):
                for _ in run_all(executor, write, [(plan, folder, i) for i in range(count)]):
                    pass
            samples = plan.backgrounds * plan.samples_per_bg
            hidden = None if progress else True  # None: hidden unless the output is a terminal
            with tqdm(total=samples, unit=" samples", disable=hidden) as bar:
                for written in run_all(executor, _compose_some, _pair_tasks(plan, folder)):
                    bar.update(written)
        shutil.rmtree(folder / WORK)
        text = json.dumps(metadata, indent=2) + "\n"
        (folder / "dataset.json").write_text(text, encoding="utf-8")
        publish_folder(folder, dataset)
    return metadata


def place(
    seed: int, bg: int, fg: int, count: int, room: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Draw top-left corners for foreground ``fg`` on background ``bg``, unflipped and flipped.

    ``room``: exclusive upper bounds of (x, y). Returns two int64 arrays (count, 2) of x, y. The
    first n places are the same for every count of at least n.
    """
    streams = np.random.SeedSequence([seed, STREAM_PLACES, bg, fg]).spawn(2)
    unflipped, flipped = (np.random.default_rng(s).integers(0, room, (count, 2)) for s in streams)
    return unflipped, flipped


def _make_folders(plan: Plan, folder: Path) -> None:
    """Make all folders at once, so that workers only write files."""
    for name in ("bg", "fg", WORK):
        (folder / name).mkdir()
    for name in ("fg_bg", "fg_bg_mask", "fg_bg_depth"):
        for bg in range(plan.backgrounds):
            (folder / name / plan.bg_name(bg)).mkdir(parents=True)


def _pair_tasks(plan: Plan, folder: Path) -> list[tuple[Plan, Path, int, range]]:
    """Each background with a few foregrounds at a time."""
    fgs = range(plan.foregrounds)
    groups = [fgs[start : start + FGS_PER_TASK] for start in fgs[::FGS_PER_TASK]]
    return [(plan, folder, bg, group) for bg in range(plan.backgrounds) for group in groups]


def _write_background(plan: Plan, folder: Path, bg: int) -> None:
    """Write bg/bg_NNN.jpg, and its depth for the tasks that compose."""
    path = folder / "bg" / f"{plan.bg_name(bg)}.jpg"
    if plan.bg is None:
        scene = scenes.draw_background(plan.seed, bg, plan.size)
        _save(Image.fromarray(scene.image), str(path), BG_QUALITY)
        depth = scene.depth
    else:
        photo = plan.bg.files[bg]
        path.write_bytes(photos.background_jpeg(photo, plan.size, BG_QUALITY))
        if plan.bg_depth is None:
            depth = scenes.ground_depth(plan.size, horizon=plan.size / 2)
        else:
            depth = photos.open_depth(plan.bg_depth.files[bg], photo, plan.size)
    np.save(folder / WORK / f"{plan.bg_name(bg)}.npy", depth)


def _write_foreground(plan: Plan, folder: Path, fg: int) -> None:
    """Write fg/fg_NNN.png in its own size, and scaled for the tasks that compose."""
    name = plan.fg_name(fg)
    if plan.fg is None:
        cutout, source = scenes.draw_person(plan.seed, fg), Path(name)
    else:
        cutout, source = photos.open_cutout(plan.fg.files[fg]), plan.fg.files[fg]
    scaled = photos.scale_cutout(cutout, round(plan.size * FG_SHARE), plan.size, source)
    Image.fromarray(cutout).save(folder / "fg" / f"{name}.png")
    np.save(folder / WORK / f"{name}.npy", scaled)


def _compose_some(plan: Plan, folder: Path, bg: int, fgs: range) -> int:
    """Compose one background with some foregrounds; returns the number of samples written."""
    # Decoded from its file, so that composites equal it outside the foreground.
    with Image.open(folder / "bg" / f"{plan.bg_name(bg)}.jpg") as image:
        pixels = np.asarray(image.convert("RGB"))
    canvas = Canvas(pixels, np.load(folder / WORK / f"{plan.bg_name(bg)}.npy"))
    for fg in fgs:
        _write_pair(plan, folder, canvas, bg, fg)
    return len(fgs) * plan.placements


def _write_pair(plan: Plan, folder: Path, canvas: Canvas, bg: int, fg: int) -> None:
    """Write all composites of one background and one foreground."""
    scaled = np.load(folder / WORK / f"{plan.fg_name(fg)}.npy")
    height, width = scaled.shape[:2]
    room = (plan.size - width, plan.size - height)
    corners = place(plan.seed, bg, fg, plan.placements // 2, room)
    sample = fg * plan.placements
    for cutout, places in zip((Cutout(scaled), Cutout(scaled[:, ::-1])), corners, strict=True):
        for x, y in places.tolist():
            fg_bg, mask, depth = canvas.paste(cutout, x, y)
            name = f"{plan.bg_name(bg)}/{plan.sample_name(sample)}.jpg"
            _save(fg_bg, f"{folder}/fg_bg/{name}", FG_BG_QUALITY, optimize=True)
            _save(mask, f"{folder}/fg_bg_mask/{name}", MASK_QUALITY)
            _save(depth, f"{folder}/fg_bg_depth/{name}", DEPTH_QUALITY)
            sample += 1


def _save(image: Image.Image, path: str, quality: int, optimize: bool = False) -> None:
    """Write a JPEG; as in the original data set, only fg_bg has optimised Huffman tables."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=optimize)
    with open(path, "wb") as file:
        file.write(buffer.getbuffer())
