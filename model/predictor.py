"""A trained network as one module from pixels to mask and depth, and its use on image files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.checkpoint import NetworkInfo
from model.errors import ModelError
from model.files import make_folder, require_writable
from model.images import Pair, write_gray
from model.losses import depth_values
from model.pictures import Example, prediction_grid
from model.unet import DualDecoderUNet

KINDS = ("mask", "depth", "side_by_side")


class Predictor(nn.Module):
    """Normalisation, network and final activation in one module, for use and for export.

    It repeats the arithmetic of `loaders.Preprocess`, which needs a data set; a test holds
    the two together.
    """

    def __init__(self, network: DualDecoderUNet, info: NetworkInfo) -> None:
        super().__init__()
        self.network = network.eval()
        self.size = info.size
        self.depth_loss = info.depth_loss
        for name in ("bg", "fg_bg"):
            statistics = info.statistics[name]
            std = torch.tensor(statistics.std, dtype=torch.float64)
            mean = torch.tensor(statistics.mean, dtype=torch.float64)
            self.register_buffer(f"{name}_scale", (1 / (255 * std)).float().view(1, 3, 1, 1))
            self.register_buffer(f"{name}_shift", (-mean / std).float().view(1, 3, 1, 1))

    def forward(self, bg: Tensor, fg_bg: Tensor) -> tuple[Tensor, Tensor]:
        """Mask probability and depth, both float32 (B, 1, S, S) in 0..1.

        bg, fg_bg: uint8 or float (B, 3, S, S), RGB in 0..255, S the size of training.
        """
        bg = bg.float() * self.get_buffer("bg_scale") + self.get_buffer("bg_shift")
        fg_bg = fg_bg.float() * self.get_buffer("fg_bg_scale") + self.get_buffer("fg_bg_shift")
        mask_logits, depth = self.network(bg, fg_bg)
        return mask_logits.sigmoid(), depth_values(depth, self.depth_loss).clamp(0, 1)

    @torch.inference_mode()
    def predict_image(self, bg: np.ndarray, fg_bg: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mask probability and depth of one pair, float32 (H, W) in 0..1, in its own size.

        bg, fg_bg: uint8 (H, W, 3), RGB, of equal size.
        """
        device = self.get_buffer("bg_scale").device
        pair = torch.from_numpy(np.stack([bg, fg_bg])).to(device).permute(0, 3, 1, 2)
        height, width = pair.shape[-2:]
        small = resize(pair, self.size)
        results = torch.cat(self(small[:1], small[1:]))
        if (height, width) != (self.size, self.size):
            results = F.interpolate(results, size=(height, width), mode="bilinear")
        mask, depth = results[:, 0].cpu().numpy()  # host sync: once an image
        return mask, depth


def resize(images: Tensor, size: int) -> Tensor:
    """uint8 (B, 3, H, W) -> float32 (B, 3, size, size) in 0..255, by the rule of training.

    A smaller result takes the mean of each new pixel's area, a larger one is bilinear.
    """
    height, width = images.shape[-2:]
    values = images.float()
    if (height, width) == (size, size):
        return values
    if size <= height and size <= width:
        return F.interpolate(values, size=(size, size), mode="area")
    return F.interpolate(values, size=(size, size), mode="bilinear", antialias=True)


def predict_files(
    predictor: Predictor, pairs: Sequence[Pair], out: Path, threshold: float = 0.5
) -> Iterator[Path]:
    """Write NAME_mask.png (0 or 255), NAME_depth.png (8 bit gray) and NAME_side_by_side.png.

    Into ``out``, in the size of each pair's images; yields each path when it is written. Raises
    ModelError for an unreadable image, two of unequal size, or a folder that cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise ModelError(f"{out}: found a file, expected a folder for the results")
    for pair in pairs:
        bg, fg_bg = pair.read()
        mask_path, depth_path, picture_path = (out / f"{pair.name}_{kind}.png" for kind in KINDS)
        for path in (mask_path, depth_path, picture_path):
            require_writable(path)
        mask, depth = predictor.predict_image(bg, fg_bg)
        make_folder(out)
        write_gray(mask_path, (mask > threshold) * np.uint8(255))
        write_gray(depth_path, np.round(depth * 255).astype(np.uint8))
        prediction_grid(picture_path, [Example(bg=bg, fg_bg=fg_bg, mask=mask, depth=depth)])
        yield from (mask_path, depth_path, picture_path)
