"""Uses a trained network on image files."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
from PIL import Image

from maskdepth.convert.errors import DataError, one_line, raise_all
from maskdepth.convert.files import read_regular
from maskdepth.convert.found import DATA_SET, FILE, SHARDS, found_at
from maskdepth.convert.outputs import png_mark, require_outputs, require_writable_folder
from maskdepth.model.contract import about_depth
from maskdepth.model.errors import ModelError
from maskdepth.model.files import make_folder, replace_together
from maskdepth.model.inference.pairs import COMMAND, Pair
from maskdepth.model.inference.predictor import THRESHOLD, Predictor
from maskdepth.model.inference.registration import SAME_PLACE, Registration, register
from maskdepth.model.pictures import Example, predictions_png

WORTH_ALIGNING = 0.01
"""Movement, as a part of the width, above which `predict` warns if it does not align the images."""


class Predicted(NamedTuple):
    """The files of one pair, and a note on how its two images differ."""

    paths: tuple[Path, ...]
    note: str


def require_results(pairs: Sequence[Pair], out: Path) -> None:
    """Raise DataError unless `predict_files` may write its files to this folder."""
    if (found := found_at(out)) in (SHARDS, DATA_SET):
        raise DataError(f"{out}: found {found}, which would be spoiled; name another OUT_DIR")
    if found == FILE:
        raise DataError(
            f"{out}: found a file, expected a folder for the results; name another place (the "
            "order is CHECKPOINT OUT_DIR)"
        )
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
    resume: bool = False,
) -> Iterator[Predicted]:
    """Write NAME_mask.png (0 or 255), NAME_depth.png (8 bit gray) and NAME_side_by_side.png.

    The files go to ``out``, at the size of each pair; yields each pair once it is written. The
    files of a pair appear together. Where the network has learnt depth from a prior, the metadata
    of NAME_depth.png and the picture say so.

    align: move bg onto fg_bg and give it its exposure first (`registration.register`), unless no
        movement is found.
    resume: leave out pairs whose results are there and were made of equal images by an equal
        network in the same way; the metadata of NAME_mask.png say of what.

    Pairs that cannot be used are left out. Raises an error with all of them at the end: two images
    of unequal size, or an unreadable one. Raises DataError or ModelError at once for a folder that
    cannot be written, or a result that would replace another file than an earlier one.
    """
    require_results(pairs, out)
    network, unusable = predictor.fingerprint(), []
    for pair in pairs:
        paths = pair.results(out)
        try:
            made_of = _made_of(pair, f"{network} {threshold!r} {align}")
            if resume and all(map(Path.is_file, paths)) and _description(paths[0]) == made_of:
                yield Predicted(paths, f"{pair.fg_bg}: is done already")
                continue
            bg, fg_bg = pair.read()
        except (DataError, ModelError) as error:
            unusable.append(error.message)
            continue
        found, same = register(bg, fg_bg), np.array_equal(bg, fg_bg)
        if align:
            bg = found.align(bg)
        mask, depth = predictor.predict_image(bg, fg_bg)
        make_folder(out)
        replace_together(_results(paths, bg, fg_bg, mask > threshold, depth, predictor, made_of))
        note = f"{pair.fg_bg}: {found.describe(*bg.shape[:2])}"
        note += "; aligned" if align and found.found else "; bg is used as it is"
        note += _SAME if same else _warning(found, bg, align)
        yield Predicted(paths, note)
    raise_all(unusable, "these pairs were not predicted")


def _results(
    paths: tuple[Path, ...], bg: np.ndarray, fg_bg: np.ndarray, mask: np.ndarray,
    depth: np.ndarray, predictor: Predictor, made_of: str,
) -> dict[Path, bytes]:  # fmt: skip
    """The files of a pair. The mask is the last, as it says that all are of the same run."""
    about = about_depth(predictor.depth_source)
    description = "; ".join(filter(None, ("depth: 0 near, 255 far", about)))
    example = Example(bg=bg, fg_bg=fg_bg, mask=mask, depth=depth)
    return {
        paths[1]: _png(np.round(depth * 255).astype(np.uint8), description),
        paths[2]: predictions_png([example], COMMAND, about),
        paths[0]: _png(mask * np.uint8(255), made_of),
    }


def _made_of(pair: Pair, how: str) -> str:
    """A hash of the images of a pair and of how they are used. Raises DataError."""
    digest = hashlib.sha256(how.encode())
    for path in (pair.bg, pair.fg_bg):
        try:
            digest.update(hashlib.sha256(read_regular(path)).digest())
        except FileNotFoundError:
            raise DataError(f"{path}: no such file; expected an image") from None
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); fix that") from None
    return f"made of {digest.hexdigest()}"


def _description(path: Path) -> str | None:
    """What the metadata of a mask say; None if it is missing or no image."""
    try:
        with Image.open(path) as image:
            return image.info.get("Description")
    except Exception:  # Pillow's decoders raise almost any exception on corrupt bytes
        return None


@contextmanager
def naming_rest(pairs: Sequence[Pair], out: Path) -> Iterator[list[Predicted]]:
    """Print how many of several pairs are done if the block, which counts them, ends early."""
    done: list[Predicted] = []
    try:
        yield done
    except BaseException:
        if len(pairs) > 1:
            rest = len(pairs) - len(done)
            click.echo(
                f"{one_line(str(out))}: {len(done)} of {len(pairs)} pairs are done, {rest} not; "
                "the same command with --resume does the rest",
                err=True,
            )
        raise


_SAME = (
    "\nWarning: bg and fg_bg are the same image, so there is nothing to find; name the photo "
    "without the person as --bg"
)


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
