"""What a real camera does to one of two photos of a place, as augmentation on the device.

In a composite, bg and fg_bg agree to the pixel outside the foreground. Two photos never do: the
camera has moved, the exposure differs, there are noise and a shadow. A network that has not seen
this takes every difference for the foreground.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional

from maskdepth.loaders.options import expect

DRAWS = {
    "strength": 1, "recolour": 3,
    "shadow": 1, "flatness": 1, "slant": 1,
    "moves_fg_bg": 1, "rotation": 1, "zoom": 1, "shift": 2,
    "exposes_fg_bg": 1, "exposure": 1, "balance": 3, "gradient": 2, "offset": 3, "gamma": 1,
    "blur": 1, "noise": 1, "grain": 1, "coarseness": 1,
}  # fmt: skip
"""Draws of a sample by name, in order, and the number of each."""
COLUMNS = sum(DRAWS.values())
_NOISE_VALUES = 1 << 20
_SHADOW_BLUR = 28  # the side of the image by the radius of the shadow's blur
_LUMA_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA_TABLE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *[(99,) * 8] * 4,
)
_TO_YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


@dataclass(frozen=True, kw_only=True)
class Camera:
    """Random differences between bg and fg_bg, drawn for each sample.

    share: of the samples that are changed, 0 to 1. The strength of a changed sample is the square
        of a uniform value in 0..1: most photos differ little. The values below are the largest, at
        strength 1.
    shift: movement along each axis, as a part of the side.
    rotation: in degrees.
    zoom: relative change of size.
    gain: relative change of each colour channel; half of it is common to all channels.
    offset: added to each colour channel, in 0..1.
    gamma: change of the exponent.
    gradient: relative change of the light from one side of the image to the other.
    blur: weight of the image filtered by a 3x3 binomial.
    noise: standard deviation, in 0..1.
    quality: lowest quality of the JPEG that the image is saved as, 1 to 100; 100 saves none.
    shadow: share of the light that the foreground's shadow takes.
    recolour: relative change of each colour channel of the foreground, at any strength above 0.

    Raises DataError for values out of range.
    """

    share: float = 0.8
    shift: float = 0.03
    rotation: float = 0.5
    zoom: float = 0.01
    gain: float = 0.12
    offset: float = 0.05
    gamma: float = 0.15
    gradient: float = 0.1
    blur: float = 0.5
    noise: float = 0.02
    quality: float = 60
    shadow: float = 0.4
    recolour: float = 0.3

    def __post_init__(self) -> None:
        for field in fields(self):
            low, high = {"rotation": (0, 45), "quality": (1, 100)}.get(field.name, (0, 1))
            expect(f"{field.name} of the camera", getattr(self, field.name), low, high)

    def __call__(
        self, bg: Tensor, fg_bg: Tensor, mask: Tensor, depth: Tensor, draws: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Changed copies of bg, fg_bg, mask and depth, of the same shapes and ranges.

        bg, fg_bg: float32 (B, 3, S, S) in 0..1. mask: float32 (B, 1, S, S), 0 or 1. depth: float32
        (B, 1, S, S). draws: float32 (B, COLUMNS) in [0, 1).

        The foreground's colours and shadow change fg_bg. The movement changes bg, or fg_bg with its
        mask and depth; the light, the blur, the noise and the JPEG change one of the two as well.
        """
        named = dict(zip(DRAWS, draws.split(list(DRAWS.values()), dim=1), strict=True))
        chance = {name: values[:, :, None, None] for name, values in named.items()}
        share = max(self.share, 1e-9)
        strength = torch.where(chance["strength"] < share, (chance["strength"] / share) ** 2, 0)
        signed = {name: (values * 2 - 1) * strength for name, values in chance.items()}
        recolour = torch.where(strength > 0, chance["recolour"] * 2 - 1, 0) * self.recolour
        fg_bg = fg_bg * (1 + mask * recolour)
        fg_bg = fg_bg * (1 - self._shadow(mask, chance, strength))

        moves = chance["moves_fg_bg"] < 0.5
        chosen = torch.cat([torch.where(moves, fg_bg, bg), mask, depth], dim=1)
        moved, moved_mask, moved_depth = self._move(chosen, signed).split([3, 1, 1], dim=1)
        bg, fg_bg = torch.where(moves, bg, moved), torch.where(moves, moved, fg_bg)
        mask = torch.where(moves, moved_mask.ge(0.5).to(mask.dtype), mask)
        depth = torch.where(moves, moved_depth, depth)

        exposes = chance["exposes_fg_bg"] < 0.5
        exposed = self._expose(torch.where(exposes, fg_bg, bg), chance, signed, strength)
        bg, fg_bg = torch.where(exposes, bg, exposed), torch.where(exposes, exposed, fg_bg)
        return bg, fg_bg.clamp_(0, 1), mask, depth

    @staticmethod
    def prepare(device: torch.device, height: int, width: int) -> None:
        """Make what images of this size need, so that calls copy nothing to the device."""
        _noise_table(device, 3 * height * width)
        _jpeg_constants(device)

    def _shadow(self, mask: Tensor, chance: dict[str, Tensor], strength: Tensor) -> Tensor:
        """Share of the light that a shadow takes, (B, 1, S, S).

        The shadow is the mask, squeezed and slanted about its lowest row.
        """
        side = mask.shape[-1]
        rows = torch.linspace(-1, 1, mask.shape[-2], device=mask.device)
        feet = torch.where(mask.amax((1, 3)) > 0, rows, -1).amax(1)
        # Row y of the shadow shows row feet + (y - feet) * steep of the mask: below the feet, or
        # above them, slanted to one side.
        flatness = chance["flatness"].flatten() * 2
        steep = torch.where(flatness < 1, -1, 1) * (2 + 6 * (flatness % 1))
        slant = (chance["slant"].flatten() * 2 - 1) * 2
        one, zero = torch.ones_like(feet), torch.zeros_like(feet)
        shadow = _sample(
            mask, (one, slant, -slant * feet), (zero, steep, feet - steep * feet), "zeros"
        )
        radius = max(1, side // _SHADOW_BLUR)
        for _ in range(2):
            shadow = functional.avg_pool2d(
                shadow, 2 * radius + 1, stride=1, padding=radius, count_include_pad=False
            )
        return shadow * (1 - mask) * (self.shadow * chance["shadow"] * strength)

    def _move(self, image: Tensor, signed: dict[str, Tensor]) -> Tensor:
        """Rotate, zoom and shift."""
        angle = signed["rotation"].flatten() * math.radians(self.rotation)
        scale = 1 + signed["zoom"].flatten() * self.zoom
        cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
        right, down = (signed["shift"] * 2 * self.shift).flatten(1).unbind(1)  # the side is 2
        return _sample(image, (cos, -sin, right), (sin, cos, down), "border")

    def _expose(
        self,
        image: Tensor,
        chance: dict[str, Tensor],
        signed: dict[str, Tensor],
        strength: Tensor,
    ) -> Tensor:
        """Change exposure, white balance, light, gamma and sharpness; add noise, save as JPEG."""
        across = torch.linspace(-0.5, 0.5, image.shape[-1], device=image.device)
        down = torch.linspace(-0.5, 0.5, image.shape[-2], device=image.device)[:, None]
        gain = 1 + self.gain * (signed["exposure"] + signed["balance"]) / 2
        gradient = signed["gradient"]
        light = 1 + self.gradient * (gradient[:, :1] * across + gradient[:, 1:] * down)
        image = image * (gain * light) + self.offset * signed["offset"]
        image = image.clamp(1e-4, 1) ** (1 + self.gamma * signed["gamma"])
        image = image + (_binomial(image) - image) * (self.blur * chance["blur"] * strength)
        place = (chance["grain"].flatten() * _NOISE_VALUES).long()
        grain = _noise_table(image.device, image[0].numel())[place].view_as(image)
        image = (image + grain * (self.noise * chance["noise"] * strength)).clamp_(0, 1)
        quality = 100 - (100 - self.quality) * chance["coarseness"] * strength
        return torch.where(quality < 100, _save_as_jpeg(image, quality), image)


def _sample(
    image: Tensor, right: tuple[Tensor, ...], down: tuple[Tensor, ...], padding: str
) -> Tensor:
    """Bilinear samples at affinely moved places.

    right, down: (B,) each, the rows of the matrix, in the units of `functional.affine_grid`.
    """
    matrix = torch.stack([torch.stack(right, dim=1), torch.stack(down, dim=1)], dim=1)
    shape = [len(image), 1, *image.shape[-2:]]
    grid = functional.affine_grid(matrix, shape, align_corners=False)
    return functional.grid_sample(
        image, grid, mode="bilinear", padding_mode=padding, align_corners=False
    )


def _binomial(image: Tensor) -> Tensor:
    """3x3 binomial filter; borders are repeated."""
    padded = functional.pad(image, (1, 1, 1, 1), mode="replicate")
    rows = (padded[:, :, :-2] + padded[:, :, 2:]) * 0.25 + padded[:, :, 1:-1] * 0.5
    return (rows[..., :-2] + rows[..., 2:]) * 0.25 + rows[..., 1:-1] * 0.5


def _save_as_jpeg(image: Tensor, quality: Tensor) -> Tensor:
    """The pixels of a JPEG without subsampling; not rounded to integers, so quality 100 is close.

    quality: (B, 1, 1, 1), 1 to 100. Tables of ITU-T T.81, Annex K, scaled as in libjpeg.
    """
    height, width = image.shape[-2:]
    padded = functional.pad(image, (0, -width % 8, 0, -height % 8), mode="replicate")
    to_ycbcr, to_rgb, cosines, tables = _jpeg_constants(image.device)
    planes = torch.einsum("dc,bchw->bdhw", to_ycbcr, padded * 255 - 128)
    blocks = planes.unflatten(3, (-1, 8)).unflatten(2, (-1, 8))  # (B, 3, rows, 8, columns, 8)
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)[:, :, :, :, None, None]
    steps = ((tables[:, None, :, None] * scale + 50) / 100).floor().clamp(1, 255)
    transform = "ki,bcyixj,lj->bcykxl"
    coefficients = (torch.einsum(transform, cosines, blocks, cosines) / steps).round() * steps
    blocks = torch.einsum(transform, cosines.T, coefficients, cosines.T)
    planes = blocks.flatten(4, 5).flatten(2, 3)[..., :height, :width]
    return ((torch.einsum("dc,bchw->bdhw", to_rgb, planes) + 128) / 255).clamp(0, 1)


_jpeg: dict[torch.device, tuple[Tensor, Tensor, Tensor, Tensor]] = {}


def _jpeg_constants(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Matrices to YCbCr and to RGB (3, 3), the DCT (8, 8), quantisation tables (3, 8, 8)."""
    if device not in _jpeg:
        frequency, place = torch.arange(8.0)[:, None], torch.arange(8.0)
        cosines = torch.cos((2 * place + 1) * frequency * math.pi / 16) / 2
        cosines[0] /= math.sqrt(2)
        tables = torch.tensor((_LUMA_TABLE, _CHROMA_TABLE, _CHROMA_TABLE), dtype=torch.float32)
        constants = (torch.tensor(_TO_YCBCR), torch.tensor(_TO_RGB), cosines, tables)
        to_ycbcr, to_rgb, cosines, tables = (c.to(device) for c in constants)
        _jpeg[device] = to_ycbcr, to_rgb, cosines, tables
    return _jpeg[device]


_noise: dict[tuple[torch.device, int], Tensor] = {}


def _noise_table(device: torch.device, count: int) -> Tensor:
    """float32 (_NOISE_VALUES, count): ``count`` normal values from each place of a sequence.

    Random generators differ between devices, a fixed sequence does not. It is followed by itself,
    and rows share its memory.
    """
    if (device, count) not in _noise:
        values = torch.randn(_NOISE_VALUES, generator=torch.Generator().manual_seed(0))
        repeated = values.repeat(1 + -(-count // _NOISE_VALUES)).to(device)
        _noise[device, count] = repeated.unfold(0, count, 1)[:_NOISE_VALUES]
    return _noise[device, count]
