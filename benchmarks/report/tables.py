"""Results as tables of text: the same for the terminal, for Markdown and beside every picture."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.harness.results import FEW_REPEATS, Accelerator, CaseResult, Result, Spread

PHASES = ("data_wait", "preprocess", "forward", "loss_and_backward", "optimiser", "metrics")

SCORES = {"mask_iou": "mask IoU", "depth_rmse": "depth RMSE"}
"""Figure of `quality` and `recipes` -> its title."""


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
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def text(result: Result) -> str:
    """A result for a terminal: where it was measured, the timed cases and all figures."""
    table = timed(result)
    lines = [f"{result.benchmark}: {where(result)}", *(table.aligned() if table.rows else ())]
    for name, case in result.cases.items():
        lines += [
            f"{name}: {what} {value:,.6g}" + prior_mark(result, case) * ("depth" in what)
            for what, value in case.figures.items()
        ]
    lines += [f"{name}: skipped, {why}" for name, why in result.skipped.items()]
    return "\n".join(lines)


def timed(result: Result) -> Table:
    """Rate, CPU time and memory of every case, and how much faster our fastest case is.

    The consumer is the thread that takes the batches.
    """
    rows = []
    for name, case in result.cases.items():
        if case.samples_per_s is None or case.cpu_us_per_sample is None:
            continue
        rate, faster = case.samples_per_s, result.faster_by(name)
        thread = case.thread_us_per_sample
        rows.append({
            "": name,
            "samples/s": number(rate.median),
            "ours is faster by": "" if faster is None else f"{faster.median:.2f} x",
            "CPU us/sample": number(case.cpu_us_per_sample.median),
            "consumer us/sample": number(thread.median) if thread else "",
            "range": f"{number(rate.lowest)}–{number(rate.highest)}",
            "peak GiB": f"{max(repeat.peak_gib for repeat in case.repeats):.2f}",
        })  # fmt: skip
    if not any(row["consumer us/sample"] for row in rows):  # results of earlier versions
        for row in rows:
            del row["consumer us/sample"]
    return Table.of(rows)


def checks(result: Result) -> Table:
    """How every check of `gpu-check` ended, and its time."""
    return Table.of(
        {"": name, "ended": str(case.parameters["ended"]), "s": f"{case.figures['wall_s']:.1f}"}
        for name, case in result.cases.items()
    )


def checked(result: Result) -> Table:
    """What was found before the contenders were timed."""
    rows = [
        {
            "": name,
            "largest difference, levels": number(found.get("largest_difference_levels")),
            "mask pixels that differ": number(found.get("mask_pixels_that_differ")),
            "opened in s": number(found.get("open_s")),
            "converted in s": number(found.get("convert_s")),
            "MiB": number(found["bytes"] / 2**20 if "bytes" in found else None),
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
            "R_loader": number(point(parts["loader"], "samples_per_s")),
            "R_loader under load": number(point(parts["loader"], "under_load_samples_per_s")),
            "R_model": number(point(parts["model"], "samples_per_s")),
            "R_combined": number(point(parts["training"], "samples_per_s")),
            "stall": f"{figures['stall']:.1%}",
            "efficiency": f"{figures['efficiency']:.1%}",
            use: "" if share is None else f"{share:.1%}",
            "kernel share": "" if kernels is None else f"{kernels:.1%}",
            "validation": number(point(parts["validation"], "samples_per_s")),
            "MFU": number(figures.get("mfu")),
            "J/sample": number(figures.get("joules_per_sample")),
            "GPU GiB": number(figures.get("device_used_gib")),
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
            "axis": str(case.parameters["axis"]),
            "value": f"{float(case.parameters['value']):,.0f}",
            "samples/s": number(point(case, "samples_per_s")),
            "CPU us/sample": number(point(case, "cpu_us_per_sample")),
            "first batch after s": number(case.figures.get("first_batch_s")),
            "added MiB": number(case.figures.get("added_mib")),
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
        {"": name} | {what.replace("_", " "): number(case.figures.get(what)) for what in names}
        for name, case in result.cases.items()
    )


def step(result: Result) -> Table:
    """Rates of a step, with its FLOPs."""
    flops = (number(case.figures["gflop_per_sample"]) for case in result.cases.values())
    return timed(result).with_column("GFLOP/sample", flops)


def codecs(result: Result) -> Table:
    """Bytes and decoding time of every codec, and how a GPU would decode it."""
    ways = (str(case.parameters["on_a_gpu"]) for case in result.cases.values())
    return figures(result).with_column("on a GPU", ways)


def prior_mark(result: Result, case: CaseResult | None = None) -> str:
    """What stands beside depth that is scored against a ground-plane prior; else empty."""
    sources = (result.arguments.get("depth"), case.parameters.get("depth") if case else None)
    return " (prior)" if "prior" in sources else ""


def scores(result: Result) -> dict[str, str]:
    """Figures of `SCORES` and their titles, for a result of one data set."""
    return {what: title + prior_mark(result) * ("depth" in what) for what, title in SCORES.items()}


def recipes_at_the_end(result: Result) -> Table:
    """Scores of every recipe at the end of its time, and of the baselines without a network."""
    last = {str(case.parameters.get("recipe", name)): case for name, case in result.cases.items()}
    return Table.of(
        {"": name}
        | {title: _score(case.figures.get(what)) for what, title in scores(result).items()}
        for name, case in last.items()
    )


def recipes_over_time(result: Result) -> Table:
    """Scores at each time at which recipes were scored: a column for each score and recipe."""
    by_minute: dict[str, dict[str, CaseResult]] = {}
    for case in result.cases.values():
        if case.parameters:
            minutes = f"{float(case.parameters['cpu_min']):.1f}"
            by_minute.setdefault(minutes, {})[str(case.parameters["recipe"])] = case
    recipes = dict.fromkeys(recipe for cases in by_minute.values() for recipe in cases)
    return Table.of(
        {"CPU min": minutes}
        | {
            f"{title}, {recipe}": _score(cases.get(recipe, CaseResult()).figures.get(what))
            for what, title in scores(result).items()
            for recipe in recipes
        }
        for minutes, cases in by_minute.items()
    )


def runs_of(result: Result) -> dict[tuple[str, float], list[CaseResult]]:
    """Points of every run of `speedrun`, in order, by recipe and seed."""
    found: dict[tuple[str, float], list[CaseResult]] = {}
    for case in result.cases.values():
        if case.parameters:
            key = (str(case.parameters["recipe"]), float(case.parameters["seed"]))
            found.setdefault(key, []).append(case)
    return found


def speedrun(result: Result) -> Table:
    """What each recipe needed to reach the target: median and range of its runs.

    A run that ended before the target needs more than it has spent. "> x" is a median, or the end
    of a range, of which nothing else is known.
    """
    ends: dict[str, list[CaseResult]] = {}
    for (recipe, _), points in runs_of(result).items():
        ends.setdefault(recipe, []).append(points[-1])
    rows = []
    for recipe, cases in ends.items():
        reached = [case.parameters["reached"] == 1 for case in cases]
        row = {"": recipe, "reached by": f"{sum(reached)} of {len(cases)}"}
        for what in ("samples", "pflop", "seconds"):
            title = "PFLOP" if what == "pflop" else what
            row[title] = _needed([float(case.parameters[what]) for case in cases], reached)
        for what, title in scores(result).items():
            row[title] = _score(Spread.of([case.figures[what] for case in cases]).median)
        rows.append(row)
    return Table.of(rows)


def _needed(spent: list[float], reached: list[bool]) -> str:
    """Median and range of what runs needed, of which some did not reach the target."""
    known = Spread.of(spent)
    needed = Spread.of([x if done else math.inf for x, done in zip(spent, reached, strict=True)])
    median, low, high = (
        number(value) if math.isfinite(getattr(needed, what)) else f"> {number(value)}"
        for what, value in known
    )
    return f"{median} ({low}–{high})" if any(reached) else median


def quality(result: Result, splits: tuple[str, ...]) -> Table:
    """Scores of runs with these splits beside those of the baselines, and what training took."""
    rows = []
    for name, case in result.cases.items():
        about, found = case.parameters, case.figures
        if about.get("split") not in splits:
            continue
        row = [name, str(about["recipe"]), str(about["split"])]
        row += [number(float(about[key])) for key in ("width", "size")]
        row += [number(found.get(f"training_{key}")) for key in ("samples", "pflop", "cpu_min")]
        row += [number(float(about["validation_samples"]))]
        prior = prior_mark(result, case)
        for what in SCORES:
            mark = prior * ("depth" in what)
            row += [_score(found[what]) + mark, _score(found[f"rule_{what}"]) + mark]
        rows.append((*row, f"{found['depth_rmse_of_rule']:.2f}{prior}"))
    head = (
        "run", "recipe", "split", "width", "size", "samples", "PFLOP", "CPU min", "scored on",
        "mask IoU", "rule's", "depth RMSE", "rule's", "share of it",
    )  # fmt: skip
    return Table(head, tuple(rows)).filled()


def cameras(result: Result) -> Table:
    """Scores of runs with fg_bg disturbed, for the network and for the rule."""
    titles = {
        "mask_iou": "mask IoU", "aligned_mask_iou": "images aligned", "rule_mask_iou": "rule's",
        "aligned_rule_mask_iou": "rule's, aligned", "depth_rmse": "depth RMSE",
    }  # fmt: skip
    return Table.of(
        {"run": str(case.parameters["run"]), "camera": str(case.parameters["camera"])}
        | {
            title: _score(case.figures[what]) + prior_mark(result, case) * ("depth" in what)
            for what, title in titles.items()
        }
        for case in result.cases.values()
        if "camera" in case.parameters
    )


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


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
            f"Measured on a busy machine: load {load.before:.1f} before, others used "
            f"{load.others:.1f} of {load.machine_cores} cores meanwhile."
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
