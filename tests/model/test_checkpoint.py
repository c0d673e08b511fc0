"""Checkpoints on disk: a round trip keeps every value, and stored code is never run."""

from __future__ import annotations

import json
import math
import os
import pickle
import stat
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from maskdepth.model import DualDecoderUNet, ModelError
from maskdepth.model.checkpoint import (
    METADATA_KEY,
    ORIGINAL_STATISTICS,
    ChannelStatistics,
    NetworkInfo,
    load_network,
    save_weights,
)
from maskdepth.model.training.state import load_state
from maskdepth.model.unet import original_name

INFO = NetworkInfo(
    width=2,
    size=32,
    depth_loss="l1",
    statistics={
        "bg": ChannelStatistics((0.1, 0.2, 0.3), (0.2, 0.2, 0.2)),
        "fg_bg": ChannelStatistics((0.4, 0.5, 0.6), (0.3, 0.3, 0.3)),
    },
    scores={"mask_iou": 0.5, "depth_l1": None},
)


def test_network_round_trip(tmp_path: Path) -> None:
    network = DualDecoderUNet(2).place("cpu")
    save_weights(tmp_path / "best.safetensors", network.state_dict(), INFO)
    loaded, info = load_network(tmp_path / "best.safetensors")
    assert info == INFO
    assert not loaded.training
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert os.listdir(tmp_path) == ["best.safetensors"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "best.safetensors").stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("encoder.inc.0.weight", float("nan"), "not finite in encoder.inc.0.weight"),
        ("mask_decoder.outc.bias", float("-inf"), "not finite in mask_decoder.outc.bias"),
        ("encoder.inc.1.running_mean", float("inf"), "not finite in encoder.inc.1.running_mean"),
        ("encoder.inc.1.running_var", -1e-9, "negative variance in encoder.inc.1.running_var"),
    ],
)
@pytest.mark.parametrize("file", ["best.safetensors", "theirs.pth"])
def test_weights_that_give_no_results_are_refused(
    tmp_path: Path, name: str, value: float, reason: str, file: str
) -> None:
    network = DualDecoderUNet(2)
    weights = network.state_dict()
    weights[name].view(-1)[-1] = value
    if file.endswith(".pth"):
        torch.save({original_name(n): v for n, v in weights.items()}, tmp_path / file)
    else:
        save_weights(tmp_path / file, weights, INFO)
    with pytest.raises(ModelError, match=f"{file}: found .*{reason}"):
        load_network(tmp_path / file)


@pytest.mark.parametrize("wrapped", [False, True])
def test_load_original_weights(tmp_path: Path, wrapped: bool) -> None:
    network = DualDecoderUNet(3)
    weights = {original_name(name): value for name, value in network.state_dict().items()}
    torch.save({"state_dict": weights} if wrapped else weights, tmp_path / "theirs.pth")
    loaded, info = load_network(tmp_path / "theirs.pth")
    assert (info.width, info.size, info.statistics) == (3, 224, ORIGINAL_STATISTICS)
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


class Malicious:
    """Runs a command when it is unpickled without weights_only."""

    def __reduce__(self) -> tuple:
        """Make a folder in the working directory."""
        return os.mkdir, ("owned",)


def test_stored_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("evil.pth").write_bytes(pickle.dumps(Malicious(), protocol=2))
    torch.save({"position": Malicious()}, "evil.pt")
    with pytest.raises(ModelError, match="code are refused"):
        load_network("evil.pth")
    with pytest.raises(ModelError, match="code are refused"):
        load_state(Path("evil.pt"))
    assert not Path("owned").exists()


def test_an_error_names_the_file_and_the_fault(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        load_network(tmp_path / "none.safetensors")
    path = tmp_path / "invalid.safetensors"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        load_network(path)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ModelError, match="found list"):
        load_network(tmp_path / "list.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ModelError, match="not the original's weights"):
        load_network(tmp_path / "other.pth")
    save_file({"a": torch.zeros(1)}, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="found format None version None"):
        load_network(path)
    save_weights(path, DualDecoderUNet(3).state_dict(), INFO)  # its metadata says width 2
    with pytest.raises(ModelError, match="do not fit"):
        load_network(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth_loss": "l3"}, "depth_loss: expected one of l1, .*, found 'l3'"),
        ({"width": 10**30}, "width must be at most 1024, found a number of 100 bits"),
        ({"width": 3}, "their width is 2, that of the metadata 3"),
        ({"width": True}, "width must be a whole number, found True"),
        ({"size": 33}, "size must be a multiple of 8, found 33"),
        ({"size": 10**6}, "size must be at most 8192"),
        ({"split_seed": -1}, "split_seed must be at least 0"),
        ({"validation": 1}, "validation must be below 1.0, found 1"),
        ({"scores": {"mask_iou": "good"}}, "scores: mask_iou must be a finite number"),
        ({"statistics": {}}, "statistics: bg must have a mean and a std above 0 of 3 channels"),
        ({"statistics": {"bg": [[0.5] * 3, [0.0] * 3]}}, "bg must have a mean and a std above 0"),
        ({"statistics": {"bg": [[0.5] * 2, [0.1] * 2]}}, "3 channels"),
        ({"statistics": {"bg": 3}}, "statistics: bg must be a list or a table, found 3"),
        ({"statistics": {"bg": [[math.nan] * 3, [0.1] * 3]}}, "'NaN', which is not finite"),
        ({"rate": 1}, "unknown key 'rate'; known are width, size"),
    ],
)
def test_metadata_that_no_run_writes_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    info = INFO.model_dump() | change
    about = {"format": "maskdepth-network", "version": 2, "info": info}
    with pytest.raises(ModelError, match=message) as caught:
        load_network(with_metadata(tmp_path, json.dumps(about)))
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "text", ["", "[]", "[" * 100_000, '{"format": 1, "version": []}', "9" * 9999]
)
def test_any_metadata(tmp_path: Path, text: str) -> None:
    with pytest.raises(ModelError, match=r"invalid metadata|found format") as caught:
        load_network(with_metadata(tmp_path, text))
    assert len(caught.value.message) < 500


def with_metadata(folder: Path, text: str) -> Path:
    weights = {n: t.contiguous() for n, t in DualDecoderUNet(2).state_dict().items()}
    save_file(weights, folder / "best.safetensors", {METADATA_KEY: text})
    return folder / "best.safetensors"


def test_a_changed_bit_of_a_checkpoint_is_refused(tmp_path: Path) -> None:
    """Wherever it is: in the header, in the metadata or in a tensor."""
    path = tmp_path / "best.safetensors"
    network = DualDecoderUNet(1)
    save_weights(path, network.state_dict(), INFO.changed(width=1))
    assert load_network(path).info.width == 1
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    places = [*range(0, header, 211), *range(header, len(content), len(content) // 25)]
    metadata = content.index(b"maskdepth") - 2, content.index(b"sha256") + 80
    for number, place in enumerate([*places, *range(*metadata, 13), len(content) - 1]):
        changed = bytearray(content)
        changed[place] ^= 1 << number % 8
        path.write_bytes(changed)
        with pytest.raises(ModelError, match=r"best\.safetensors: ") as caught:
            load_network(path)
        assert place < header or "its checksum differs" in caught.value.message


def test_metadata_in_another_text_of_the_same_values_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    save_weights(path, DualDecoderUNet(2).state_dict(), INFO)
    with safe_open(path, framework="pt") as file:
        text = file.metadata()[METADATA_KEY]
    weights = load_file(path)
    save_file(weights, path, {METADATA_KEY: text})
    assert load_network(path).info == INFO
    for other in (text.replace(": ", ":"), text.replace("0.5", "0.50"), text + " "):
        assert json.loads(other) == json.loads(text)
        save_file(weights, path, {METADATA_KEY: other})
        with pytest.raises(ModelError, match="its checksum differs"):
            load_network(path)


def test_a_checkpoint_without_checksum_is_read(tmp_path: Path) -> None:
    """Of version 0.1; nothing is known about its bits."""
    about = {"format": "maskdepth-network", "version": 2, "info": INFO.model_dump()}
    assert load_network(with_metadata(tmp_path, json.dumps(about))).info == INFO
    with pytest.raises(ModelError, match="unknown key 'sha25' in its metadata"):
        load_network(with_metadata(tmp_path, json.dumps(about | {"sha25": "ab"})))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x02}q\x00."])
def test_damaged_files_of_torch(tmp_path: Path, content: bytes) -> None:
    for name in ("last.pt", "theirs.pth"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=r"last.pt: .*expected"):
        load_state(tmp_path / "last.pt")
    with pytest.raises(ModelError, match=r"theirs.pth|original's weights"):
        load_network(tmp_path / "theirs.pth")


def test_weights_of_another_shape_or_type(tmp_path: Path) -> None:
    weights = {original_name(n): t for n, t in DualDecoderUNet(3).state_dict().items()}
    first = original_name("encoder.inc.0.weight")
    for value in (
        torch.zeros(()),
        torch.zeros(0, 6, 3, 3),
        torch.zeros(9999),
        weights[first].int(),
    ):
        torch.save({**weights, first: value}, tmp_path / "theirs.pth")
        with pytest.raises(ModelError, match=r"theirs.pth: (weights do not fit|invalid metadata)"):
            load_network(tmp_path / "theirs.pth")
