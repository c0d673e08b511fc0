"""Pastes foregrounds into a background and its depth map, and encodes the results."""

import io

import numpy as np
from PIL import Image

DEPTH_QUALITY = 75
# A foreground is at most this share of the way from the nearest to the farthest depth. One pasted
# on the sky would otherwise have the sky's depth and be invisible in the depth map.
FARTHEST_SHARE = 0.5


class Cutout:
    """One scaled foreground, from RGBA uint8 (h, w, 4), in the forms that pasting needs."""

    def __init__(self, rgba: np.ndarray) -> None:
        self.inside = rgba[..., 3] != 0
        self.colour = Image.fromarray(np.ascontiguousarray(rgba[..., :3]))
        self.stencil = Image.fromarray(self.inside.astype(np.uint8) * 255)


def paste(image: Image.Image, cutout: Cutout, x: int, y: int) -> tuple[Image.Image, Image.Image]:
    """Paste a foreground into a copy of ``image``, its top-left corner at column ``x``, row ``y``.

    Returns fg_bg RGB and mask L of 0 and 255.
    """
    fg_bg = image.copy()
    fg_bg.paste(cutout.colour, (x, y), cutout.stencil)
    mask = Image.new("L", fg_bg.size)
    mask.paste(cutout.stencil, (x, y))
    return fg_bg, mask


class Canvas:
    """One background and its depth, prepared for pasting many foregrounds.

    ``image``: uint8 (size, size, 3) RGB; ``depth``: float32 (size, size), metres or any unit that
    grows with distance.
    """

    def __init__(self, image: np.ndarray, depth: np.ndarray) -> None:
        self._image, self._depth = Image.fromarray(image), depth
        self._gray = stretch(depth)
        self._gray_rgb = Image.fromarray(self._gray).convert("RGB")
        self._is_farthest = depth == depth.max()
        self._farthest_count = int(self._is_farthest.sum())

    def paste(self, cutout: Cutout, x: int, y: int) -> tuple[Image.Image, Image.Image, Image.Image]:
        """Paste a foreground with its top-left corner at column ``x``, row ``y``.

        Returns new images: fg_bg RGB, mask L of 0 and 255, and depth RGB with three equal
        channels, 0 nearest and 255 farthest.
        """
        return *paste(self._image, cutout, x, y), self._paste_depth(cutout, x, y)

    def _paste_depth(self, cutout: Cutout, x: int, y: int) -> Image.Image:
        """Depth with the foreground at the nearest depth that it covers, or at FARTHEST_SHARE.

        This keeps the minimum, and also the maximum unless all farthest pixels are covered. So
        nearly always the background's stretched bytes stay valid, and only those covered change.
        """
        inside = cutout.inside
        box = np.s_[y : y + inside.shape[0], x : x + inside.shape[1]]
        if np.count_nonzero(self._is_farthest[box] & inside) < self._farthest_count:
            image = self._gray_rgb.copy()
            limit = round(255 * FARTHEST_SHARE)
            gray = int(self._gray[box].min(where=inside, initial=limit))
            image.paste((gray, gray, gray), (x, y), cutout.stencil)
            return image
        depth = self._depth.copy()
        near, far = float(depth.min()), float(depth.max())
        farthest = near + FARTHEST_SHARE * (far - near)
        depth[box][inside] = min(farthest, float(depth[box][inside].min()))
        return Image.fromarray(stretch(depth)).convert("RGB")


def stretch(depth: np.ndarray) -> np.ndarray:
    """Map depth linearly to uint8, the nearest to 0 and the farthest to 255; a flat map to 0."""
    near, far = float(depth.min()), float(depth.max())
    return np.rint((depth - near) * (255 / max(far - near, 1e-9))).astype(np.uint8)


def encode_jpeg(image: Image.Image, quality: int, *, optimize: bool = False) -> bytes:
    """Encode a JPEG; ``optimize`` gives it Huffman tables of its own."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=optimize)
    return buffer.getvalue()
