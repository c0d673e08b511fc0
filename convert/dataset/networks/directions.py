"""What a network's values mean: by its configuration, else by its name, else refused."""

from __future__ import annotations

import re
from typing import Any

from maskdepth.convert.dataset.networks.model import Predicts
from maskdepth.convert.errors import DataError

_BY_TYPE: dict[str, Predicts] = {"depth_pro": "metric", "glpn": "metric", "zoedepth": "metric"}
_FAMILIES: tuple[tuple[str, str, Predicts], ...] = (
    # Its metric model needs the focal length for metres, so it is no exception.
    (r"depth_?anything_?(v_?)?3|(^|_)da_?3(?!\d)", "Depth Anything V3", "depth"),
    (r"zoedepth|depth_?anything.*metric|metric.*depth_?anything", "a metric model", "metric"),
    (r"depth_?anything", "Depth Anything V1 or V2", "inverse"),
    (r"midas|(^|_)dpt_(hybrid|large|swin|beit|levit)", "MiDaS or DPT", "inverse"),
)
"""Pattern of a name with `_` for what separates words, the family, and what that predicts."""


def direction(name: str, config: Any, given: Predicts | None) -> tuple[Predicts, str]:
    """What a network predicts, and why that is believed.

    name: of the network. config: of `transformers`; None for an exported file. given: overrides.
    Raises DataError if it is not known.
    """
    if given is not None:
        return given, "as --predicts says"
    if config is not None and (found := _configured(config)):
        return found, f"by its configuration ({config.model_type})"
    words = re.sub(r"[\W_]+", "_", re.split(r"[/\\]", name.rstrip("/\\"))[-1].lower())
    for pattern, family, predicts in _FAMILIES:
        if re.search(pattern, words):
            return predicts, f"as its name is that of {family}"
    what = "this file" if config is None else f"a model of type {config.model_type}"
    raise DataError(
        f"{name}: it is not known what {what} predicts; give --predicts inverse (larger is "
        "nearer), depth (larger is farther) or metric (metres)"
    )


def _configured(config: Any) -> Predicts | None:
    """What the configuration of a model of `transformers` says; None where it does not."""
    kind = config.model_type
    if kind == "depth_anything":
        stated = getattr(config, "depth_estimation_type", "relative")
        return "metric" if stated == "metric" else "inverse"
    if kind == "dpt":
        # With DINOv2 it is not MiDaS: such models were trained on distances.
        backbone = getattr(getattr(config, "backbone_config", None), "model_type", "")
        return None if backbone.startswith("dinov") else "inverse"
    return _BY_TYPE.get(kind)
