"""Estimates the depth maps of composites with a monocular depth model, for a data set without.

Run ``python -m convert depth DATASET --model NAME_OR_PATH``. The model is any of Hugging Face
`transformers` for depth estimation (extra `depth`), by its name on the hub or by its folder.

The maps have the form of those that `compose` writes: a gray JPEG stored as RGB, each stretched
to its own minimum and maximum, dark near and bright far.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from tqdm import tqdm

from convert import jpeg
from convert.dataset.canvas import DEPTH_QUALITY, encode_jpeg, stretch
from convert.errors import DataError, RecordError
from convert.files import (
    publish_folder,
    read_file,
    remove_leftovers,
    replace_folder,
    temporary_folder,
    write_json,
)
from convert.manifest import DEPTH_SOURCES, depth_source
from convert.names import FOLDERS, list_backgrounds, list_jpegs, visible
from convert.outputs import require_writable_folder
from convert.source import DATASET, read_metadata

_METRIC_TYPES = ("depth_pro", "glpn", "zoedepth")  # a ``config.model_type`` that means metres

_REPLACED = ("prior", "estimated")  # what `dataset.json` says of maps that need no ``force``

Predictor = Callable[[list[np.ndarray]], list[np.ndarray]]
"""Images uint8 (H, W, 3), RGB 0..255 -> as many float arrays (h, w), in the model's unit."""

Predicts = Literal["inverse", "metric"]
"""What a model's values grow with: nearness, without a unit (inverse), or distance (metric)."""


@dataclass(frozen=True)
class DepthModel:
    """A loaded model, and how `dataset.json` describes it."""

    name: str
    predict: Predictor
    predicts: Predicts
    library: str = ""  # library that runs it, with its version


@dataclass(frozen=True, kw_only=True)
class Composites:
    """The composites of a data set folder that is ready to be given depth maps."""

    folder: Path
    names: tuple[str, ...]  # like "bg_001/img_0001.jpg", in the order of samples
    metadata: dict[str, object]  # what `dataset.json` says, empty if there is none
    replace: bool  # whether existing depth maps are to be replaced

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
) -> dict[str, Any]:  # JSON has no narrower type
    """Write depth maps of a data set's composites with a model of `transformers`.

    The arguments, the result and the errors are those of `list_composites`, `load_model`,
    `require_replaceable` and `write_depth`. The data set is checked before the model is loaded.
    """
    composites = list_composites(dataset)
    require_writable_folder(composites.folder)
    model = load_model(name, predicts=predicts, device=device)
    require_replaceable(composites, model, force=force)
    return write_depth(composites, model, batch_size=batch_size, progress=progress)


def list_composites(dataset: str | Path) -> Composites:
    """List the composites of a data set with bg/ and fg_bg/; its masks are not needed.

    Raises DataError for a missing or empty folder, a folder that belongs to no background, a file
    that is no .jpg, and an unreadable `dataset.json`.
    """
    folder = Path(dataset)
    groups = folder / FOLDERS["fg_bg"]
    stems = [path.stem for path in list_backgrounds(folder)]
    names: list[str] = []
    for stem in stems:
        group = list_jpegs(groups / stem)
        if not group:
            raise DataError(f"{groups / stem}: found no images, expected at least 1")
        names += (f"{stem}/{name}" for name in group)
    found = {name for name in visible(os.listdir(groups)) if (groups / name).is_dir()}
    for name in sorted(found - set(stems)):
        raise DataError(
            f"{groups / name}: found a folder without a background, expected "
            f"{folder / 'bg' / name}.jpg; add that or move the folder away"
        )
    target = folder / FOLDERS["depth"]
    remove_leftovers(target)  # maps that a killed run was replacing are there again
    replace = os.path.lexists(target)
    metadata = read_metadata(folder)
    return Composites(folder=folder, names=tuple(names), metadata=metadata, replace=replace)


def require_replaceable(composites: Composites, model: DepthModel, *, force: bool) -> None:
    """Raise DataError if maps that are worth more than estimates would be replaced without force.

    By `dataset.json`, these are all but the prior of `compose` and estimates.
    """
    source = depth_source(composites.metadata)
    if not composites.replace or force or source in _REPLACED:
        return
    about = DEPTH_SOURCES.get(source, "not known where from")
    raise DataError(
        f"{composites.folder / FOLDERS['depth']}: found depth maps ({about}), which "
        f"estimates of {model.name} would replace; add --force to replace them"
    )


def write_depth(
    composites: Composites, model: DepthModel, *, batch_size: int = 16, progress: bool = True
) -> dict[str, Any]:  # JSON has no narrower type
    """Write the depth map of each composite; returns what `dataset.json` then says.

    Maps have the name and size of their composite. ``batch_size``: images given to the model at
    once. All maps appear together at the end, and `dataset.json` then says that depth is estimated
    and by which model. If anything fails, the data set does not change.

    Raises RecordError for a composite that cannot be read or whose prediction is not finite, and
    DataError if the maps cannot be written.
    """
    count, target = len(composites.names), composites.folder / FOLDERS["depth"]
    about = {"name": model.name, "predicts": model.predicts, "library": model.library}
    depth = {"depth": "estimated", "depth_model": about | {"images": count}}
    metadata = composites.metadata | depth
    with temporary_folder(target) as work:
        with tqdm(total=count, desc="depth", unit="image", disable=not progress) as bar:
            for start in range(0, count, batch_size):
                indices = range(start, min(start + batch_size, count))
                _write_batch(composites, model, indices, work)
                bar.update(len(indices))
        write_json(work / DATASET, metadata)
        if os.path.lexists(target) and not composites.replace:
            raise DataError(f"{target}: written meanwhile and kept; add --force to replace it")
        if composites.replace:
            replace_folder(work, target)
        else:
            publish_folder(work, target)
        # A run killed right here leaves dataset.json among the maps, and `pack` refuses that.
        (target / DATASET).replace(composites.folder / DATASET)
    return metadata


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
        data, _ = read_file(path)
        reason = jpeg.read_header(data).refusal
        if reason is None:
            return jpeg.decode_rgb(data)
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
    except ValueError as error:
        reason = f"{error}; fix or replace the file"
    raise RecordError(index, "fg_bg", str(path), reason)


def encode(depth: np.ndarray, predicts: Predicts, size: tuple[int, int]) -> bytes:
    """JPEG of a prediction, float (h, w), at ``size`` (H, W): 0 nearest, 255 farthest, RGB.

    Inverse depth is negated, not inverted: relative models have an unknown scale and zero, so
    1 / x would not be distance either. A flat prediction becomes 0.
    """
    image = Image.fromarray(np.asarray(depth, np.float32))
    if depth.shape != size:
        image = image.resize(size[::-1], Image.Resampling.BILINEAR)
    far = np.asarray(image, np.float64) * (-1 if predicts == "inverse" else 1)
    gray = Image.fromarray(stretch(far))
    return encode_jpeg(gray.convert("RGB"), DEPTH_QUALITY, optimize=True)


def load_model(
    name: str, *, predicts: Predicts | None = None, device: str | None = None
) -> DepthModel:
    """Load a depth model of `transformers`, by its name on the hub (downloaded once) or its folder.

    ``predicts``: by default from the model's configuration, which states it for some metric
    models; otherwise inverse. ``device``: as torch names it ("cpu", "cuda:1"), by default the first
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
    except Exception as error:  # transformers passes on the exceptions of many libraries
        raise DataError(
            f"{name}: cannot be loaded as a depth model ({_one_line(error)}); expected a model "
            "for depth estimation of the Hugging Face hub, or the folder of one"
        ) from None
    predicts = predicts or _configured(run.model.config)
    library = f"transformers {transformers.__version__}"
    return DepthModel(name, _predictor(name, run), predicts, library)


def _configured(config: Any) -> Predicts:  # transformers is optional and has no types
    """What a model predicts by its configuration; inverse if that does not say."""
    is_metric = getattr(config, "depth_estimation_type", None) == "metric"
    return "metric" if is_metric or config.model_type in _METRIC_TYPES else "inverse"


def _predictor(name: str, run: Callable[..., Any]) -> Predictor:  # a pipeline has no types
    """Predictor of a depth-estimation pipeline; its failures become a DataError."""

    def predict(images: list[np.ndarray]) -> list[np.ndarray]:
        try:
            found = run([Image.fromarray(image) for image in images], batch_size=len(images))
            # Copying to the CPU waits for the GPU.
            maps = [one["predicted_depth"].float().cpu().numpy() for one in found]
        except Exception as error:
            raise DataError(
                f"{name}: failed on {len(images)} images ({_one_line(error)}); try a smaller "
                "--batch-size, or another model"
            ) from error
        return [one.reshape(one.shape[-2:]) for one in maps]

    return predict


def _one_line(error: Exception) -> str:
    """Message of another library's exception in one line of at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + " ..."
