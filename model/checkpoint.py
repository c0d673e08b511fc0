"""Weights on disk, with all that a prediction needs in the metadata of the file.

`model.training.state` has the state of a run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from maskdepth.convert.files import require_regular
from maskdepth.convert.found import FOLDER, RUN, found_at
from maskdepth.convert.program import TRAIN
from maskdepth.convert.schema import Items, Schema, one_of, parse_table, shown
from maskdepth.model.contract import DEPTH_SOURCES, Moments
from maskdepth.model.errors import ModelError
from maskdepth.model.files import load_plain, replace_bytes
from maskdepth.model.losses import DEPTH_LOSSES
from maskdepth.model.recipe import WIDEST
from maskdepth.model.unet import DOWNSAMPLING, DualDecoderUNet, rename_original

FORMAT = "maskdepth-network"
VERSION = 2
METADATA_KEY = "maskdepth"
"""Key of the safetensors metadata that holds JSON with format, version, info and sha256."""


Channels = Items[Annotated[float, Field(ge=0, le=1)]]


class ChannelStatistics(NamedTuple):
    """Mean and standard deviation of each channel, in 0..1."""

    mean: Channels
    std: Channels


ORIGINAL_STATISTICS = dict.fromkeys(
    ("bg", "fg_bg"), ChannelStatistics((0.5039, 0.5001, 0.4849), (0.2465, 0.2463, 0.2582))
)
"""Normalisation that the original trained with: it used the statistics of bg for fg_bg, too."""


def channel_statistics(statistics: Mapping[str, Moments]) -> dict[str, ChannelStatistics]:
    """Return mean and std of bg and fg_bg of a data set, as stored with the weights."""
    return {
        name: ChannelStatistics(statistics[name].mean, statistics[name].std)
        for name in ("bg", "fg_bg")
    }


class NetworkInfo(Schema):
    """What is needed to use the weights of a network, and how it was trained."""

    width: Annotated[int, Field(ge=1, le=WIDEST)]
    """Channels at full size."""
    size: Annotated[int, Field(ge=DOWNSAMPLING, le=8192, multiple_of=DOWNSAMPLING)]
    """Height and width of the network's input in the last stage of training."""
    depth_loss: Annotated[str, one_of(DEPTH_LOSSES)]
    """The depth loss of training, for `model.losses.depth_values`."""
    statistics: dict[str, ChannelStatistics]
    """Normalisation of bg and fg_bg in training."""
    recipe: str = ""
    """Name of the recipe."""
    split: str = "random"
    split_seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """The split into training and validation, as in `model.training.config.DataConfig`."""
    data: str = ""
    """Fingerprint of the data set (`model.training.provenance`); empty if it is not known."""
    depth_source: Annotated[str, one_of(DEPTH_SOURCES)] = ""
    """Where the depth maps of training come from; empty if it is not known."""
    scores: dict[str, float | None] | None = None
    """Validation scores of these weights."""


def save_weights(path: Path, weights: Mapping[str, Tensor], info: NetworkInfo) -> None:
    """Write the state dict of a network and its info as safetensors."""
    # safetensors rejects channels_last tensors.
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    about = {"format": FORMAT, "version": VERSION, "info": info.model_dump()}
    about["sha256"] = _checksum(about, tensors)
    # In one entry, because safetensors writes several in an order that varies between runs.
    metadata = {METADATA_KEY: json.dumps(about)}
    # save_file would make the file readable by its owner only, regardless of the umask.
    replace_bytes(path, save(tensors, metadata))


def _checksum(about: Mapping[str, object], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, in hex, of the metadata and of the name, type, shape and bytes of each tensor."""
    digest = hashlib.sha256(json.dumps(about).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class Checkpoint(NamedTuple):
    """A trained network and what is needed to use it."""

    network: DualDecoderUNet
    info: NetworkInfo


def load_network(path: str | Path) -> Checkpoint:
    """Load a network in eval mode on the CPU, from `.safetensors` or the original's `.pth`.

    Every bit of a `.safetensors` file is checked, unless a version before 0.2 has written it. The
    original's file has neither size nor statistics; they are 224 and ORIGINAL_STATISTICS.
    Raises ModelError for a missing or corrupt file, foreign weights, weights that are not finite,
    or another version.
    """
    path = Path(path)
    if not path.exists():
        raise ModelError(f"checkpoint {path}: no such file; expected RUN_DIR/best.safetensors")
    if path.is_dir():
        found = found_at(path)
        folder = path if found in (FOLDER, RUN) else "RUN_DIR"
        raise ModelError(f"checkpoint {path}: found {found}; expected {folder}/best.safetensors")
    require_regular(path)
    if path.suffix == ".safetensors":
        tensors, info = _read_safetensors(path)
    else:
        tensors = rename_original(_read_state_dict(path))
        about = {"size": 224, "depth_loss": "l1", "recipe": "original"}
        info = _info(path, {**about, "width": _width(tensors), "statistics": ORIGINAL_STATISTICS})
    if _width(tensors) != info.width:  # checked before memory for that width is taken
        raise ModelError(
            f"checkpoint {path}: weights do not fit the network: their width is {_width(tensors)}, "
            f"that of the metadata {info.width}"
        )
    network = DualDecoderUNet(info.width)
    try:
        load_weights(network, tensors)
    except ValueError as error:
        raise ModelError(f"checkpoint {path}: {error}") from None
    _require_usable(network, path)
    return Checkpoint(network.eval(), info)


def load_weights(network: DualDecoderUNet, weights: Mapping[str, Tensor]) -> None:
    """Load a state dict; ValueError if it is that of another network."""
    try:
        network.load_state_dict(weights)
        for name, own in network.state_dict().items():
            if name not in weights:  # torch lets the counts of BatchNorm be missing
                raise RuntimeError(f"{name} is missing")
            if own.is_floating_point() != weights[name].is_floating_point():
                raise RuntimeError(f"{name} is {weights[name].dtype}, expected {own.dtype}")
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"weights do not fit the network: {reason}") from None


def _require_usable(network: DualDecoderUNet, path: Path) -> None:
    """Raise ModelError for weights or statistics of BatchNorm that give no results."""
    for name, values in network.state_dict().items():
        found = ""
        if not values.isfinite().all():
            found = "values that are not finite"
        elif name.endswith(".running_var") and (values < 0).any():
            found = "a negative variance"
        if found:
            raise ModelError(
                f"checkpoint {path}: found {found} in {name}, expected finite weights and "
                "variances of at least 0; use another checkpoint"
            )


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], NetworkInfo]:
    try:
        with open(path, "rb"):  # safetensors calls any file missing that cannot be opened
            pass
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY, "{}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(f"checkpoint {path}: not a readable safetensors file: {error}") from None
    try:
        about = parse_table(text)
    except ValueError as error:
        raise ModelError(f"checkpoint {path}: invalid metadata: {error}") from None
    form, version = about.get("format"), about.get("version")
    if form != FORMAT or version != VERSION:
        raise ModelError(
            f"checkpoint {path}: found format {shown(form)} version {shown(version)} in its "
            f"metadata, expected {FORMAT!r} version {VERSION}, as `{TRAIN} fit` writes it"
        )
    found = about.pop("sha256", None)
    if found is not None and (
        found != _checksum(about, tensors) or text != json.dumps({**about, "sha256": found})
    ):
        raise ModelError(
            f"checkpoint {path}: its checksum differs: it was changed or damaged after it was "
            "written; use another copy, or train again"
        )
    if unknown := about.keys() - {"format", "version", "info"}:
        raise ModelError(f"checkpoint {path}: unknown key {shown(min(unknown))} in its metadata")
    return tensors, _info(path, about.get("info"))


def _info(path: Path, value: object) -> NetworkInfo:
    """The info of a checkpoint, with which images can be normalised; ModelError otherwise."""
    try:
        info = NetworkInfo.from_json(value)
        for name in ("bg", "fg_bg"):
            mean, std = info.statistics.get(name, ((), ()))
            if (len(mean), len(std)) != (3, 3) or min(std) <= 0:
                raise ValueError(
                    f"statistics: {name} must have a mean and a std above 0 of 3 channels"
                )
    except ValueError as error:
        raise ModelError(f"checkpoint {path}: invalid metadata: {error}") from None
    return info


def _width(tensors: Mapping[str, Tensor]) -> int:
    """Channels at full size, by the first weight; 0 if it is missing."""
    first = tensors.get("encoder.inc.0.weight")
    return first.shape[0] if first is not None and first.ndim else 0


def _read_state_dict(path: Path) -> Mapping[str, Tensor]:
    try:
        value = load_plain(path)
    except ModelError as error:
        raise ModelError(
            f"{error.message}; name RUN_DIR/best.safetensors, or a .pth file"
        ) from None
    if isinstance(value, Mapping) and "position" in value:
        raise ModelError(
            f"checkpoint {path}: found the state of a run; expected best.safetensors, beside it"
        )
    # Also accept {"state_dict": ...} and {"model_state_dict": ...}.
    for key in ("state_dict", "model_state_dict"):
        if isinstance(value, Mapping) and isinstance(value.get(key), Mapping):
            value = value[key]
    if not isinstance(value, Mapping) or not all(isinstance(v, Tensor) for v in value.values()):
        raise ModelError(
            f"checkpoint {path}: expected a state dict (names to tensors), "
            f"found {type(value).__name__}; save it with torch.save(model.state_dict(), PATH)"
        )
    return value
