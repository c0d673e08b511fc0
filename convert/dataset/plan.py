"""What a data set consists of: counts, names and source files, and the metadata of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

import cv2
import numpy as np
import PIL
from PIL import features

from maskdepth.convert import names
from maskdepth.convert.dataset import photos
from maskdepth.convert.dataset.depth_about import read_about
from maskdepth.convert.errors import OptionError
from maskdepth.convert.limits import LARGEST_SIDE
from maskdepth.convert.metadata import DATASET_FORMAT, DATASET_VERSION
from maskdepth.convert.program import CONVERT
from maskdepth.convert.style import ORIGINAL_PLACEMENTS, Style

DEFAULT_SIZE = 224
STANDARD = Style()
DRAWN = 100  # default number of built-in backgrounds, and of built-in foregrounds


@dataclass(frozen=True)
class ImageFolder:
    """A folder of the user's images."""

    path: Path
    files: tuple[Path, ...]  # the images that are used, in order

    def absolute(self) -> ImageFolder:
        """The same files, for processes that may run in another folder."""
        return ImageFolder(self.path, tuple(path.absolute() for path in self.files))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to compose; the same plan gives the same bytes with any number of workers."""

    bg: ImageFolder | None  # the user's photos; None: built-in streets
    fg: ImageFolder | None  # the user's cut-outs; None: built-in people
    bg_depth: ImageFolder | None  # the photos' depth; None: true for built-in streets, or a prior
    backgrounds: int
    foregrounds: int
    placements: int  # composites of each background and foreground, half of them flipped; even
    size: int  # height and width of every image, in pixels
    seed: int
    style: Style

    def __post_init__(self) -> None:
        """Raise OptionError for a number out of range."""
        least = {"backgrounds": 1, "foregrounds": 1, "placements": 1, "size": 32, "seed": 0}
        for name, minimum in least.items():
            if (found := getattr(self, name)) < minimum:
                raise OptionError(name, f": found {found}, expected {minimum} or more")
        if self.size > LARGEST_SIDE:
            raise OptionError("size", f": found {self.size}, expected at most {LARGEST_SIDE}")
        if self.placements % 2:
            raise OptionError(
                "placements",
                f": found {self.placements}, expected an even number, because half of them show "
                "the foreground flipped left-right",
            )
        if self.style.occlusion and self.depth == "prior":
            raise OptionError(
                "occlusion",
                ": found photos without depth, expected their depth maps as --bg-depth; "
                f"`{CONVERT} depth --of backgrounds` makes some",
            )
        if self.style.people[1] > self.foregrounds:
            raise OptionError(
                "people",
                f": found up to {self.style.people[1]}, expected at most {self.foregrounds}, the "
                "number of foregrounds, because all of a sample are different",
            )
        if self.style.places == "original" and self.placements != ORIGINAL_PLACEMENTS:
            raise OptionError(
                "placements",
                f": found {self.placements}, expected {ORIGINAL_PLACEMENTS} with the places of the "
                "original work",
            )

    @property
    def heights(self) -> tuple[int, int]:
        """Smallest and largest height of a pasted foreground, in pixels."""
        least, most = self.style.heights
        return pixel_height(self.size, least), pixel_height(self.size, most)

    @property
    def folders(self) -> dict[str, ImageFolder]:
        """The folders of the user by their name among the arguments."""
        found = {"bg": self.bg, "fg": self.fg, "bg_depth": self.bg_depth}
        return {name: folder for name, folder in found.items() if folder is not None}

    def absolute(self) -> Plan:
        """The same plan with absolute paths of files; dataset.json says the same."""
        bg, fg, bg_depth = (
            folder and folder.absolute() for folder in (self.bg, self.fg, self.bg_depth)
        )
        return replace(self, bg=bg, fg=fg, bg_depth=bg_depth)

    @property
    def depth(self) -> str:
        """Where depth is from: "true", of drawn scenes, "given", or the "prior" of flat ground."""
        if self.bg is None:
            return "true"
        return "prior" if self.bg_depth is None else "given"

    @property
    def samples_per_bg(self) -> int:
        """Composites of one background."""
        return self.foregrounds * self.placements

    def bg_name(self, bg: int) -> str:
        return names.bg_name(bg, self.backgrounds)

    def fg_name(self, fg: int) -> str:
        return names.fg_name(fg, self.foregrounds)

    def sample_name(self, sample: int) -> str:
        return names.sample_name(sample, self.samples_per_bg)


def pixel_height(size: int, share: float) -> int:
    """Height of a foreground in an image of a size; at least 1."""
    return max(1, round(size * share))


class PlanOptions(TypedDict, total=False):
    """The arguments of `make_plan`."""

    bg: Path | None
    fg: Path | None
    bg_depth: Path | None
    backgrounds: int | None
    foregrounds: int | None
    placements: int
    size: int
    seed: int
    style: Style


def make_plan(
    *,
    bg: Path | None = None,
    fg: Path | None = None,
    bg_depth: Path | None = None,
    backgrounds: int | None = None,
    foregrounds: int | None = None,
    placements: int = 40,
    size: int = DEFAULT_SIZE,
    seed: int = 0,
    style: Style = STANDARD,
) -> Plan:
    """List and count the images of a data set.

    Without ``bg`` and ``fg``, built-in streets with their true depth and built-in people are
    drawn. ``bg``: folder of photos of any size (centre square cropped, then resized). ``fg``:
    folder of RGBA cut-outs. ``backgrounds``, ``foregrounds``: how many to use, the first by name;
    by default all files, or 100 drawn ones. ``bg_depth``: folder with a depth image for each
    photo, of the same name apart from the suffix, dark near and bright far; without it, the depth
    of flat ground is assumed for photos. ``placements``: composites of each pair. ``size``: height
    and width in pixels. ``style``: what is changed of the rule of the original work.

    Raises DataError for a number out of range, and for folders without the images.
    """
    bg_images, bg_count = choose_images(bg, "backgrounds", backgrounds)
    fg_images, fg_count = choose_images(fg, "foregrounds", foregrounds)
    return Plan(
        bg=bg_images, fg=fg_images, bg_depth=choose_depth(bg_depth, bg_images),
        backgrounds=bg_count, foregrounds=fg_count, placements=placements, size=size, seed=seed,
        style=style,
    )  # fmt: skip


def choose_images(
    folder: Path | None, what: str, count: int | None
) -> tuple[ImageFolder | None, int]:
    """The first ``count`` images of a user's folder (None: all), or so many drawn ones."""
    if folder is None:
        return None, DRAWN if count is None else count
    files = photos.list_images(folder)
    if count is not None and count > len(files):
        raise OptionError(
            what, f": found {len(files)} images in {folder}, expected at least {count}; take fewer"
        )
    files = files[:count]
    return ImageFolder(folder, files), len(files)


def choose_depth(folder: Path | None, bg: ImageFolder | None) -> ImageFolder | None:
    """The depth map of each photo in a user's folder, if there is one."""
    if folder is None:
        return None
    if bg is None:
        raise OptionError("bg_depth", ": found no photos of --bg, to which its depth maps belong")
    return ImageFolder(folder, photos.match_stems(bg.files, folder))


def plan_metadata(plan: Plan) -> dict[str, object]:
    """What `dataset.json` says of a plan: all that decides the bytes, no time and no host."""
    folders = {name: plan.folders.get(name) for name in ("bg", "fg", "bg_depth")}
    counts = ("backgrounds", "foregrounds", "placements", "size", "seed")
    depth: dict[str, object] = {"depth": plan.depth}
    if plan.bg_depth is not None and (about := read_about(plan.bg_depth.path)) is not None:
        depth = {"depth": "estimated", "depth_model": about.depth_model}
    return {
        "format": DATASET_FORMAT,
        "version": DATASET_VERSION,
        "arguments": {k: None if v is None else str(v.path) for k, v in folders.items()}
        | {name: getattr(plan, name) for name in counts},
        "style": plan.style.to_json(),
        "seed": plan.seed,
        "image_size": plan.size,
        "backgrounds": plan.backgrounds,
        "foregrounds": plan.foregrounds,
        "placements": plan.placements,
        "samples": plan.backgrounds * plan.samples_per_bg,
        "samples_per_bg": plan.samples_per_bg,
        "samples_per_fg": plan.placements,
        **depth,
        "sources": {
            k: None if v is None else [path.name for path in v.files] for k, v in folders.items()
        },
        "libraries": {
            "numpy": np.__version__,
            "pillow": PIL.__version__,
            "libjpeg": features.version("jpg"),
            "opencv": cv2.__version__,
        },
    }
