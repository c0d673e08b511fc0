"""Validation images with fg_bg changed as by another photo: moved, with another exposure, noisy.

The changes are made with OpenCV and NumPy from draws of their own, so that training, which
augments with `loaders.camera`, never sees them.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
import torch
from torch import Tensor

from maskdepth.model.contract import Batch
from maskdepth.model.errors import ModelError
from maskdepth.model.inference.registration import register

REFERENCE_SIDE = 224
"""Movements are given in pixels of an image with this side; larger images move further."""
SEED = 224


@dataclass(frozen=True, kw_only=True)
class Disturbance:
    """The largest changes of fg_bg; each sample draws its own, uniform up to these.

    shift: along each axis, in pixels of an image with a side of `REFERENCE_SIDE`.
    rotation: in degrees.
    zoom: relative change of size.
    gain: relative change of each colour channel.
    offset: added to each colour channel, in levels of 0..255.
    gamma: change of the exponent.
    noise: standard deviation, in levels of 0..255; every sample has it.
    quality: of the JPEG that fg_bg is saved as at the end; None saves none.
    """

    shift: float = 0.0
    rotation: float = 0.0
    zoom: float = 0.0
    gain: float = 0.0
    offset: float = 0.0
    gamma: float = 0.0
    noise: float = 0.0
    quality: int | None = None

    def __str__(self) -> str:
        named = {
            "shift": f"shift {self.shift:.3g} px",
            "rotation": f"rotation {self.rotation:g} degrees",
            "zoom": f"zoom {self.zoom:.1%}", "gain": f"gain {self.gain:.1%}",
            "offset": f"offset {self.offset:g} levels", "gamma": f"gamma {self.gamma:g}",
            "noise": f"noise {self.noise:g} levels", "quality": f"JPEG quality {self.quality}",
        }  # fmt: skip
        found = [text for name, text in named.items() if getattr(self, name)]
        return ", ".join(found) or "the composites as they are"


def moved_by(pixels: float) -> Disturbance:
    """A movement of up to ``pixels``, with exposure and noise that grow with it."""
    return Disturbance(shift=pixels, gain=0.05 * pixels, noise=3 * pixels)


UNDISTURBED = Disturbance()
DISTURBANCES = {
    "none": UNDISTURBED,
    "mild": moved_by(1),
    "strong": Disturbance(
        shift=3, rotation=0.3, zoom=0.005, gain=0.15, offset=6, gamma=0.1, noise=9, quality=75
    ),
    "handheld": Disturbance(
        shift=0.03 * REFERENCE_SIDE, rotation=0.5, zoom=0.01, gain=0.05, noise=3
    ),
}
"""Disturbances by the name of a camera. handheld: a movement of up to 3 % of the side."""
LARGEST_PIXELS = 16.0


def load_disturbance(name: str) -> Disturbance:
    """The disturbance by its name, or `moved_by` a number of pixels.

    Raises ModelError for any other name.
    """
    if name in DISTURBANCES:
        return DISTURBANCES[name]
    try:
        pixels = float(name)
    except ValueError:
        pixels = -1
    if not 0 <= pixels <= LARGEST_PIXELS:
        raise ModelError(
            f"camera {name!r}: expected one of {', '.join(DISTURBANCES)}, or the pixels of a "
            f"movement from 0 to {LARGEST_PIXELS:g}"
        )
    return moved_by(pixels)


def disturb(batch: Batch, disturbance: Disturbance) -> Batch:
    """The batch with fg_bg changed as by another photo; mask and depth move with it.

    The changes of a sample depend on `SEED` and its index alone. New borders repeat the old ones.
    """
    draws = [np.random.default_rng((SEED, int(index))) for index in batch.index.tolist()]
    images = [
        field.permute(0, 2, 3, 1).cpu().numpy() for field in (batch.fg_bg, batch.mask, batch.depth)
    ]
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        changed = threads.map(partial(_disturb, disturbance), draws, *images)
        fields = [np.stack(field) for field in zip(*changed, strict=True)]
    device = batch.fg_bg.device
    fg_bg, mask, depth = (torch.from_numpy(f).permute(0, 3, 1, 2).to(device) for f in fields)
    return batch._replace(fg_bg=fg_bg, mask=mask, depth=depth)


def _disturb(
    disturbance: Disturbance,
    draws: np.random.Generator,
    fg_bg: np.ndarray,
    mask: np.ndarray,
    depth: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One sample, uint8 (H, W, C) each."""
    height, width = fg_bg.shape[:2]
    signed = draws.uniform(-1, 1, 11)
    centre = ((width - 1) / 2, (height - 1) / 2)
    turned = signed[2] * disturbance.rotation
    matrix = cv2.getRotationMatrix2D(centre, turned, 1 + signed[3] * disturbance.zoom)
    matrix[:, 2] += signed[:2] * disturbance.shift * width / REFERENCE_SIDE
    move = partial(cv2.warpAffine, M=matrix, dsize=(width, height), borderMode=cv2.BORDER_REPLICATE)
    values = move(fg_bg, flags=cv2.INTER_LINEAR).astype(np.float64)
    values = 255 * (values / 255) ** (1 + signed[4] * disturbance.gamma)
    values = values * (1 + signed[5:8] * disturbance.gain) + signed[8:11] * disturbance.offset
    values += draws.normal(0, 1, values.shape) * disturbance.noise
    photo = values.round().clip(0, 255).astype(np.uint8)
    if disturbance.quality is not None:
        bgr = photo[..., ::-1]
        _, data = cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, disturbance.quality))
        photo = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))[..., ::-1]
    mask = move(mask, flags=cv2.INTER_NEAREST)
    return photo, mask[..., None], move(depth, flags=cv2.INTER_LINEAR)[..., None]


def align_backgrounds(bg: Tensor, fg_bg: Tensor) -> Tensor:
    """Each background moved onto its fg_bg, with its exposure; uint8 (B, 3, H, W) like both."""
    pairs = [image.permute(0, 2, 3, 1).cpu().numpy() for image in (bg, fg_bg)]
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        aligned = list(threads.map(lambda b, f: register(b, f).align(b), *pairs))
    return torch.from_numpy(np.stack(aligned)).permute(0, 3, 1, 2).to(bg.device)
