"""Export a trained network to one file that runs without this project, and check that file."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.errors import ModelError
from model.files import replace_file, require_writable
from model.predictor import Pair, Predictor, resize

TOLERANCE = 1e-4
"""Largest accepted difference of a probability or depth from the network run eagerly."""

INPUTS, OUTPUTS = ("bg", "fg_bg"), ("mask", "depth")
ExportedModel = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


def export_network(predictor: Predictor, path: Path, pairs: Sequence[Pair] = ()) -> float:
    """Write `.pt2` (torch.export) or `.onnx`; return its largest difference from the network.

    The two are compared on seeded images and on ``pairs``, resized as for a prediction.

    Inputs bg and fg_bg: float32 (B, 3, S, S), RGB in 0..255, any B, S the size of training.
    Outputs mask and depth: float32 (B, 1, S, S) in 0..1. Raises ModelError, and leaves no file,
    for another suffix, a path that cannot be written, `.onnx` without the extra `export`, or a
    difference above TOLERANCE.
    """
    writers = {".pt2": _write_pt2, ".onnx": _write_onnx}
    if path.suffix not in writers:
        raise ModelError(f"{path}: found suffix {path.suffix!r}, expected .pt2 or .onnx")
    if not path.parent.is_dir():
        raise ModelError(f"{path.parent}: no such folder")
    require_writable(path)
    predictor = predictor.to("cpu").eval()
    differences: list[float] = []

    def write(temporary: Path) -> None:
        exported = writers[path.suffix](predictor, temporary)
        # A batch of 3: it was traced with 2.
        checks = [_seeded_images(3, predictor.size)]
        checks += [_resized_images(pair, predictor.size) for pair in pairs]
        difference = max(_difference(exported, predictor, images) for images in checks)
        if not difference <= TOLERANCE:
            raise ModelError(
                f"{path}: differs from the network by {difference:g}, expected at most {TOLERANCE}"
            )
        differences.append(difference)

    replace_file(path, write)
    return differences[0]


@torch.no_grad()
def _difference(
    exported: ExportedModel, predictor: Predictor, images: tuple[Tensor, Tensor]
) -> float:
    both = zip(exported(*images), predictor(*images), strict=True)
    return max(float((ours - theirs).abs().max()) for ours, theirs in both)


def _resized_images(pair: Pair, size: int) -> tuple[Tensor, Tensor]:
    """Read a pair of images; float32 (1, 3, size, size) in 0..255, each."""
    pixels = torch.from_numpy(np.stack(pair.read())).permute(0, 3, 1, 2)
    bg, fg_bg = resize(pixels, size).split(1)
    return bg, fg_bg


def _seeded_images(batch: int, size: int) -> tuple[Tensor, Tensor]:
    """Smooth random images with some noise, in 0..255: closer to photos than noise alone."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2 * batch, 3, 7, 7, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")
    noise = 0.05 * torch.randn(2 * batch, 3, size, size, generator=generator)
    bg, fg_bg = (255 * (smooth + noise).clamp(0, 1)).round().chunk(2)
    return bg, fg_bg


def _exported(predictor: Predictor) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    shapes = {name: {0: batch} for name in INPUTS}
    return torch.export.export(predictor, _seeded_images(2, predictor.size), dynamic_shapes=shapes)


def _write_pt2(predictor: Predictor, path: Path) -> ExportedModel:
    content = io.BytesIO()  # torch's own file writer reports a full disk without its reason
    torch.export.save(_exported(predictor), content)
    path.write_bytes(content.getvalue())
    with open(path, "rb") as file:
        return torch.export.load(file).module()


def _write_onnx(predictor: Predictor, path: Path) -> ExportedModel:
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ModelError(
            f"ONNX needs {error.name}, which is not installed: pip install 'maskdepth[export]', "
            "or export to a .pt2 file"
        ) from None
    program = torch.onnx.export(
        _exported(predictor), input_names=INPUTS, output_names=OUTPUTS, dynamo=True, verbose=False
    )
    if program is None:
        raise ModelError(f"{path}: torch.onnx.export returned no program")
    program.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])

    def run(bg: Tensor, fg_bg: Tensor) -> tuple[Tensor, ...]:
        feeds = {"bg": bg.numpy(), "fg_bg": fg_bg.numpy()}
        return tuple(torch.from_numpy(value) for value in session.run(list(OUTPUTS), feeds))

    return run
