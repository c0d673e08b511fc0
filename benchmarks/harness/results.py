"""A result: what was run, on what, with which versions, and every raw repeat.

The classes below are the schema of its JSON; `docs/benchmarks.md` describes it in words.
Result files may come from anyone: `read_result` is the one place that reads them.
"""

from __future__ import annotations

import math
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from maskdepth.benchmarks.harness import nvjpeg as nvjpeg_library
from maskdepth.benchmarks.harness.nvml import Idle, Nvml, before_use, open_nvml
from maskdepth.benchmarks.harness.timing import AtLeast0, Repeat
from maskdepth.convert.errors import DataError
from maskdepth.convert.files import read_regular
from maskdepth.convert.found import DATA_SET, RUN, SHARDS, found_at
from maskdepth.convert.program import BENCH
from maskdepth.convert.schema import Count, Items, Positive, Schema, parse_json, parse_table
from maskdepth.convert.workers import available_cores

SCHEMA = 3

Benchmark = Literal[
    "gpu-check", "peers", "loader", "step", "epoch", "quality", "recipes", "speedrun", "scaling",
    "compose", "convert", "encode", "batch", "codecs", "decode", "luma", "storage", "simulation",
    "estimate", "parity", "hardware",
]  # fmt: skip
"""Names of the benchmarks, in the order in which a report shows them."""

FLOAT = ", float"
"""End of the name of a case that delivers normalised floats; the others deliver uint8."""

NO_NETWORK = "no network"
"""Name of the case that holds the scores of the baselines of `model.metrics`."""


LIBRARIES = (
    "torch", "numpy", "numba", "pillow", "simplejpeg", "kornia", "ffcv", "nvidia-dali-cuda130",
    "nvidia-dali-cuda120", "webdataset", "mosaicml-streaming", "streaming-community", "litdata",
    "spdl", "turboloader", "lancedb", "grain", "torchcodec",
)  # fmt: skip


def one_line(text: str) -> str:
    """The text without control characters; runs of white space become a space."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


Text = Annotated[str, AfterValidator(one_line)]
"""Of a result: it is printed in a terminal, and put into tables, documents and pictures."""


_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""As JSON, which has no such numbers, has them in a result."""


def _plain(value: object) -> object:
    """A number of NumPy or torch as Python's; other values as they are."""
    if isinstance(value, np.generic):
        return value.item()
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value


Figure = Annotated[float, Field(allow_inf_nan=True), BeforeValidator(_plain)]
"""May be infinite or no number, as the score of a training that has diverged is."""

_MOST_CASES = 1000
"""Of a result: a picture of more has no use."""


class _Record(Schema, ser_json_inf_nan="strings"):
    """A table of a result."""


class Accelerator(_Record):
    """A GPU that was measured; None is what could not be read.

    cuda, cudnn: versions that torch uses. nvjpeg: version that DALI uses. Clocks: when the result
    was made, right after the last repeat. memory_used_before_gib, processes_before: of others,
    before the benchmark used the GPU. jpeg_engines: their number, by nvJPEG. jpeg_engine: whether
    there is one, by nvJPEG or, where it does not say, by the compute capability.
    """

    cuda: Text | None = None
    cudnn: Text | None = None
    nvjpeg: Text | None = None
    compute_capability: Text | None = None
    sm_clock_mhz: float | None = None
    sm_clock_max_mhz: float | None = None
    memory_clock_mhz: float | None = None
    memory_clock_max_mhz: float | None = None
    power_limit_w: float | None = None
    mig: bool | None = None
    memory_used_before_gib: float | None = None
    processes_before: Count | None = None
    jpeg_engines: Count | None = None
    jpeg_engine: bool | None = None

    @classmethod
    def of(cls, device: torch.device, nvml: Nvml | None, idle: Idle, nvjpeg: Any) -> Accelerator:
        """A CUDA device. nvjpeg: the library, or None."""
        capability = torch.cuda.get_device_capability(device)
        cudnn, engines = torch.backends.cudnn.version(), nvjpeg_library.engines(nvjpeg, device)
        by_capability = nvjpeg_library.has_engine(capability)
        return cls(
            cuda=torch.version.cuda,
            cudnn=None if cudnn is None else str(cudnn),
            nvjpeg=nvjpeg_library.version(nvjpeg),
            compute_capability=".".join(map(str, capability)),
            memory_used_before_gib=idle.used_gib,
            processes_before=idle.processes,
            jpeg_engines=engines,
            jpeg_engine=by_capability if engines is None else engines > 0,
            **({} if nvml is None else nvml.state()),
        )


class Machine(_Record):
    """Where a result was measured; gpu, driver and accelerator are None where device is "cpu"."""

    cpu: Text
    cores: Positive
    device: Text
    gpu: Text | None
    driver: Text | None
    system: Text
    accelerator: Accelerator | None = None

    @classmethod
    def of(cls, name: str) -> Machine:
        """This machine, with the device that was measured."""
        device = torch.device(name)
        on_gpu = device.type == "cuda"
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return cls(
            cpu=_processor(),
            cores=available_cores(),
            device=device.type,
            gpu=torch.cuda.get_device_name(device) if on_gpu else None,
            driver=_first_line(*query) if on_gpu else None,
            system=platform.platform(),
            accelerator=Accelerator.of(
                device, open_nvml(device), before_use(name), nvjpeg_library.load()
            )
            if on_gpu
            else None,
        )


class Spread(_Record):
    """Median and range of the repeats."""

    median: Figure
    lowest: Figure
    highest: Figure

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarize at least one value."""
        return cls(median=statistics.median(values), lowest=min(values), highest=max(values))


class CaseResult(_Record):
    """One thing measured.

    parameters: those that vary between the cases of a result. repeats: the raw runs; empty where
    nothing was timed. samples_per_s, cpu_us_per_sample and thread_us_per_sample follow from the
    repeats; the last is None in results of earlier versions.
    figures: other numbers of the case, each with its unit in its name.
    """

    parameters: dict[Text, Text | float] = Field(default_factory=dict)
    repeats: list[Repeat] = Field(default_factory=list)
    samples_per_s: Spread | None = Field(
        default_factory=lambda case: _spread(case["repeats"], "samples_per_s")
    )
    cpu_us_per_sample: Spread | None = Field(
        default_factory=lambda case: _spread(case["repeats"], "cpu_us_per_sample")
    )
    thread_us_per_sample: Spread | None = Field(
        default_factory=lambda case: _spread(case["repeats"], "thread_us_per_sample")
    )
    figures: dict[Text, Figure] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _agrees(self) -> CaseResult:
        for name in ("samples_per_s", "cpu_us_per_sample", "thread_us_per_sample"):
            if getattr(self, name) != _spread(self.repeats, name):
                raise ValueError(f"{name} is not that of the repeats")
        return self


def _spread(repeats: list[Repeat], what: str) -> Spread | None:
    values = [getattr(repeat, what) for repeat in repeats]
    return Spread.of(values) if values and None not in values else None


def summarize(values: Sequence[float], name: str) -> dict[str, float]:
    """Median and range of the values, as figures of a case."""
    return {f"{what}_{name}": value for what, value in Spread.of(values)}


FEW_REPEATS = 3
"""Results of fewer repeats are marked: their range says little."""
_BUSY = 0.25
"""Share of the machine's cores above which the load of others is marked."""


class Load(_Record):
    """What the machine did beside the benchmark, in cores.

    before, after: the load average of one minute at the start and at the end, where the benchmark
    itself counts too. others: mean number of cores that other processes used in between.
    """

    before: AtLeast0
    after: AtLeast0
    others: AtLeast0
    machine_cores: Positive

    @property
    def is_busy(self) -> bool:
        """Whether others used much of the machine: an earlier benchmark is in `before`, too."""
        return self.others > _BUSY * self.machine_cores


class Result(_Record):
    """One run of one benchmark.

    ours: the cases of this project; all cases are compared with the fastest of them.
    skipped: what was not measured, and why. sizes: bytes and shares, by name.
    load: None in results of earlier versions. unfinished: why there may be more to measure; empty
    if nothing is missing.
    """

    schema_version: Literal[3] = 3
    benchmark: Benchmark
    created: Text
    commit: Text
    arguments: dict[Text, Text]
    machine: Machine
    versions: dict[Text, Text]
    cases: Annotated[dict[Text, CaseResult], Field(max_length=_MOST_CASES)]
    ours: Items[Text] = ()
    skipped: dict[Text, Text] = Field(default_factory=dict)
    sizes: dict[Text, float] = Field(default_factory=dict)
    load: Load | None = None
    unfinished: Text = ""

    @property
    def is_busy(self) -> bool:
        """Whether it is known that others used the machine."""
        return self.load is not None and self.load.is_busy

    @property
    def repeats(self) -> int | None:
        """Repeats of the cases that were timed in turn; None where nothing was timed."""
        return max((len(case.repeats) for case in self.cases.values()), default=0) or None

    @model_validator(mode="after")
    def _known(self) -> Result:
        unknown = set(self.ours) - set(self.cases)
        if unknown:
            raise ValueError(f"ours names {sorted(unknown)}, which are not cases")
        return self

    def best(self, beside: str) -> str | None:
        """Name of our fastest case with the parameters and pixel type of case ``beside``, or None.

        The end of a name, `FLOAT`, states the type.
        """
        rates = {
            name: rate.median
            for name in self.ours
            if self.cases[name].parameters == self.cases[beside].parameters
            and name.endswith(FLOAT) == beside.endswith(FLOAT)
            and (rate := self.cases[name].samples_per_s) is not None
        }
        return max(rates, key=lambda name: rates[name]) if rates else None

    def against_ours(self, name: str) -> Spread | None:
        """Rate of a case over that of our fastest, round by round; None without either.

        It is the ratio of the medians where the two were not timed in the same rounds.
        """
        base = self.best(name)
        if base is None:
            return None
        ours, theirs = self.cases[base], self.cases[name]
        if ours.samples_per_s is None or theirs.samples_per_s is None:
            return None
        if len(ours.repeats) != len(theirs.repeats):
            return Spread.of([theirs.samples_per_s.median / ours.samples_per_s.median])
        rounds = zip(ours.repeats, theirs.repeats, strict=True)
        return Spread.of([theirs.samples_per_s / ours.samples_per_s for ours, theirs in rounds])


def make_result(
    benchmark: Benchmark,
    arguments: Mapping[str, object],
    cases: dict[str, CaseResult],
    *,
    device: str = "cpu",
    ours: tuple[str, ...] = (),
    skipped: Mapping[str, str] = {},
    sizes: Mapping[str, float] = {},
) -> Result:
    """A result of this run, on this machine, at this commit."""
    return Result(
        benchmark=benchmark,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        # With "-dirty" where the checkout has changes; "unknown" without a checkout.
        commit=_first_line(
            "git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"
        ),
        arguments={name: str(value) for name, value in arguments.items()},
        machine=Machine.of(device),
        versions=_versions(),
        cases=cases,
        ours=ours,
        skipped=dict(skipped),
        sizes=dict(sizes),
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _first_line(*command: str) -> str:
    """Of the output of a command; "unknown" if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.partition("\n")[0].strip() or "unknown"


def _versions() -> dict[str, str]:
    """Of Python and of the libraries of `LIBRARIES` that are installed."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def read_result(path: Path) -> Result:
    """Read a result from its file. Raises DataError where it is not valid."""
    try:
        return Result.from_json(parse_json(read_regular(path)))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; expected a result of `benchmarks`") from None
    except ValueError as error:
        raise DataError(
            f"{path}: not a result of schema {SCHEMA}: {error}; measure again"
        ) from None


def read_benchmark(path: Path) -> str | None:
    """Name of the benchmark whose result a file is, of any version; None if it is none."""
    try:
        found = parse_table(read_regular(path)).get("benchmark")
    except (OSError, ValueError, DataError):
        return None
    return found if isinstance(found, str) else None


def read_results(folder: Path) -> dict[str, Result]:
    """Read all results of a folder, by file name without suffix; DataError if there are none."""
    if (found := found_at(folder)) in (SHARDS, DATA_SET, RUN):
        raise DataError(f"{folder}: found {found}, expected results of `{BENCH}`")
    paths = sorted(folder.glob("[!.]*.json")) if folder.is_dir() else []
    if not paths:
        raise DataError(f"{folder}: no results (*.json) here; run `{BENCH}` first")
    return {path.stem: read_result(path) for path in paths}
