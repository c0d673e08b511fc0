"""A trained network as one module from pixels to mask and depth."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskdepth.model.checkpoint import NetworkInfo
from maskdepth.model.losses import depth_values
from maskdepth.model.unet import DualDecoderUNet

THRESHOLD = 0.5
"""Of the mask's probability, above which a pixel is of the person."""
MULTIPLE = 8
"""Of the sides of the network's input, which is halved three times."""


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

    def fingerprint(self) -> str:
        """A hash, in hex, that is equal for predictors with the same weights and arithmetic."""
        digest = hashlib.sha256(f"{self.size} {self.depth_loss} {self.depth_source}".encode())
        for name, value in self.state_dict().items():
            digest.update(name.encode())
            digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

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
