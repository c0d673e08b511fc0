"""Weights and run state on disk: written atomically, read without running stored code.

- `best.safetensors`: the weights, and in the file's metadata all that a prediction needs.
- `last.pt`: all that a run needs to resume. It has tensors and plain values only, so that
  `torch.load(weights_only=True)` reads it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from model.contract import Moments
from model.errors import ModelError
from model.files import replace_bytes
from model.unet import DualDecoderUNet, rename_original

FORMAT = "maskdepth-network"
VERSION = 2
METADATA_KEY = "maskdepth"
"""Key of the safetensors metadata that holds JSON with format, version and info."""


class ChannelStatistics(NamedTuple):
    """Mean and standard deviation of each channel, in 0..1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


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


@dataclass(frozen=True, kw_only=True)
class NetworkInfo:
    """What is needed to use the weights of a network, and how it was trained."""

    width: int
    """Channels at full size."""
    size: int
    """Height and width of the network's input in the last stage of training."""
    depth_loss: str
    """The depth loss of training, for `model.losses.depth_values`."""
    statistics: dict[str, ChannelStatistics]
    """Normalisation of bg and fg_bg in training."""
    recipe: str = ""
    """Name of the recipe."""
    split: str = "random"
    split_seed: int = 42
    validation: float = 0.3
    """The split into training and validation, as in `model.training.config.DataConfig`."""
    data: str = ""
    """Fingerprint of the data set (`model.training.provenance`); empty if it is not known."""
    scores: dict[str, float | None] | None = None
    """Validation scores of these weights."""


def save_weights(path: Path, weights: Mapping[str, Tensor], info: NetworkInfo) -> None:
    """Write the state dict of a network and its info as safetensors."""
    # safetensors rejects channels_last tensors.
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    about = {"format": FORMAT, "version": VERSION, "info": asdict(info)}
    # In one entry, because safetensors writes several in an order that varies between runs.
    metadata = {METADATA_KEY: json.dumps(about)}
    # save_file would make the file readable by its owner only, regardless of the umask.
    replace_bytes(path, save(tensors, metadata))


class Checkpoint(NamedTuple):
    """A trained network and what is needed to use it."""

    network: DualDecoderUNet
    info: NetworkInfo


def load_network(path: str | Path) -> Checkpoint:
    """Load a network in eval mode on the CPU, from `.safetensors` or the original's `.pth`.

    The original's file has neither size nor statistics; they are 224 and ORIGINAL_STATISTICS.
    Raises ModelError for a missing or corrupt file, foreign weights, weights that are not finite,
    or another version.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"checkpoint {path}: no such file; expected RUN_DIR/best.safetensors")
    if path.suffix == ".safetensors":
        tensors, info = _read_safetensors(path)
    else:
        tensors = rename_original(_read_state_dict(path))
        first = tensors["encoder.inc.0.weight"]
        info = NetworkInfo(
            width=len(first) if first.ndim else 1,
            size=224,
            depth_loss="l1",
            statistics=ORIGINAL_STATISTICS,
            recipe="original",
        )
    network = DualDecoderUNet(info.width)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"checkpoint {path}: weights do not fit the network: {reason}") from None
    _require_usable(network, path)
    return Checkpoint(network.eval(), info)


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
        with safe_open(path, framework="pt") as file:
            metadata = (file.metadata() or {}).get(METADATA_KEY, "{}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(f"checkpoint {path}: not a readable safetensors file: {error}") from None
    try:
        about = json.loads(metadata)
        found = (about.get("format"), about.get("version"))
        if found != (FORMAT, VERSION):
            raise ModelError(
                f"checkpoint {path}: found format {found[0]!r} version {found[1]!r} in its "
                f"metadata, expected {FORMAT!r} version {VERSION}, as `train.py fit` writes it"
            )
        statistics = {
            name: ChannelStatistics(tuple(map(float, mean)), tuple(map(float, std)))
            for name, (mean, std) in about["info"]["statistics"].items()
        }
        if not {"bg", "fg_bg"} <= statistics.keys():
            raise ValueError("statistics of bg and fg_bg are needed")
        return tensors, NetworkInfo(**{**about["info"], "statistics": statistics})
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        raise ModelError(f"checkpoint {path}: invalid metadata: {error}") from None


def _read_state_dict(path: Path) -> Mapping[str, Tensor]:
    value = _load_plain(path)
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


def _load_plain(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the type that torch raises depends on the bytes of the file
        reason = str(error).splitlines()[0][:200]
        raise ModelError(
            f"{path}: expected a file of tensors and plain values, found a corrupt file or one "
            f"that holds code ({reason}); files that hold code are refused"
        ) from None


class Position(NamedTuple):
    """The next batch to train on: stage, epoch of the stage, batch of the epoch; each from 0."""

    stage: int = 0
    epoch: int = 0
    batch: int = 0


def generator_states() -> list[Tensor]:
    """Copies of the states of torch's random generators: the CPU's, and those of all GPUs."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_available():
        states += torch.cuda.get_rng_state_all()
    return states


def save_state(path: Path, state: Mapping[str, object]) -> None:
    """Write a run's state: tensors and plain values.

    For `load_state` it needs the keys "position" and "generators" (`generator_states`).
    """
    content = io.BytesIO()  # torch's own file writer reports a full disk without its reason
    torch.save(dict(state), content)
    replace_bytes(path, content.getvalue())


def load_state(path: Path) -> dict[str, Any]:  # torch.load returns values without types
    """Read what `save_state` wrote and set the random generators. Raises ModelError."""
    state = _load_plain(path)
    if not isinstance(state, dict) or not {"position", "generators"} <= state.keys():
        raise ModelError(f"{path}: not the state of a run; expected what `train.py fit` writes")
    cpu, *cuda = state.pop("generators")
    torch.set_rng_state(cpu)
    if torch.cuda.is_available() and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(cuda)
    state["position"] = Position(*state["position"])
    return state
