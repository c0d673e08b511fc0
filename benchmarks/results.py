"""A result as JSON: what was run, on what, with which versions, and every raw repeat."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.timing import Repeat, median, ratios
from convert.workers import default_workers

SCHEMA = 1
_LIBRARIES = (
    "torch", "numpy", "numba", "pillow", "simplejpeg", "kornia", "ffcv", "nvidia-dali-cuda130",
    "nvidia-dali-cuda120", "webdataset", "mosaicml-streaming", "litdata", "spdl",
)  # fmt: skip


def make_result(
    benchmark: str,
    arguments: Mapping[str, Any],
    repeats: Mapping[str, Sequence[Repeat]],
    ratio_to: str,
    **more: Any,
) -> dict[str, Any]:
    """One run as plain values; ``ratio_to`` names the case whose rate the others divide."""
    ours = repeats[ratio_to]
    return {
        "schema": SCHEMA,
        "benchmark": benchmark,
        "arguments": {name: str(value) for name, value in arguments.items()},
        "commit": _commit(),
        "machine": describe_machine(),
        "versions": _versions(),
        "cases": {
            name: {
                "samples_per_s": median(found, "samples_per_s"),
                "cpu_us_per_sample": median(found, "cpu_us_per_sample"),
                "peak_rss_gib": max(repeat.peak_rss_gib for repeat in found),
                "ours_is_faster_by": statistics.median(ratios(ours, found)),
                "repeats": [repeat.to_json() for repeat in found],
            }
            for name, found in repeats.items()
        },
        **more,
    }


def describe_machine() -> dict[str, Any]:
    """Processor and device; figures of a CPU are never called GPU time."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), cpu)
    return {"cpu": cpu, "cores": default_workers(), "device": "cpu", "system": platform.platform()}


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def table(result: Mapping[str, Any]) -> str:
    """The cases of a result, a line each, for a person."""
    machine = result["machine"]
    lines = [
        f"{result['benchmark']} on {machine['cores']} cores of {machine['cpu']}, commit "
        f"{result['commit']}; medians of {len(next(iter(result['cases'].values()))['repeats'])}",
        f"{'':44}{'samples/s':>11}{'CPU us/sample':>15}{'peak GiB':>10}{'ours is':>10}",
    ]
    for name, case in result["cases"].items():
        lines.append(
            f"{name:44}{case['samples_per_s']:11,.0f}{case['cpu_us_per_sample']:15,.0f}"
            f"{case['peak_rss_gib']:10.2f}{case['ours_is_faster_by']:9.2f}x"
        )
    return "\n".join(lines)


def write_result(result: Mapping[str, Any], path: Path | None) -> None:
    """Print the table; with ``path`` write the JSON too."""
    print(table(result), file=sys.stdout)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
