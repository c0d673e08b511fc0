"""A trained network as one module from pixels to mask and depth, and its use on image files."""

from __future__ import annotations

import glob
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from convert.errors import DataError
from convert.found import DATA_SET, SHARDS, found_at
from convert.images import SUFFIXES, read_rgb
from convert.outputs import is_output, png_mark, require_outputs, require_writable_folder
from model.checkpoint import NetworkInfo
from model.contract import about_depth
from model.errors import ModelError
from model.files import make_folder, replace_together
from model.inference.registration import SAME_PLACE, Registration, register
from model.losses import depth_values
from model.pictures import Example, predictions_png
from model.unet import DualDecoderUNet

THRESHOLD = 0.5
"""Of the mask's probability, above which a pixel is of the person."""
MULTIPLE = 8
"""Of the sides of the network's input, which is halved three times."""
LONGEST = 8
"""Largest proportion of the sides of an image; memory grows with it."""
WORTH_ALIGNING = 0.01
"""Movement, as a part of the width, above which `predict` warns if it does not align the images."""
COMMAND = "predict"
"""Whose outputs the files of `predict_files` are, see `convert.outputs`."""


class Predictor(nn.Module):
    """Normalisation, network and final activation in one module, for use and for export.

    It repeats the arithmetic of `loaders.Preprocess`, which needs a data set; a test compares
    the two.
    """

    def __init__(self, network: DualDecoderUNet, info: NetworkInfo) -> None:
        super().__init__()
        self.network = network.eval()
        self.size = info.size
        self.depth_loss, self.depth_source = info.depth_loss, info.depth_source
        for name in ("bg", "fg_bg"):
            statistics = info.statistics[name]
            std = torch.tensor(statistics.std, dtype=torch.float64)
            mean = torch.tensor(statistics.mean, dtype=torch.float64)
            self.register_buffer(f"{name}_scale", (1 / (255 * std)).float().view(1, 3, 1, 1))
            self.register_buffer(f"{name}_shift", (-mean / std).float().view(1, 3, 1, 1))

    def forward(self, bg: Tensor, fg_bg: Tensor) -> tuple[Tensor, Tensor]:
        """Return mask probability and depth, both float32 (B, 1, H, W) in 0..1.

        bg, fg_bg: uint8 or float (B, 3, H, W), RGB in 0..255, see `input_size`.
        """
        bg = bg.float() * self.get_buffer("bg_scale") + self.get_buffer("bg_shift")
        fg_bg = fg_bg.float() * self.get_buffer("fg_bg_scale") + self.get_buffer("fg_bg_shift")
        mask_logits, depth = self.network(bg, fg_bg)
        return mask_logits.sigmoid(), depth_values(depth, self.depth_loss).clamp(0, 1)

    @torch.inference_mode()
    def predict_image(self, bg: np.ndarray, fg_bg: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mask probability and depth of one pair, float32 (H, W) in 0..1, at its size.

        bg, fg_bg: uint8 (H, W, 3), RGB, of equal size. The network sees the complete image in its
        own proportions, see `input_size`.
        """
        height, width = bg.shape[:2]
        size = input_size(height, width, self.size)
        results = torch.cat(self(*self.inputs_of(bg, fg_bg, size)))
        results = F.interpolate(results, size=(height, width), mode="bilinear")
        mask, depth = results[:, 0].cpu().numpy()  # host sync: once per image
        return mask, depth

    def inputs_of(
        self, bg: np.ndarray, fg_bg: np.ndarray, size: tuple[int, int]
    ) -> tuple[Tensor, ...]:
        """Resize one pair as `predict_image` takes it; float32 (1, 3, *size), as for `forward`."""
        pair = torch.from_numpy(np.stack([bg, fg_bg])).to(self.get_buffer("bg_scale").device)
        return resize(pair.permute(0, 3, 1, 2), size).chunk(2)


def input_size(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width of the network's input for an image: the shorter side as in training.

    The longer side keeps the proportions, to the nearest multiple of `MULTIPLE`. `compose` crops
    photos to squares, so people have the size that they had in training. The network is
    convolutional and takes any shape.
    """
    short, long = sorted((height, width))
    scaled = max(size, MULTIPLE * round(long * size / short / MULTIPLE))
    return (size, scaled) if height == short else (scaled, size)


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 (B, 3, H, W) -> float32 (B, 3, *size) in 0..255, as in training.

    A smaller result takes the mean of each new pixel's area, a larger one is bilinear.
    """
    height, width = images.shape[-2:]
    if size[0] <= height and size[1] <= width:
        return F.interpolate(images.float(), size=size, mode="area")
    return F.interpolate(images.float(), size=size, mode="bilinear", antialias=True)


class Predicted(NamedTuple):
    """The files of one pair, and a note on how its two images differ."""

    paths: tuple[Path, ...]
    note: str


def require_results(pairs: Sequence[Pair], out: Path) -> None:
    """Raise DataError unless `predict_files` may write its files to this folder."""
    if (found := found_at(out)) in (SHARDS, DATA_SET):
        raise DataError(f"{out}: found {found}, which would be spoiled; name another OUT_DIR")
    require_writable_folder(out)
    inputs = [path for pair in pairs for path in (pair.bg, pair.fg_bg)]
    require_outputs((path for pair in pairs for path in pair.results(out)), COMMAND, inputs)


def predict_files(
    predictor: Predictor,
    pairs: Sequence[Pair],
    out: Path,
    *,
    threshold: float = THRESHOLD,
    align: bool = True,
) -> Iterator[Predicted]:
    """Write NAME_mask.png (0 or 255), NAME_depth.png (8 bit gray) and NAME_side_by_side.png.

    The files go to ``out``, at the size of each pair; yields each pair once it is written. The
    files of a pair appear together. Where the network has learnt depth from a prior, the metadata
    of NAME_depth.png and the picture say so.

    align: move bg onto fg_bg and give it its exposure first (`registration.register`), unless no
        movement is found.

    Raises ModelError for two images of unequal size, and DataError for an unreadable one, a
    folder that cannot be written, or a result that would replace another file than an earlier one.
    """
    require_results(pairs, out)
    about = about_depth(predictor.depth_source)
    for pair in pairs:
        bg, fg_bg = pair.read()
        paths = pair.results(out)
        found = register(bg, fg_bg)
        is_aligned = align and found.found
        if is_aligned:
            bg = found.align(bg)
        mask, depth = predictor.predict_image(bg, fg_bg)
        inside = mask > threshold
        description = "; ".join(filter(None, ("depth: 0 near, 255 far", about)))
        example = Example(bg=bg, fg_bg=fg_bg, mask=inside, depth=depth)
        contents = (
            _png(inside * np.uint8(255)),
            _png(np.round(depth * 255).astype(np.uint8), description),
            predictions_png([example], COMMAND, about),
        )
        make_folder(out)
        replace_together(dict(zip(paths, contents, strict=True)))
        note = f"{pair.fg_bg}: {found.describe(*bg.shape[:2])}"
        note += ("; aligned" if is_aligned else "; bg is used as it is") + _warning(
            found, bg, align
        )
        yield Predicted(paths, note)


def _warning(found: Registration, bg: np.ndarray, align: bool) -> str:
    """A line on a pair whose images differ too much; empty if they do not."""
    if found.similarity is None:
        return (
            "\nWarning: bg shows no details that fg_bg could be compared with; make sure that it "
            "is the same place"
        )
    if found.similarity < SAME_PLACE:
        return (
            f"\nWarning: the two photos may not show the same place: {found.similarity:.0%} of "
            f"their details agree, expected at least {SAME_PLACE:.0%}"
        )
    if not align and found.largest_movement(*bg.shape[:2]) > WORTH_ALIGNING:
        return (
            f"\nWarning: moved by more than {WORTH_ALIGNING:.0%} of the width; leave out --no-align"
        )
    return ""


def _png(pixels: np.ndarray, description: str = "") -> bytes:
    """A gray PNG of uint8 (H, W)."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG", pnginfo=png_mark(COMMAND, description))
    return content.getvalue()


class Pair(NamedTuple):
    """A background, the same scene with a foreground, and the name of their results."""

    name: str
    bg: Path
    fg_bg: Path

    def results(self, out: Path) -> tuple[Path, ...]:
        """Files of mask, depth and picture in a folder."""
        return tuple(out / f"{self.name}_{kind}.png" for kind in ("mask", "depth", "side_by_side"))

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Return bg and fg_bg, uint8 (H, W, 3), RGB.

        Raises DataError for an unreadable image, and ModelError if their sizes differ or one side
        is more than `LONGEST` times the other.
        """
        bg, fg_bg = read_rgb(self.bg), read_rgb(self.fg_bg)
        if bg.shape != fg_bg.shape:
            sizes = [f"{image.shape[1]}x{image.shape[0]}" for image in (bg, fg_bg)]
            raise ModelError(
                f"{self.fg_bg} is {sizes[1]}, but {self.bg} is {sizes[0]}: expected the same scene "
                "in one size"
            )
        height, width = bg.shape[:2]
        if max(height, width) > LONGEST * min(height, width):
            raise ModelError(
                f"{self.fg_bg}: found {width}x{height}, expected at most {LONGEST} times as many "
                "pixels in one direction as in the other; crop the images"
            )
        return bg, fg_bg


def pair_images(bg: str, fg_bg: str) -> list[Pair]:
    """Pair the images that two file names, folders or patterns stand for (`find_images`).

    One background is paired with every image of the other side. Several are paired by equal
    names, without the suffix. Raises ModelError if a composite has no background of its name
    or if two images of one side have one name.
    """
    backgrounds, composites = _by_name(find_images(bg)), _by_name(find_images(fg_bg))
    if len(backgrounds) == 1:
        (background,) = backgrounds.values()
        return [Pair(name, background, path) for name, path in composites.items()]
    for name, path in composites.items():
        if name not in backgrounds:
            raise ModelError(
                f"{path}: found no {name} among the {len(backgrounds)} backgrounds {bg}; expected "
                "one of the same name, or one background for all"
            )
    return [Pair(name, backgrounds[name], path) for name, path in composites.items()]


def find_images(pattern: str) -> list[Path]:
    """Return a file, the images of a folder, or the files that match a pattern, sorted.

    A file that is named is taken as it is. Of a folder and a pattern, results of `predict_files`
    are left out, so that OUT_DIR may be the folder of the photos. Raises ModelError if there is
    no image.
    """
    path = Path(pattern)
    if path.is_dir():
        named = [p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and not p.is_dir()]
    elif path.exists() or not glob.has_magic(pattern):
        return [path]
    else:
        named = [p for p in map(Path, glob.glob(pattern, recursive=True)) if not p.is_dir()]
    found = [p for p in named if not is_output(p, COMMAND)]
    if not found:
        raise ModelError(f"{pattern}: found no image; expected a file, a folder or a pattern")
    return sorted(found)


def _by_name(paths: list[Path]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for path in paths:
        if path.stem in named:
            raise ModelError(f"{path}: has the name of {named[path.stem]}; expected each name once")
        named[path.stem] = path
    return named
