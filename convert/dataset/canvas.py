"""Pastes people into a background and its depth."""

import numpy as np
from PIL import Image

# A person is at most this share of the way from the nearest to the farthest depth: one pasted on
# the sky would otherwise have the sky's depth, and not be in the depth map at all.
FARTHEST_PERSON = 0.5


class Cutout:
    """One scaled person: RGBA uint8 (h, w, 4), in the forms that pasting needs."""

    def __init__(self, rgba: np.ndarray) -> None:
        self.inside = rgba[..., 3] != 0
        self.colour = Image.fromarray(np.ascontiguousarray(rgba[..., :3]))
        self.stencil = Image.fromarray(self.inside.astype(np.uint8) * 255)


class Canvas:
    """One background and its depth, ready to have people pasted in.

    ``image`` uint8 (size, size, 3) RGB; ``depth`` float32 (size, size), metres or any unit that
    grows with distance.
    """

    def __init__(self, image: np.ndarray, depth: np.ndarray) -> None:
        self._image = Image.fromarray(image)
        self._metres = depth
        self._gray = _stretch(depth)
        self._gray_rgb = Image.fromarray(self._gray).convert("RGB")
        self._is_far = depth == depth.max()
        self._far_count = int(self._is_far.sum())

    def paste(self, person: Cutout, x: int, y: int) -> tuple[Image.Image, Image.Image, Image.Image]:
        """Put ``person`` with its top-left corner at column ``x``, row ``y``.

        Returns new images: fg_bg RGB, mask L of 0 and 255, and depth RGB with three equal
        channels, 0 nearest and 255 farthest.
        """
        fg_bg = self._image.copy()
        fg_bg.paste(person.colour, (x, y), person.stencil)
        mask = Image.new("L", fg_bg.size)
        mask.paste(person.stencil, (x, y))
        return fg_bg, mask, self._paste_depth(person, x, y)

    def _paste_depth(self, person: Cutout, x: int, y: int) -> Image.Image:
        """Depth with the person at the nearest depth that it covers, at most FARTHEST_PERSON.

        That leaves the minimum as it is, and the maximum unless all farthest pixels are
        covered: so nearly always the background's stretch holds, on bytes alone.
        """
        inside = person.inside
        box = np.s_[y : y + inside.shape[0], x : x + inside.shape[1]]
        if np.count_nonzero(self._is_far[box] & inside) < self._far_count:
            depth = self._gray_rgb.copy()
            farthest = round(255 * FARTHEST_PERSON)
            nearest = int(self._gray[box].min(where=inside, initial=farthest))
            depth.paste((nearest, nearest, nearest), (x, y), person.stencil)
            return depth
        metres = self._metres.copy()
        near, far = float(metres.min()), float(metres.max())
        limit = near + FARTHEST_PERSON * (far - near)
        metres[box][inside] = min(limit, float(metres[box][inside].min()))
        return Image.fromarray(_stretch(metres)).convert("RGB")


def _stretch(depth: np.ndarray) -> np.ndarray:
    """Map the nearest to 0 and the farthest to 255, linearly, uint8; a flat map becomes 0."""
    near, far = float(depth.min()), float(depth.max())
    return np.rint((depth - near) * (255 / max(far - near, 1e-9))).astype(np.uint8)
