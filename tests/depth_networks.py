"""Tiny depth networks, and composites for them, that tests make and save."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.pictures import jpeg_bytes, smooth

needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None,
    reason="transformers is not installed (pip install .[depth])",
)
SIDE = 32
RED, OFFSET = 3.0, 5.0
"""The exported networks predict OFFSET + RED times the red channel of their input."""


def write_composites(folder: Path, count: int = 12) -> Path:
    """A data set of 2 backgrounds with ``count`` composites in all, without masks and depth."""
    for group in range(2):
        name = f"bg_{group + 1:03d}"
        (folder / "fg_bg" / name).mkdir(parents=True)
        (folder / "bg").mkdir(exist_ok=True)
        (folder / "bg" / f"{name}.jpg").write_bytes(jpeg_bytes(smooth(SIDE, SIDE, group)))
        for sample in range(count // 2):
            seed = 100 * group + 3 * sample + 7
            pixels = np.stack([smooth(SIDE, SIDE, seed + c) for c in range(3)], axis=-1)
            path = folder / "fg_bg" / name / f"img_{sample + 1:04d}.jpg"
            path.write_bytes(jpeg_bytes(pixels, quality=95))
    return folder


class Red(nn.Module):
    """float32 (B, 3, h, w) -> (B, h, w)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([RED, 0, 0]).reshape(1, 3, 1, 1))
            self.conv.bias.fill_(OFFSET)  # type: ignore[union-attr]

    def forward(self, pixels: Tensor) -> Tensor:
        return self.conv(pixels).squeeze(1)


def save_pt2(path: Path, *, any_batch: bool = True, any_size: bool = False) -> Path:
    """Export the network; its input is SIDE x SIDE unless it takes any size."""
    sizes: dict[int, Any] = {0: torch.export.Dim("batch")} if any_batch else {}
    if any_size:
        sizes |= {2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    example = torch.zeros(2 if any_batch else 1, 3, SIDE, SIDE)
    program = torch.export.export(Red().eval(), (example,), dynamic_shapes={"pixels": sizes})
    torch.export.save(program, path)
    return path


def save_onnx(path: Path, *, batch: int | str = "batch", channels: int = 3) -> Path:
    """The same network as ONNX."""
    from onnx import TensorProto, helper, numpy_helper, save_model

    weight = np.zeros((1, channels, 1, 1), np.float32)
    weight[0, 0] = RED
    constants = {"weight": weight, "bias": np.array([OFFSET], np.float32)}
    graph = helper.make_graph(
        [helper.make_node("Conv", ["pixels", "weight", "bias"], ["depth"])],
        "red",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [batch, channels, SIDE, SIDE])],
        [helper.make_tensor_value_info("depth", TensorProto.FLOAT, [batch, 1, SIDE, SIDE])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = helper.make_opsetid("", 17)
    save_model(helper.make_model(graph, opset_imports=[opset], ir_version=9), path)
    return path


def save_transformers(folder: Path, kind: str) -> Path:
    """Save a network of `transformers` with some thousand random weights, and its processor."""
    import transformers

    transformers.set_seed(0)
    sides = {"height": 28, "width": 28}
    network: Any
    if kind == "depth_anything":
        backbone = {
            "model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 4, "mlp_ratio": 2,
            "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
            "reshape_hidden_states": False, "apply_layernorm": True,
        }  # fmt: skip
        network = transformers.DepthAnythingForDepthEstimation(
            transformers.DepthAnythingConfig(
                backbone_config=backbone, reassemble_hidden_size=16, neck_hidden_sizes=[8] * 4,
                fusion_hidden_size=8, head_hidden_size=8, patch_size=14,
            )
        )  # fmt: skip
        processor = transformers.DPTImageProcessor(size=sides, ensure_multiple_of=14)
    elif kind == "dpt":
        network = transformers.DPTForDepthEstimation(
            transformers.DPTConfig(
                image_size=32, patch_size=16, hidden_size=16, intermediate_size=16,
                num_hidden_layers=4, num_attention_heads=2, backbone_out_indices=[0, 1, 2, 3],
                neck_hidden_sizes=[8] * 4, fusion_hidden_size=8,
            )
        )  # fmt: skip
        processor = transformers.DPTImageProcessor(size={"height": 32, "width": 32})
    else:
        network = transformers.GLPNForDepthEstimation(
            transformers.GLPNConfig(
                hidden_sizes=[8] * 4, depths=[1] * 4, num_attention_heads=[1] * 4,
                decoder_hidden_size=8,
            )
        )  # fmt: skip
        processor = transformers.GLPNImageProcessor()
    with torch.no_grad():
        for weights in network.parameters():
            if weights.ndim > 1:  # its first weights are so small that maps are nearly flat
                weights.mul_(5)
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
