"""The training step: on the meta device for every recipe, and what it leaves alone."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from loaders import Backgrounds, Batch, Inputs, Layout, Preprocess
from model import DualDecoderUNet, ModelError
from model.checkpoint import ChannelStatistics
from model.metrics import SampleTable
from model.precision import COMPILE, Precision, choose_compile, choose_device, choose_precision
from model.recipe import RECIPES, Recipe, Stage
from model.step import make_optimizer, measure, predict_step, stage_loss, training_step
from model.training.progress import RunningMean

STATISTICS = {
    "bg": ChannelStatistics((0.5, 0.4, 0.3), (0.2, 0.25, 0.3)),
    "fg_bg": ChannelStatistics((0.4, 0.4, 0.4), (0.2, 0.2, 0.2)),
}
OFF = Precision(dtype=None, scale=False)
UNSCALED = torch.amp.GradScaler("cpu", enabled=False)
EVERY = ("encoder", "mask", "depth")
STAGES = [
    pytest.param(recipe, stage, id=f"{recipe.name}-{number}")
    for recipe in RECIPES.values()
    for number, stage in enumerate(recipe.stages)
] + [
    pytest.param(
        RECIPES["joint"],
        Stage(size=32, batch_size=2, lr=0.1, trains=EVERY, mask_loss=mask, depth_loss=depth),
        id=f"{mask}-{depth}",
    )
    for mask, depth in [("ssim", "ssim"), ("dice", "densedepth"), ("bce+dice", "bce"), ("l1", "l1")]
]


class NoHostTensors(TorchDispatchMode):
    """Fails where an operation takes or makes a tensor on the host: a copy of it would wait."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and look at its tensors."""
        result = func(*args, **(kwargs or {}))
        tensors = [v for v in tree_leaves((args, kwargs, result)) if isinstance(v, torch.Tensor)]
        assert {tensor.device.type for tensor in tensors} <= {"meta"}, func
        return result


def _batch(device: str, samples: int = 2, size: int = 224) -> tuple[Batch, Backgrounds]:
    generator = torch.Generator().manual_seed(0)

    def pixels(count: int, channels: int, high: int = 256) -> torch.Tensor:
        shape = (count, channels, size, size)
        return torch.randint(high, shape, dtype=torch.uint8, generator=generator).to(device)

    layout = Layout(height=size, width=size, group_starts=np.array([0, 2, 4]), samples_per_fg=None)
    index = torch.arange(samples, device=device)
    batch = Batch(pixels(samples, 3), pixels(samples, 1, 2), pixels(samples, 1), index)
    return batch, Backgrounds(pixels(2, 3), layout)


@pytest.mark.parametrize(("recipe", "stage"), STAGES)
def test_every_stage_runs_on_meta(recipe: Recipe, stage: Stage) -> None:
    """meta fails where a tensor is made on another device, or a value is read on the host."""
    batch, backgrounds = _batch("meta")
    preprocess = Preprocess(backgrounds, STATISTICS, size=stage.size)  # type: ignore[arg-type]
    network = DualDecoderUNet(64).place("meta").freeze(*stage.frozen).train()
    optimizer = make_optimizer(network, recipe, stage)
    with NoHostTensors():
        training_step(
            batch, stage=stage, preprocess=preprocess, network=network, optimizer=optimizer,
            running=RunningMean("meta"), precision=OFF, scaler=UNSCALED, lr=0.1,
        )  # fmt: skip
    trained = {part for part in ("encoder", "mask", "depth") if part in stage.trains}
    moved = {id(p) for p in optimizer.state}
    assert moved == {id(p) for p in network.trained_parameters()}
    assert set(network.frozen) == {"encoder", "mask", "depth"} - trained

    network.eval()
    inputs = preprocess(batch)
    prediction = predict_step(inputs, network, OFF, stage.depth_loss, "both")
    SampleTable(4, "meta").add(batch.index, measure(prediction, inputs))


@pytest.mark.parametrize("stage", [STAGES[0].values[1], STAGES[8].values[1]])
def test_a_stage_is_one_graph(stage: Stage) -> None:
    """What `--compile` hands to its backend has no break; the backend itself is torch's."""
    torch._dynamo.reset()
    network = DualDecoderUNet(2).freeze(*stage.frozen).train()
    network.compile(backend="eager", fullgraph=True)
    images = torch.randn(2, 2, 3, 16, 16)
    mask_logits, depth = network(*images, decode=stage.decode)
    output = depth if mask_logits is None else mask_logits
    assert output.requires_grad
    network.eval()
    with torch.inference_mode():
        compiled = network(*images)
        eager = network.forward(*images)
    for ours, theirs in zip(compiled, eager, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_mask_stage_changes_the_mask_decoder_alone() -> None:
    torch.manual_seed(0)
    stage = Stage(size=16, batch_size=2, lr=0.1, trains=("mask",))
    batch, backgrounds = _batch("cpu", size=32)
    network = DualDecoderUNet(2).freeze(*stage.frozen).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = make_optimizer(network, RECIPES["original"], stage)
    running = RunningMean("cpu")
    preprocess = Preprocess(backgrounds, STATISTICS, size=16)  # type: ignore[arg-type]
    for _ in range(3):
        network.train()
        training_step(
            batch, stage=stage, preprocess=preprocess, network=network, optimizer=optimizer,
            running=running, precision=OFF, scaler=UNSCALED, lr=0.1,
        )  # fmt: skip
    after = network.state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"mask_decoder"}
    assert running.read() > 0


def test_joint_loss_is_the_sum() -> None:
    stage = Stage(size=16, batch_size=2, lr=0.1, trains=("encoder", "mask", "depth"))
    ones = torch.ones(1, 1, 8, 8)
    inputs = Inputs(bg=ones, fg_bg=ones, mask=ones, depth=ones)
    total = stage_loss(stage, 0 * ones, 0.25 * ones, inputs).item()
    assert total == pytest.approx(np.log(2) + 0.75)
    assert stage_loss(stage, None, 0.25 * ones, inputs).item() == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("request_", "device", "capability", "dtype", "scale"),
    [
        ("auto", "cpu", None, None, False),
        ("auto", "cuda", (6, 0), torch.float16, True),  # P100
        ("auto", "cuda", (7, 5), torch.float16, True),  # T4
        ("auto", "cuda", (8, 0), torch.bfloat16, False),  # A100
        ("auto", "cuda", (9, 0), torch.bfloat16, False),  # H100
        ("off", "cuda", (9, 0), None, False),
        ("fp16", "cuda", (9, 0), torch.float16, True),
        ("bf16", "cpu", None, torch.bfloat16, False),
        ("tf32", "cuda", (8, 0), None, False),
    ],
)
def test_precision(
    request_: str,
    device: str,
    capability: tuple[int, int] | None,
    dtype: torch.dtype | None,
    scale: bool,
) -> None:
    expected = Precision(dtype=dtype, scale=scale, tf32=request_ == "tf32")
    assert choose_precision(request_, device, capability) == expected


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ("fpu sse2 avx2", None),  # emulates bfloat16
        ("avx2 avx512f avx512_bf16", torch.bfloat16),
        ("avx512f amx_bf16 amx_tile", torch.bfloat16),
    ],
)
def test_precision_of_a_cpu(flags: str, dtype: torch.dtype | None) -> None:
    found = choose_precision("auto", "cpu", None, frozenset(flags.split()))
    assert found == Precision(dtype=dtype, scale=False)


GPUS = {"P100": (6, 0), "T4": (7, 5), "A100": (8, 0), "H100": (9, 0)}


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("mode", COMPILE)
def test_compile_on_gpus(gpu: str, mode: str) -> None:
    if gpu == "P100" and mode != "off":
        with pytest.raises(ModelError, match=r"found a GPU of compute capability 6\.0, expected 7"):
            choose_compile(mode, "cuda", GPUS[gpu])
    else:
        assert choose_compile(mode, "cuda", GPUS[gpu]) == mode


def test_compile_on_a_cpu() -> None:
    assert choose_compile("default", "cpu", None) == "default"
    with pytest.raises(ModelError, match="CUDA graphs need a GPU"):
        choose_compile("reduce-overhead", "cpu", None)


def test_tf32_is_set_and_never_left_to_chance() -> None:
    kept = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        for request_ in ("tf32", "off", "bf16"):
            choose_precision(request_, "cuda", (8, 0)).set_tf32()
            assert torch.backends.cudnn.allow_tf32 is (request_ == "tf32")
            assert torch.backends.cuda.matmul.allow_tf32 is (request_ == "tf32")
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = kept


def test_impossible_devices_are_named() -> None:
    with pytest.raises(ModelError, match="fp16 needs a GPU"):
        choose_precision("fp16", "cpu", None)
    for capability in ((6, 0), (7, 5)):
        with pytest.raises(ModelError, match="tf32 needs a GPU of compute capability"):
            choose_precision("tf32", "cuda", capability)
    for name in ("gpu", "nonsense", "", "cuda:-1", "cuda:99999999999999999999"):
        with pytest.raises(ModelError, match="not a device; expected auto, cpu, cuda or cuda:N"):
            choose_device(name)
    for name in ("meta", "mps"):
        with pytest.raises(ModelError, match=f"found type {name}; expected auto, cpu, cuda or cud"):
            choose_device(name)
    with pytest.raises(ModelError, match="CUDA devices"):
        choose_device("cuda:99")


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_first_step_that_overflows_leaves_no_trace(nesterov: bool) -> None:
    """fp16's scale makes it, and the step is skipped; the next one is a first step then."""
    recipe = replace(RECIPES["original"], nesterov=nesterov)
    stage, weights = recipe.stages[0], []
    for overflows in (True, False):
        torch.manual_seed(0)
        network = DualDecoderUNet(2).freeze(*stage.frozen)
        optimizer = make_optimizer(network, recipe, stage)
        scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
        for gradient in ([math.inf] if overflows else []) + [0.5, 0.25]:
            # What a fresh allocation holds is what was freed last: here, nonsense.
            for parameter in network.trained_parameters():
                parameter.grad = torch.full_like(parameter, math.nan)
                parameter.grad = torch.full_like(parameter, gradient)
            scaler.scale(torch.ones(()))  # makes the scaler's tensors
            scaler.step(optimizer)
            scaler.update(1.0)
        weights.append([parameter.detach().clone() for parameter in network.trained_parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
