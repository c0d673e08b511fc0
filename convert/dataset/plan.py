"""What a data set consists of: counts, names, sources, and the record of them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from PIL import features

from convert.dataset import photos
from convert.errors import DataError

FORMAT = "maskdepth-dataset"
VERSION = 1
DRAWN = 100  # built-in backgrounds, and people, where no number is asked for
COUNTS = ("backgrounds", "foregrounds", "placements", "size", "seed")


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


def make_plan(
    bg: Path | None,
    fg: Path | None,
    bg_depth: Path | None,
    backgrounds: int | None,
    foregrounds: int | None,
    placements: int,
    size: int,
    seed: int,
) -> Plan:
    """Check the arguments and list the user's files."""
    if bg_depth is not None and bg is None:
        raise DataError("bg_depth was given without bg: it holds the depth maps of bg's photos.")
    bg_files, backgrounds = _choose(bg, "backgrounds", backgrounds)
    fg_files, foregrounds = _choose(fg, "foregrounds", foregrounds)
    depth_files = None
    if bg_depth is not None and bg_files is not None:
        depth_files = photos.match_stems(bg_files, Path(bg_depth))
    return Plan(
        bg_files=bg_files,
        fg_files=fg_files,
        depth_files=depth_files,
        backgrounds=backgrounds,
        foregrounds=foregrounds,
        placements=placements,
        size=size,
        seed=seed,
    )


def _choose(
    folder: Path | None, what: str, count: int | None
) -> tuple[tuple[Path, ...] | None, int]:
    """The first ``count`` images of a user's folder (None: all), or so many drawn ones."""
    if folder is None:
        return None, DRAWN if count is None else count
    files = photos.list_images(Path(folder))
    if count is not None and count > len(files):
        raise DataError(
            f"{folder}: found {len(files)} images, expected at least the {count} {what} asked for."
        )
    files = files if count is None else files[:count]
    return files, len(files) if files else (count or 0)


def describe(plan: Plan, bg: Path | None, fg: Path | None, bg_depth: Path | None) -> dict:
    """Everything that decides the bytes, and nothing (time, host, workers) that does not."""
    folders = {"bg": bg, "fg": fg, "bg_depth": bg_depth}
    names = {"bg": plan.bg_files, "fg": plan.fg_files, "bg_depth": plan.depth_files}
    return {
        "format": FORMAT,
        "version": VERSION,
        "arguments": {k: None if v is None else str(v) for k, v in folders.items()}
        | {k: getattr(plan, k) for k in COUNTS},
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
