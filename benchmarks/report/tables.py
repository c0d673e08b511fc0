"""Results as tables of text: the same for the terminal, for Markdown and beside every picture."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from maskdepth.benchmarks.harness.results import CaseResult, Result, Spread

PHASES = ("data_wait", "preprocess", "forward", "loss_and_backward", "optimiser", "metrics")

AXES = {
    "threads": "threads", "batch size": "batch size, samples", "image size": "image size, pixels",
    "records": "records",
}  # fmt: skip
"""Axis of `scaling` -> its title, with the unit."""

_TITLES = {
    "bytes": "stored, bytes/image",
    "source_bytes": "source, bytes/image",
    "gflop_per_sample": "work, GFLOP/sample",
    "mbyte_per_sample": "memory traffic, MB/sample",
    "largest_difference_levels": "largest difference, levels of 255",
    "allowed_levels": "allowed difference, levels of 255",
}
_UNITS = {
    "us_per_sample": "us/sample", "us_per_batch": "us/batch", "mib_per_gpu": "MiB/GPU",
    "samples_per_s": "samples/s", "mb_per_s": "MB/s", "cpu_us": "CPU us/sample", "gib": "GiB",
    "mib": "MiB", "kib": "KiB", "us": "us", "s": "s",
}  # fmt: skip
"""End of the name of a figure -> its unit."""


@dataclass(frozen=True)
class Table:
    """Head and rows, all text; the first column is a name, the others are numbers."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, rows: Iterable[dict[str, str]]) -> Table:
        """From rows with the same keys, which become the head."""
        rows = list(rows)
        return cls(tuple(rows[0]) if rows else (), tuple(tuple(row.values()) for row in rows))

    def with_column(self, name: str, cells: Iterable[str]) -> Table:
        rows = ((*row, cell) for row, cell in zip(self.rows, cells, strict=True))
        return Table((*self.head, name), tuple(rows))

    def filled(self) -> Table:
        """Without columns whose cells are all empty, as in results of earlier versions."""
        kept = [
            at for at, _ in enumerate(self.head) if at == 0 or any(row[at] for row in self.rows)
        ]
        head, *rows = (tuple(row[at] for at in kept) for row in (self.head, *self.rows))
        return Table(head, tuple(rows))

    def aligned(self) -> list[str]:
        """Lines for a terminal."""
        lines = (self.head, *self.rows)
        first, *others = (max(map(len, column)) for column in zip(*lines, strict=True))
        return [
            f"{name:{first}}"
            + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, others, strict=True))
            for name, *cells in lines
        ]


def number(value: float | None) -> str:
    """Three significant figures, with thousands separators; empty for None."""
    if value is None:
        return ""
    return f"{value:,.0f}" if 100 <= abs(value) < 1e15 else f"{value:.3g}"


def timed(result: Result) -> Table:
    """Rate, CPU time and memory of every case, and its rate against that of our fastest.

    The consumer is the thread that takes the batches: in training it launches the step.
    """
    rows = []
    for name, case in result.cases.items():
        if case.samples_per_s is None or case.cpu_us_per_sample is None:
            continue
        rate, thread = case.samples_per_s, case.thread_us_per_sample
        rows.append({
            "": name,
            "samples/s": number(rate.median),
            "against ours": _against_ours(result, name),
            "CPU us/sample": number(case.cpu_us_per_sample.median),
            "consumer us/sample": number(thread.median) if thread else "",
            "range, samples/s": f"{number(rate.lowest)}–{number(rate.highest)}",
            "peak GiB": f"{max(repeat.peak_gib for repeat in case.repeats):.2f}",
        })  # fmt: skip
    return Table.of(rows).filled()


def _against_ours(result: Result, name: str) -> str:
    """Such as "2.50 x slower": words that say which of the two is faster."""
    ratio = result.against_ours(name)
    if ratio is None:
        return ""
    if name == result.best(name):
        return "ours"
    times = max(ratio.median, 1 / ratio.median)
    if f"{times:.2f}" == "1.00":
        return "equal"
    return f"{times:.2f} x {'faster' if ratio.median > 1 else 'slower'}"


def checks(result: Result) -> Table:
    """How every check of `gpu-check` ended, and its time."""
    return Table.of(
        {
            "": name,
            "ended": str(case.parameters["ended"]),
            "time, s": f"{case.figures['wall_s']:.1f}",
        }
        for name, case in result.cases.items()
    )


def checked(result: Result) -> Table:
    """What was found before the contenders were timed."""
    rows = [
        {
            "": name,
            "largest difference, levels of 255": number(found.get("largest_difference_levels")),
            "mask pixels that differ": number(found.get("mask_pixels_that_differ")),
            "opening, s": number(found.get("open_s")),
            "conversion, s": number(found.get("convert_s")),
            "files, MiB": number(found["bytes"] / 2**20 if "bytes" in found else None),
        }
        for name, case in result.cases.items()
        if (found := case.figures)
    ]
    return Table.of(rows).filled()


def rates(result: Result) -> Table:
    """Loader, model and both together, of each stage of `epoch`, without empty columns."""
    on_gpu = result.machine.device != "cpu"
    use = "stream share" if on_gpu else "time that computes (CPU)"
    rows = []
    for title, parts in stages(result).items():
        figures = parts["training"].figures
        share = figures.get("stream_share", figures.get("cpu_compute_share"))
        kernels = figures.get("kernel_share")
        rows.append({
            "stage": title,
            "R_loader, samples/s": number(point(parts["loader"], "samples_per_s")),
            "R_loader under load, samples/s": number(
                parts["loader"].figures.get("under_load_samples_per_s")
            ),
            "R_model, samples/s": number(point(parts["model"], "samples_per_s")),
            "R_combined, samples/s": number(point(parts["training"], "samples_per_s")),
            "stall": f"{figures['stall']:z.1%}",
            "efficiency": f"{figures['efficiency']:.1%}",
            use: "" if share is None else f"{share:.1%}",
            "kernel share": "" if kernels is None else f"{kernels:.1%}",
            "validation, samples/s": number(point(parts["validation"], "samples_per_s")),
            "MFU, share of the peak": number(figures.get("mfu")),
            "J/sample": number(figures.get("joules_per_sample")),
            "GPU memory, GiB": number(figures.get("device_used_gib")),
        })  # fmt: skip
    return Table.of(rows).filled()


def stages(result: Result) -> dict[str, dict[str, CaseResult]]:
    """Cases of `epoch` by stage and part."""
    found: dict[str, dict[str, CaseResult]] = {}
    for name, case in result.cases.items():
        title, part = name.split(": ")
        found.setdefault(title, {})[part] = case
    return found


def phases(result: Result) -> Table:
    """Milliseconds per sample of every phase of `epoch`, in training and in validation."""
    return Table.of(
        {"": f"{title}, {part}"}
        | {f"{name.replace('_', ' ')}, ms/sample": number(times.get(name)) for name in PHASES}
        for title, parts in stages(result).items()
        for part in ("training", "validation")
        for times in [per_sample_ms(parts[part])]
    )


def per_sample_ms(case: CaseResult) -> dict[str, float]:
    """Phase -> milliseconds per sample."""
    samples = case.repeats[0].samples
    return {
        name: case.figures[f"{name}_s"] / samples * 1e3
        for name in PHASES
        if f"{name}_s" in case.figures
    }


def scaling(result: Result) -> Table:
    """Every point of every axis."""
    return Table.of(
        {
            "": str(case.parameters["engine"]),
            "axis": AXES.get(axis := str(case.parameters["axis"]), axis),
            "value": f"{float(case.parameters['value']):,.0f}",
            "samples/s": number(point(case, "samples_per_s")),
            "CPU us/sample": number(point(case, "cpu_us_per_sample")),
            "first batch, s": number(case.figures.get("first_batch_s")),
            "added memory, MiB": number(case.figures.get("added_mib")),
        }
        for case in result.cases.values()
    )


def point(case: CaseResult, what: str) -> float | None:
    """Median of a case, or its figure of that name."""
    spread: Spread | None = getattr(case, what, None)
    return spread.median if spread is not None else case.figures.get(what)


def figures(result: Result) -> Table:
    """Every figure of every case: a column each."""
    names = dict.fromkeys(name for case in result.cases.values() for name in case.figures)
    return Table.of(
        {"": name} | {titled(what): number(case.figures.get(what)) for what in names}
        for name, case in result.cases.items()
    )


def titled(figure: str) -> str:
    """Name of a figure as a heading, with its unit: "order_us_per_batch" -> "order, us/batch"."""
    for end, unit in _UNITS.items():
        if figure not in _TITLES and figure.endswith(f"_{end}"):
            return f"{figure.removesuffix(f'_{end}').replace('_', ' ')}, {unit}"
    return _TITLES.get(figure, figure.replace("_", " "))


def storage(result: Result) -> Table:
    """MB/s of each number of threads: a column for each way to read, and one for its range."""
    rows: dict[float, dict[str, str]] = {}
    for case in result.cases.values():
        threads, way = float(case.parameters["threads"]), str(case.parameters["read"])
        median, lowest, highest = (
            number(case.figures[f"{what}_mb_per_s"]) for what in ("median", "lowest", "highest")
        )
        row = rows.setdefault(threads, {"threads": number(threads)})
        row |= {f"{way}, MB/s": median, f"{way}, range, MB/s": f"{lowest}–{highest}"}
    return Table.of(rows.values())


def step(result: Result) -> Table:
    """Rates of a step, with its FLOPs."""
    flops = (number(case.figures["gflop_per_sample"]) for case in result.cases.values())
    return timed(result).with_column("GFLOP/sample", flops)


def codecs(result: Result) -> Table:
    """Bytes and decoding time of every codec, and how a GPU would decode it."""
    ways = (str(case.parameters["on_a_gpu"]) for case in result.cases.values())
    return figures(result).with_column("on a GPU", ways)
