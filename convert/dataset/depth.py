"""Depth maps of the composites from a monocular depth model, for a data set that has none.

Run ``python -m convert depth DATASET --model NAME_OR_PATH``. The model is any of Hugging Face
`transformers` for depth estimation (extra `depth`), by its name on the hub or by its folder.

A map is what the data set's own are: a gray JPEG stored as RGB, each image stretched to its own
minimum and maximum, near dark and far bright.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from tqdm import tqdm

from convert import jpeg
from convert.errors import DataError, RecordError
from convert.files import write_json
from convert.source import DATASET, FOLDERS, list_backgrounds, list_jpegs

QUALITY = 75
METRIC_TYPES = ("depth_pro", "glpn", "zoedepth")
"""Values of a model's ``config.model_type`` that always mean metres."""

Predictor = Callable[[list[np.ndarray]], list[np.ndarray]]
"""Images uint8 (H, W, 3), RGB 0..255 -> as many float arrays (h, w), in the unit of the model."""

Predicts = Literal["inverse", "metric"]
"""What a model's values grow with: nearness, in no unit (inverse), or distance (metric)."""


@dataclass(frozen=True, kw_only=True)
class DepthModel:
    """A model in memory, and what its depth maps shall be known by."""

    name: str
    predict: Predictor
    predicts: Predicts
    library: str = ""
    """Library and version that ran it."""


@dataclass(frozen=True, kw_only=True)
class Composites:
    """The composites of a data set folder, which is ready to be given depth maps."""

    folder: Path
    names: tuple[str, ...]
    """Sorted, like "bg_001/img_0001.jpg"."""
    facts: dict[str, Any]
    """What `dataset.json` says, empty where there is none."""
    replace: bool
    """There are depth maps already, to be replaced."""

    def path(self, index: int) -> Path:
        """File of one composite."""
        return self.folder / FOLDERS["fg_bg"] / self.names[index]


def estimate(
    dataset: str | Path,
    name: str,
    *,
    predicts: Predicts | None = None,
    batch_size: int = 16,
    device: str | None = None,
    force: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Write depth maps of a data set's composites with a model of `transformers`.

    ``force``: replace depth maps that are there. See `load_model` for ``name``, ``predicts`` and
    ``device``, `write_depth` for the rest and for what is returned. The data set is looked at
    before a model is loaded. Raises DataError or RecordError as those do.
    """
    composites = list_composites(dataset, force=force)
    model = load_model(name, predicts=predicts, device=device)
    return write_depth(composites, model, batch_size=batch_size, progress=progress)


def list_composites(dataset: str | Path, *, force: bool = False) -> Composites:
    """Composites of a data set with bg/ and fg_bg/; its masks are not looked at.

    Raises DataError for a missing or empty folder, one that belongs to no background, a file
    that is no .jpg, an unreadable `dataset.json`, and depth maps that are there without ``force``.
    """
    folder = Path(dataset)
    names = tuple(_names(folder))
    target = folder / FOLDERS["depth"]
    replace = os.path.lexists(target)
    if replace and not force:
        raise DataError(f"{target}: found depth maps already; add --force to replace them")
    facts = _read_facts(folder / DATASET)
    return Composites(folder=folder, names=names, facts=facts, replace=replace)


def _names(folder: Path) -> Iterator[str]:
    """Composites in the order of samples, like "bg_001/img_0001.jpg"."""
    stems = [path.stem for path in list_backgrounds(folder)]
    groups = folder / FOLDERS["fg_bg"]
    for stem in stems:
        group = list_jpegs(groups / stem)
        if not group:
            raise DataError(f"{groups / stem}: found no images, expected at least 1")
        yield from (f"{stem}/{name}" for name in group)
    found = {path.name for path in groups.iterdir() if path.is_dir()}
    for name in sorted(found - set(stems)):
        if name[0] != ".":
            raise DataError(
                f"{groups / name}: found a folder without a background, expected "
                f"{folder / 'bg' / name}.jpg; add that or move the folder away"
            )


def _read_facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(facts, dict):
            raise ValueError("not an object")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); mend or delete it") from None
    return facts


def write_depth(
    composites: Composites, model: DepthModel, *, batch_size: int = 16, progress: bool = True
) -> dict[str, Any]:
    """Write the depth map of each composite; returns what `dataset.json` then holds.

    Maps have the name and size of their composite. ``batch_size``: images given to the model at
    once. All maps appear together at the end, and `dataset.json` says that depth is estimated
    and by what. On any failure the data set is as it was.

    Raises RecordError for a composite that cannot be read or whose prediction is of no use, and
    DataError where nothing can be written.
    """
    count = len(composites.names)
    about = {"name": model.name, "predicts": model.predicts, "library": model.library}
    facts = composites.facts | {"depth": "estimated", "depth_model": about | {"images": count}}
    with (
        _work_folder(composites.folder / FOLDERS["depth"]) as work,
        tqdm(total=count, desc="depth", unit="image", disable=not progress) as bar,
    ):
        for start in range(0, count, batch_size):
            indices = range(start, min(start + batch_size, count))
            _write_batch(composites, model, indices, work)
            bar.update(len(indices))
        _publish(work, composites, facts)
    return facts


def _write_batch(composites: Composites, model: DepthModel, indices: range, work: Path) -> None:
    """Predict and write the depth maps of a few composites."""
    images = [_read(composites, index) for index in indices]
    for index, image, depth in zip(indices, images, model.predict(images), strict=True):
        if not np.isfinite(depth).all():
            reason = f"{model.name} predicted values that are not finite; use another model"
            raise RecordError(index, "depth", str(composites.path(index)), reason)
        path = work / composites.names[index]
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode(depth, model.predicts, image.shape[:2]))


def _read(composites: Composites, index: int) -> np.ndarray:
    """Pixels of one composite, uint8 (H, W, 3); RecordError if `pack` would refuse it."""
    path = composites.path(index)
    try:
        data = path.read_bytes()
        reason = jpeg.read_header(data).refusal
        if reason is None:
            return jpeg.decode_rgb(data)
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
    except ValueError as error:
        reason = f"{error}; mend or replace the file"
    raise RecordError(index, "fg_bg", str(path), reason)


def encode(depth: np.ndarray, predicts: Predicts, size: tuple[int, int]) -> bytes:
    """JPEG of a prediction, float (h, w), at ``size`` (H, W): 0 nearest, 255 farthest, RGB.

    Inverse depth is turned round, not inverted: its scale and zero are unknown in all relative
    models, so that 1 / x would not be distance either. A flat prediction becomes 0.
    """
    image = Image.fromarray(np.asarray(depth, np.float32))
    if depth.shape != size:
        image = image.resize(size[::-1], Image.Resampling.BILINEAR)
    far = np.asarray(image, np.float64) * (-1 if predicts == "inverse" else 1)
    far -= far.min()
    gray = np.rint(far * (255 / (far.max() or 1))).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(gray).convert("RGB").save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return buffer.getvalue()


def load_model(
    name: str, *, predicts: Predicts | None = None, device: str | None = None
) -> DepthModel:
    """A depth model of `transformers`, by its name on the hub (fetched once) or its folder.

    ``predicts``: None asks the model's configuration, which knows it for some metric models and
    else counts as inverse. ``device``: as torch names it ("cpu", "cuda:1"); None: the first
    accelerator, or the CPU. The model's own processor scales the images to its input size.

    Raises DataError if `transformers` is not installed or the model cannot be loaded.
    """
    try:
        import transformers
        from transformers import pipeline
    except ImportError as error:
        raise DataError(
            f"depth models need the package transformers, which cannot be imported ({error}); "
            "install it with `pip install .[depth]`"
        ) from None
    try:
        run = pipeline("depth-estimation", model=name, device=device)
    except Exception as error:  # many libraries, each with its own
        raise DataError(
            f"{name}: cannot be loaded as a depth model ({_one_line(error)}); expected a model "
            "for depth estimation of the Hugging Face hub, or the folder of one"
        ) from None
    return DepthModel(
        name=name,
        predict=_predictor(name, run),
        predicts=predicts or _what_it_predicts(run.model.config),
        library=f"transformers {transformers.__version__}",
    )


def _what_it_predicts(config: Any) -> Predicts:
    """What a model's configuration says of its values; inverse where it says nothing."""
    metric = getattr(config, "depth_estimation_type", None) == "metric"
    return "metric" if metric or config.model_type in METRIC_TYPES else "inverse"


def _predictor(name: str, run: Callable[..., Any]) -> Predictor:
    """Predictor of a depth-estimation pipeline; its failures become a DataError."""

    def predict(images: list[np.ndarray]) -> list[np.ndarray]:
        try:
            found = run([Image.fromarray(image) for image in images], batch_size=len(images))
            # Copied to the CPU: this waits for the GPU.
            maps = [one["predicted_depth"].float().cpu().numpy() for one in found]
        except Exception as error:
            raise DataError(
                f"{name}: failed on {len(images)} images ({_one_line(error)}); try a smaller "
                "--batch-size, or another model"
            ) from error
        return [one.reshape(one.shape[-2:]) for one in maps]

    return predict


def _one_line(error: Exception) -> str:
    """An error of another library, in one line of bearable length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + " ..."


@contextmanager
def _work_folder(target: Path) -> Iterator[Path]:
    """A hidden sibling of ``target``, gone at the end; OSErrors of writing become a DataError."""
    work = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        work.mkdir()
        yield work
    except OSError as error:
        raise DataError(
            f"{target}: cannot be written ({error}); free some space, or mend the rights"
        ) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _publish(work: Path, composites: Composites, facts: dict[str, Any]) -> None:
    """Put the depth maps and `dataset.json` in place: after the first line, renames alone."""
    write_json(work / DATASET, facts)
    target = composites.folder / FOLDERS["depth"]
    old = work.with_name(f"{work.name}.old")
    if composites.replace:
        target.rename(old)
    try:
        work.rename(target)
    except BaseException:
        if composites.replace:
            old.rename(target)
        raise
    (target / DATASET).replace(composites.folder / DATASET)
    _remove(old)


def _remove(path: Path) -> None:
    """Remove a folder, or the link to one, if it is there."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)
