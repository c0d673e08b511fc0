"""Depth networks of Hugging Face `transformers` (extra `depth`), by name or folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from maskdepth.convert.dataset.networks import device as devices
from maskdepth.convert.dataset.networks.directions import direction
from maskdepth.convert.dataset.networks.model import DepthModel, ModelOptions
from maskdepth.convert.errors import DataError
from maskdepth.convert.files import hash_file
from maskdepth.convert.found import visible


def load_from_hub(name: str, options: ModelOptions) -> DepthModel:
    """Load a network by its name on the hub (downloaded once) or its folder.

    The network's own processor scales the images to its input and its maps back to their size.
    Code that comes with a network is never run. Raises DataError as `load_model` does.
    """
    try:
        import transformers
        from transformers import AutoImageProcessor, AutoModelForDepthEstimation
    except ImportError as error:
        raise DataError(
            f"depth models need the package transformers, which cannot be imported ({error}); "
            "pip install 'maskdepth[depth]'"
        ) from None
    device = devices.find_device(options.device)
    amp = devices.find_amp(options.amp, device)
    try:
        with _quiet(transformers.utils.logging):
            network = AutoModelForDepthEstimation.from_pretrained(name, trust_remote_code=False)
            processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
        network = network.to(device).eval()
    except Exception as error:  # transformers passes on the exceptions of many libraries
        raise DataError(
            f"{name}: cannot be loaded as a depth model ({one_line(error)}); expected a model "
            "for depth estimation of the Hugging Face hub, or the folder of one"
        ) from None
    predicts, reason = direction(name, network.config, options.predicts)
    made = {
        "library": f"transformers {transformers.__version__}, torch {torch.__version__}",
        "revision": _revision(name, network.config),
        "device": device.type,
        "amp": amp,
    }
    run = _Run(name, network, processor, device, amp)
    return DepthModel(
        name, run.predict, predicts, run.prepare, reason, tuple(made.items()),
        devices.calls_at_once(device), devices.one_thread_per_call,
    )  # fmt: skip


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Within this block `transformers` shows no progress and no warnings.

    Those of the hub would be a second line where it cannot be reached.
    """
    hub = getLogger("huggingface_hub")
    before, shows, of_hub = logging.get_verbosity(), logging.is_progress_bar_enabled(), hub.level
    logging.set_verbosity_error()
    hub.setLevel(ERROR)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        hub.setLevel(of_hub)
        if shows:
            logging.enable_progress_bar()


def _revision(name: str, config: Any) -> str:
    """What tells versions of a network apart: its commit on the hub, or the hash of its files."""
    if not Path(name).is_dir():
        return str(getattr(config, "_commit_hash", None) or "")
    digest = hashlib.sha256()
    for file in (Path(name, entry) for entry in visible(os.listdir(name))):
        if file.is_file():
            digest.update(f"{file.name} {hash_file(file)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


class _Run:
    """Runs a network; its failures become a DataError."""

    def __init__(
        self, name: str, network: Any, processor: Any, device: torch.device, amp: str
    ) -> None:
        self.name, self.network, self.processor = name, network, processor
        self.device, self.amp = device, amp

    def prepare(self, image: np.ndarray) -> tuple[torch.Tensor, tuple[int, int]]:
        """The network's input (3, h, w) for an image, and the image's size."""
        try:
            found = self.processor(images=Image.fromarray(image), return_tensors="pt")
            return found["pixel_values"][0], (image.shape[0], image.shape[1])
        except Exception as error:
            raise failed(self.name, 1, error) from error

    def predict(self, inputs: list[tuple[torch.Tensor, tuple[int, int]]]) -> list[np.ndarray]:
        """Maps of the size of the images."""
        try:
            with devices.inference(self.device, self.amp):
                pixels = torch.stack([one for one, _ in inputs]).to(self.device)
                outputs = self.network(pixel_values=pixels)
            with torch.inference_mode():
                for name in ("predicted_depth", "field_of_view"):
                    if outputs.get(name) is not None:
                        outputs[name] = outputs[name].float()
                # The sizes are `source_sizes` for ZoeDepth, `target_sizes` for all others.
                found = self.processor.post_process_depth_estimation(
                    outputs, [size for _, size in inputs]
                )
                return [devices.to_numpy(one["predicted_depth"]) for one in found]
        except Exception as error:
            raise failed(self.name, len(inputs), error) from error


def failed(name: str, images: int, error: Exception) -> DataError:
    """A network's exception as an error that says what to do."""
    return DataError(
        f"{name}: failed on {images} images ({one_line(error)}); try a smaller --batch-size, "
        "or another model"
    )


def one_line(error: Exception) -> str:
    """Message of another library's exception in one line of at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + " ..."
