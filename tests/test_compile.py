"""`--compile`: how often it compiles, and what happens where it cannot.

The backend is a stand-in that runs the graphs as they are: no test waits for a compiler.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from maskdepth import train
from maskdepth.loaders import Preprocess
from maskdepth.model import DualDecoderUNet, ModelError
from maskdepth.model.recipe import RECIPES, Stage
from maskdepth.model.training.trainer import StageTrainer
from tests.test_step import OFF, STATISTICS, _batch
from tests.tiny import RECIPE, make_dataset


@contextmanager
def _compiling_with(backend: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let networks be compiled by a backend, and forget what was compiled."""
    compile_module = torch.nn.Module.compile

    def compile_with_stand_in(module: torch.nn.Module, *, mode: str, dynamic: bool) -> None:
        compile_module(module, backend=backend, dynamic=dynamic)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_with_stand_in)
    yield
    torch.compiler.set_stance("default")
    torch.compiler.reset()


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The graphs that the backend was given."""
    found: list[Any] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        found.append(graph)
        return graph.forward

    with _compiling_with(backend, monkeypatch):
        yield found


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A compiler that fails, as where there is no C compiler for Triton."""

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        raise RuntimeError("Failed to find C compiler\nand more")

    with _compiling_with(backend, monkeypatch):
        yield


@pytest.fixture
def broken_in_validation(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A compiler that fails at the graph of validation, which has no gradients."""

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        if not torch.is_grad_enabled():
            raise RuntimeError("no kernel for this graph\nand more")
        return graph.forward

    with _compiling_with(backend, monkeypatch):
        yield


def _trainer(compile_mode: str, failed: Callable[[str], None] | None = None) -> StageTrainer:
    torch.manual_seed(0)
    stage = Stage(size=16, batch_size=2, lr=0.1, trains=("encoder", "mask", "depth"))
    preprocess = Preprocess(_batch("cpu", size=32)[1], STATISTICS, size=16)
    trainer = StageTrainer(
        network=DualDecoderUNet(2), recipe=RECIPES["joint"], stage=stage, preprocess=preprocess,
        precision=OFF, compile=compile_mode, compile_failed=failed,
    )  # fmt: skip
    trainer.wrapped.train()
    return trainer


def _state_after_two_steps(trainer: StageTrainer) -> dict[str, torch.Tensor]:
    for _ in range(2):
        trainer.step(_batch("cpu", size=32)[0], epoch=0, lr=0.1)
    return trainer.network.state_dict()


@pytest.fixture
def fit(tmp_path: Path) -> Callable[..., Result]:
    """`train.py fit` on a CPU; two epochs of 17 samples, validated on 7, in batches of 4."""
    (tmp_path / "data").mkdir()
    data = make_dataset(tmp_path / "data")
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(RECIPE)

    def fit(*more: str) -> Result:
        options = ["--loader", "reference", "--device", "cpu", "--width", "1", "--amp", "off"]
        arguments = ["fit", str(data), str(tmp_path / "run"), "--recipe", str(recipe), *options]
        return CliRunner().invoke(train.main, [*arguments, *more])

    return fit


def test_a_run_compiles_once_for_training_and_once_for_validation(
    graphs: list[Any], fit: Callable[..., Result]
) -> None:
    """The last batches, which are smaller, are not compiled."""
    result = fit("--compile", "default", "--profile", "2")
    assert result.exit_code == 0, result.output
    assert len(graphs) == 2
    assert "profile: 2 of 2 steps recorded" in result.output


@pytest.mark.parametrize(
    ("compiler", "chosen"),
    [("graphs", "default"), ("broken", "off"), ("broken_in_validation", "off")],
)
def test_a_resumed_run_keeps_what_auto_has_chosen(
    compiler: str, chosen: str, fit: Callable[..., Result], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    """Also that compiling has failed, which is reported once."""
    request.getfixturevalue(compiler)
    requests: list[str] = []

    def choose(request: str, device: torch.device, *, world_size: int) -> str:
        requests.append(request)
        return "default" if request == "auto" else request

    for module in ("maskdepth.train", "maskdepth.model.training.loop"):
        monkeypatch.setattr(f"{module}.choose_compile", choose)
    result = fit()
    assert result.exit_code == 0, result.output
    assert result.stderr.count("compiling failed") == (chosen == "off")
    assert set(requests) == {"auto"}
    config = json.loads((tmp_path / "run/config.json").read_text())["config"]
    assert config["compile"] == chosen
    requests.clear()
    result = fit("--resume", "--compile", "auto")
    assert result.exit_code == 0, result.output
    assert "compiling failed" not in result.stderr
    assert set(requests) == {chosen}


def test_compiling_changes_no_state(graphs: list[Any]) -> None:
    compiled = _state_after_two_steps(_trainer("default"))
    assert len(graphs) == 1
    for name, value in _state_after_two_steps(_trainer("off")).items():
        torch.testing.assert_close(compiled[name], value)


@pytest.mark.usefixtures("broken")
def test_auto_continues_where_compiling_fails() -> None:
    """The reason is given once, and the state is that of a run that never compiled."""
    reasons: list[str] = []
    found = _state_after_two_steps(_trainer("default", reasons.append))
    assert len(reasons) == 1
    assert "Failed to find C compiler" in reasons[0]
    assert "\n" not in reasons[0]
    for name, value in _state_after_two_steps(_trainer("off")).items():
        assert torch.equal(found[name], value)


@pytest.mark.usefixtures("broken")
def test_an_explicit_mode_that_fails_is_an_error() -> None:
    expected = r"^--compile default: compiling failed \(.*C compiler.*\); use --compile off$"
    with pytest.raises(ModelError, match=expected):
        _state_after_two_steps(_trainer("default"))


@pytest.mark.usefixtures("broken_in_validation")
def test_an_explicit_mode_that_fails_in_validation_is_an_error(fit: Callable[..., Result]) -> None:
    result = fit("--compile", "default")
    assert result.exit_code == 2
    assert result.stderr == (
        "Error: --compile default: compiling failed (RuntimeError: no kernel for this graph); "
        "use --compile off\n"
    )
