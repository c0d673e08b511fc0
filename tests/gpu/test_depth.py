"""On a GPU: `depth` predicts what it does on a CPU, in both precisions, and the same twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskdepth.convert.dataset.depth import estimate
from maskdepth.convert.dataset.networks.model import ModelOptions
from tests.depth_networks import (
    needs_transformers,
    save_pt2,
    save_transformers,
    write_composites,
)
from tests.gpu.conftest import GPU
from tests.trees import tree


def maps(data: Path) -> np.ndarray:
    files = sorted((data / "fg_bg_depth").rglob("*.jpg"))
    return np.stack([np.asarray(Image.open(file), float)[..., 0] for file in files])


@pytest.mark.parametrize("kind", ["pt2", pytest.param("depth_anything", marks=needs_transformers)])
def test_depth_on_a_gpu_is_that_of_a_cpu(tmp_path: Path, kind: str) -> None:
    path = save_pt2(tmp_path / "red.pt2") if kind == "pt2" else None
    path = path or save_transformers(tmp_path / kind, kind)
    data = write_composites(tmp_path / "data", 40)

    def run(device: str, amp: Any) -> tuple[np.ndarray, dict[str, bytes]]:
        model = ModelOptions(predicts="depth", device=device, amp=amp)
        made = estimate(data, str(path), model=model, batch_size=8, progress=False)
        about = json.loads((data / "dataset.json").read_text())["depth_model"]
        expected = (device.partition(":")[0], {"auto": "fp16"}.get(amp, amp))
        assert (about["device"], about["amp"]) == expected
        assert made["depth_model"] == about
        return maps(data), tree(data / "fg_bg_depth")

    truth, _ = run("cpu", "off")
    for amp, most in (("off", 1.0), ("auto", 4.0), ("bf16", 8.0)):
        found, files = run(GPU, amp)
        assert abs(found - truth).mean() < most, amp
        assert run(GPU, amp)[1] == files, "the same bytes a second time"
