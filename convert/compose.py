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
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, features
from tqdm import tqdm

from convert import photos, scenes
from convert.errors import DataError
from convert.pool import worker_pool

FORMAT = "maskdepth-dataset"
VERSION = 1
PERSON_SHARE = 105 / 224  # a person's height over the image's
FG_BG_QUALITY = MASK_QUALITY = 65
DEPTH_QUALITY = 75
BG_QUALITY = 95  # the composite is pasted on the decoded bg file, so its loss is in both alike
WORK = ".work"  # depth in metres and scaled people, gone when the folder is done
FGS_PER_TASK = 10  # 400 samples, about half a second: Ctrl-C is answered within that


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to compose; the same plan gives the same bytes with any number of workers."""

    bg_files: tuple[Path, ...] | None
    """The user's photos, in order; None: built-in streets."""
    fg_files: tuple[Path, ...] | None
    """The user's cut-outs, in order; None: built-in people."""
    depth_files: tuple[Path, ...] | None
    """The depth map of each photo; None: true depth of built-in streets, or a prior."""
    backgrounds: int
    foregrounds: int
    placements: int
    """Composites of each background with each person, half of them flipped; even."""
    size: int
    """Height and width of every image, in pixels."""
    seed: int

    def __post_init__(self) -> None:
        """Refuse counts that the rule cannot serve."""
        for name in ("backgrounds", "foregrounds", "placements"):
            if getattr(self, name) < 1:
                raise DataError(f"{name} is {getattr(self, name)}: expected 1 or more.")
        if self.placements % 2:
            raise DataError(
                f"placements is {self.placements}: expected an even number, as half of the "
                "composites show the person flipped left-right."
            )
        if self.size < 32:
            raise DataError(f"size is {self.size}: expected 32 pixels or more.")
        if self.seed < 0:
            raise DataError(f"seed is {self.seed}: expected 0 or more.")

    @property
    def depth_kind(self) -> str:
        """Where depth comes from: "true", "given" or "prior"."""
        if self.bg_files is None:
            return "true"
        return "given" if self.depth_files is not None else "prior"

    @property
    def samples_per_bg(self) -> int:
        """Composites of one background."""
        return self.foregrounds * self.placements

    def bg_name(self, bg: int) -> str:
        """Name of background ``bg`` (from 0), padded so that sorted names keep their order."""
        return f"bg_{bg + 1:0{max(3, len(str(self.backgrounds)))}d}"

    def fg_name(self, fg: int) -> str:
        """Name of person ``fg`` (from 0), padded likewise."""
        return f"fg_{fg + 1:0{max(3, len(str(self.foregrounds)))}d}"

    def sample_name(self, sample: int) -> str:
        """Name of the sample at ``sample`` (from 0) within its background, padded likewise."""
        return f"img_{sample + 1:0{max(4, len(str(self.samples_per_bg)))}d}"


def compose(
    dataset: Path,
    *,
    bg: Path | None = None,
    fg: Path | None = None,
    bg_depth: Path | None = None,
    backgrounds: int = 100,
    foregrounds: int = 100,
    placements: int = 40,
    size: int = 224,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
) -> dict:
    """Write the data set folder ``dataset`` and return what its ``dataset.json`` holds.

    Without ``bg`` and ``fg``: built-in streets with their true depth, and built-in people.
    ``bg``: folder of photos (any size; centre square cropped, then resized). ``fg``: folder of
    RGBA cut-outs. ``backgrounds`` and ``foregrounds`` are then upper limits: the first files by
    name are taken. ``bg_depth``: folder with a depth image for each photo, of the same name up
    to the suffix, dark near and bright far; without it photos get a flat ground as a prior.
    ``size``: pixels; ``workers``: processes, by default one per core.

    A person stands at the smallest depth among what it covers. Each depth map is stretched to
    its own minimum (0) and maximum (255). The folder appears only when it is complete.

    Raises DataError for anything wrong with the arguments or the user's files.
    """
    plan = _plan(bg, fg, bg_depth, backgrounds, foregrounds, placements, size, seed)
    if workers is not None and workers < 1:
        raise DataError(f"workers is {workers}: expected 1 or more.")
    info = _describe(plan, bg, fg, bg_depth)
    with _unfinished(Path(dataset)) as folder, worker_pool(workers or _cores()) as run:
        _make_folders(plan, folder)
        for _ in run(_draw, _drawings(plan, folder)):
            pass
        with tqdm(
            total=info["samples"], desc="compose", unit="sample", disable=not progress
        ) as bar:
            for written in run(_compose_some, _pairings(plan, folder)):
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


class Cutout:
    """One scaled person: RGBA uint8 (h, w, 4), in the forms that pasting needs."""

    def __init__(self, rgba: np.ndarray) -> None:
        self.inside = rgba[..., 3] != 0
        self.colour = Image.fromarray(np.ascontiguousarray(rgba[..., :3]))
        self.stencil = Image.fromarray(self.inside.astype(np.uint8) * 255)


class Canvas:
    """One background and its depth, ready to have people pasted in.

    ``image`` uint8 (size, size, 3) RGB; ``depth`` float32 (size, size), metres or any unit that
    grows with distance.
    """

    def __init__(self, image: np.ndarray, depth: np.ndarray) -> None:
        self._image = Image.fromarray(image)
        self._metres = depth
        self._gray = _stretch(depth)
        self._gray_rgb = Image.fromarray(self._gray).convert("RGB")
        self._is_far = depth == depth.max()
        self._far_count = int(self._is_far.sum())

    def paste(self, person: Cutout, x: int, y: int) -> tuple[Image.Image, Image.Image, Image.Image]:
        """Put ``person`` with its top-left corner at column ``x``, row ``y``.

        Returns new images: fg_bg RGB, mask L of 0 and 255, and depth RGB with three equal
        channels, 0 nearest and 255 farthest.
        """
        fg_bg = self._image.copy()
        fg_bg.paste(person.colour, (x, y), person.stencil)
        mask = Image.new("L", fg_bg.size)
        mask.paste(person.stencil, (x, y))
        return fg_bg, mask, self._paste_depth(person, x, y)

    def _paste_depth(self, person: Cutout, x: int, y: int) -> Image.Image:
        """Depth with the person at the nearest depth that it covers.

        That leaves the minimum as it is, and the maximum unless all farthest pixels are
        covered: so nearly always the background's stretch holds, on bytes alone.
        """
        inside = person.inside
        box = np.s_[y : y + inside.shape[0], x : x + inside.shape[1]]
        if np.count_nonzero(self._is_far[box] & inside) < self._far_count:
            depth = self._gray_rgb.copy()
            nearest = int(self._gray[box].min(where=inside, initial=255))
            depth.paste((nearest, nearest, nearest), (x, y), person.stencil)
            return depth
        metres = self._metres.copy()
        metres[box][inside] = metres[box][inside].min()
        return Image.fromarray(_stretch(metres)).convert("RGB")


def _stretch(depth: np.ndarray) -> np.ndarray:
    """Map the nearest to 0 and the farthest to 255, linearly, uint8; a flat map becomes 0."""
    near, far = float(depth.min()), float(depth.max())
    return np.rint((depth - near) * (255 / max(far - near, 1e-9))).astype(np.uint8)


def _plan(
    bg: Path | None,
    fg: Path | None,
    bg_depth: Path | None,
    backgrounds: int,
    foregrounds: int,
    placements: int,
    size: int,
    seed: int,
) -> Plan:
    """Check the arguments and list the user's files."""
    if bg_depth is not None and bg is None:
        raise DataError("bg_depth was given without bg: it holds the depth maps of bg's photos.")
    bg_files = None if bg is None else photos.list_images(Path(bg))[: max(backgrounds, 1)]
    fg_files = None if fg is None else photos.list_images(Path(fg))[: max(foregrounds, 1)]
    depth_files = None
    if bg_depth is not None and bg_files is not None:
        depth_files = photos.match_stems(bg_files, Path(bg_depth))
    return Plan(
        bg_files=bg_files,
        fg_files=fg_files,
        depth_files=depth_files,
        backgrounds=backgrounds if bg_files is None else min(backgrounds, len(bg_files)),
        foregrounds=foregrounds if fg_files is None else min(foregrounds, len(fg_files)),
        placements=placements,
        size=size,
        seed=seed,
    )


def _describe(plan: Plan, bg: Path | None, fg: Path | None, bg_depth: Path | None) -> dict:
    """Everything that decides the bytes, and nothing (time, host, workers) that does not."""
    counts = {k: v for k, v in asdict(plan).items() if isinstance(v, int)}
    folders = {"bg": bg, "fg": fg, "bg_depth": bg_depth}
    names = {"bg": plan.bg_files, "fg": plan.fg_files, "bg_depth": plan.depth_files}
    return {
        "format": FORMAT,
        "version": VERSION,
        "arguments": {k: None if v is None else str(v) for k, v in folders.items()}
        | {k: counts[k] for k in ("backgrounds", "foregrounds", "placements", "size", "seed")},
        "seed": plan.seed,
        "image_size": plan.size,
        "backgrounds": plan.backgrounds,
        "foregrounds": plan.foregrounds,
        "placements": plan.placements,
        "samples": plan.backgrounds * plan.samples_per_bg,
        "samples_per_bg": plan.samples_per_bg,
        "samples_per_fg": plan.placements,
        "depth": plan.depth_kind,
        "sources": {k: None if v is None else [p.name for p in v] for k, v in names.items()},
        "libraries": {
            "numpy": np.__version__,
            "pillow": PIL.__version__,
            "libjpeg": features.version("jpg"),
        },
    }


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
            f"cannot write {dataset}: {error}. Free space or choose another."
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


def _draw(task: tuple[Plan, Path, str, int]) -> None:
    plan, folder, kind, index = task
    (_write_background if kind == "bg" else _write_person)(plan, folder, index)


def _pairings(plan: Plan, folder: Path) -> list[tuple[Plan, Path, int, range]]:
    """Second round of work: each background with a few people at a time."""
    fgs = range(plan.foregrounds)
    groups = [fgs[start : start + FGS_PER_TASK] for start in fgs[::FGS_PER_TASK]]
    return [(plan, folder, bg, group) for bg in range(plan.backgrounds) for group in groups]


def _compose_some(task: tuple[Plan, Path, int, range]) -> int:
    """Compose one background with some people; returns how many samples that gave."""
    plan, folder, bg, fgs = task
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
            _save(fg_bg, f"{folder}/fg_bg/{name}", FG_BG_QUALITY)
            _save(mask, f"{folder}/fg_bg_mask/{name}", MASK_QUALITY)
            _save(depth, f"{folder}/fg_bg_depth/{name}", DEPTH_QUALITY)
            sample += 1


def _person_height(size: int) -> int:
    """Height of a pasted person: 105 in an image of 224."""
    return round(size * PERSON_SHARE)


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _save(image: Image.Image, path: str, quality: int) -> None:
    """Write a JPEG with optimised Huffman tables."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=True)
    with open(path, "wb") as file:
        file.write(buffer.getbuffer())
