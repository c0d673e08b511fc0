"""What a reader has to know of a result besides its figures, in sentences."""

from __future__ import annotations

from maskdepth.benchmarks.harness.results import FEW_REPEATS, Accelerator, Result
from maskdepth.benchmarks.report import scores, tables

_FLOORS = {
    "floor: libjpeg-turbo alone": "decodes the JPEGs of the same samples on as many CPU threads, "
    "without order, batch or check. No loader that decodes these JPEGs on the CPU is faster. The "
    "engine FFCV can be, where its file stores differences: it decodes only what differs from a "
    "background. The engine resident has decoded before the clock starts.",
    "floor: write the files": "writes as many files of the bytes of one sample each, in as many "
    "processes, and composes nothing.",
    "floor: read and decode": "reads every file and decodes it once with libjpeg-turbo, in as many "
    "processes, and writes nothing. Our packing decodes every image too, so it cannot be faster.",
}
"""Case -> what it does, and what it bounds."""
_UNBOUND = ("ours, FFCV", "ours, resident")
"""Starts of the names of cases that a floor does not bound, for the reasons above."""
_STILL_CACHED = 0.05
_BOUND = "ours, FFCV, stored as JPEGs"


def text(result: Result) -> str:
    """A result for a terminal: where it was measured, the timed cases and all figures."""
    table = tables.timed(result)
    lines = [f"{result.benchmark}: {where(result)}", *(table.aligned() if table.rows else ())]
    for name, case in result.cases.items():
        lines += [
            f"{name}: {what} {value:,.6g}" + scores.prior_mark(result, case) * ("depth" in what)
            for what, value in case.figures.items()
        ]
    lines += notes(result)
    lines += [f"{name}: skipped, {why}" for name, why in result.skipped.items()]
    return "\n".join(lines)


def notes(result: Result) -> list[str]:
    """What the comparisons of a timed result mean: a sentence or two each."""
    found = []
    if any(result.against_ours(name) is not None for name in result.cases):
        found.append(
            'Against ours: "2 x slower" is half of the samples/s of the row that says "ours", the '
            "median over the rounds."
        )
    for name, what in _FLOORS.items():
        if name in result.cases:
            found.append(" ".join([f'The row "{name}" {what}', *_above(result, name)]))
    if result.benchmark == "storage":
        found.append(_cold(result))
    return found


def _cold(result: Result) -> str:
    """Whether files were in memory when they were read."""
    share = result.sizes.get("cached_share")
    if share is None:
        return "The page cache was asked to drop the files; whether it did is not known here."
    if share > _STILL_CACHED:
        return (
            f"Not cold: {share:.0%} of the files stayed in the page cache although it was asked to "
            "drop them, as files do that lie in memory or are in use."
        )
    return "Cold: the page cache had dropped the files. A cache of the device is not dropped."


def _above(result: Result, floor: str) -> list[str]:
    """Why cases that a floor bounds are above it, if any are."""
    limit = result.cases[floor].samples_per_s
    packs = result.benchmark in ("compose", "convert")
    found = []
    for name, case in result.cases.items():
        rate = case.samples_per_s
        bound = packs or name == _BOUND or not name.startswith(_UNBOUND)
        if limit is None or rate is None or not bound or rate.median <= limit.median:
            continue
        overlap = rate.lowest <= limit.highest
        found.append(
            f'"{name}" is above it '
            + (
                "within the ranges of the repeats."
                if overlap
                else "by more than their ranges: the speed of the machine changed, or the case "
                "decodes elsewhere."
            )
        )
    return found


def where(result: Result) -> str:
    """The device, the commit, the time, the arguments and the number of repeats."""
    machine = result.machine
    device = (
        f"{machine.gpu} (driver {machine.driver}) and {machine.cores} cores of {machine.cpu}"
        if machine.gpu
        else f"a CPU: {machine.cores} cores of {machine.cpu}; no GPU"
    )
    if machine.accelerator is not None:
        device = ", ".join([device, *_describe(machine.accelerator)])
    if result.benchmark in ("simulation", "estimate"):
        device += " (what computed it)"
    arguments = ", ".join(f"{name} {value}" for name, value in result.arguments.items())
    words = [f"On {device}; commit {result.commit}, {result.created}; {arguments}."]
    if result.repeats is not None:
        words.append(f"Medians of {result.repeats} in turn.")
    return " ".join([*words, *doubts(result)])


def doubts(result: Result) -> list[str]:
    """Why the figures of a result may not be trusted: a sentence each."""
    found = []
    if result.repeats is not None and result.repeats < FEW_REPEATS:
        found.append(f"Fewer than {FEW_REPEATS} repeats: their range says little.")
    if result.load is not None and result.load.is_busy:
        load = result.load
        found.append(
            f"Measured on a busy machine: others used {load.others:.1f} of {load.machine_cores} "
            "cores meanwhile."
        )
    if result.unfinished:
        found.append(f"Incomplete: {result.unfinished}.")
    return found


def _clock(current: float | None, highest: float | None) -> str | None:
    if current is None:
        return None
    return f"{current:.0f}" if highest is None else f"{current:.0f} of {highest:.0f}"


def _describe(gpu: Accelerator) -> list[str]:
    """What is known of a GPU, in the words of a report."""
    engines = {None: "", True: "a JPEG engine", False: "no JPEG engine"}[gpu.jpeg_engine]
    if gpu.jpeg_engines:
        engines = f"JPEG engines: {gpu.jpeg_engines}"
    known = {
        "CUDA {}": gpu.cuda,
        "cuDNN {}": gpu.cudnn,
        "nvJPEG {}": gpu.nvjpeg,
        "compute capability {}": gpu.compute_capability,
        "SM clock {} MHz": _clock(gpu.sm_clock_mhz, gpu.sm_clock_max_mhz),
        "memory clock {} MHz": _clock(gpu.memory_clock_mhz, gpu.memory_clock_max_mhz),
        "power limit {:.0f} W": gpu.power_limit_w,
        "MIG {}": None if gpu.mig is None else ("on" if gpu.mig else "off"),
        "other processes: {}": gpu.processes_before,
        "{:.2f} GiB in use before": gpu.memory_used_before_gib,
        "{}": engines or None,
    }
    return [words.format(value) for words, value in known.items() if value is not None]
