"""Depth networks in one file: `.pt2` (torch.export) and `.onnx` (onnxruntime).

Such a network has one input, float32 (B, 3, S, S) RGB, and its first output is the depth, (B, h, w)
or (B, 1, h, w). A file can run on any batch, or on one image at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from maskdepth.convert.dataset.networks import device as devices
from maskdepth.convert.dataset.networks.archive import safe_archive
from maskdepth.convert.dataset.networks.directions import direction
from maskdepth.convert.dataset.networks.hub import failed, one_line
from maskdepth.convert.dataset.networks.model import DepthModel, ModelOptions
from maskdepth.convert.errors import DataError, reading
from maskdepth.convert.files import hash_file, require_regular

_MEAN_STD = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5,) * 3, (0.5,) * 3),
    "none": ((0.0,) * 3, (1.0,) * 3),
}


class _Network(NamedTuple):
    """A loaded file: float32 (B, 3, S, S) -> its first output; input shape with None for any."""

    run: Callable[[np.ndarray], Any]
    shape: tuple[int | None, ...]
    library: str
    device: str
    amp: str


def load_exported(path: Path, options: ModelOptions) -> DepthModel:
    """Load a network from a file. Raises DataError as `load_model` does."""
    try:
        require_regular(path)
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; expected a network in a .pt2 or .onnx file"
        ) from None
    predicts, reason = direction(str(path), None, options.predicts)
    device = devices.find_device(options.device)
    with reading(path):
        revision = hash_file(path)  # before it is loaded: what replaces it meanwhile is not named
    load = _load_pt2 if path.suffix.lower() == ".pt2" else _load_onnx
    network = load(path, device, options)
    size = _input_size(path, network.shape, options.input_size)
    normalise = options.normalise or "imagenet"
    run = _Run(path, network, size, *_MEAN_STD[normalise])
    made = {
        "library": network.library,
        "revision": revision,
        "device": network.device,
        "amp": network.amp,
        "input": f"{size[0]}x{size[1]}, {normalise}",
    }
    return DepthModel(
        str(path), run.predict, predicts, run.prepare, reason, tuple(made.items()),
        devices.calls_at_once(torch.device(network.device)), devices.one_thread_per_call,
    )  # fmt: skip


def _load_pt2(path: Path, device: torch.device, options: ModelOptions) -> _Network:
    amp = devices.find_amp(options.amp, device)
    archive = safe_archive(path)
    try:
        program = torch.export.load(archive)
        if device.type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, device)
        (name,) = program.graph_signature.user_inputs
        node = next(node for node in program.graph.nodes if node.name == name)
        shape = tuple(d if isinstance(d, int) else None for d in node.meta["val"].shape)
        module = program.module()
    except Exception as error:  # torch raises many kinds of exceptions on a program it cannot read
        raise _cannot_load(path, error) from None

    def run(pixels: np.ndarray) -> Any:
        with devices.inference(device, amp):
            found = module(torch.from_numpy(pixels).to(device))
        while not isinstance(found, torch.Tensor):
            found = next(iter(found.values() if isinstance(found, dict) else found))
        return found.float().cpu().numpy()

    return _Network(run, shape, f"torch {torch.__version__}", device.type, amp)


def _load_onnx(path: Path, device: torch.device, options: ModelOptions) -> _Network:
    try:
        import onnxruntime
    except ImportError:
        raise DataError(
            f"{path}: needs onnxruntime, which is not installed; pip install 'maskdepth[export]'"
        ) from None
    if options.amp in ("fp16", "bf16"):
        raise DataError(f"--amp {options.amp}: an ONNX file has its own precision; leave it out")
    kinds = onnxruntime.get_available_providers()
    has_gpu = device.type == "cuda" and "CUDAExecutionProvider" in kinds
    if options.device is not None and device.type == "cuda" and not has_gpu:
        raise DataError(
            f"device {options.device}: onnxruntime has no CUDA; pip install onnxruntime-gpu, or "
            "use --device cpu"
        )
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1  # see one_thread_per_call
    settings.log_severity_level = 4  # the exception says the same
    gpu = [("CUDAExecutionProvider", {"device_id": device.index})] if has_gpu else []
    try:
        session = onnxruntime.InferenceSession(
            path, settings, providers=[*gpu, "CPUExecutionProvider"], enable_fallback=0
        )
        (entry,) = session.get_inputs()
        if entry.type != "tensor(float)":
            raise ValueError(f"its input is a {entry.type}, expected tensor(float)")
        shape = tuple(d if isinstance(d, int) else None for d in entry.shape)
        output = session.get_outputs()[0].name
    except Exception as error:  # its exceptions have no base class
        raise _cannot_load(path, error) from None

    def run(pixels: np.ndarray) -> Any:
        return session.run([output], {entry.name: pixels})[0]

    kind = "cuda" if has_gpu else "cpu"
    return _Network(run, shape, f"onnxruntime {onnxruntime.__version__}", kind, "off")


def _cannot_load(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path}: cannot be loaded as a depth network ({one_line(error)}); expected one with one "
        "input, a batch of images; export it again"
    )


def _input_size(path: Path, shape: tuple[int | None, ...], given: int | None) -> tuple[int, int]:
    """Height and width of a network's input."""
    if len(shape) != 4 or shape[1] not in (3, None) or shape[0] not in (1, None):
        found = "x".join("any" if side is None else str(side) for side in shape)
        raise DataError(
            f"{path}: found an input of {found}, expected (batch, 3, height, width) of any batch "
            "or of 1; export it again"
        )
    height, width = (side or given for side in shape[2:])
    if height is None or width is None:
        raise DataError(
            f"{path}: takes images of any size; give --input-size, such as 518 for Depth Anything"
        )
    if given is not None and (height, width) != (given, given):
        raise DataError(f"{path}: takes images of {height}x{width}, found --input-size {given}")
    return height, width


class _Run:
    """Runs a network; its failures become a DataError."""

    def __init__(
        self, path: Path, network: _Network, size: tuple[int, int],
        mean: tuple[float, ...], std: tuple[float, ...],
    ) -> None:  # fmt: skip
        self.path, self.network, self.size = path, network, size
        self.mean, self.std = (np.array(v, np.float32)[:, None, None] for v in (mean, std))

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """The network's input (3, h, w) for an image."""
        resized = Image.fromarray(image).resize(self.size[::-1], Image.Resampling.BICUBIC)
        pixels = np.asarray(resized, np.float32).transpose(2, 0, 1) / np.float32(255)
        return np.asarray((pixels - self.mean) / self.std)

    def predict(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """Maps of whatever size the network has."""
        step = self.network.shape[0] or len(inputs)
        found: list[np.ndarray] = []
        for start in range(0, len(inputs), step):
            pixels = np.stack(inputs[start : start + step])
            try:
                depth = np.asarray(self.network.run(pixels), np.float32)
            except Exception as error:
                raise failed(str(self.path), len(pixels), error) from error
            count, size = len(pixels), depth.shape[-2:]
            if depth.shape not in ((count, *size), (count, 1, *size)):
                raise DataError(
                    f"{self.path}: found an output of shape {depth.shape} for {count} images, "
                    "expected (batch, height, width); export it again"
                )
            found += list(depth.reshape(count, *size))
        return found
