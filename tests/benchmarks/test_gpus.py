"""What is read of a GPU, from replacements of NVML, of nvJPEG and of a profiler's trace."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity

from maskdepth.benchmarks.harness import nvjpeg, nvml
from maskdepth.benchmarks.harness.nvml import GIB, Idle, added_gib, before_use, open_nvml
from maskdepth.benchmarks.harness.results import Accelerator, Machine
from maskdepth.benchmarks.harness.traces import busy_s, host_to_device, trace

GPU = torch.device("cuda:0")
UUID = "8b1a6f2e-0000-0000-0000-000000000000"


class FakeNvml:
    """`pynvml` with one GPU; ``missing``: functions that this GPU does not support."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2

    def __init__(self, *missing: str, kind: str = "GPU") -> None:
        self.missing, self.kind = missing, kind
        self.used, self.pids = 2 * GIB, [11, 12]

    def nvmlInit(self) -> None:
        if "nvmlInit" in self.missing:
            raise OSError("NVML Shared Library Not Found")

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes) -> str:
        if uuid.decode() != f"{self.kind}-{UUID}":
            raise ValueError("Not Found")
        return "handle"

    def __getattr__(self, name: str) -> Any:
        answers: dict[str, Any] = {
            "nvmlDeviceGetMemoryInfo": lambda: SimpleNamespace(used=self.used),
            "nvmlDeviceGetComputeRunningProcesses": lambda: self.pids,
            "nvmlDeviceGetClockInfo": {1: 1980, 2: 2619}.__getitem__,
            "nvmlDeviceGetMaxClockInfo": {1: 1980, 2: 2700}.__getitem__,
            "nvmlDeviceGetEnforcedPowerLimit": lambda: 700_000,
            "nvmlDeviceGetMigMode": lambda: [0, 1],
            "nvmlDeviceGetTotalEnergyConsumption": lambda: 5_000,
        }
        if name in self.missing:
            raise AttributeError(name) if self.missing[0] == name else ValueError("Not Supported")

        def function(handle: str, *arguments: int) -> Any:
            assert handle == "handle"
            return answers[name](*arguments)

        return function


STATE: dict[str, Any] = {
    "sm_clock_mhz": 1980, "sm_clock_max_mhz": 1980, "memory_clock_mhz": 2619,
    "memory_clock_max_mhz": 2700, "power_limit_w": 700, "mig": False,
}  # fmt: skip
FUNCTIONS = {
    "nvmlDeviceGetClockInfo": ("sm_clock_mhz", "memory_clock_mhz"),
    "nvmlDeviceGetMaxClockInfo": ("sm_clock_max_mhz", "memory_clock_max_mhz"),
    "nvmlDeviceGetEnforcedPowerLimit": ("power_limit_w",),
    "nvmlDeviceGetMigMode": ("mig",),
}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let torch describe a GPU that has not been used."""
    monkeypatch.setattr(
        "torch.cuda.get_device_properties", lambda device: SimpleNamespace(uuid=UUID)
    )
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda device: 0)
    monkeypatch.setattr("torch.cuda.device", nullcontext)
    monkeypatch.setattr("torch.backends.cudnn.version", lambda: 91900)
    monkeypatch.setattr("torch.version.cuda", "13.0")
    nvml._before_use.cache_clear()
    yield
    nvml._before_use.cache_clear()


def use(monkeypatch: pytest.MonkeyPatch, library: Any) -> None:
    monkeypatch.setattr(nvml, "import_module", lambda name: library)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("kind", ["GPU", "MIG"])
def test_nvml_finds_the_gpu_of_torch(kind: str) -> None:
    found = open_nvml(GPU, FakeNvml(kind=kind))
    assert found is not None
    assert found.state() == STATE
    assert found.used_gib() == 2
    assert found.processes() == 2
    counter = found.energy_counter()
    assert counter is not None
    assert counter() == 5_000


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("missing", FUNCTIONS)
def test_a_value_that_a_gpu_does_not_give_is_none(missing: str) -> None:
    for fake in (FakeNvml(missing), FakeNvml("", missing)):  # no such function, or not supported
        found = open_nvml(GPU, fake)
        assert found is not None
        assert found.state() == STATE | dict.fromkeys(FUNCTIONS[missing])


@pytest.mark.usefixtures("gpu")
def test_nothing_is_known_without_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_nvml(torch.device("cpu"), FakeNvml()) is None
    assert open_nvml(GPU, FakeNvml("nvmlInit")) is None
    assert open_nvml(GPU, FakeNvml(kind="another")) is None
    some = ("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetComputeRunningProcesses")
    found = open_nvml(GPU, FakeNvml("nvmlDeviceGetTotalEnergyConsumption", *some))
    assert found is not None
    assert (found.used_gib(), found.processes(), found.energy_counter()) == (None, None, None)
    use(monkeypatch, FakeNvml("nvmlInit"))
    assert before_use(GPU) == Idle(None, None)
    assert added_gib(GPU) is None


@pytest.mark.usefixtures("gpu")
def test_memory_of_others_is_that_before_the_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeNvml()
    use(monkeypatch, fake)
    assert before_use("cuda") == Idle(2, 2)
    fake.used, fake.pids = 7 * GIB, [11, 12, 13]
    assert before_use(torch.device("cuda:0")) == Idle(2, 2)
    assert added_gib("cuda:0") == 5
    assert before_use("cpu") == Idle(None, None)
    assert added_gib("cpu") is None


@pytest.mark.usefixtures("gpu")
def test_memory_of_others_is_unknown_after_the_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeNvml())
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda device: 1)
    assert before_use(GPU) == Idle(None, None)


class FakeNvjpeg:
    """nvJPEG 13.4.1 on a GPU with ``engines``, or that answers with ``status``."""

    def __init__(self, engines: int = 7, status: int = 0) -> None:
        self.engines, self.status = engines, status

    def nvjpegGetProperty(self, which: int, value: Any) -> int:
        value._obj.value = (13, 4, 1)[which]
        return self.status

    def nvjpegCreateEx(self, *arguments: Any) -> int:
        return self.status

    def nvjpegGetHardwareDecoderInfo(self, handle: Any, engines: Any, cores: Any) -> int:
        engines._obj.value, cores._obj.value = self.engines, 1
        return 0

    def nvjpegDestroy(self, handle: Any) -> int:
        return 0


@pytest.mark.usefixtures("gpu")
def test_version_and_engines_of_nvjpeg() -> None:
    assert nvjpeg.version(FakeNvjpeg()) == "13.4.1"
    assert nvjpeg.version(FakeNvjpeg(status=1)) is None
    assert nvjpeg.version(None) is None
    assert nvjpeg.engines(FakeNvjpeg(), GPU) == 7
    assert nvjpeg.engines(FakeNvjpeg(engines=0), GPU) == 0
    assert nvjpeg.engines(FakeNvjpeg(status=7), GPU) == 0  # NVJPEG_STATUS_ARCH_MISMATCH
    assert nvjpeg.engines(FakeNvjpeg(status=6), GPU) is None
    assert nvjpeg.engines(None, GPU) is None


def test_the_installed_nvjpeg_says_its_version() -> None:
    library = nvjpeg.load()
    if library is None:
        pytest.skip("nvJPEG is not installed")
    found = nvjpeg.version(library)
    assert found is not None
    assert isinstance(library, ctypes.CDLL)
    assert [part.isdigit() for part in found.split(".")] == [True] * 3


def test_gpus_with_a_jpeg_engine() -> None:
    """P100, V100, T4, A10 have none; A100, L4, H100, B200 have."""
    capabilities = ((6, 0), (7, 0), (7, 5), (8, 6), (8, 0), (8, 9), (9, 0), (10, 0))
    assert [nvjpeg.has_engine(one) for one in capabilities] == [False] * 4 + [True] * 4


@pytest.mark.usefixtures("gpu")
def test_a_machine_with_a_gpu_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeNvml())
    monkeypatch.setattr(nvjpeg, "load", FakeNvjpeg)
    machine = Machine.of("cuda")
    assert machine.accelerator == Accelerator(
        cuda="13.0", cudnn="91900", nvjpeg="13.4.1", compute_capability="9.0",
        memory_used_before_gib=2, processes_before=2, jpeg_engines=7, jpeg_engine=True, **STATE,
    )  # fmt: skip
    assert Machine.model_validate_json(machine.model_dump_json()) == machine
    assert Machine.of("cpu").accelerator is None


@pytest.mark.usefixtures("gpu")
def test_a_gpu_of_which_little_is_known_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeNvml("nvmlInit"))
    monkeypatch.setattr(nvjpeg, "load", lambda: None)
    monkeypatch.setattr("torch.backends.cudnn.version", lambda: None)
    assert Machine.of("cuda").accelerator == Accelerator(
        cuda="13.0", compute_capability="9.0", jpeg_engine=True
    )


def kernel(start_us: float, end_us: float, **more: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": "kernel", "ts": start_us, "dur": end_us - start_us} | more


def test_kernels_that_overlap_count_once() -> None:
    events = [
        kernel(100, 200), kernel(150, 180), kernel(190, 250), kernel(400, 500),
        kernel(0, 9e9, cat="cuda_runtime"), kernel(0, 9e9, cat="gpu_user_annotation"),
        {"ph": "M", "name": "process_name"},
    ]  # fmt: skip
    assert busy_s(events) == pytest.approx(250e-6)
    assert busy_s([]) == 0


def test_copies_from_the_host_are_added() -> None:
    events = [
        kernel(0, 40, cat="gpu_memcpy", name="Memcpy HtoD (Pinned -> Device)",
               args={"bytes": 3 * 2**20}),
        kernel(60, 70, cat="gpu_memcpy", name="Memcpy HtoD (Pageable -> Device)",
               args={"bytes": 2**20}),
        kernel(80, 90, cat="gpu_memcpy", name="Memcpy DtoH (Device -> Pinned)",
               args={"bytes": 2**30}),
        kernel(100, 200, name="a kernel"),
    ]  # fmt: skip
    copies = host_to_device(events)
    assert copies.seconds == pytest.approx(50e-6)
    assert copies.mib == 4


def test_a_trace_of_the_profiler_is_read() -> None:
    """On a CPU its operations take the place of kernels."""
    values = torch.rand(256, 256)

    def work() -> None:
        for _ in range(5):
            values @ values

    began = time.perf_counter()
    events = trace(work, ProfilerActivity.CPU)
    assert 0 < busy_s(events, "cpu_op") < time.perf_counter() - began
    assert sum(event.get("name") == "aten::mm" for event in events) == 5
    assert busy_s(events) == 0
    assert host_to_device(events) == (0, 0)
