"""Which wheels are installed for which driver and GPU, and what is said where they do not match."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from maskdepth.model import ModelError, precision
from maskdepth.model.driver import (
    Driver,
    choose_cuda,
    choose_torch,
    find_mismatch,
    find_missing_code,
    parse_driver,
    read_driver,
)
from maskdepth.model.precision import choose_device

ROOT = Path(__file__).parent.parent.parent
T4, A100, H100, P100, V100 = (7, 5), (8, 0), (9, 0), (6, 0), (7, 0)

WHEELS: dict[tuple[str, tuple[int, int]], tuple[int, str | None]] = {
    ("450.248.02", T4): (13, None),  # too old for either: the default, and a warning
    ("525.60.13", T4): (12, "2.10.0"),
    ("535.183.06", A100): (12, "2.10.0"),
    ("550.54.14", T4): (12, "2.10.0"),
    ("575.57.08", H100): (12, "2.10.0"),
    ("580.65.06", T4): (13, None),
    ("595.45", H100): (13, None),
    ("550.54.14", V100): (12, "2.10.0"),
    ("580.65.06", V100): (12, "2.10.0"),
    ("580.65.06", P100): (12, "2.7.1"),
    ("535.183.06", P100): (12, "2.7.1"),
}


@pytest.mark.parametrize(("version", "gpu"), WHEELS)
def test_wheels_of_a_driver_and_a_gpu(version: str, gpu: tuple[int, int]) -> None:
    driver = Driver(version, (H100, gpu))
    cuda = choose_cuda(driver)
    assert (cuda, choose_torch(cuda, driver)) == WHEELS[version, gpu]


def test_without_a_driver_the_wheels_are_for_cuda_13() -> None:
    assert (choose_cuda(None), choose_torch(13, None), choose_torch(12, None)) == (
        13, None, "2.10.0"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("version", "built_for", "expected"),
    [
        ("550.54.14", "13.0", "driver 550.54.14 supports CUDA 12, torch was built for CUDA 13.0: "
         "remove .venv and run `make install CUDA=12`, or install driver 580 or newer"),
        ("550.54.14", "12.8", None),
        ("580.65.06", "12.8", None),
        ("580.65.06", "13.0", None),
        ("580.65.06", None, "driver 580.65.06 was found, but torch was built without CUDA: remove "
         ".venv and run `make install CUDA=13`"),
        ("470.82", "12.8", "driver 470.82 is too old: install 525 or newer"),
    ],
)  # fmt: skip
def test_a_mismatch_is_one_line(version: str, built_for: str | None, expected: str | None) -> None:
    assert find_mismatch(Driver(version, (T4,)), built_for) == expected


CUDA_13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


@pytest.mark.parametrize(
    ("capability", "kernels", "cuda"),
    [
        (P100, CUDA_13, 12),
        (V100, CUDA_13, 12),
        (T4, CUDA_13, None),
        ((8, 9), CUDA_13, None),  # runs the code of 8.6
        ((13, 0), CUDA_13, None),  # compiles compute_120
        ((12, 0), ["sm_80", "sm_90a"], 13),
        (P100, [], None),
        (P100, ["gfx90a"], None),  # not NVIDIA's
    ],
)
def test_code_for_a_gpu(capability: tuple[int, int], kernels: list[str], cuda: int | None) -> None:
    found = find_missing_code(capability, "13.0", kernels)
    major, minor = capability
    assert found == (
        f"torch for CUDA 13.0 has no code for a GPU of compute capability {major}.{minor}: "
        f"remove .venv and run `make install CUDA={cuda}`"
        if cuda
        else None
    )


def test_output_of_nvidia_smi() -> None:
    assert parse_driver("550.54.14, 7.5\n550.54.14, 9.0\n") == Driver("550.54.14", (T4, H100))
    assert parse_driver("525.60.13, [N/A]\n") == Driver("525.60.13")
    assert parse_driver("No devices were found\n") is None
    assert parse_driver("") is None


@pytest.fixture
def fake_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Put an nvidia-smi on the PATH that prints a text and returns a code."""

    def make(text: str, code: int = 0) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\necho '{text}'\nexit {code}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    return make


def test_the_driver_is_read_from_nvidia_smi(fake_driver: Callable[..., None]) -> None:
    fake_driver("550.54.14, 7.5")
    assert read_driver() == Driver("550.54.14", (T4,))
    fake_driver("NVIDIA-SMI has failed because it could not communicate with the driver", 9)
    assert read_driver() is None
    assert read_driver(["no-such-program"]) is None


@pytest.mark.parametrize(
    ("driver", "request_", "chosen", "said"),
    [
        ("550.54.14, 7.5", "", "12 2.10.0", "== driver 550.54.14: torch and DALI for CUDA 12\n"),
        ("580.65.06, 9.0", "", "13", "== driver 580.65.06: torch and DALI for CUDA 13\n"),
        ("580.65.06, 9.0", "12", "12 2.10.0", "torch and DALI for CUDA 12\n"),
        ("550.54.14, 7.5", "13", "13", "Warning: driver 550.54.14 supports CUDA 12, torch was"),
        ("580.65.06, 6.0", "13", "13", "Warning: torch for CUDA 13 has no code for a GPU of comp"),
        ("470.82.01, 7.5", "", "13", "Warning: driver 470.82.01 is too old: install 525 or newer"),
        ("No devices were found", "", "13", ""),
    ],
)
def test_the_choice_of_the_installer(
    driver: str, request_: str, chosen: str, said: str, fake_driver: Callable[..., None]
) -> None:
    """As `.ci/install` runs it: without torch, by its path."""
    fake_driver(driver)
    done = subprocess.run(
        [sys.executable, "-I", "-S", ROOT / "model/driver.py"],
        env={**os.environ, "CUDA": request_}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.strip() == chosen
    assert said in done.stderr
    assert done.returncode == 0


def test_another_cuda_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "model/driver.py"],
        env={**os.environ, "CUDA": "11.8"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "install: CUDA=11.8: expected CUDA=12 or CUDA=13\n"


@pytest.mark.parametrize(
    ("cuda", "message"),
    [
        ("11", "install: CUDA=11: expected CUDA=12 or CUDA=13\n"),
        ("12", "install: .venv is for CUDA 13: remove it to install for CUDA 12\n"),
        ("13", ""),
    ],
)
def test_make_install_says_what_is_wrong_first(cuda: str, message: str, tmp_path: Path) -> None:
    """With an installed .venv, which it must not ask to remove for a CUDA that cannot be had."""
    needed = ("setup.cfg", "pyproject.toml", "constraints.txt", ".ci/install", "model/driver.py")
    for name in (*needed, ".venv/cuda", ".venv/.installed"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("13")
    command = ["make", "-f", str(ROOT / "Makefile"), "install", f"CUDA={cuda}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    lines = done.stderr.splitlines(keepends=True)
    assert "".join(line for line in lines if not line.startswith("make")) == message
    assert (done.returncode != 0) == bool(message)


@pytest.mark.parametrize("command", [["make", "-n", "install", "DALI=dali-cu12"], [".ci/install"]])
def test_the_former_option_is_refused(command: list[str]) -> None:
    environment = {**os.environ, "DALI": "dali-cu12"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "DALI=dali-cu12 is no longer an option; CUDA=12 or CUDA=13" in done.stderr


def test_a_device_that_torch_cannot_use_is_explained(
    fake_driver: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reason = "driver 550.54.14 supports CUDA 12, torch was built for CUDA 13.0: remove .venv"
    fake_driver("550.54.14, 7.5")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match=f"--device cuda: {reason}"):
        choose_device("cuda")
    precision._warn_once.cache_clear()
    for _ in range(2):
        assert choose_device("auto") == torch.device("cpu")
    assert capsys.readouterr().err.count(f"Warning: the GPU is not used, because {reason}") == 1
    assert choose_device("cpu") == torch.device("cpu")


def test_a_gpu_without_code_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: CUDA_13)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: P100)
    with pytest.raises(ModelError, match=r"no code for a GPU of compute capability 6\.0: remove"):
        choose_device("cuda:0")
    assert choose_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: T4)
    assert choose_device("auto") == torch.device("cuda")
