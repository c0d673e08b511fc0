"""Export a trained network to one file that runs without this project, and check that file."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from maskdepth.convert.outputs import mark_of, require_output
from maskdepth.model.errors import ModelError
from maskdepth.model.files import replace_file
from maskdepth.model.inference.pairs import Pair
from maskdepth.model.inference.predictor import THRESHOLD, Predictor

COMMAND = "export"
TOLERANCE = 1e-4
"""Largest accepted difference of a probability or depth from the network run eagerly."""

INPUTS, OUTPUTS = ("bg", "fg_bg"), ("mask", "depth")
SUFFIXES = (".pt2", ".onnx")

ExportedModel = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


def require_export(path: Path, pairs: Sequence[Pair] = (), inputs: Sequence[Path] = ()) -> None:
    """Raise an error unless `export_network` may write this file: a ModelError or a DataError."""
    if path.suffix.lower() not in SUFFIXES:
        raise ModelError(f"{path}: found suffix {path.suffix!r}, expected {' or '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise ModelError(f"{path.parent}: no such folder")
    images = [image for pair in pairs for image in (pair.bg, pair.fg_bg)]
    require_output(path, COMMAND, [*inputs, *images])


def export_network(
    predictor: Predictor, path: Path, pairs: Sequence[Pair] = (), inputs: Sequence[Path] = ()
) -> float:
    """Write `.pt2` (torch.export) or `.onnx`; return its largest difference from the network.

    The two are compared on seeded images and on ``pairs``, resized to squares.

    Inputs bg and fg_bg: float32 (B, 3, S, S), RGB in 0..255, any B, S the size of training.
    Outputs mask and depth: float32 (B, 1, S, S) in 0..1. Raises ModelError, and leaves no file,
    for another suffix, a path that cannot be written, `.onnx` without the extra `export`, or a
    difference above TOLERANCE.
    """
    require_export(path, pairs, inputs)
    write_as = {".pt2": _write_pt2, ".onnx": _write_onnx}[path.suffix.lower()]
    predictor = predictor.to("cpu").eval()
    difference = 0.0

    def write(temporary: Path) -> None:
        nonlocal difference
        exported = write_as(predictor, temporary)
        # A batch of 3: it was traced with 2.
        checks = [_seeded_images(3, predictor.size)]
        square = (predictor.size, predictor.size)
        checks += [predictor.inputs_of(*pair.read(), square) for pair in pairs]
        with torch.no_grad():
            results = [zip(exported(*pair), predictor(*pair), strict=True) for pair in checks]
        largest = [(a - b).abs().max() for both in results for a, b in both]
        difference = float(torch.stack(largest).max())  # not Python's max, which drops a nan
        if not difference <= TOLERANCE:
            raise ModelError(
                f"{path}: differs from the network by {difference:g}, expected at most {TOLERANCE}"
            )

    replace_file(path, write)
    return difference


def metadata_of(predictor: Predictor) -> dict[str, str]:
    """What a program needs to know of the file: `metadata_props` of ONNX, extra files of `.pt2`."""
    size = predictor.size
    return {
        "made_by": mark_of(COMMAND),
        "size": str(size),
        "inputs": f"bg, fg_bg: float32 (batch, 3, {size}, {size}), RGB in 0..255",
        "normalisation": "inside the model",
        "outputs": f"mask: probability; depth: 0 near, 1 far; float32 (batch, 1, {size}, {size})",
        "threshold": str(THRESHOLD),
        "depth_source": predictor.depth_source or "not known",
    }


def _seeded_images(batch: int, size: int) -> tuple[Tensor, ...]:
    """Smooth random images with some noise, in 0..255: closer to photos than noise alone."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2 * batch, 3, 7, 7, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")
    noise = 0.05 * torch.randn(2 * batch, 3, size, size, generator=generator)
    return (255 * (smooth + noise).clamp(0, 1)).round().chunk(2)


def _exported(predictor: Predictor) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    shapes = {name: {0: batch} for name in INPUTS}
    return torch.export.export(predictor, _seeded_images(2, predictor.size), dynamic_shapes=shapes)


def _write_pt2(predictor: Predictor, path: Path) -> ExportedModel:
    content = io.BytesIO()  # torch's own file writer reports a full disk without its reason
    torch.export.save(_exported(predictor), content, extra_files=metadata_of(predictor))
    path.write_bytes(content.getvalue())
    with open(path, "rb") as file:
        return torch.export.load(file).module()


@contextmanager
def _without_notes_of_torch() -> Iterator[None]:
    """Without its notes on torchvision, which it does not need here, and on its own old names."""
    noted = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = noted.level
    noted.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
            yield
    finally:
        noted.setLevel(level)


def _write_onnx(predictor: Predictor, path: Path) -> ExportedModel:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ModelError(
            f"ONNX needs {error.name}, which is not installed: pip install 'maskdepth[export]', "
            "or export to a .pt2 file"
        ) from None
    exported = _exported(predictor)
    with _without_notes_of_torch():
        program = torch.onnx.export(
            exported, input_names=INPUTS, output_names=OUTPUTS, dynamo=True, verbose=False
        )
    if program is None:
        raise ModelError(f"{path}: torch.onnx.export returned no program")
    program.save(path, external_data=False)
    model = onnx.load(path)
    onnx.helper.set_model_props(model, metadata_of(predictor))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(model, path)
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])

    def run(bg: Tensor, fg_bg: Tensor) -> tuple[Tensor, ...]:
        feeds = {"bg": bg.numpy(), "fg_bg": fg_bg.numpy()}
        return tuple(torch.from_numpy(value) for value in session.run(list(OUTPUTS), feeds))

    return run
