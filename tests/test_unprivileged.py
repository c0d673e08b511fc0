"""A user who may not read an input, or not write the output: one line and exit code 2, always."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

from maskdepth import train
from maskdepth.benchmarks.__main__ import main as benchmarks_main
from maskdepth.convert.__main__ import main as convert_main
from maskdepth.model.checkpoint import ChannelStatistics, NetworkInfo, save_weights
from maskdepth.model.unet import DualDecoderUNet

USER = 65534
PROGRAMS: dict[str, click.Group] = {
    "convert": convert_main, "train": train.main, "benchmarks": benchmarks_main,
}  # fmt: skip
STATISTICS = ChannelStatistics((0.1, 0.2, 0.3), (0.2, 0.25, 0.3))
INFO = NetworkInfo(
    width=2, size=32, depth_loss="l1", statistics=dict.fromkeys(("bg", "fg_bg"), STATISTICS)
)


@pytest.fixture(scope="module")
def folder(dataset: Path, shards: Path) -> Iterator[Path]:
    """Of root: open to read, but for the folder `closed` and the names that begin with `shut`."""
    if os.geteuid():
        pytest.skip("needs root to become another user")
    for module in ("maskdepth.benchmarks.compare", "maskdepth.benchmarks.report.page"):
        import_module(module)  # the other user may not be allowed to read what they import
    with tempfile.TemporaryDirectory() as name:  # pytest's own are closed to other users
        found = Path(name)
        found.chmod(0o755)
        shutil.copytree(dataset, found / "data")
        for target in ("shards", "shut", "shut_files", "closed/shards"):
            shutil.copytree(shards, found / target)
        torch.manual_seed(0)
        save_weights(found / "net.safetensors", DualDecoderUNet(2).state_dict(), INFO)
        shutil.copy(found / "net.safetensors", found / "closed/net.safetensors")
        shutil.copy(found / "net.safetensors", found / "shut.safetensors")
        shutil.copy(found / "net.safetensors", found / "shut.pt")
        shutil.copy(found / "data/bg/bg_001.jpg", found / "bg.jpg")
        shutil.copy(found / "bg.jpg", found / "shut.jpg")
        for text in ("shut.toml", "shut.json"):
            (found / text).write_text("{}")
        for path in (found / "shut_files").iterdir():
            path.chmod(0 if path.name != "manifest.json" else 0o644)
        for path in (*found.glob("shut.*"), found / "shut/manifest.json"):
            path.chmod(0)
        (found / "results").mkdir(mode=0o755)
        (found / "open").mkdir()
        (found / "open").chmod(0o777)
        shutil.copytree(shards, found / "open/shards")
        (found / "closed").chmod(0o700)
        yield found


COMMANDS = """
convert pack data new --workers 0
convert pack closed/data new
convert pack data shards --force --workers 0
convert pack data open/shards --force --workers 0
convert check closed/data
convert compose new --workers 0
convert compose closed/new --workers 0
convert verify closed/shards
convert verify shut
convert inspect shut
convert show shards out.png
convert show shut_files out.png
convert depth data --model x --force
train fit data run --width 2 --device cpu
train fit closed/shards closed/run
train fit data run --recipe shut.toml
train evaluate data shut.safetensors
train evaluate data shut.pt
train evaluate data closed/net.safetensors
train evaluate data net.safetensors --picture out.png
train predict net.safetensors --bg bg.jpg --fg-bg bg.jpg out
train predict net.safetensors --bg shut.jpg --fg-bg bg.jpg out
train predict net.safetensors --bg closed --fg-bg closed out
train export net.safetensors closed/out.pt2
train export net.safetensors out.pt2
benchmarks report results
benchmarks report closed
benchmarks compare shut.json shut.json
"""


@pytest.mark.parametrize("command", COMMANDS.strip().splitlines())
def test_a_user_without_permission(
    folder: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    before = {*folder.iterdir(), *(folder / "open").iterdir()}
    program, *arguments = command.split()
    os.seteuid(USER)
    try:
        result = CliRunner().invoke(PROGRAMS[program], arguments)
    finally:
        os.seteuid(0)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.output
    assert result.stderr.startswith("Error: ")
    assert {*folder.iterdir(), *(folder / "open").iterdir()} == before
