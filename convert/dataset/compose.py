"""Composes data sets: writes the folders of bg, fg, fg_bg, mask and depth images.

Run ``python -m convert compose DATASET`` for the built-in streets and people, or add
``--bg DIR --fg DIR`` for your own photos and cut-outs.

The rule: each foreground is scaled to height 105 (at size 224). On each background it is pasted
at ``placements / 2`` random places, then flipped left-right and pasted at as many more. Its
pixels replace those of the background wherever its scaled alpha is not 0.
"""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from convert.dataset import photos, scenes
from convert.dataset.canvas import DEPTH_QUALITY, Canvas, Cutout, encode_jpeg
from convert.dataset.inputs import require_usable
from convert.dataset.plan import Plan, choose_depth, choose_images, plan_metadata
from convert.errors import DataError
from convert.files import publish_folder, temporary_folder
from convert.outputs import require_outside
from convert.source import FOLDERS
from convert.workers import run_all, worker_pool

FG_SHARE = 105 / 224  # height of a pasted foreground as a share of the image's
FG_BG_QUALITY = MASK_QUALITY = 65
BG_QUALITY = 95  # composites are pasted on the decoded file, so its artefacts are in both
WORK = ".work"  # depth in metres and scaled foregrounds; removed at the end
FGS_PER_TASK = 10  # 400 samples, about half a second: Ctrl-C is answered within that time
STREAM_PLACES = 3  # random stream of a seed; scenes.draw uses 1, scenes.people 2


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
    metadata = plan_metadata(plan)
    with temporary_folder(dataset) as folder:
        # Made here at once, so that workers only write files.
        for name in ("bg", "fg", WORK):
            (folder / name).mkdir()
        for name, number in itertools.product(FOLDERS.values(), range(bg_count)):
            (folder / name / plan.bg_name(number)).mkdir(parents=True)
        with worker_pool(workers) as executor:
            for write, count in (_write_background, bg_count), (_write_foreground, fg_count):
                for _ in run_all(executor, write, [(plan, folder, i) for i in range(count)]):
                    pass
            fgs = range(fg_count)
            groups = [fgs[start : start + FGS_PER_TASK] for start in fgs[::FGS_PER_TASK]]
            pairs = [(plan, folder, i, group) for i in range(bg_count) for group in groups]
            hidden = None if progress else True  # None: hidden unless the output is a terminal
            with tqdm(total=bg_count * plan.samples_per_bg, unit=" samples", disable=hidden) as bar:
                for written in run_all(executor, _compose_some, pairs):
                    bar.update(written)
        shutil.rmtree(folder / WORK)
        (folder / "dataset.json").write_text(json.dumps(metadata, indent=2) + "\n")
        _require_new(dataset)  # something may have appeared meanwhile
        publish_folder(folder, dataset)
    return metadata


def _require_new(dataset: Path) -> None:
    """DataError unless a folder is missing or empty."""
    if dataset.exists() and (not dataset.is_dir() or any(dataset.iterdir())):
        raise DataError(
            f"{dataset} exists and is not an empty folder: name a new folder, or remove it first."
        )


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


def _write_background(plan: Plan, folder: Path, bg: int) -> None:
    """Write bg/bg_NNN.jpg, and its depth for the tasks that compose."""
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
    half = plan.placements // 2
    for fg in fgs:
        scaled = np.load(folder / WORK / f"{plan.fg_name(fg)}.npy")
        cutouts = [Cutout(scaled)] * half + [Cutout(scaled[:, ::-1])] * half
        room = (plan.size - scaled.shape[1], plan.size - scaled.shape[0])
        corners = np.concatenate(place(plan.seed, bg, fg, half, room)).tolist()
        pasted = zip(cutouts, corners, strict=True)
        for sample, (cutout, (x, y)) in enumerate(pasted, start=fg * plan.placements):
            fg_bg, mask, depth = canvas.paste(cutout, x, y)
            name = f"{plan.bg_name(bg)}/{plan.sample_name(sample)}.jpg"
            # As in the original data set, only fg_bg has optimised Huffman tables.
            data = encode_jpeg(fg_bg, FG_BG_QUALITY, optimize=True)
            (folder / "fg_bg" / name).write_bytes(data)
            (folder / "fg_bg_mask" / name).write_bytes(encode_jpeg(mask, MASK_QUALITY))
            (folder / "fg_bg_depth" / name).write_bytes(encode_jpeg(depth, DEPTH_QUALITY))
    return len(fgs) * plan.placements
