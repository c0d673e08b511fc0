"""The model card of a run: README.md beside the weights, as the Hugging Face hub reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from maskdepth.model.checkpoint import NetworkInfo
from maskdepth.model.contract import PRIOR
from maskdepth.model.files import replace_bytes
from maskdepth.model.metrics import Scores
from maskdepth.model.recipe import Recipe
from maskdepth.model.training.config import RunConfig
from maskdepth.model.training.history import EpochRow
from maskdepth.model.training.provenance import (
    HOLD_OUT_BACKGROUNDS,
    HOLD_OUT_FOREGROUNDS,
    seen_note,
)
from maskdepth.model.training.report import FIGURES, ROWS, Report, defined_figures

DEPTHS = {
    "true": "the true depth of drawn scenes",
    "given": "depth maps that came with the data set",
    "estimated": "estimates by a monocular network, not measurements",
    PRIOR: "a ground-plane prior, which nothing has measured",
    "": "not known",
}
"""Where depth maps come from: value of a loader's ``depth_source`` -> in words."""
_MEASURES = {"mask_iou": "mask IoU", "depth_rmse": "depth RMSE"}


def write_card(
    path: Path, config: RunConfig, info: NetworkInfo, history: Sequence[EpochRow], report: Report
) -> None:
    """Write the card of a finished run; the same run gives the same bytes, but for the times."""
    parts = (_front_matter(config, info, report), _text(config, info, history, report))
    replace_bytes(path, "\n".join(parts).encode())


def _front_matter(config: RunConfig, info: NetworkInfo, report: Report) -> str:
    """What the hub searches by, as YAML; JSON values are YAML."""
    scores, task = report.evaluations[0].rows["network"], {"type": "image-segmentation"}
    metrics = [
        {"type": name, "value": round(value, 4), "name": title}
        for name, title in _MEASURES.items()
        if name.partition("_")[0] not in config.recipe.untrained
        and (value := getattr(scores, name)) is not None
    ]
    data = {"name": "composites", "type": "composites", "split": f"validation, {info.split}"}
    results = [{"task": task, "dataset": data, "metrics": metrics}]
    about = {
        "library_name": "maskdepth",
        "pipeline_tag": "image-segmentation",
        "tags": ["background-matting", "depth-estimation", "composites"],
        "model-index": [{"name": f"maskdepth-{info.recipe}", "results": results}],
    }
    lines = [f"{key}: {json.dumps(value)}" for key, value in about.items()]
    return "\n".join(["---", *lines, "---", ""])


def _text(config: RunConfig, info: NetworkInfo, history: Sequence[EpochRow], report: Report) -> str:
    evaluation = report.evaluations[0]
    sections = {
        f"maskdepth: {_plain(info.recipe)}, width {info.width}": [
            "A UNet that takes two images of one place, without and with a person (bg and fg_bg), "
            "and predicts the mask of the person and a depth map.",
        ],
        "Use": [
            "```",
            "maskdepth train predict best.safetensors OUT --bg empty.jpg --fg-bg person.jpg",
            "```",
            "",
            "or, from Python: `maskdepth.model.checkpoint.load_network('best.safetensors')` gives "
            "the network and what it needs, such as the normalisation of its inputs. It was last "
            f"trained at {info.size}x{info.size}.",
        ],
        "Data": _data(config, info, report),
        "Training": _training(config, history),
        "Scores": [
            f"{report.title}.",
            "",
            *score_lines(evaluation.rows),
            "",
            "The rows after the first need no network. BCE in nats, depth in 0..1.",
        ],
        "Limits": _limits(config, info, report),
    }
    parts = []
    for number, (title, lines) in enumerate(sections.items()):
        parts += ["#" * min(number + 1, 2) + f" {title}", "", *lines, ""]
    return "\n".join(parts)


def _data(config: RunConfig, info: NetworkInfo, report: Report) -> list[str]:
    held_out = ["the samples, drawn at random,"]
    if info.split in (*HOLD_OUT_BACKGROUNDS, *HOLD_OUT_FOREGROUNDS):
        kinds = (("backgrounds", HOLD_OUT_BACKGROUNDS), ("foregrounds", HOLD_OUT_FOREGROUNDS))
        held_out = [kind for kind, splits in kinds if info.split in splits]
    return [
        f"- Composites, fingerprint `{info.data[:16]}`. Depth: {DEPTHS[report.depth_source]}.",
        f"- Split `{info.split}`, seed {info.split_seed}: {config.data.validation:.0%} of "
        f"{' and '.join(held_out)} were held out.",
    ]


def _training(config: RunConfig, history: Sequence[EpochRow]) -> list[str]:
    recipe = config.recipe
    stages = [
        f"{n}. {stage}, {stage.epochs} epochs" for n, stage in enumerate(recipe.stages, start=1)
    ]
    wall_s, cpu_s = (
        sum(row.get(key) or 0 for row in history) for key in ("epoch_s", "epoch_cpu_s")
    )
    ranks = f" on {config.world_size} ranks" if config.world_size > 1 else ""
    return [
        f"Recipe `{_plain(recipe.name)}`, seed {config.data.seed}, {recipe.optimizer}{ranks}; "
        f"{len(history)} epochs took {wall_s / 60:.1f} min, and {cpu_s / 60:.1f} min of CPU time:",
        "",
        *stages,
    ]


def score_lines(rows: Mapping[str, Scores]) -> list[str]:
    """A Markdown table of the network and of the rules."""
    lines = [
        f"| | {' | '.join(FIGURES.values())} |",
        f"| --- {'| ---: ' * len(FIGURES)}|",
    ]
    for row, figures in defined_figures(rows).items():
        values = [figures.get(name) for name in FIGURES]
        cells = ["" if value is None else f"{value:z.4f}" for value in values]
        title = ROWS[row][0].replace("|", "\\|")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return lines


def _limits(config: RunConfig, info: NetworkInfo, report: Report) -> list[str]:
    camera = config.recipe.camera
    lines = [
        f"- Trained with a camera: in {camera:.0%} of the samples the two images differed as two "
        "photos of one place do."
        if camera
        else "- Trained without a camera: it expects images that agree to the pixel outside the "
        "person. Two photos never do; use the recipe `robust` for them.",
        "- The scores above are of undisturbed composites. `maskdepth train evaluate --camera` "
        "scores it on others.",
        "- The person is what differs between the two images: other changes of the scene are in "
        "the mask, and a person in the colours of the background is not.",
    ]
    if info.split not in HOLD_OUT_BACKGROUNDS:
        lines.append(
            "- Its backgrounds were all seen in training: the depth of other places is worse."
        )
    lines += [f"- {note}" for note in untrained_notes(config.recipe)]
    if report.depth_source == PRIOR:
        lines.append("- Scores of depth say how well a prior is repeated.")
    if note := seen_note(info.split, info.split, report.seen):
        lines.append(f"- {note[0].upper()}{note[1:]}.")
    return lines


def untrained_notes(recipe: Recipe) -> list[str]:
    """A sentence on each decoder that the recipe does not train; its scores are in all tables."""
    return [
        f"The recipe does not train {part}: what the network predicts as {part} means nothing, and "
        "neither do its scores."
        for part in recipe.untrained
    ]


def _plain(name: str) -> str:
    """A user's name without what Markdown or HTML would take for markup."""
    return "".join(c if c.isalnum() or c in " ._-+" else "-" for c in name)
