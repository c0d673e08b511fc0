"""Results as tables of text: the same for the page, for Markdown and beside every picture."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.harness.results import CaseResult, Result

PHASES = ("data_wait", "preprocess", "forward", "loss_and_backward", "optimiser", "metrics")


SCORES = {"mask_iou": "mask IoU", "depth_rmse": "depth RMSE"}
"""Figure of `quality` and `recipes` -> its name for people."""


@dataclass(frozen=True)
class Table:
    """Head and rows, all text; the first column names, the others are numbers."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """As GitHub shows it."""
        lines = [self.head, tuple("---" if at == 0 else "---:" for at in range(len(self.head)))]
        return "\n".join("| " + " | ".join(row) + " |" for row in (*lines, *self.rows))


def number(value: float | None, digits: int = 3) -> str:
    """Three figures that count, thousands apart; empty where there is none."""
    if value is None:
        return ""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def timed(result: Result) -> Table:
    """Rate, CPU time and memory of every case, and by how much the best of ours is faster."""
    rows = []
    for name, case in result.cases.items():
        if case.samples_per_s is None or case.cpu_us_per_sample is None:
            continue
        rate, faster = case.samples_per_s, result.faster_by(name)
        rows.append(
            (
                name,
                number(rate.median),
                "" if faster is None else f"{faster.median:.2f} x",
                number(case.cpu_us_per_sample.median),
                f"{number(rate.lowest)}–{number(rate.highest)}",
                f"{max(repeat.peak_gib for repeat in case.repeats):.2f}",
            )
        )
    head = ("", "samples/s", "ours is faster by", "CPU us/sample", "range", "peak GiB")
    return Table(head, tuple(rows))


def checked(result: Result) -> Table:
    """What was found before anybody was timed."""
    rows = [
        (
            name,
            number(case.figures.get("largest_difference_levels")),
            number(case.figures.get("mask_pixels_that_differ")),
            number(case.figures.get("convert_s")),
            number(_mib(case.figures.get("bytes"))),
        )
        for name, case in result.cases.items()
        if case.figures
    ]
    head = ("", "largest difference, levels", "mask pixels that differ", "converted in s", "MiB")
    return Table(head, tuple(rows))


def _mib(value: float | None) -> float | None:
    return None if value is None else value / 2**20


def rates(result: Result) -> Table:
    """Loader, model and both together, of each stage; for `epoch`."""
    rows = []
    for title, parts in stages(result).items():
        figures = parts["training"].figures
        share = figures.get("accelerator_utilisation", figures.get("cpu_compute_share"))
        row = [title, *(number(_rate(parts[part])) for part in ("loader", "model", "training"))]
        row += [f"{figures['stall']:.1%}", f"{figures['efficiency']:.1%}"]
        row += ["" if share is None else f"{share:.1%}", number(_rate(parts["validation"]))]
        row += [number(figures.get("mfu")), number(figures.get("joules_per_sample"))]
        rows.append(tuple(row))
    on_gpu = result.machine.device != "cpu"
    head = (
        "stage", "R_loader", "R_model", "R_combined", "stall", "efficiency",
        "accelerator utilisation" if on_gpu else "time that computes (CPU)",
        "validation", "MFU", "J/sample",
    )  # fmt: skip
    return _without_empty(Table(head, tuple(rows)))


def _rate(case: CaseResult) -> float:
    assert case.samples_per_s is not None
    return case.samples_per_s.median


def stages(result: Result) -> dict[str, dict[str, CaseResult]]:
    """Cases of `epoch` by stage and part."""
    found: dict[str, dict[str, CaseResult]] = {}
    for name, case in result.cases.items():
        title, part = name.split(": ")
        found.setdefault(title, {})[part] = case
    return found


def phases(result: Result) -> Table:
    """Milliseconds a sample of every phase, training and validation apart; for `epoch`."""
    rows = []
    for title, parts in stages(result).items():
        for part in ("training", "validation"):
            times = per_sample_ms(parts[part])
            rows.append((f"{title}, {part}", *(number(times.get(name)) for name in PHASES)))
    names = tuple(f"{name.replace('_', ' ')}, ms/sample" for name in PHASES)
    return Table(("", *names), tuple(rows))


def per_sample_ms(case: CaseResult) -> dict[str, float]:
    """Phase -> milliseconds a sample."""
    samples = case.repeats[0].samples
    return {
        name: case.figures[f"{name}_s"] / samples * 1e3
        for name in PHASES
        if f"{name}_s" in case.figures
    }


def scaling(result: Result) -> Table:
    """Every point of every axis."""
    rows = []
    for case in result.cases.values():
        rate, cpu = point(case, "samples_per_s"), point(case, "cpu_us_per_sample")
        engine, axis = str(case.parameters["engine"]), str(case.parameters["axis"])
        value = f"{float(case.parameters['value']):,.0f}"
        first, added = (case.figures.get(name) for name in ("first_batch_s", "added_mib"))
        rows.append((engine, axis, value, number(rate), number(cpu), number(first), number(added)))
    head = (
        "", "axis", "value", "samples/s", "CPU us/sample", "first batch after s", "added MiB",
    )  # fmt: skip
    return Table(head, tuple(rows))


def point(case: CaseResult, what: str) -> float | None:
    """Median of a case, or its figure of that name."""
    spread = getattr(case, what, None)
    return spread.median if spread is not None else case.figures.get(what)


def figures(result: Result) -> Table:
    """Every figure of every case: a column each."""
    names = list(dict.fromkeys(name for case in result.cases.values() for name in case.figures))
    rows = tuple(
        (name, *(number(case.figures.get(figure)) for figure in names))
        for name, case in result.cases.items()
    )
    return Table(("", *(name.replace("_", " ") for name in names)), rows)


def step(result: Result) -> Table:
    """Rates of a step, with its arithmetic."""
    plain = timed(result)
    gflop = [number(case.figures["gflop_per_sample"]) for case in result.cases.values()]
    rows = tuple((*row, flops) for row, flops in zip(plain.rows, gflop, strict=True))
    return Table((*plain.head, "GFLOP/sample"), rows)


def recipes_at_the_end(result: Result) -> Table:
    """Scores of every recipe at the end of its time, and of the rules without a network."""
    last = {str(case.parameters.get("recipe", name)): case for name, case in result.cases.items()}
    rows = tuple(
        (name, *(_score(case.figures.get(figure)) for figure in SCORES))
        for name, case in last.items()
    )
    return Table(("", *SCORES.values()), rows)


def recipes_over_time(result: Result) -> Table:
    """Scores whenever the recipes were scored: a column for each recipe and score."""
    found: dict[str, dict[str, CaseResult]] = {}
    for case in result.cases.values():
        if case.parameters:
            minutes = f"{float(case.parameters['cpu_min']):.1f}"
            found.setdefault(minutes, {})[str(case.parameters["recipe"])] = case
    recipes = list(dict.fromkeys(recipe for row in found.values() for recipe in row))
    columns = [(figure, recipe) for figure in SCORES for recipe in recipes]
    head = ("CPU min", *(f"{SCORES[figure]}, {recipe}" for figure, recipe in columns))
    rows = []
    for minutes, row in found.items():
        cases = (row.get(recipe, CaseResult()).figures.get(figure) for figure, recipe in columns)
        rows.append((minutes, *(_score(value) for value in cases)))
    return Table(head, tuple(rows))


def quality_random(result: Result) -> Table:
    """Runs whose backgrounds and people are all in training too."""
    return _quality(result, ("random",))


def quality_held_out(result: Result) -> Table:
    """Runs that are scored on new backgrounds, new people or both."""
    return _quality(result, ("bg", "fg", "both"))


def _quality(result: Result, splits: tuple[str, ...]) -> Table:
    """Scores of runs beside those of the rules, and what they took."""
    rows = []
    for name, case in result.cases.items():
        about, found = case.parameters, case.figures
        if about["split"] not in splits:
            continue
        row = [name, str(about["recipe"]), str(about["split"])]
        row += [number(float(about[key])) for key in ("epochs", "validation_samples")]
        row += [number(found["training_cpu_min"])]
        for figure in SCORES:
            row += [_score(found[figure]), _score(found[f"rule_{figure}"])]
        rows.append((*row, f"{found['depth_rmse_of_rule']:.2f}"))
    head = (
        "run", "recipe", "split", "epochs", "scored on", "CPU min", "mask IoU", "rule's",
        "depth RMSE", "rule's", "share of it",
    )  # fmt: skip
    return Table(head, tuple(rows))


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def codecs(result: Result) -> Table:
    """Bytes and decoding time of every codec, and how a GPU would decode it."""
    plain = figures(result)
    where_it_decodes = (str(case.parameters["on_a_gpu"]) for case in result.cases.values())
    rows = tuple((*row, text) for row, text in zip(plain.rows, where_it_decodes, strict=True))
    return Table((*plain.head, "on a GPU"), rows)


def _without_empty(table: Table) -> Table:
    """Without columns in which nobody has a value."""
    kept = [at for at in range(len(table.head)) if any(row[at] for row in table.rows)]
    return Table(
        tuple(table.head[at] for at in kept),
        tuple(tuple(row[at] for at in kept) for row in table.rows),
    )


def where(result: Result) -> str:
    """One sentence: the device, the commit, the time, what it was run with."""
    machine = result.machine
    device = (
        f"{machine.gpu} (driver {machine.driver}) and {machine.cores} cores of {machine.cpu}"
        if machine.gpu
        else f"a CPU: {machine.cores} cores of {machine.cpu}; no GPU"
    )
    if result.benchmark in ("simulation", "estimate"):
        device += " (what computed it)"
    arguments = ", ".join(f"{name} {value}" for name, value in result.arguments.items())
    count = {len(case.repeats) for case in result.cases.values() if case.repeats}
    medians = f" Medians of {max(count)} in turn." if count else ""
    return f"On {device}; commit {result.commit}, {result.created}; {arguments}.{medians}"
